"""The file of examples: it is read back as it was written, or not used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saelens_adaptive_ortho import examples
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.examples import Example, Examples


def example(corpus: str = "forget", **texts: str) -> Example:
    given = {"prompt": "The virus", "truth": " enters", "before": " enters", "after": " is"} | texts
    return Example(corpus=corpus, loss_before=0.5, loss_after=2.25, **given)


def some(**given: object) -> Examples:
    known: dict[str, object] = {"variant": "adaptive", "seed": 1, "sae_digest": "ab"}
    known |= {"latents": 40, "strength": 8.0, "gate": 0.05, "budget": 0.05, "tokens": 40}
    known |= {"damage": {"forget": 2.0, "retain": 0.01}}
    known |= {"examples": [example(), example("retain"), example()]}
    return Examples(**(known | given))  # type: ignore[arg-type]


def test_file_is_read_back(tmp_path: Path) -> None:
    assert examples.read(tmp_path) is None
    assert examples.write(tmp_path, some()).name == "examples.json"
    assert examples.read(tmp_path) == some()
    assert some().corpora == ["forget", "retain"]
    without = some(examples=[], reason="no latent is specific")
    examples.write(tmp_path, without)
    assert examples.read(tmp_path) == without


def test_home_folder_is_not_told(tmp_path: Path) -> None:
    text = f"see {Path.home()}/notes"
    examples.write(tmp_path, some(examples=[example(prompt=text)]))
    found = examples.read(tmp_path)
    assert found is not None
    assert found.examples[0].prompt == "see ~/notes"


def test_a_file_that_cannot_be_used_is_none(tmp_path: Path) -> None:
    file = examples.write(tmp_path, some())
    text = file.read_text()
    file.write_text(text.replace(" enters", " leaves", 1))
    with pytest.warns(UserWarning, match="damaged"):
        assert examples.read(tmp_path) is None
    tree = json.loads(text)
    del tree["sha256"]
    broken = ({"examples": 3}, {"seed": -1}, {"examples": [{"corpus": "forget"}]}, {"gate": 2.0})
    for change in broken:
        file.write_text(json.dumps(tree | change))
        with pytest.warns(UserWarning, match="is not used"):
            assert examples.read(tmp_path) is None
    file.write_text("[1]")
    with pytest.warns(UserWarning, match="is not used"):
        assert examples.read(tmp_path) is None


def test_no_examples_need_a_reason() -> None:
    with pytest.raises(ConfigError, match="must not be empty without a reason"):
        some(examples=[])


def test_an_infinite_loss_is_not_written(tmp_path: Path) -> None:
    bad = Example(**{**vars(example()), "loss_after": float("inf")})
    with pytest.raises(ValueError, match="JSON|finite"):
        examples.write(tmp_path, some(examples=[bad]))
