"""Our architectures under SAELens's own, unmodified runners and command line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import (
    SAE,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
)
from sae_lens.llm_sae_training_runner import _parse_cfg_args
from sae_lens.multi_sae_training_runner import (
    MultiSAETrainingRunner,
    MultiSAETrainingRunnerConfig,
)
from sae_lens.synthetic import (
    SyntheticModelConfig,
    SyntheticSAERunner,
    SyntheticSAERunnerConfig,
)
from transformer_lens import HookedTransformer, HookedTransformerConfig

from saelens_adaptive_ortho import ARCHITECTURES
from saelens_adaptive_ortho.commands.cli import main

# SAELens warns about short data sets and about its own tensor copies.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.usefixtures("handlers_restored"),
]

Build = Callable[..., Any]
CONTEXT, VOCAB, D_MODEL = 16, 40, 16
HOOK = "blocks.0.hook_resid_post"
BATCH, STEPS = 64, 12


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    torch.manual_seed(0)
    return HookedTransformer(
        HookedTransformerConfig(
            n_layers=1,
            d_model=D_MODEL,
            n_ctx=CONTEXT,
            d_head=8,
            n_heads=2,
            d_mlp=32,
            d_vocab=VOCAB,
            act_fn="relu",
            device="cpu",
        )
    )


@pytest.fixture(scope="module")
def tokens() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, VOCAB, (400, CONTEXT), generator=generator)
    return Dataset.from_dict({"tokens": drawn.tolist()})


RUN: dict[str, Any] = {
    "model_name": "tiny-random",
    "context_size": CONTEXT,
    "training_tokens": BATCH * STEPS,
    "n_batches_in_buffer": 4,
    "store_batch_size_prompts": 8,
    "prepend_bos": False,
    "sequence_separator_token": None,
    "device": "cpu",
    "lr": 1e-2,
    "checkpoint_path": None,
}


def run_config(sae: Any, output_path: Path, **overrides: Any) -> LanguageModelSAERunnerConfig[Any]:
    fields = RUN | {
        "hook_name": HOOK,
        "train_batch_size_tokens": BATCH,
        "streaming": False,
        "verbose": False,
        "logger": LoggingConfig(log_to_wandb=False),
    }
    return LanguageModelSAERunnerConfig(sae=sae, output_path=str(output_path), **fields | overrides)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_language_model_runner_exports_a_stock_sae(
    build_cfg: Build, model: HookedTransformer, tokens: Dataset, tmp_path: Path, name: str
) -> None:
    cfg = run_config(build_cfg(name), tmp_path)
    torch.manual_seed(0)
    runner = LanguageModelSAETrainingRunner(cfg, override_dataset=tokens, override_model=model)
    initial = runner.sae.W_dec.detach().clone()
    sae = runner.run()
    assert type(sae) is ARCHITECTURES[name][0]
    assert sae.W_dec.isfinite().all()
    assert not torch.equal(sae.W_dec, initial)
    counted = sum(0.99**age for age in range(3))  # steps 0, 4 and 8 of 12
    assert float(sae.ortho_samples) == pytest.approx(BATCH * counted)
    exported = SAE.load_from_disk(tmp_path)
    assert exported.cfg.metadata.hook_name == HOOK
    assert exported.cfg.metadata.training_architecture == name
    assert exported(torch.randn(5, D_MODEL)).isfinite().all()


def test_language_model_runner_resumes_from_checkpoint(
    build_cfg: Build, model: HookedTransformer, tokens: Dataset, tmp_path: Path
) -> None:
    def runner(**overrides: Any) -> LanguageModelSAETrainingRunner:
        cfg = run_config(build_cfg("adaptive_ortho_batchtopk"), tmp_path / "out", **overrides)
        torch.manual_seed(0)
        return LanguageModelSAETrainingRunner(cfg, override_dataset=tokens, override_model=model)

    first = runner(checkpoint_path=str(tmp_path / "checkpoints"), save_final_checkpoint=True)
    first.run()
    (checkpoint,) = (tmp_path / "checkpoints").glob("*/final_*")
    resumed = runner(
        resume_from_checkpoint=str(checkpoint), training_tokens=BATCH * (STEPS + 5)
    ).run()
    # steps 0, 4 and 8 of the first run, 12 and 16 of the second
    assert float(resumed.ortho_samples) == pytest.approx(BATCH * sum(0.99**a for a in range(5)))


def test_multi_sae_runner_trains_stock_off_and_adaptive(
    build_cfg: Build,
    build_sae: Build,
    model: HookedTransformer,
    tokens: Dataset,
    tmp_path: Path,
) -> None:
    names = {
        "stock": ("batchtopk", {}),
        "off": ("adaptive_ortho_batchtopk", {"ortho_mode": "off"}),
        "fixed": ("adaptive_ortho_batchtopk", {"ortho_mode": "fixed"}),
        "adaptive": ("adaptive_ortho_batchtopk", {}),
    }
    saes = {key: build_sae(name, **fields) for key, (name, fields) in names.items()}
    cfg = MultiSAETrainingRunnerConfig(
        saes={key: copy.deepcopy(sae.cfg) for key, sae in saes.items()},
        hook_names=HOOK,
        output_path=str(tmp_path),
        train_batch_size_tokens=BATCH,
        streaming=False,
        logger=LoggingConfig(log_to_wandb=False),
        **RUN,
    )
    MultiSAETrainingRunner(
        cfg, override_dataset=tokens, override_model=model, override_saes=saes
    ).run()
    for key, value in saes["stock"].state_dict().items():
        assert torch.equal(saes["off"].state_dict()[key], value), key
    assert len({sae.W_dec.sum().item() for sae in saes.values()}) == 3
    assert all(sae.W_dec.isfinite().all() for sae in saes.values())


def test_synthetic_runner_trains_and_evaluates(build_cfg: Build, tmp_path: Path) -> None:
    runner = SyntheticSAERunner(
        SyntheticSAERunnerConfig(
            synthetic_model=SyntheticModelConfig(num_features=32, hidden_dim=D_MODEL, seed=0),
            sae=build_cfg("adaptive_ortho_matryoshka_batchtopk"),
            training_samples=BATCH * STEPS,
            batch_size=BATCH,
            checkpoint_path=None,
            output_path=str(tmp_path),
            eval_samples=256,
            logger=LoggingConfig(log_to_wandb=False),
        )
    )
    result = runner.run()
    assert result.final_eval is not None
    assert 0 <= result.final_eval.mcc <= 1
    assert float(result.sae.ortho_samples) > 0


def test_sae_lens_cli_accepts_our_architecture_and_flags() -> None:
    flags = [
        *("--architecture", "adaptive_ortho_batchtopk"),
        *("--d_in", "16", "--d_sae", "64", "--k", "4"),
        *("--ortho_alpha", "0.25", "--ortho_affinity", "overlap", "--ortho_neighbours", "8"),
        *("--ortho_curriculum_start", "0.01", "--ortho_curriculum_steps", "100"),
        *("--ortho_scale_free", "false"),
    ]
    cfg = _parse_cfg_args(flags).sae
    assert type(cfg) is ARCHITECTURES["adaptive_ortho_batchtopk"][1]
    assert (cfg.d_in, cfg.d_sae, cfg.k) == (16, 64, 4)
    assert (cfg.ortho_alpha, cfg.ortho_affinity, cfg.ortho_neighbours) == (0.25, "overlap", 8)
    assert (cfg.ortho_curriculum_start, cfg.ortho_curriculum_steps) == (0.01, 100)
    assert cfg.ortho_scale_free is False
    assert cfg.ortho_mode == "adaptive"


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_sae_lens_cli_offers_every_architecture(name: str) -> None:
    cfg = _parse_cfg_args(["--architecture", name, "--ortho_mode", "fixed"]).sae
    assert type(cfg) is ARCHITECTURES[name][1]
    assert cfg.ortho_mode == "fixed"


def test_sae_lens_command_offers_our_architectures(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["sae-lens", "--architecture", "adaptive_ortho_batchtopk", "--help"])
    assert stopped.value.code == 0
    assert "--ortho_alpha" in capsys.readouterr().out
