"""A penalty and an affinity of another package in architectures, files and settings."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.llm_sae_training_runner import _parse_cfg_args

from saelens_adaptive_ortho import ARCHITECTURES
from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.experiments.experiment import build_experiment
from saelens_adaptive_ortho.host.config import ortho_coefficient
from saelens_adaptive_ortho.maths.affinity import AFFINITIES
from saelens_adaptive_ortho.maths.penalties import PENALTIES
from saelens_adaptive_ortho.synthetic.run import build_run
from saelens_adaptive_ortho.training.runner_config import AdaptiveOrthoRunnerConfig, with_sae
from tests.packages import Install

Build = Callable[..., Any]
TOPK = "adaptive_ortho_topk"
CODE = '''
"""Toys: row norms instead of cosines, and pairs that share one half."""
from dataclasses import dataclass

import torch

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.maths.affinity import Affinity
from saelens_adaptive_ortho.maths.directions import decoder_directions
from saelens_adaptive_ortho.maths.penalties import Penalty


@dataclass(frozen=True)
class Settings:
    power: int
    strength: float = 1.0

    def __post_init__(self):
        if self.strength <= 0:
            raise reject("strength", self.strength, "must be above 0.")


def check(cfg):
    if cfg.ortho_settings["power"] > cfg.d_in:
        raise reject("ortho_settings.power", cfg.ortho_settings["power"], "must not exceed d_in.")


def pair_loss(inputs):
    D, N = decoder_directions(inputs.W_dec), inputs.pairs.neighbours
    cosines = (D.unsqueeze(1) * D[N]).sum(-1)
    return ((1 - inputs.pairs.affinities()) * cosines).square().mean()


NORMS = Penalty(
    name="toy_norms",
    help="strength * mean |W_ij|^power",
    loss=lambda i: i.settings.strength * i.W_dec.abs().pow(i.settings.power).mean(),
    coefficient=lambda cfg: 0.7,
    every=lambda cfg: 3,
    check=check,
    settings=Settings,
)
PAIRS = Penalty(name="toy_pairs", help="mean ((1 - s_ij) c_ij)^2", loss=pair_loss, needs_lists=True)
HALF = Affinity(
    name="toy_half", help="1/2", measure=lambda state, N, groups: torch.full(N.shape, 0.5)
)
'''
ENTRIES = {
    "saelens_adaptive_ortho.penalties": {"toy_norms": "toys:NORMS", "toy_pairs": "toys:PAIRS"},
    "saelens_adaptive_ortho.affinities": {"toy_half": "toys:HALF"},
}
NORMS: dict[str, Any] = {"ortho_mode": "toy_norms", "ortho_settings": {"power": 2}}
TOYS: dict[str, dict[str, Any]] = {
    "own settings": NORMS,
    "lists": {"ortho_mode": "toy_pairs", "ortho_affinity": "toy_half"},
    "our penalty, their affinity": {"ortho_affinity": "toy_half"},
}
every_architecture = pytest.mark.parametrize("name", list(ARCHITECTURES))
every_toy = pytest.mark.parametrize("toy", list(TOYS))


@pytest.fixture(autouse=True)
def _toys(install: Install) -> None:
    install("toys", CODE, ENTRIES)


# ----------------------------------------------------------------- training


@every_architecture
@every_toy
def test_plugin_penalty_trains_and_exports_as_stock(
    build_sae: Build, make_trainer: Build, make_batches: Build, train: Build, tmp_path: Path,
    name: str, toy: str,
) -> None:  # fmt: skip
    fields = {"ortho_statistics_every": 1, **TOYS[toy]}
    sae = build_sae(name, **fields)
    # Step 3, because the adaptive penalty weighs only latents that have fired.
    outputs = train(make_trainer(sae), make_batches(4))
    assert outputs[3].losses["ortho_loss"] > 0
    without = build_sae(name, ortho_coefficient=0.0, **fields)
    train(make_trainer(without), make_batches(4))
    assert not torch.equal(sae.W_dec, without.W_dec)
    sae.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert type(loaded).__module__.startswith("sae_lens.")
    assert not any(key.startswith("ortho_") for key in loaded.state_dict())


def test_plugin_loss_uses_its_coefficient_and_settings(
    build_sae: Build, make_trainer: Build, make_batches: Build, train: Build
) -> None:
    fields = NORMS | {"ortho_scale_free": False}
    fields["ortho_settings"] = {"power": 4, "strength": 2.0}
    sae = build_sae(TOPK, **fields)
    expected = 0.7 * 3 * 2.0 * sae.W_dec.detach().pow(4).mean()
    losses = [o.losses["ortho_loss"] for o in train(make_trainer(sae), make_batches(4))]
    torch.testing.assert_close(losses[0].detach(), expected)
    assert [bool(loss) for loss in losses] == [True, False, False, True]
    assert ortho_coefficient(replace(sae.cfg, ortho_coefficient=0.1)) == 0.1


def test_buffers_exist_only_with_needs_lists(build_sae: Build) -> None:
    norms = build_sae(TOPK, **NORMS)
    assert [k for k in norms.state_dict() if k.startswith("ortho_")] == ["ortho_scale"]
    pairs, ours = build_sae(TOPK, **TOYS["lists"]), build_sae(TOPK)
    assert ours.state_dict().keys() - pairs.state_dict().keys() == {"ortho_partner", "ortho_push"}
    assert pairs.state_dict().keys() < ours.state_dict().keys()


def test_plugin_affinity_weighs_candidate_pairs(
    build_sae: Build, make_trainer: Build, make_batches: Build, train: Build
) -> None:
    sae = build_sae(TOPK, ortho_affinity="toy_half")
    train(make_trainer(sae), make_batches(2))
    assert torch.equal(sae.ortho_affinities(), torch.full((64, 8), 0.5))


@every_toy
def test_plugin_checkpoint_restores_config_and_buffers(
    build_sae: Build, make_trainer: Build, make_batches: Build, train: Build, tmp_path: Path,
    toy: str,
) -> None:  # fmt: skip
    sae = build_sae(TOPK, **TOYS[toy])
    train(make_trainer(sae), make_batches(3))
    sae.save_model(tmp_path)
    loaded = TrainingSAE.load_from_disk(tmp_path)
    assert loaded.cfg == sae.cfg
    assert loaded.state_dict().keys() == sae.state_dict().keys()
    for sae_ in (sae, loaded):
        sae_.outputs = train(make_trainer(sae_), make_batches(4))
    for one, other in zip(sae.outputs, loaded.outputs, strict=True):
        assert torch.equal(one.loss, other.loss)


# ----------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"ortho_mode": "toy_norm"},
            f"ortho_mode='toy_norm': must be one of off, {', '.join(PENALTIES.own)}, toy_norms, "
            "toy_pairs. Did you mean toy_norms?",
        ),
        (
            {"ortho_affinity": "toy_hall"},
            f"ortho_affinity='toy_hall': must be one of {', '.join(AFFINITIES.own)}, "
            "toy_half. Did you mean toy_half?",
        ),
        (
            NORMS | {"ortho_settings": {"powr": 2}},
            "ortho_settings.powr=2: ortho_mode toy_norms has power, strength. "
            "Did you mean ortho_settings.power?",
        ),
        (
            NORMS | {"ortho_settings": {"power": 2, "strength": "x"}},
            "ortho_settings.strength='x': must be a number.",
        ),
        (
            NORMS | {"ortho_settings": {"power": 2, "strength": -1.0}},
            "ortho_settings.strength=-1.0: must be above 0.",
        ),
        (NORMS | {"ortho_settings": {}}, "ortho_settings.power=None: must be given."),
        (
            NORMS | {"ortho_settings": {"power": 17}},
            "ortho_settings.power=17: must not exceed d_in.",
        ),
        (NORMS | {"ortho_settings": [2]}, "ortho_settings=[2]: must be a mapping"),
        (NORMS | {"ortho_settings": {"power": (2,)}}, "must hold numbers, texts, lists"),
        (
            {"ortho_settings": {"power": 2}},
            "ortho_settings.power=2: ortho_mode adaptive has no settings.",
        ),
        ({"ortho_mode": "toy_pairs", "ortho_neighbours": 64}, "d_sae - 1 = 63 others"),
        (NORMS | {"d_sae": 1}, "orthogonality needs at least 2 latents"),
    ],
)
def test_plugin_settings_are_checked(
    build_cfg: Build, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        build_cfg(TOPK, **fields)
    assert message in str(error.value)
    assert str(error.value).startswith("ortho_") or "d_sae" in fields


def test_plugin_works_in_yaml_cli_and_synthetic_runs(
    settings: Build,
) -> None:
    variants = {"toy": NORMS, "off": {"ortho_mode": "off"}, "adaptive": {}}
    assert build_experiment(settings(variants=variants)).variants["toy"] == NORMS
    bad = NORMS | {"ortho_settings": {"power": 99}}
    with pytest.raises(ConfigError, match=r"^variants\.toy\.ortho_settings\.power=99: "):
        build_experiment(settings(variants={"toy": bad}))
    flags = ["--architecture", TOPK, "--d_in", "16", "--d_sae", "128", "--ortho_mode", "toy_norms"]
    cfg = _parse_cfg_args([*flags, "--ortho_settings", '{"power": 3}']).sae
    assert (cfg.ortho_mode, cfg.ortho_settings) == ("toy_norms", {"power": 3})
    run = build_run("cluster", mode="toy_norms", settings={"ortho_settings": {"power": 3}})
    assert run.settings()["sae"]["ortho_settings"] == {"power": 3}
    assert run.settings()["sae"]["ortho_coefficient"] == 0.7
    with pytest.raises(ConfigError, match=r"^mode='toy': must be one of .*toy_norms, toy_pairs"):
        build_run("cluster", mode="toy")


def test_other_mode_does_not_inherit_ortho_settings(make_config: Build) -> None:
    cfg = make_config(NORMS)  # with the variants baseline, fixed and adaptive
    assert with_sae(cfg, {"ortho_mode": "fixed"}).sae.ortho_settings == {}
    assert with_sae(cfg, {"ortho_alpha": 0.5}).sae.ortho_settings == {"power": 2}
    assert with_sae(cfg, NORMS | {"ortho_settings": {"power": 3}}).sae.ortho_settings["power"] == 3


def test_empty_ortho_settings_keep_old_digests(
    make_config: Callable[..., AdaptiveOrthoRunnerConfig],
) -> None:
    plain, empty = make_config(), make_config({"ortho_settings": {}})
    toy = make_config(NORMS)
    assert "ortho_settings" not in plain.settings()["sae"]
    assert toy.settings()["sae"]["ortho_settings"] == {"power": 2}
    assert plain.fingerprint([]) == empty.fingerprint([]) != toy.fingerprint([])
    other = make_config(NORMS | {"ortho_settings": {"power": 3}})
    assert toy.fingerprint([]) != other.fingerprint([])
    assert "ortho_settings" not in build_run("cluster").settings()["sae"]


def test_penalties_command_lists_all_and_names_broken(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {"saelens_adaptive_ortho.penalties": {"broken": "games:GONE"}}
    install("games", "raise OSError('no games')", broken)
    assert main(["penalties"]) == 0
    lines = capsys.readouterr().out.splitlines()
    split = lines.index("ortho_affinity:")
    listed = {line.split()[0]: line.strip() for line in lines[1:split]}
    assert {*listed} == {*PENALTIES.own, "toy_norms", "toy_pairs", "broken"}
    assert listed["toy_norms"].endswith("strength * mean |W_ij|^power")
    assert listed["gram"].endswith(PENALTIES.own["gram"].help)
    assert "cannot be used" in listed["broken"]
    assert "broken = games:GONE of games" in listed["broken"]
    end = next(i for i, line in enumerate(lines) if line.startswith("ortho_separation"))
    affinities = [line.split()[0] for line in lines[split + 1 : end]]
    assert affinities == [*AFFINITIES.own, "toy_half"]
    assert "retain" in lines[end + 1]


def test_built_in_penalties_load_no_plugin(
    tmp_path: Path,
) -> None:
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import saelens_adaptive_ortho as ours\n"
        "from saelens_adaptive_ortho.maths.penalties import PENALTIES\n"
        "config = ours.AdaptiveOrthoTopKConfig\n"
        "config(d_in=8, d_sae=32, k=4)\n"
        "names = PENALTIES.names()\n"
        "print('toys' in sys.modules)\n"
        "config(d_in=8, d_sae=32, k=4, ortho_affinity='toy_half')\n"
        "print('toys' in sys.modules, *names)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "True", *PENALTIES.own, "toy_norms", "toy_pairs"]
