"""lambda(t): the coefficient of the penalty as a pure function of the training step."""

from __future__ import annotations


def curriculum(step: int, start: float, end: float, steps: int) -> float:
    """Linear from ``start`` at step 0 to ``end`` at step ``steps``, constant afterwards."""
    if steps <= 0 or step >= steps:
        return end
    return start + (end - start) * step / steps


def fade_out(step: int, start: int, end: int) -> float:
    """1 before step ``start``, linear to 0 at step ``end``, 0 afterwards."""
    if step < start:
        return 1.0
    if step >= end:
        return 0.0
    return (end - step) / (end - start)
