"""TPP and SCR give the right scores on a model for which the answer is known.

The activation of a word is the direction of that word. Filler words have a small activation.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from tokenizers.pre_tokenizers import WhitespaceSplit

from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError, Outcome
from saelens_adaptive_ortho.judging.running import run_evaluation
from saelens_adaptive_ortho.judging.saebench import scr
from saelens_adaptive_ortho.text.corpora import CorpusConfig
from tests.judging import support
from tests.judging.support import files_of, process_state, read_back, word_model

sae_bench = pytest.importorskip("sae_bench")

HOOK, WIDTH = "blocks.0.hook_resid_post", 256
CLASSES = ["bread", "stone", "cloud", "field"]
FIRSTS, SECONDS = ["nurse", "judge"], ["calm", "loud"]
FILLERS = [f"the{i}" for i in range(16)]
WORDS = CLASSES + FIRSTS + SECONDS + FILLERS
SMALL = {"train_size": 160, "test_size": 40}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    eye = torch.eye(WIDTH)
    sizes = [4.0 if word in FILLERS else 20.0 for word in WORDS]
    return word_model(
        tmp_path_factory.mktemp("words"),
        {word: size * eye[i] for i, (word, size) in enumerate(zip(WORDS, sizes, strict=True))},
        WhitespaceSplit(),
    )


def sae_of(encoder: torch.Tensor) -> StandardSAE:
    """Latents that read and write the columns of ``encoder``."""
    cfg = StandardSAEConfig(
        d_in=WIDTH,
        d_sae=encoder.shape[1],
        metadata=SAEMetadata(model_name="words", hook_name=HOOK),
    )
    sae = StandardSAE(cfg)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.zero_()
        sae.W_enc.copy_(encoder / encoder.norm(dim=0))
        sae.W_dec.copy_(sae.W_enc.T)
    return sae


def one_per_word() -> StandardSAE:
    return sae_of(torch.eye(WIDTH)[:, :32])


def at_random() -> StandardSAE:
    return sae_of(torch.randn(WIDTH, 32, generator=torch.Generator().manual_seed(3)))


def make_context(
    model: Any, folder: Path, sae: Callable[[], StandardSAE], corpora: tuple[str, ...] = ()
) -> EvalContext:
    texts = {d: CorpusConfig(path=str(folder / f"{d}.jsonl")) for d in corpora}
    return support.make_context(model, folder, sae, "./words", texts)


def write_jsonl(path: Path, rows: Iterator[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def labelled(classes: list[str], count: int = 210) -> Iterator[dict[str, str]]:
    """Texts of filler words and one word that is the label."""
    draw = random.Random(0)
    for label in classes:
        for _ in range(count):
            words = [label, *draw.sample(FILLERS, 5)]
            draw.shuffle(words)
            yield {"text": " ".join(words), "label": label}


def crossed(count: int = 210) -> Iterator[dict[str, str]]:
    """Texts with words of both attributes. Words of the first are more frequent."""
    draw = random.Random(0)
    for first in FIRSTS:
        for second in SECONDS:
            for _ in range(count):
                words = [first, first, first, second, second, *draw.sample(FILLERS, 3)]
                draw.shuffle(words)
                yield {"text": " ".join(words), "job": first, "mood": second}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Settings by evaluation."""
    folder = tmp_path_factory.mktemp("texts")
    return {
        "tpp": SMALL | {"source": write_jsonl(folder / "classes.jsonl", labelled(CLASSES))},
        "scr": SMALL
        | {"source": write_jsonl(folder / "crossed.jsonl", crossed()), "columns": ["job", "mood"]},
    }


NAMES = ("tpp", "scr")
Filled = dict[str, tuple[Path, Outcome, Outcome]]


