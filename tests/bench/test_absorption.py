"""Absorption: right where it is built in, the same whatever ran before, traceless, clear refusals.

The model knows first letters and nothing else: a word's activation is the direction of its
letter, plus one of its own if the word is to be absorbed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from saelens_adaptive_ortho.bench import absorption
from saelens_adaptive_ortho.evaluation import EVALS, EvalContext, EvaluationError, Workbench
from saelens_adaptive_ortho.models import DEMO_MODEL, load_language_model

sae_bench = pytest.importorskip("sae_bench")

HOOK = "blocks.0.hook_resid_post"
LETTERS = string.ascii_lowercase
WORDS = [f"{a}{b}x" for a in LETTERS for b in LETTERS[:20]]
ABSORBED = [word for word in WORDS if word[0] in "abcdef" and word[1] < "f"]
WIDTH, SCALE = 64, 5.0
QUICK = {"max_k": 1}


def direction(word: str) -> torch.Tensor:
    """Of the letter of a word, and of the word itself if it is one that is absorbed."""
    vector = torch.zeros(WIDTH)
    vector[LETTERS.index(word.strip()[0].lower())] = 1
    if word in ABSORBED:
        vector[len(LETTERS) + ABSORBED.index(word)] = 1
    return vector


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("spelling")
    special = ["<|endoftext|>", "<|pad|>", "<|unknown|>", "\n", ":"]
    words = [f" {a.upper()}" for a in LETTERS] + " has| the| first| letter".split("|") + WORDS
    vocabulary = {token: i for i, token in enumerate(special + words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=special[2]))
    tokenizer.pre_tokenizer = Split(Regex(" ?[A-Za-z]+|\n|:"), "isolated")  # type: ignore
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special[0],
        eos_token=special[0],
        pad_token=special[1],
        unk_token=special[2],
    ).save_pretrained(folder)
    cfg = GPTNeoXConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
    )
    network = GPTNeoXForCausalLM(cfg)
    with torch.no_grad():
        for parameter in network.gpt_neox.layers.parameters():
            parameter.zero_()
        network.gpt_neox.embed_in.weight.zero_()
        for word in words:
            network.gpt_neox.embed_in.weight[vocabulary[word]] = SCALE * direction(word)
    network.save_pretrained(folder)
    return load_language_model(str(folder))


def spelling_sae(absorbing: bool, hook_name: str = HOOK) -> StandardSAE:
    """A latent per letter; if ``absorbing``, silent on absorbed words, which have their own."""
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


def make_context(
    model: Any, folder: Path, sae: Callable[[], StandardSAE], name: str = "spelling"
) -> EvalContext:
    bench = Workbench(
        model=model,
        model_name=name,
        corpora=[],
        texts={},
        context_size=128,
        cache=folder / "cache",
    )
    return EvalContext(bench=bench, load=sae, variant="sae", seed=0, raw_dir=folder / "raw")


def evaluate(context: EvalContext, **settings: Any) -> Any:
    return EVALS["absorption"].run(context, QUICK | settings)


def absorbing() -> StandardSAE:
    return spelling_sae(absorbing=True)


def plain() -> StandardSAE:
    return spelling_sae(absorbing=False)


def files_of(folder: Path) -> set[Path]:
    return {f for f in folder.rglob("*") if f.suffix != ".pyc" and f.name != "__pycache__"}


@pytest.fixture(scope="module")
def filled(model: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A folder with a cache, and the outcomes of both SAEs."""
    folder = tmp_path_factory.mktemp("filled")
    first = evaluate(make_context(model, folder, absorbing))
    return folder, first, evaluate(make_context(model, folder, plain))


def test_full_absorption_is_the_share_of_words_whose_letter_another_latent_carries(
    filled: tuple[Path, Any, Any],
) -> None:
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


def test_nothing_is_absorbed_where_each_letter_has_its_latent(
    filled: tuple[Path, Any, Any],
) -> None:
    _, _, outcome = filled
    assert outcome.metrics["full_absorption"] == 0
    assert outcome.metrics["n_split_features"] == 1


