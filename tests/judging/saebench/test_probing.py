"""Sparse probing and sae-probes: independent of order, right on known cases, no side effects."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from torch import Tensor

from saelens_adaptive_ortho import demo
from saelens_adaptive_ortho.demo.world import TOPICS, World, jsonl, probing_records
from saelens_adaptive_ortho.evaluations.sae_probes import SUBSET
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError, Outcome
from saelens_adaptive_ortho.judging.running import run_evaluation
from saelens_adaptive_ortho.judging.saebench import sae_probes, session, sparse_probing, tasks
from saelens_adaptive_ortho.text.corpora import CorpusConfig
from saelens_adaptive_ortho.text.models import DEMO_MODEL, load_language_model
from tests.judging import support
from tests.judging.support import process_state, read_back

HOOK = "blocks.2.hook_resid_post"
WIDTH, D_SAE = 96, 32
SPARSE = {"k_values": [1, 5], "train_size": 12, "test_size": 8}
DATASET = "119_us_state_TX"
PROBES = {"k_values": [1], "datasets": [DATASET]}
NAMES = ("sparse_probing", "sae_probes")


def random_sae(seed: int) -> StandardSAE:
    cfg = StandardSAEConfig(
        d_in=WIDTH,
        d_sae=D_SAE,
        metadata=SAEMetadata(model_name=DEMO_MODEL, hook_name=HOOK),
    )
    sae = StandardSAE(cfg)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        sae.W_dec.copy_(torch.randn(D_SAE, WIDTH, generator=draw))
        sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
        sae.W_enc.copy_(sae.W_dec.T)
    return sae


@pytest.fixture(scope="module")
def model() -> Any:
    return load_language_model(DEMO_MODEL)


def make_context(
    model: Any,
    folder: Path,
    sae: int | StandardSAE = 1,
    texts: dict[str, CorpusConfig] | None = None,
    name: str = DEMO_MODEL,
) -> EvalContext:
    state = (random_sae(sae) if isinstance(sae, int) else sae).state_dict()

    def load() -> StandardSAE:
        fresh = random_sae(0)
        fresh.load_state_dict(state)
        return fresh

    return support.make_context(model, folder, load, name, texts)


@pytest.fixture
def context(model: Any, tmp_path: Path) -> EvalContext:
    return make_context(model, tmp_path)


def evaluate(name: str, context: EvalContext, **settings: Any) -> Outcome:
    pytest.importorskip("sae_bench")
    return run_evaluation(
        name, context, (SPARSE if name == "sparse_probing" else PROBES) | settings
    )


# ------------------------------------------------------------------- fairness


class Runs(NamedTuple):
    """Two SAEs in two orders: a, b and again a with one cache; b and a with another cache."""

    a: Outcome
    b: Outcome
    a_again: Outcome
    b_first: Outcome
    a_second: Outcome
    cached: Path  # filled
    file_of_a: dict[str, float]  # what is read from SAEBench's file


@pytest.fixture(scope="module")
def runs(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Runs]:
    @cache
    def run(name: str) -> Runs:
        one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
        outcomes = []
        for folder, sae in ((one, 1), (one, 2), (one, 1), (two, 2), (two, 1)):
            outcomes.append(evaluate(name, make_context(model, folder, sae)))
            torch.rand(7)  # other code draws random numbers
        return Runs(*outcomes, one, read_back(two / "raw", name, outcomes[-1]))

    return run


@pytest.mark.parametrize("name", NAMES)
def test_metrics_do_not_depend_on_earlier_saes(name: str, runs: Callable[[str], Runs]) -> None:
    run = runs(name)
    assert run.a == run.a_again == run.a_second
    assert run.b == run.b_first
    sae = {m for m in run.a.metrics if m.startswith("sae_")}
    baselines = run.a.metrics.keys() - sae
    assert any(run.a.metrics[m] != run.b.metrics[m] for m in sae)
    assert all(run.a.metrics[m] == run.b.metrics[m] for m in baselines)


@pytest.mark.parametrize(
    ("name", "scores", "ks"),
    [("sparse_probing", ["accuracy"], [1, 5]), ("sae_probes", ["auc", "accuracy", "f1"], [1])],
)
def test_metric_names_match_the_report(
    name: str, scores: list[str], ks: list[int], runs: Callable[[str], Runs]
) -> None:
    outcome = runs(name).a
    expected = {f"llm_{score}" for score in scores}
    expected |= {"sae_accuracy"} if name == "sparse_probing" else set()
    expected |= {f"{x}_top_{k}_{s}" for x in ("sae", "llm", "pca") for k in ks for s in scores}
    assert outcome.metrics.keys() == expected
    assert all(v is not None and 0 <= v <= 1 for v in outcome.metrics.values())
    assert json.loads(json.dumps(outcome.details)) == outcome.details
    # SAEBench's own means over classes and data sets.
    found = runs(name).file_of_a
    assert found == {m: pytest.approx(outcome.metrics[m], abs=1e-6) for m in found}


# -------------------------------------------------------------------- no trace


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fails", [False, True])
def test_leaves_no_trace(
    name: str,
    fails: bool,
    runs: Callable[[str], Runs],
    model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("sae_bench")
    import sae_probes as package
    from sae_bench.evals.scr_and_tpp import main as scr_and_tpp
    from sae_bench.evals.sparse_probing import main as sparse
    from sae_bench.evals.sparse_probing import probe_training
    from sae_bench.sae_bench_utils import dataset_info, dataset_utils

    modules = (sparse, probe_training, dataset_utils, dataset_info, scr_and_tpp)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken")

    context = make_context(model, tmp_path if fails else runs(name).cached)
    if fails:
        monkeypatch.setattr(sparse, "run_eval", fail)
        monkeypatch.setattr(package, "run_baseline_evals", fail)  # after the activations
    sides = model.tokenizer.truncation_side, model.tokenizer.padding_side
    before = process_state(*modules)
    here = sorted(Path.cwd().iterdir())
    if fails:
        with pytest.raises(RuntimeError, match="broken"):
            evaluate(name, context)
        assert not list(context.bench.cache.rglob("*.pt")), "an unfinished cache was left"
    else:
        evaluate(name, context)
    assert process_state(*modules) == before
    assert sorted(Path.cwd().iterdir()) == here
    assert (model.tokenizer.truncation_side, model.tokenizer.padding_side) == sides


# ----------------------------------------------------------------------- cache


def spoil(folder: Path, how: str) -> None:
    largest = max(folder.rglob("*.pt"), key=lambda f: f.stat().st_size)
    if how == "cut short":
        largest.write_bytes(largest.read_bytes()[:-100])
    elif how == "changed":
        data = bytearray(largest.read_bytes())
        data[len(data) // 2] ^= 0xFF
        largest.write_bytes(data)
    elif how == "a file missing":
        largest.unlink()
    else:
        next(folder.rglob(tasks.MANIFEST)).write_bytes(b"" if how == "no manifest" else b"\xff")


@pytest.mark.parametrize(
    "how", ["cut short", "changed", "a file missing", "no manifest", "manifest that is no text"]
)
def test_damaged_cache_is_made_again(how: str, context: EvalContext) -> None:
    folder = context.bench.cache
    made = 0

    def use() -> None:
        nonlocal made
        with tasks.shared_artifacts(context, "test", HOOK, {"k": 1}) as artifacts:
            if not (artifacts / "a.pt").is_file():
                made += 1
                torch.save(torch.arange(1000.0), artifacts / "a.pt")
            assert torch.equal(torch.load(artifacts / "a.pt"), torch.arange(1000.0))

    pytest.importorskip("sae_bench")
    use()
    use()
    assert made == 1
    spoil(folder, how)
    with pytest.warns(UserWarning, match="is damaged. Its files are made again"):
        use()
    assert made == 2
    (kept,) = (folder / "test").iterdir()
    kept.rename(kept.with_name(f".{kept.name}.old"))  # the process was killed in the swap
    kept.with_name(f".{kept.name}.lock").touch()
    use()
    assert made == 2
    assert list((folder / "test").iterdir()) == [kept]


def test_saebench_runs_in_the_cache_where_the_next_run_cleans_up(context: EvalContext) -> None:
    pytest.importorskip("sae_bench")
    cache = context.bench.cache
    left = cache / f"adaptive-ortho-{'a' * 32}"
    left.mkdir(parents=True)
    (left / "file").touch()
    with session.session(context) as folder:
        assert Path.cwd() == folder
        assert list(p for p in cache.iterdir() if p.is_dir()) == [folder]
    assert list(cache.iterdir()) == []


def test_damaged_cache_changes_no_metric(
    runs: Callable[[str], Runs], model: Any, tmp_path: Path
) -> None:
    run = runs("sparse_probing")
    shutil.copytree(run.cached, tmp_path, dirs_exist_ok=True)
    spoil(tmp_path / "cache", "changed")
    assert evaluate("sparse_probing", make_context(model, tmp_path)) == run.a


# ------------------------------------------------------------- known answers


def mean_activations(model: Any, texts: list[str]) -> Tensor:
    """Mean activations (text, d) over the tokens of each text except BOS."""
    means = []
    for text in texts:
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        _, acts = model.run_with_cache(ids, names_filter=HOOK)
        means.append(acts[HOOK][0, ids[0] != model.tokenizer.bos_token_id].mean(0))
    return torch.stack(means)


class TwoClasses(NamedTuple):
    """Passages on organisms and on queens, and their mean activations (train, test) by class."""

    source: str
    rows: dict[str, tuple[Tensor, Tensor]]
    folder: Path
    settings: dict[str, Any]


@pytest.fixture(scope="module")
def two_classes(model: Any, tmp_path_factory: pytest.TempPathFactory) -> TwoClasses:
    folder = tmp_path_factory.mktemp("two_classes")
    source = folder / "two.jsonl"
    labelled = [
        {"text": row["text"], "label": row["topic"]}
        for row in probing_records(World(), 100)
        if row["topic"] in ("organisms", "history")
    ]
    source.write_text(jsonl(labelled))
    settings = {"source": str(source), "train_size": 50, "test_size": 50}
    train, test = tasks.class_texts(make_context(model, folder), str(source), 50, 50, seed=42)
    with torch.no_grad():
        rows = {
            c: (mean_activations(model, train[c]), mean_activations(model, test[c])) for c in train
        }
    return TwoClasses(str(source), rows, folder, settings)


def k_sparse_accuracy(
    positive: tuple[Tensor, Tensor], negative: tuple[Tensor, Tensor], k: int
) -> float:
    """Accuracy of logistic regression on the k columns whose class means differ most."""
    from sklearn.linear_model import LogisticRegression

    train, test = (torch.cat([p, n]) for p, n in zip(positive, negative, strict=True))
    chosen = (positive[0].mean(0) - negative[0].mean(0)).abs().topk(k).indices
    y_train = np.repeat([1, 0], len(train) // 2)
    probe = LogisticRegression(max_iter=1000).fit(train[:, chosen].numpy(), y_train)
    return float(probe.score(test[:, chosen].numpy(), np.repeat([1, 0], len(test) // 2)))


def test_sparse_probing_baselines_match_sklearn(model: Any, two_classes: TwoClasses) -> None:
    context = make_context(model, two_classes.folder)
    metrics = evaluate("sparse_probing", context, **two_classes.settings).metrics
    one, two = two_classes.rows.values()
    everything = torch.cat([one[0], two[0]])
    basis = torch.linalg.eigh(torch.cov(everything.T.double())).eigenvectors.float()
    one_pca, two_pca = (tuple(part @ basis for part in c) for c in (one, two))
    for k in SPARSE["k_values"]:
        # Two classes are each other's negatives, so both probes score the same.
        assert metrics[f"llm_top_{k}_accuracy"] == pytest.approx(k_sparse_accuracy(one, two, k))
        assert metrics[f"pca_top_{k}_accuracy"] == pytest.approx(
            k_sparse_accuracy(one_pca, two_pca, k)
        )


def test_finds_latents_that_encode_the_class(model: Any, two_classes: TwoClasses) -> None:
    (one, _), (two, _) = two_classes.rows.values()
    with torch.no_grad():
        rows = torch.cat([one, two])
        labels = torch.cat([torch.ones(len(one)), -torch.ones(len(two))])
        centred = rows - rows.mean(0)
        # Ridge regression on the class; the bias keeps every token in the linear part of ReLU,
        # so a text's mean latent is this linear function of its mean activation.
        weights = torch.linalg.solve(centred.T @ centred + 0.1 * torch.eye(WIDTH), centred.T)
        direction = weights @ labels
        encodes, blind = random_sae(1), random_sae(1)
        for sae in (encodes, blind):
            sae.W_enc.mul_(0.01)
        encodes.W_enc[:, 3] = 20 * direction
        encodes.b_enc[3] = 200 - 20 * rows.mean(0) @ direction
    known, unknown = (
        evaluate(
            "sparse_probing",
            make_context(model, two_classes.folder, sae),
            **two_classes.settings,
        ).metrics["sae_top_1_accuracy"]
        for sae in (encodes, blind)
    )
    assert known is not None
    assert unknown is not None
    assert known >= 0.95
    assert unknown <= 0.85


def test_sae_probes_baselines_match_direct_computation(
    runs: Callable[[str], Runs], model: Any
) -> None:
    pytest.importorskip("sae_bench")
    from sae_probes.utils_data import get_train_test_indices, get_yvals, read_numbered_dataset_df
    from sklearn.metrics import roc_auc_score

    metrics = runs("sae_probes").a.metrics
    texts = read_numbered_dataset_df(DATASET)["prompt"].tolist()
    file = next(runs("sae_probes").cached.rglob(f"{DATASET}_{HOOK}.pt"))
    kept = torch.load(file)
    assert kept.shape == (len(texts), WIDTH)
    for i in (0, 17, 500):
        ids = torch.tensor([model.tokenizer(texts[i])["input_ids"]])
        _, acts = model.run_with_cache(ids, names_filter=HOOK)
        assert torch.allclose(kept[i], acts[HOOK][0, -1], atol=1e-4)
    labels = get_yvals(DATASET)
    train, test = get_train_test_indices(labels, 900, len(texts) - 901, seed=42)

    def one_column(rows: Tensor) -> float:
        """AUC of the column whose class means differ most, relative to its mean magnitude."""
        columns, y = rows[train], labels[train] == 1
        gaps = (columns[y].mean(0) - columns[~y].mean(0)) / columns.abs().mean(0)
        best = gaps.abs().argmax()
        return float(roc_auc_score(labels[test], (rows[test][:, best] * gaps[best].sign()).numpy()))

    assert metrics["llm_top_1_auc"] == pytest.approx(one_column(kept))
    rows = kept[train].double()
    basis = torch.linalg.eigh(torch.cov(rows.T)).eigenvectors
    rotated = (kept.double() - rows.mean(0)) @ basis
    assert metrics["pca_top_1_auc"] == pytest.approx(one_column(rotated), abs=1e-6)


def test_pca_baselines_rotate_without_loss() -> None:
    train = {"a": torch.randn(30, 8) * torch.arange(1, 9), "b": torch.randn(30, 8) + 1}
    test = {"a": torch.randn(5, 8), "b": torch.randn(5, 8)}
    rotated, rotated_test = sparse_probing.in_pca_basis(train, test)
    rows = torch.cat(list(rotated.values()))
    variances = rows.var(0)
    assert torch.all(variances[:-1] >= variances[1:] - 1e-5)
    covariance = torch.cov(rows.T)
    assert torch.allclose(covariance, covariance.diagonal().diag(), atol=1e-4)
    distance = torch.cdist(train["a"], test["b"])
    assert torch.allclose(torch.cdist(rotated["a"], rotated_test["b"]), distance, atol=1e-4)
    encode = sae_probes.pca_encoder(torch.cat(list(train.values())))
    assert torch.allclose(encode(train["a"]).abs(), rotated["a"].abs(), atol=1e-5)


# ----------------------------------------------------------------------- texts


def test_class_texts_are_balanced_disjoint_and_seeded(context: EvalContext) -> None:
    train, test = tasks.class_texts(context, "auto", 300, 200, 0)
    assert sorted(train) == sorted(test) == sorted(t.name for t in TOPICS)
    assert {len(t) for t in train.values()} == {300}
    assert {len(t) for t in test.values()} == {200}
    everything = [t for part in (train, test) for texts in part.values() for t in texts]
    assert len(set(everything)) == len(everything)
    assert tasks.class_texts(context, tasks.DEMO, 300, 200, 0) == (train, test)
    assert tasks.class_texts(context, tasks.DEMO, 300, 200, 1) != (train, test)


def test_passages_of_a_document_stay_together(model: Any, tmp_path: Path) -> None:
    texts = {}
    for domain in ("forget", "retain"):
        path = tmp_path / f"{domain}.jsonl"
        documents = [" ".join([f"{domain}{i:02d}", "the colour of"] * 60) for i in range(40)]
        path.write_text(jsonl({"text": d} for d in documents))
        texts[domain] = CorpusConfig(path=str(path))
    context = make_context(model, tmp_path, texts=texts, name=str(tmp_path))
    assert tasks.resolve_source(context, "auto") == tasks.CORPUS
    train, test = tasks.class_texts(context, "auto", 20, 10, 0)
    for domain in texts:
        assert (len(train[domain]), len(test[domain])) == (20, 10)
        named = [
            {w for t in part[domain] for w in re.findall(rf"{domain}\d\d", t)}
            for part in (train, test)
        ]
        assert all(named)
        assert not named[0] & named[1]
        for text in train[domain] + test[domain]:
            # One more for BOS.
            assert len(model.tokenizer(text)["input_ids"]) <= tasks.PASSAGE_TOKENS + 1


@pytest.mark.parametrize(
    ("sizes", "source", "reason"),
    [
        ((400, 200), tasks.DEMO, "'cooking' has 500 texts, fewer than the 400 .+ 200 .* lower"),
        ((1, 1), "absent.jsonl", "absent.jsonl cannot be read"),
        ((1, 1), "nothing", "unknown source 'nothing': give 'demo:probing'"),
        ((1, 1), tasks.CORPUS, "needs a forget and a retain corpus"),
        ((1, 1), '{"text": "a"}', r"line 1 of .* has no field label; it has \['text'\]"),
        ((1, 1), '{"text": "a", "label": 1}\nnonsense', "line 2 of .* is not JSON"),
        ((1, 1), '{"text": "a", "label": null}', "line 1 of .*: label is None, not a text"),
        ((1, 1), '{"text": 3, "label": "b"}', "line 1 of .*: text is int, not a text"),
        ((1, 1), '{"text": " ", "label": 1}\n{"text": "a", "label": 1}', "needs two classes"),
        ((1, 1), '{"text": "a", "label": 1}', "needs two classes"),
        ((1, 1), '{"text": "a", "label": 1}\n{"text": "a", "label": 2}', "two labels"),
    ],
)
def test_bad_texts_are_refused_with_the_reason(
    sizes: tuple[int, int], source: str, reason: str, context: EvalContext, tmp_path: Path
) -> None:
    pytest.importorskip("sae_bench")
    if source.startswith("{"):
        path = tmp_path / "labelled.jsonl"
        path.write_text(source)
        source = str(path)
    with pytest.raises(EvaluationError, match=reason):
        tasks.class_texts(context, source, *sizes, 0)


def test_auto_source_without_labels_is_refused(model: Any, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"give ortho_corpora .*or set source"):
        tasks.resolve_source(make_context(model, tmp_path, name=str(tmp_path)), "auto")
    assert (
        tasks.resolve_source(make_context(model, tmp_path, name="gpt2"), "auto") == tasks.PUBLISHED
    )


@pytest.mark.parametrize("name", NAMES)
def test_unsupported_k_is_refused(name: str, context: EvalContext) -> None:
    with pytest.raises(EvaluationError, match="k_values must be some of"):
        evaluate(name, context, k_values=[1, 3])


def test_unknown_data_set_suggests_the_nearest(context: EvalContext) -> None:
    with pytest.raises(EvaluationError, match=f"did you mean '{DATASET}'"):
        evaluate("sae_probes", context, datasets=["119_us_state_TEXAS"])
    with pytest.raises(EvaluationError, match="datasets is empty"):
        evaluate("sae_probes", context, datasets=[])


def test_default_data_sets_exist() -> None:
    pytest.importorskip("sae_bench")
    from sae_probes import DATASETS

    assert set(SUBSET) <= set(DATASETS)


def test_classes_are_served_only_inside_the_block() -> None:
    pytest.importorskip("sae_bench")
    from sae_bench.evals.scr_and_tpp import dataset_creation
    from sae_bench.evals.scr_and_tpp import main as scr_and_tpp
    from sae_bench.sae_bench_utils import dataset_info, dataset_utils

    modules = (dataset_creation, dataset_info, dataset_utils, scr_and_tpp)
    before = process_state(*modules)
    train, test = {"a": ["x", "y"], "b": ["z", "w"]}, {"a": ["p"], "b": ["q"]}
    with tasks.classes_served(train, test, "ours"):
        assert dataset_utils.get_multi_label_train_test_data("ours", 4, 2, 0) == (train, test)
        assert dataset_creation.get_train_test_data("ours", False, 4, 2, 0) == (train, test)
        assert dataset_info.chosen_classes_per_dataset["ours"] == ["a", "b"]
        with pytest.raises(ValueError, match="not supported"):
            dataset_utils.get_multi_label_train_test_data("theirs", 4, 2, 0)
    assert process_state(*modules) == before
    with pytest.raises(ZeroDivisionError), tasks.classes_served(train, test, "ours"):
        raise ZeroDivisionError
    assert process_state(*modules) == before


def test_unreachable_published_data_set_is_explained(
    context: EvalContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sae_bench")
    from sae_bench.sae_bench_utils import dataset_utils

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no connection")

    monkeypatch.setattr(dataset_utils, "load_dataset", offline)
    for use in (
        lambda: tasks.class_texts(context, "fancyzhx/ag_news", 4, 4, 0),
        lambda: evaluate("sparse_probing", context, source="fancyzhx/ag_news"),
    ):
        with pytest.raises(EvaluationError, match="hub cannot be reached"):
            use()


# ------------------------------------------------------------- the demo's file


def test_demo_probing_file_is_what_the_script_writes() -> None:
    seed = json.loads(demo.CARD.read_text())["seed"]
    records = probing_records(World(seed))
    assert demo.PROBING_TEXTS.read_text(encoding="utf-8") == jsonl(records)
    assert set(Counter(r["topic"] for r in records).values()) == {500}
    assert {(t.name, t.domain) for t in TOPICS} == {(r["topic"], r["domain"]) for r in records}
    assert len({r["text"] for r in records}) == len(records)


def test_demo_probing_texts_do_not_reveal_the_topic(model: Any) -> None:
    records = [json.loads(line) for line in demo.PROBING_TEXTS.open(encoding="utf-8")]
    byte_tokens = set(range(2, 258))
    punctuation = {i for c in ".,:?" for i in model.tokenizer(c)["input_ids"]}
    for record in records:
        ids = set(model.tokenizer(record["text"])["input_ids"])
        assert not (ids & byte_tokens) - punctuation
    words = [set(r["text"].replace(".", " ").replace(",", " ").split()) for r in records]
    kinds = {"dish", "town", "Queen", "guild", "team", "flower"}
    assert not any(w & kinds for w in words)
    size = len(records) // len(TOPICS)
    for topic in TOPICS:
        inside = Counter(w for r, ws in zip(records, words, strict=True) for w in ws
                         if r["topic"] == topic.name)  # fmt: skip
        overall = Counter(w for ws in words for w in ws)
        for word in overall:
            hit = inside[word] / size
            false = (overall[word] - inside[word]) / (len(records) - size)
            accuracy = (1 + abs(hit - false)) / 2
            assert accuracy < 0.8, f"{word!r} alone tells {topic.name} with {accuracy:.2f}"