@pytest.fixture(scope="module")
def filled(
    model: Any, texts: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Filled:
    """For each evaluation, a folder with a cache, and the outcomes of a good and a random SAE."""
    found = {}
    for name in NAMES:
        folder = tmp_path_factory.mktemp(name)
        good, bad = (
            run_evaluation(name, make_context(model, folder, sae), texts[name])
            for sae in (one_per_word, at_random)
        )
        found[name] = (folder, good, bad)
    return found


# -------------------------------------------------------------- known answers


def test_tpp_separates_class_latents_from_random_ones(filled: Filled) -> None:
    _, good, bad = filled["tpp"]
    assert good.metrics["threshold_2"] > 0.15
    assert abs(good.metrics["threshold_2_unintended"]) < 0.1
    assert abs(bad.metrics["threshold_2"]) < 0.1
    for metrics in (good.metrics, bad.metrics):
        for n in (2, 5, 10, 20):
            difference = metrics[f"threshold_{n}_intended"] - metrics[f"threshold_{n}_unintended"]
            assert metrics[f"threshold_{n}"] == pytest.approx(difference)
    (classes,) = good.details["classes"].values()
    (accuracies,) = good.details["probe_accuracy"].values()
    assert set(classes) == set(CLASSES)
    assert set(accuracies.values()) == {1.0}


def test_scr_separates_word_latents_from_random_ones(filled: Filled) -> None:
    _, good, bad = filled["scr"]
    assert good.metrics["threshold_2"] == pytest.approx(1, abs=0.05)
    assert abs(bad.metrics["threshold_2"]) < 0.2
    assert good.details["attributes"] == {"job": ("judge", "nurse"), "mood": ("calm", "loud")}


def test_ablates_at_most_d_sae_latents(filled: Filled) -> None:
    for name in NAMES:
        ns = {int(m.split("_")[1]) for m in filled[name][1].metrics}
        assert ns == {2, 5, 10, 20}


@pytest.mark.parametrize("name", NAMES)
def test_caveat_and_saebench_file_are_kept(name: str, filled: Filled) -> None:
    folder, outcome, _ = filled[name]
    kept = json.loads((folder / "raw" / name / outcome.details["sae_bench_file"]).read_text())
    assert kept["eval_type_id"] == name
    assert "2605.18229" in outcome.details["caveat"]


# ------------------------------------------------------------------- fairness


@pytest.mark.parametrize("name", NAMES)
def test_metrics_do_not_depend_on_earlier_saes(
    name: str, model: Any, texts: dict[str, dict[str, Any]], filled: Filled, tmp_path: Path
) -> None:
    folder, good, bad = filled[name]

    def again(folder: Path, sae: Callable[[], StandardSAE]) -> Outcome:
        torch.rand(7)  # other code draws random numbers
        return run_evaluation(name, make_context(model, folder, sae), texts[name])

    assert again(folder, one_per_word) == good
    measured = {metric: value for metric, value in good.metrics.items() if value is not None}
    assert read_back(folder / "raw", name, good) == measured
    assert again(tmp_path, at_random) == bad


def test_damaged_activations_are_made_again(
    model: Any, texts: dict[str, dict[str, Any]], filled: Filled, tmp_path: Path
) -> None:
    folder, good, _ = filled["tpp"]
    shutil.copytree(folder / "cache", tmp_path / "cache")
    (saved,) = (tmp_path / "cache").rglob("*_activations.pt")
    saved.unlink()
    assert run_evaluation("tpp", make_context(model, tmp_path, one_per_word), texts["tpp"]) == good


def test_other_settings_share_nothing(
    model: Any, texts: dict[str, dict[str, Any]], filled: Filled, tmp_path: Path
) -> None:
    shutil.copytree(filled["scr"][0] / "cache", tmp_path / "cache")
    context = make_context(model, tmp_path, one_per_word)
    run_evaluation("scr", context, texts["scr"] | {"seed": 1, "train_size": 20})
    assert len(list((tmp_path / "cache" / "scr").iterdir())) == 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fails", [False, True])
def test_leaves_no_trace(
    name: str,
    fails: bool,
    model: Any,
    texts: dict[str, dict[str, Any]],
    filled: Filled,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sae_bench.evals.scr_and_tpp import dataset_creation, main
    from sae_bench.sae_bench_utils import dataset_info, dataset_utils

    modules = (dataset_creation, main, dataset_info, dataset_utils)
    monkeypatch.chdir(tmp_path)
    before = process_state(*modules)
    if fails:

        def breaks() -> StandardSAE:
            sae = one_per_word()
            sae.W_enc.data = torch.zeros(3, 3)  # SAEBench fails late in its run
            return sae

        with pytest.raises(RuntimeError, match="size of tensor"):
            run_evaluation(name, make_context(model, filled[name][0], breaks), texts[name])
    else:
        run_evaluation(name, make_context(model, filled[name][0], one_per_word), texts[name])
    assert process_state(*modules) == before
    assert not files_of(tmp_path)


# ------------------------------------------------------------------- refusals


def test_tpp_refuses_two_classes(model: Any, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "two.jsonl", labelled(CLASSES[:2]))
    with pytest.raises(EvaluationError, match="has 2 classes and TPP needs three"):
        run_evaluation(
            "tpp", make_context(model, tmp_path, one_per_word), SMALL | {"source": source}
        )


def test_tpp_refuses_two_corpora_of_a_local_model(model: Any, tmp_path: Path) -> None:
    for domain, label in (("forget", "bread"), ("retain", "stone")):
        rows = ({"text": " ".join([label] * 10 + FILLERS[i:])} for i in range(16))
        write_jsonl(tmp_path / f"{domain}.jsonl", rows)
    context = make_context(model, tmp_path, one_per_word, ("forget", "retain"))
    with pytest.raises(EvaluationError, match="TPP needs three"):
        run_evaluation("tpp", context, {"train_size": 8, "test_size": 4})


def test_sae_with_one_latent_is_refused(
    model: Any, texts: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    context = make_context(model, tmp_path, lambda: sae_of(torch.eye(WIDTH)[:, :1]))
    for name in NAMES:
        with pytest.raises(EvaluationError, match="1 latents"):
            run_evaluation(name, context, texts[name])


def test_scr_without_texts_says_what_it_needs(model: Any, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="labelled by two crossed attributes"):
        run_evaluation("scr", make_context(model, tmp_path, one_per_word), {})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"columns": ["job"]}, "must name two fields"),
        (
            {"columns": ["job", "size"]},
            "line 1 of .* has no field size; it has .*needs text, job",
        ),
        ({"columns": ["job", "text"]}, "text must have two values, not 840"),
        ({"source": "absent.jsonl"}, "absent.jsonl cannot be read"),
        (
            {"train_size": 200},
            r"too few .*: 169 of 201 with judge and calm; 169 of 201 with nurse and loud",
        ),
    ],
)
def test_scr_explains_a_bad_file(
    change: dict[str, Any],
    reason: str,
    model: Any,
    texts: dict[str, dict[str, Any]],
    tmp_path: Path,
) -> None:
    context = make_context(model, tmp_path, one_per_word)
    with pytest.raises(EvaluationError, match=reason):
        run_evaluation("scr", context, texts["scr"] | change)