def test_an_sae_gets_the_same_numbers_whatever_ran_before(
    model: Any, tmp_path: Path, filled: tuple[Path, Any, Any]
) -> None:
    folder, first, second = filled
    torch.rand(7)  # someone else's random numbers
    assert evaluate(make_context(model, folder, absorbing)) == first
    assert evaluate(make_context(model, tmp_path, plain)) == second
    assert evaluate(make_context(model, tmp_path, absorbing)) == first


def test_the_words_are_in_one_order_though_the_vocabulary_is_not(model: Any) -> None:
    words, position = absorption._words_and_position(
        make_context(model, Path(), absorbing), "{word} has the first letter:"
    )
    assert words == sorted(words)
    assert set(WORDS) < set(words)
    assert position == -6


def test_damaged_probes_are_made_again(
    model: Any, tmp_path: Path, filled: tuple[Path, Any, Any]
) -> None:
    shutil.copytree(filled[0] / "cache", tmp_path / "cache")
    (probe,) = (tmp_path / "cache").rglob("probe.pth")
    probe.write_bytes(probe.read_bytes()[:100])
    assert evaluate(make_context(model, tmp_path, absorbing)) == filled[1]


def test_a_killed_run_leaves_no_probes(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_bench.evals.absorption import common

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(common, "save_probe_and_data", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(make_context(model, tmp_path, absorbing))
    assert files_of(tmp_path) == {tmp_path / "cache", tmp_path / "cache" / "absorption"}


@pytest.mark.parametrize("fails", [False, True])
def test_it_leaves_no_trace(
    model: Any,
    tmp_path: Path,
    fails: bool,
    monkeypatch: pytest.MonkeyPatch,
    filled: tuple[Path, Any, Any],
) -> None:
    from sae_bench.evals.absorption import common, feature_absorption, main, probing

    def process() -> tuple[Any, ...]:
        modules = [dict(vars(m)) for m in (common, feature_absorption, main, probing)]
        numpy_state = np.random.get_state()[1].tolist()  # type: ignore[union-attr]
        generators = torch.get_rng_state().tolist(), random.getstate(), numpy_state
        package = files_of(Path(sae_bench.__file__).parent)
        return (
            package, os.getcwd(), torch.is_grad_enabled(), model.cfg.model_name,
            modules, generators,
        )  # fmt: skip

    monkeypatch.chdir(tmp_path)
    with torch.no_grad():
        before = process()
        context = make_context(model, filled[0], absorbing)
        if fails:
            with pytest.raises(EvaluationError):
                evaluate(context, min_probe_f1=1.0)
        else:
            evaluate(context)
        assert process() == before
    assert not files_of(tmp_path)


def test_the_result_file_of_sae_bench_is_kept(filled: tuple[Path, Any, Any]) -> None:
    folder, outcome, _ = filled
    kept = json.loads(
        (folder / "raw" / "absorption" / outcome.details["sae_bench_file"]).read_text()
    )
    assert kept["eval_config"]["prompt_token_pos"] == -6
    assert "16,384 latents" in outcome.details["caveat"]


# ------------------------------------------------------------------- refusals


def test_too_few_readable_letters_is_a_reason_with_their_scores(
    model: Any, tmp_path: Path, filled: tuple[Path, Any, Any]
) -> None:
    context = make_context(model, filled[0], absorbing)
    with pytest.raises(EvaluationError, match=r"^0 first letters .* 20 are needed.* a 1\.00"):
        evaluate(context, min_probe_f1=1.0)


def test_a_tokenizer_that_splits_letters_is_refused(tmp_path: Path) -> None:
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
def test_settings_that_cannot_work_are_refused(
    model: Any, tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(EvaluationError, match=reason):
        evaluate(make_context(model, tmp_path, absorbing), **settings)


def test_an_sae_inside_a_block_is_refused(model: Any, tmp_path: Path) -> None:
    def inside() -> StandardSAE:
        return spelling_sae(absorbing=True, hook_name="blocks.0.hook_mlp_out")

    with pytest.raises(EvaluationError, match="hook_resid_post.* not blocks.0.hook_mlp_out"):
        evaluate(make_context(model, tmp_path, inside))
