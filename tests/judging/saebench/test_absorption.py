"""Absorption is measured correctly on a model with built-in absorption.

The model knows first letters only. The activation of a word is the direction of its letter; a word
that is absorbed also has a direction of its own.
"""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError
from saelens_adaptive_ortho.judging.running import run_evaluation
from saelens_adaptive_ortho.judging.saebench import absorption
from saelens_adaptive_ortho.text.models import DEMO_MODEL, load_language_model
from tests.judging.support import files_of, make_context, process_state, read_back, word_model

sae_bench = pytest.importorskip("sae_bench")

HOOK = "blocks.0.hook_resid_post"
LETTERS = string.ascii_lowercase
WORDS = [f"{a}{b}x" for a in LETTERS for b in LETTERS[:20]]
ABSORBED = [word for word in WORDS if word[0] in "abcdef" and word[1] < "f"]
WIDTH, SCALE = 64, 5.0
QUICK = {"max_k": 1}
NAME = "spelling"


def direction(word: str) -> torch.Tensor:
    """The direction of a word's letter, plus that of the word itself if it is an absorbed word."""
    vector = torch.zeros(WIDTH)
    vector[LETTERS.index(word.strip()[0].lower())] = 1
    if word in ABSORBED:
        vector[len(LETTERS) + ABSORBED.index(word)] = 1
    return vector


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    words = [f" {a.upper()}" for a in LETTERS] + " has| the| first| letter".split("|") + WORDS
    return word_model(
        tmp_path_factory.mktemp("spelling"),
        {word: SCALE * direction(word) for word in words},
        Split(Regex(" ?[A-Za-z]+|\n|:"), "isolated"),
        others=("\n", ":"),
    )


def spelling_sae(absorbing: bool, hook_name: str = HOOK) -> StandardSAE:
    """An SAE with a latent per letter.

    If ``absorbing``, absorbed words have latents of their own, and their letter's latent is silent.
    """
    cfg = StandardSAEConfig(
        d_in=WIDTH,
        d_sae=len(LETTERS) + len(ABSORBED),
        metadata=SAEMetadata(model_name="spelling", hook_name=hook_name),
    )
    sae = StandardSAE(cfg)
    eye = torch.eye(WIDTH)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.zero_()
        for i in range(len(LETTERS)):
            sae.W_enc[:, i] = sae.W_dec[i] = eye[i]
        for j, word in enumerate(ABSORBED, start=len(LETTERS)):
            sae.W_dec[j] = direction(word) / direction(word).norm()
            if absorbing:
                sae.W_enc[j, LETTERS.index(word[0])] = -1.0
                sae.W_enc[j, j] = direction(word).norm()
    return sae


def evaluate(context: EvalContext, **settings: Any) -> Any:
    return run_evaluation("absorption", context, QUICK | settings)


def absorbing() -> StandardSAE:
    return spelling_sae(absorbing=True)


def plain() -> StandardSAE:
    return spelling_sae(absorbing=False)


