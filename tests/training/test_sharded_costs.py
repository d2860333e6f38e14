"""The computed costs of an SAE on several cards are those of its tensors and of the docs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sae_lens.constants import SAE_WEIGHTS_FILENAME

from evals.tables import GEMMA_2_2B
from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.experiments.costs_in_words import gb
from saelens_adaptive_ortho.experiments.experiment import load_experiment
from saelens_adaptive_ortho.training import memory
from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner, Prepared
from saelens_adaptive_ortho.training.runner_config import AdaptiveOrthoRunnerConfig
from saelens_adaptive_ortho.training.sharded import selection
from saelens_adaptive_ortho.training.sharded.costs import ShardedCosts, sharded_costs
from saelens_adaptive_ortho.training.sharded.ranks import Ranks, sharing
from saelens_adaptive_ortho.training.sharded.runner import ShardedRunner
from tests.ranks import run_ranks
from tests.tiny import BATCH

MakeConfig = Callable[..., AdaptiveOrthoRunnerConfig]
ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "sharding.md"
LARGE = ["ortho_shards=8", "sae.d_sae=1048576"]
LISTS = (
    "ortho_neighbours ortho_joint ortho_joint_samples ortho_joint_own ortho_joint_other "
    "ortho_sketch ortho_fired ortho_total ortho_squares ortho_group_ids ortho_domain_ids "
    "ortho_partner ortho_push"
).split()


def large(*overrides: str) -> ShardedCosts:
    """The costs of the SAE of the documentation, with other settings."""
    config = ROOT / "configs" / "gemma-2-2b_layer12.yaml"
    return sharded_costs(load_experiment(config, [*LARGE, *overrides]).runner, GEMMA_2_2B)


def sizes(costs: ShardedCosts) -> dict[str, int]:
    return {term.what.partition(",")[0]: term.size for term in costs.memory}


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_memory_and_disk_are_those_of_a_training(
    make_config: MakeConfig, prepared: Prepared, tmp_path: Path
) -> None:
    cfg = make_config(
        {"d_sae": 2048},
        ortho_shards=2,
        training_tokens=2 * BATCH,
        checkpoint_path=str(tmp_path / "checkpoints"),
        n_checkpoints=1,
    )

    def work(ranks: Ranks) -> dict[str, int]:
        runner = ShardedRunner(cfg, ranks, prepared)
        runner.trainer.fit()
        runner.trainer.save_checkpoint()
        runner.export("sae", tmp_path / "sae")
        state = runner.sae.state_dict()
        parameters = [runner.sae.W_enc, runner.sae.W_dec]
        optimizer = runner.trainer.trainers["sae"].optimizer
        moments = [optimizer.state[p][m] for p in parameters for m in ("exp_avg", "exp_avg_sq")]
        return {
            "encoder and decoder": sum(p.nbytes for p in parameters),
            "moments of Adam": sum(x.nbytes for x in moments),
            "lists and statistics of the penalty": sum(state[name].nbytes for name in LISTS),
        }

    costs = sharded_costs(cfg, model=None)
    found = sizes(costs)
    for measured in run_ranks(2, work):
        assert measured == {name: found[name] for name in measured}
    assert found["their gradients"] == found["encoder and decoder"]
    (checkpoint, *_) = sorted((tmp_path / "checkpoints").glob("step_*"))
    assert costs.checkpoint == pytest.approx(size_of(checkpoint), rel=0.05)
    weights = (tmp_path / "sae" / SAE_WEIGHTS_FILENAME).stat().st_size
    assert costs.export == pytest.approx(weights, rel=0.05)
    assert costs.checkpoints == 3


def test_numbers_of_the_documentation_are_computed() -> None:
    """The tables are tested as all others are; these are the numbers in the text."""
    text, costs, off = DOCS.read_text(), large(), large("sae.ortho_mode=off")
    assert costs.latents == 131_072
    for number, unit, exact in (
        ("59", "GB", costs.checkpoint / 1e9),
        ("7.3", "GB", costs.checkpoint / 8e9),
        ("19.3", "GB", costs.export / 1e9),
        ("5", "GB", costs.host / 1e9),
        ("3.4", "GB a step", costs.per_step / 1e9),
        ("0.1", "GB", off.per_step / 1e9),
        ("77", "GB", 8 * 4 * sizes(costs)["encoder and decoder"] / 1e9),
    ):
        assert f"{number} {unit}" in text
        decimals = len(number.partition(".")[2])
        assert round(exact, decimals) == float(number)
    topk = large("sae.architecture=adaptive_ortho_topk")
    (threshold,) = (term for term in topk.exchanged if term.what == "threshold of the top-k")
    assert "8 histograms of 16 counts a row (2 MB)" in text
    assert threshold.how == "8 summed histograms of 16 counts a row"
    assert round(threshold.size / 1e6) == 2


def test_only_the_largest_brief_need_counts() -> None:
    costs = large()
    brief = {term.what: term.size for term in costs.memory if term.brief}
    assert len(brief) == 3
    assert costs.peak == sum(t.size for t in costs.memory) - sum(brief.values()) + max(
        brief.values()
    )
    assert max(brief, key=lambda what: brief[what]).startswith("rows of the partners")


def test_what_an_sae_does_not_have_costs_nothing(make_config: MakeConfig) -> None:
    cfg = make_config({"ortho_mode": "off"}, ortho_shards=2)
    off, on = (sharded_costs(c, 10) for c in (cfg, make_config(ortho_shards=2)))
    assert not any("penalty" in t.what or "neighbours" in t.what for t in off.memory)
    assert not any("pairs" in t.what or "penalty" in t.what for t in off.exchanged)
    assert off.peak < on.peak
    assert off.per_step < on.per_step
    standard = {"architecture": "adaptive_ortho_standard", "k": None, "l1_coefficient": 0.1}
    without = sharded_costs(make_config(standard, ortho_shards=2), None)
    assert not any("auxiliary" in t.what for t in [*without.memory, *without.exchanged])
    assert not any("language model" in t.what for t in without.memory)
    weightless = sharded_costs(make_config({"ortho_coefficient": 0.0}, ortho_shards=2), None)
    assert not any("partners" in t.what for t in [*weightless.memory, *weightless.exchanged])
    elsewhere = replace(cfg, device="cuda", llm_device="cpu", act_store_device="cpu")
    on_card = [term.what for term in sharded_costs(elsewhere, 10).memory]
    assert not any(what.startswith(("language model", "shuffled")) for what in on_card)


@pytest.mark.parametrize("rows", [1, 64, 4096])
def test_histograms_are_those_of_the_selection(rows: int) -> None:
    seen: list[tuple[int, ...]] = []

    class Alone:
        def sum(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(x.shape))
            return x

    selection.kth_largest(torch.randn(rows, 8), 2, Alone())  # type: ignore[arg-type]
    rounds, counts = selection.rounds_of_counts(rows)
    assert len(seen) == rounds
    assert max(shape[1] for shape in seen) == counts


# -------------------------------------------------------------------------- commands


def test_plan_computes_the_costs_and_loads_nothing(
    write_config: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "memory.max").write_text("1000\n")  # this machine does not matter
    monkeypatch.setattr(memory, "CGROUP_LIMIT", tmp_path / "memory.max")
    monkeypatch.setattr(AdaptiveOrthoRunner, "__init__", None)
    config = str(write_config(n_checkpoints=1))
    words = [word for setting in LARGE for word in ("--set", setting)]
    assert main(["plan", config, *words]) == 0
    text = capsys.readouterr().out
    assert "1,048,576 latents in 8 processes, 131,072 (n) each" in text
    for topic in ("model", "SAE", "steps", "memory", "exchanged", "host", "disk", "time"):
        assert f"\n{topic} " in f"\n{text}"
    cfg = load_experiment(config, LARGE).runner
    costs = sharded_costs(cfg, None)
    assert f"{gb(costs.export)} for the SAE, up to {gb(3 * costs.checkpoint)} for check" in text
    assert "language model (" in text
    assert "time         not estimated" in text
    assert not (tmp_path / "run").exists()


def test_plan_says_that_a_model_is_not_counted(
    write_config: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise ConfigError("model_name='x': the hub does not answer.")

    monkeypatch.setattr("saelens_adaptive_ortho.text.models.model_bytes", refuse)
    assert main(["plan", str(write_config(ortho_shards=2))]) == 0
    text = capsys.readouterr().out
    assert "not counted  the language model, which every card has (model_name='x'" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "ortho_shards=3"], "sae.d_sae=64: must be a multiple of ortho_shards = 3"),
        (["--set", "ortho_shards=2", "--set", "sae.ortho_mode=fixed"], "sae.ortho_mode='fixed'"),
        (["--set", "ortho_shards=0"], "ortho_shards=0"),
    ],
)
def test_plan_refuses_what_cannot_be_divided(
    write_config: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    assert main(["plan", str(write_config()), *words]) == 2
    assert message in capsys.readouterr().err


def test_plan_is_one_process(
    write_config: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["plan", str(write_config(ortho_shards=2))]) == 2
    assert "processes=2: plan needs one. Start it without torchrun." in capsys.readouterr().err


def test_processes_that_do_not_fit_are_refused(
    make_config: MakeConfig, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = make_config(ortho_shards=2)
    needed = memory.least_memory([cfg])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # both on this machine
    monkeypatch.setattr(memory, "memory_of", lambda device: 2 * needed - 1)

    def work(ranks: Ranks) -> str:
        with pytest.raises(ConfigError) as error:
            ShardedRunner(cfg, ranks, prepared)
        return str(error.value)

    for message in run_ranks(2, work):
        assert message.startswith("sae.d_sae=64: 2 of 2 processes need at least ")
        assert "on cpu" in message
        assert "divide the SAE among more cards" in message
    monkeypatch.setattr(memory, "memory_of", lambda device: 2 * needed)
    memory.check_memory([cfg], sharing("cpu"))


def test_processes_of_a_machine_share_its_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    for cards, processes in ((4, 1), (8, 1), (3, 2), (1, 4), (0, 4)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda n=cards: n)
        assert sharing("cuda") == processes
    assert sharing("cpu") == 4
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert sharing("cuda") == sharing("cpu") == 1


@pytest.mark.parametrize(
    ("size", "text"),
    [(2_416_000_000, "2.42 GB"), (38_000_000, "38 MB"), (24_576, "24.6 kB"), (384, "384 bytes")],
)
def test_sizes_in_words(size: int, text: str) -> None:
    assert gb(size) == text