@pytest.mark.parametrize("name", NAMES)
def test_unreachable_published_data_sets_are_explained(
    name: str, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_bench.evals.scr_and_tpp import dataset_creation
    from sae_bench.sae_bench_utils import dataset_utils

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(dataset_creation, "load_dataset", offline)
    monkeypatch.setattr(dataset_utils, "load_dataset", offline)
    context = make_context(model, tmp_path, one_per_word)
    with pytest.raises(EvaluationError, match="hub cannot be reached"):
        run_evaluation(name, context, {"source": "published"})


@pytest.fixture
def biographies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replacement of LabHC/bias_in_bios, with the professions that SAEBench reads."""
    from sae_bench.evals.scr_and_tpp import dataset_creation
    from sae_bench.sae_bench_utils import dataset_utils

    draw = random.Random(0)
    rows = [
        {"hard_text": " ".join(draw.sample(WORDS, 6)), "profession": job, "gender": gender}
        for job in (0, 1, 2, 6, 9, 11, 13, 21, 22, 25, 26)
        for gender in (0, 1)
        for _ in range(20)
    ]

    def load(name: str) -> dict[str, list[dict[str, Any]]]:
        assert name == "LabHC/bias_in_bios"
        return {"train": rows, "test": rows}

    monkeypatch.setattr(dataset_creation, "load_dataset", load)
    monkeypatch.setattr(dataset_utils, "load_dataset", load)


PUBLISHED = {"source": "LabHC/bias_in_bios_class_set1", "test_size": 8}


@pytest.mark.usefixtures("biographies")
@pytest.mark.parametrize("name", NAMES)
def test_published_data_set_is_judged_as_published(name: str, model: Any, tmp_path: Path) -> None:
    context = make_context(model, tmp_path, at_random)
    outcome = run_evaluation(name, context, PUBLISHED | {"train_size": 16})
    (kept,) = (tmp_path / "raw" / name).iterdir()
    config = json.loads(kept.read_text())["eval_config"]
    assert config["train_set_size"] == 32
    if name == "tpp":
        (classes,) = outcome.details["classes"].values()
        assert set(classes) == {"0", "1", "2", "6", "9"}
    else:
        assert outcome.details["attributes"] is None
        assert len(outcome.details["pairs"]) == 4


@pytest.mark.usefixtures("biographies")
def test_too_few_published_texts_are_counted(model: Any, tmp_path: Path) -> None:
    context = make_context(model, tmp_path, at_random)
    with pytest.raises(EvaluationError, match=r"20 of 31 with professor and male"):
        run_evaluation("scr", context, PUBLISHED | {"train_size": 30})


# --------------------------------------------------------------------- demo


def test_demo_texts_cover_every_combination() -> None:
    rows = list(scr._demo_rows(0, 50))
    assert rows == list(scr._demo_rows(0, 50))
    assert {(topic, about) for _, topic, about in rows} == {
        (topic, about) for topic in ("geography", "sport") for about in ("colour", "place")
    }
    for text, topic, _ in rows:
        assert ("the town of" in text.lower()) == (topic == "geography")
