"""RAVEL on the demo model's facts: right, independent of order, without side effects."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

from saelens_adaptive_ortho.demo import MODEL_DIR
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError, Outcome
from saelens_adaptive_ortho.judging.running import run_evaluation
from saelens_adaptive_ortho.judging.saebench import ravel
from saelens_adaptive_ortho.text.models import DEMO_MODEL, load_language_model
from tests.judging import support
from tests.judging.support import files_of, process_state, read_back

sae_bench = pytest.importorskip("sae_bench")

WIDTH = 96
QUICK = {
    "attributes": {"organisms": ["colour", "host"]},
    "n_generated_tokens": 1,
    "num_pairs_per_attribute": 24,
    "num_epochs": 1,
    "llm_batch_size": 8,
}


def copying(layer: int = 0) -> StandardSAE:
    """An SAE that copies its input, with a latent for each sign of each dimension."""
    cfg = StandardSAEConfig(
        d_in=WIDTH,
        d_sae=2 * WIDTH,
        metadata=SAEMetadata(model_name=DEMO_MODEL, hook_name=f"blocks.{layer}.hook_resid_post"),
    )
    sae = StandardSAE(cfg)
    both = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.zero_()
        sae.W_dec.copy_(both)
        sae.W_enc.copy_(both.T)
    return sae


def deaf() -> StandardSAE:
    """An SAE whose latents never fire."""
    sae = copying()
    sae.W_enc.data.zero_()
    return sae


@pytest.fixture(scope="module")
def model() -> Any:
    return load_language_model(DEMO_MODEL)


def make_context(
    model: Any, folder: Path, sae: Callable[[], StandardSAE] = copying, name: str = DEMO_MODEL
) -> EvalContext:
    return support.make_context(model, folder, sae, name)


def evaluate(context: EvalContext, **settings: Any) -> Outcome:
    return run_evaluation("ravel", context, QUICK | settings)


@pytest.fixture(scope="module")
def filled(model: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("filled")
    return folder, evaluate(make_context(model, folder))


def test_early_block_has_high_cause(
    filled: tuple[Path, Outcome],
) -> None:
    """Replacing an entity's activation after an early block changes its facts."""
    folder, outcome = filled
    metrics = outcome.metrics
    assert outcome.details["known_prompts"] == {"organisms: colour": 88, "organisms: host": 88}
    assert metrics["cause_ceiling"] > 0.9
    assert outcome.details["caveat"] is None
    assert metrics["disentanglement"] == pytest.approx(
        (metrics["cause"] + metrics["isolation"]) / 2
    )
    kept = json.loads((folder / "raw" / "ravel" / outcome.details["sae_bench_file"]).read_text())
    assert kept["eval_type_id"] == "ravel"


def test_silent_sae_has_no_cause(model: Any, filled: tuple[Path, Outcome]) -> None:
    outcome = evaluate(make_context(model, filled[0], deaf))
    assert outcome.metrics["cause"] < 0.5 < outcome.metrics["cause_ceiling"]


def test_metrics_do_not_depend_on_earlier_saes(
    model: Any, filled: tuple[Path, Outcome], tmp_path: Path
) -> None:
    torch.rand(7)  # other code draws random numbers
    assert evaluate(make_context(model, filled[0])) == filled[1]
    found = read_back(filled[0] / "raw", "ravel", filled[1])
    assert found == {name: filled[1].metrics[name] for name in found}
    evaluate(make_context(model, tmp_path, deaf))
    assert evaluate(make_context(model, tmp_path)) == filled[1]


def test_late_block_gets_a_caveat(model: Any, filled: tuple[Path, Outcome]) -> None:
    """After a late block, the model no longer reads the entity."""
    outcome = evaluate(make_context(model, filled[0], lambda: copying(2)))
    assert outcome.metrics["cause_ceiling"] == 0
    assert "no longer reads the entity" in outcome.details["caveat"]


def test_local_model_with_its_own_facts(model: Any, tmp_path: Path) -> None:
    (tmp_path / "pythia-160m-deduped").symlink_to(MODEL_DIR)
    facts = tmp_path / "facts"
    facts.mkdir()
    for name, content in ravel._demo_facts().items():
        (facts / name).write_text(json.dumps(content))
    before = files_of(MODEL_DIR)
    context = make_context(model, tmp_path, name=str(tmp_path / "pythia-160m-deduped"))
    outcome = evaluate(context, source=str(facts))
    assert outcome.details["known_prompts"]["organisms: host"] == 88
    assert files_of(MODEL_DIR) == before


@pytest.mark.parametrize("fails", [False, True])
def test_leaves_no_trace(
    model: Any,
    tmp_path: Path,
    fails: bool,
    monkeypatch: pytest.MonkeyPatch,
    filled: tuple[Path, Outcome],
) -> None:
    from sae_bench.evals.ravel import generation, main, mdbm
    from sae_bench.sae_bench_utils import activation_collection

    modules = (generation, main, mdbm, activation_collection)
    monkeypatch.chdir(tmp_path)
    with torch.no_grad():
        before = process_state(*modules)
        if fails:
            with pytest.raises(EvaluationError):
                evaluate(make_context(model, filled[0]), llm_batch_size=500)
        else:
            evaluate(make_context(model, filled[0]))
        assert process_state(*modules) == before
    assert not files_of(tmp_path)


# ------------------------------------------------------------------- refusals


def test_unsupported_model_is_refused_at_once(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.cfg, "original_architecture", "GPT2LMHeadModel")
    with pytest.raises(EvaluationError, match="GPT-NeoX .* and Gemma-2 .* is GPT2LMHeadModel"):
        evaluate(make_context(model, tmp_path))


def test_unreachable_published_data_set_is_explained(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(ravel, "snapshot_download", offline)
    with pytest.raises(EvaluationError, match="hub cannot be reached"):
        evaluate(make_context(model, tmp_path), source="published")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"source": "/absent"}, "cannot read ravel_organisms_attribute_to_prompts.json"),
        (
            {"attributes": {"organisms": ["colour"]}},
            "organisms needs two or more of colour, food, host",
        ),
        ({"attributes": {"organisms": ["colour", "size"]}}, "two or more of colour"),
        ({"attributes": {"stones": ["colour", "size"]}}, "cannot read ravel_stones"),
        ({"llm_batch_size": 400}, "completes 88 prompts for the colour .* 400 held-out pairs"),
    ],
)
def test_bad_settings_are_refused(
    model: Any, tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(EvaluationError, match=reason):
        evaluate(make_context(model, tmp_path), **settings)


def test_sae_inside_a_block_is_refused(model: Any, tmp_path: Path) -> None:
    def inside() -> StandardSAE:
        sae = copying()
        sae.cfg.metadata.hook_name = "blocks.0.hook_mlp_out"
        return sae

    with pytest.raises(EvaluationError, match="not blocks.0.hook_mlp_out"):
        evaluate(make_context(model, tmp_path, inside))