@pytest.fixture(scope="module")
def filled(model: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A folder with a cache, and the outcomes of both SAEs."""
    folder = tmp_path_factory.mktemp("filled")
    first = evaluate(make_context(model, folder, absorbing, NAME))
    return folder, first, evaluate(make_context(model, folder, plain, NAME))


def test_full_absorption_is_the_share_of_absorbed_words(
    filled: tuple[Path, Any, Any],
) -> None:
    """On an absorbed word, the latent of the word fires and the latent of the letter is silent."""
    folder, outcome, _ = filled
    (held_out,) = (folder / "cache").rglob("test_df.csv")
    words = pd.read_csv(held_out, keep_default_na=False)["token"].tolist()
    for letter, row in outcome.details["letters"].items():
        mine = [w for w in words if w.strip()[0].lower() == letter]
        assert row["num_probe_true_positives"] == len(mine)
        assert row["num_full_absorption"] == sum(w in ABSORBED for w in mine)
        assert row["num_split_features"] == 1
    rates = [row["full_absorption_rate"] for row in outcome.details["letters"].values()]
    assert outcome.metrics["full_absorption"] == pytest.approx(np.mean(rates))
    assert sum(rates) > 1
    assert outcome.metrics["n_letters"] == 26
    assert next(iter(outcome.metrics)) == "full_absorption"


def test_no_absorption_with_a_latent_per_letter(
    filled: tuple[Path, Any, Any],
) -> None:
    _, _, outcome = filled
    assert outcome.metrics["full_absorption"] == 0
    assert outcome.metrics["n_split_features"] == 1


def test_metrics_do_not_depend_on_earlier_saes(
    model: Any, tmp_path: Path, filled: tuple[Path, Any, Any]
) -> None:
    folder, first, second = filled
    torch.rand(7)  # other code draws random numbers
    assert evaluate(make_context(model, folder, absorbing, NAME)) == first
    assert evaluate(make_context(model, tmp_path, plain, NAME)) == second
    assert evaluate(make_context(model, tmp_path, absorbing, NAME)) == first
    found = read_back(tmp_path / "raw", "absorption", first)
    assert found == {name: first.metrics[name] for name in found}


def test_word_order_is_fixed(model: Any) -> None:
    words, position = absorption._words_and_position(
        make_context(model, Path(), absorbing, NAME), "{word} has the first letter:"
    )
    assert words == sorted(words)
    assert set(WORDS) < set(words)
    assert position == -6


def test_damaged_probes_are_made_again(
    model: Any, tmp_path: Path, filled: tuple[Path, Any, Any]
) -> None:
    shutil.copytree(filled[0] / "cache", tmp_path / "cache")
    (probe,) = (tmp_path / "cache").rglob("probe.safetensors")
    probe.write_bytes(probe.read_bytes()[:100])
    assert evaluate(make_context(model, tmp_path, absorbing, NAME)) == filled[1]


def test_killed_run_leaves_no_probes(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(absorption, "_save_probe", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(make_context(model, tmp_path, absorbing, NAME))
    assert files_of(tmp_path) == {tmp_path / "cache", tmp_path / "cache" / "absorption"}


@pytest.mark.parametrize("fails", [False, True])
def test_leaves_no_trace(
    model: Any,
    tmp_path: Path,
    fails: bool,
    monkeypatch: pytest.MonkeyPatch,
    filled: tuple[Path, Any, Any],
) -> None:
    from sae_bench.evals.absorption import common, feature_absorption, main, probing

    modules = (common, feature_absorption, main, probing)
    name = model.cfg.model_name
    monkeypatch.chdir(tmp_path)
    with torch.no_grad():
        before = process_state(*modules)
        context = make_context(model, filled[0], absorbing, NAME)
        if fails:
            with pytest.raises(EvaluationError):
                evaluate(context, min_probe_f1=1.0)
        else:
            evaluate(context)
        assert process_state(*modules) == before
        assert model.cfg.model_name == name
    assert not files_of(tmp_path)


def test_saebench_result_file_is_kept(filled: tuple[Path, Any, Any]) -> None:
    folder, outcome, _ = filled
    kept = json.loads(
        (folder / "raw" / "absorption" / outcome.details["sae_bench_file"]).read_text()
    )
    assert kept["eval_config"]["prompt_token_pos"] == -6
    assert "16,384 latents" in outcome.details["caveat"]


# ------------------------------------------------------------------- refusals


def test_too_few_readable_letters_fails_with_their_f1(
    model: Any, tmp_path: Path, filled: tuple[Path, Any, Any]
) -> None:
    context = make_context(model, filled[0], absorbing, NAME)
    with pytest.raises(EvaluationError, match=r"^0 first letters .* 20 are needed.* a 1\.00"):
        evaluate(context, min_probe_f1=1.0)


def test_tokenizer_that_splits_letters_is_refused(tmp_path: Path) -> None:
    model = load_language_model(DEMO_MODEL)
    with pytest.raises(EvaluationError, match=r"single token for each .* splits E F G"):
        evaluate(make_context(model, tmp_path, absorbing, DEMO_MODEL))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"prompt_template": "{word} has" + " the" * 20}, "the model sees 128"),
        ({"prompt_template": "no word"}, "must hold {word} once"),
        ({"min_letters": 1}, "2 or more"),
        ({"max_k": 100}, "56 latents and SAEBench ranks 100"),
    ],
)
def test_bad_settings_are_refused(
    model: Any, tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(EvaluationError, match=reason):
        evaluate(make_context(model, tmp_path, absorbing, NAME), **settings)


def test_sae_inside_a_block_is_refused(model: Any, tmp_path: Path) -> None:
    def inside() -> StandardSAE:
        return spelling_sae(absorbing=True, hook_name="blocks.0.hook_mlp_out")

    with pytest.raises(EvaluationError, match="hook_resid_post.* not blocks.0.hook_mlp_out"):
        evaluate(make_context(model, tmp_path, inside, NAME))
