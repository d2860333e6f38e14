"""lambda(t) at hand-computed steps."""

from __future__ import annotations

import pytest

from saelens_adaptive_ortho.maths.schedule import curriculum, fade_out


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.01), (1250, 0.0325), (2500, 0.055), (4999, 0.099982), (5000, 0.1), (10**6, 0.1)],
)
def test_curriculum_rises_then_stays(step: int, expected: float) -> None:
    assert curriculum(step, start=0.01, end=0.1, steps=5000) == pytest.approx(expected)


def test_curriculum_may_also_fall() -> None:
    assert [curriculum(t, 1.0, 0.0, 4) for t in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


def test_curriculum_without_steps_is_at_its_end() -> None:
    assert curriculum(0, 0.5, 2.0, 0) == 2.0


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1.0),
        (399, 1.0),
        (400, 1.0),
        (450, 0.75),
        (500, 0.5),
        (599, 0.005),
        (600, 0.0),
        (9999, 0),
    ],
)
def test_fade_out_is_one_then_linear_then_zero(step: int, expected: float) -> None:
    assert fade_out(step, start=400, end=600) == pytest.approx(expected)
