"""The strict YAML: what it accepts, what it refuses, and the error messages."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.experiments.experiment import (
    DEFAULT_EVALS,
    DEFAULT_VARIANTS,
    build_experiment,
    load_experiment,
)
from saelens_adaptive_ortho.text import corpora, models

Settings = Callable[..., dict[str, Any]]
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def _nothing_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a corpus or a model fails here: settings are checked before."""

    def fail(*args: object, **_: object) -> None:
        raise AssertionError(f"opened {args}")

    monkeypatch.setattr(corpora, "load_dataset", fail)
    monkeypatch.setattr(models, "load_model", fail)
    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", fail)
    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", fail)


def changed(tree: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    """The tree with ``value`` at the dotted ``key``."""
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    return tree


def remove(tree: dict[str, Any], key: str) -> dict[str, Any]:
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        node = node[parent]
    del node[last]
    return tree


# --------------------------------------------------------------------- strict


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("trainning_tokens", "Did you mean training_tokens?"),
        ("ortho_forget_fractoin", "Did you mean ortho_forget_fraction?"),
        ("variant", "Did you mean variants?"),
        ("sae.ortho_alhpa", "Did you mean sae.ortho_alpha?"),
        ("sae.dsae", "Did you mean sae.d_sae?"),
        ("sae.l1_coefficient", "unknown key"),  # a field of another architecture
        ("variants.fixed.ortho_mod", "Did you mean variants.fixed.ortho_mode?"),
        ("logger.log_to_wandbb", "Did you mean logger.log_to_wandb?"),
        ("evals.core.n_context", "Did you mean evals.core.n_contexts?"),
        ("evals.subspace.energi", "Did you mean evals.subspace.energy?"),
        ("evals.subspaces", "Did you mean 'subspace'?"),
        ("ortho_corpora.forgot", "Did you mean ortho_corpora.forget?"),
        ("ortho_corpora.forget.text_fields", "text_field"),
        ("zzz", "`adaptive-ortho config copy demo`"),
        ("sae.zzz", "`adaptive-ortho config copy demo`"),
    ],
)
def test_unknown_key_suggests_the_nearest(settings: Settings, key: str, nearest: str) -> None:
    tree = settings(ortho_corpora={"forget": {"path": "a.jsonl"}, "retain": {"path": "b.jsonl"}})
    value: Any = {} if key == "evals.subspaces" else 1
    with pytest.raises(ConfigError, match=re.escape(nearest)) as error:
        build_experiment(changed(tree, key, value))
    assert key.split(".")[-1] in str(error.value)


@pytest.mark.parametrize("key", ["sae_lens_version", "hook_eval", "sae.ortho_forget_rows"])
def test_derived_setting_cannot_be_set(settings: Settings, key: str) -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        build_experiment(changed(settings(), key, 1))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training_tokens", "many", "training_tokens='many': must be a whole number of at least 1"),
        ("training_tokens", 1.5, "must be a whole number of at least 1"),
        ("training_tokens", True, "must be a whole number of at least 1"),
        ("training_tokens", 0, "must be a whole number of at least 1"),
        ("training_tokens", 100, "less than one batch"),
        ("context_size", 1, "context_size=1: must be a whole number of at least 2"),
        ("lr", "fast", r"lr='fast': must be a number in \(0, inf\)"),
        ("lr", -1e-3, r"lr=-0\.001: must be a number in \(0, inf\)"),
        ("model_name", 3, "model_name=3: must be text"),
        ("hook_name", "", "hook_name='': must be given"),
        ("output_path", "s3://b/x", "output_path='s3://b/x': is a URL, and must be a folder"),
        ("checkpoint_path", "gs://b/x", "checkpoint_path='gs://b/x': is a URL"),
        ("sae", "big", "sae='big': must be a mapping"),
        ("sae.d_sae", "64", r"sae\.d_sae='64': must be a whole number of at least 1"),
        ("sae.d_in", 0, r"sae\.d_in=0: must be a whole number of at least 1"),
        ("sae.ortho_alpha", "half", r"sae\.ortho_alpha='half': must be a number in \[0, 1\]"),
        ("sae.ortho_mode", "adaptiv", r"sae\.ortho_mode='adaptiv'"),
        ("sae.ortho_scale_free", "yes", r"sae\.ortho_scale_free='yes': must be true or false"),
        ("sae.normalize_activations", "by_magic", r"sae\.normalize_activations='by_magic'"),
        ("sae.architecture", "adaptive_ortho_batchtop", "Did you mean 'adaptive_ortho_batchtopk'"),
        ("sae.architecture", "batchtopk", "Did you mean 'adaptive_ortho_batchtopk'"),
        ("logger", True, "logger=True: must be a mapping"),
        ("logger", {"wandb_project": 3}, r"logger\.wandb_project=3: must be text"),
        ("seeds", [0, 0], "names a seed twice"),
        ("seeds", [-1], r"1 or more whole numbers of at least 0 and .*, such as \[0, 1, 2\]"),
        ("seeds", [2**63], "whole numbers of at least 0 and at most 92233720368547758"),
        ("seed", 2**63, "a whole number of at least 0 and at most 9223372036854775807"),
        ("sae.ortho_seed", 2**63, "a whole number of at least 0 and at most 9223372036854775807"),
        ("evals", {"tpp": {"seed": 2**32}}, "a whole number of at least 0 and at most 4294967295"),
        ("seeds", [True], "must be a list of 1 or more whole numbers"),
        ("seeds", 3, "must be a list"),
        ("seeds", [], "must be a list"),
        ("evals", "core", "must list evaluations"),
        ("evals", [["core"]], r"evals=\['core'\]: must be one of core, subspace"),
        ("evals.core", [1], r"evals\.core=\[1\]: must be a mapping"),
        ("evals.core.n_contexts", "all", r"evals\.core\.n_contexts='all': must be a whole number"),
        ("variants", {}, "must map variant names"),
        ("variants", {"a b": {}}, "a name has letters"),
        ("variants", {"a" * 101: {}}, "100 at most"),
        ("variants", {"Checkpoints": {}}, "variants='Checkpoints': .* another name"),
        ("variants", {"a": 3}, r"variants\.a=3: must be a mapping"),
        ("variants", {"a": 0}, r"variants\.a=0: must be a mapping"),
        ("variants", {"a": {"architecture": []}}, r"variants\.a\.architecture=\[\]: must be one"),
        ("variants", {"a": {"d_in": 64}}, r"variants\.a\.d_in=64: variants share"),
        ("variants", {"a": {"ortho_alpha": 2}}, r"variants\.a\.ortho_alpha=2: must be a number"),
        ("variants", {"a": {"architecture": "topk"}}, r"variants\.a\.architecture='topk'"),
        ("ortho_corpora", ["a.txt"], "must map forget and retain"),
        ("ortho_corpora", {"forget": 3}, "must be a path or a mapping"),
        ("ortho_corpora", {"forget": {"name": "x"}}, r"ortho_corpora\.forget\.path=None"),
        (
            "ortho_corpora",
            {"retain": {"path": "x", "max_documents": 0}},
            r"ortho_corpora\.retain\.max_documents=0: must be a whole number of at least 1",
        ),
        ("ortho_corpora", {}, "dataset_path='': name a corpus"),
        ("ortho_forget_fraction", 1.0, r"must be a number in \(0, 1\)"),
        ("ortho_forget_fraction", "half", "ortho_forget_fraction='half'"),
        ("ortho_holdout_fraction", 0, r"must be a number in \(0, 0\.5\]"),
        ("use_cached_activations", True, "has no effect here"),
    ],
)
def test_wrong_type_or_value_is_refused(
    settings: Settings, key: str, value: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_experiment(changed(settings(), key, value))


@pytest.mark.parametrize("key", ["model_name", "hook_name", "sae", "sae.d_sae", "sae.architecture"])
def test_missing_key_is_named(settings: Settings, key: str) -> None:
    with pytest.raises(ConfigError, match=f"{re.escape(key)}=None"):
        build_experiment(remove(settings(), key))


def test_error_of_saelens_is_a_config_error(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="SAELens refuses it"):
        build_experiment(settings(seqpos_slice=[0, 0]))


def test_defaults(settings: Settings) -> None:
    experiment = build_experiment(remove(settings(), "evals"), "mine")
    assert experiment.name == "mine"
    assert experiment.variants == DEFAULT_VARIANTS
    assert experiment.evals == DEFAULT_EVALS
    assert experiment.seeds == [0]
    assert not experiment.runner.logger.log_to_wandb
    assert not experiment.runner.dataset_trust_remote_code


def test_building_twice_gives_equal_experiments(settings: Settings) -> None:
    tree = settings(ortho_corpora={"forget": "a.jsonl", "retain": {"path": "b.jsonl"}})
    before = deepcopy(tree)
    first, second = build_experiment(tree), build_experiment(tree)
    assert tree == before
    assert first.runner.settings() == second.runner.settings()


# ----------------------------------------------------------------------- files


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml.*No such file"):
        load_experiment(tmp_path / "missing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match=r"binary\.yaml.*not UTF-8"):
        load_experiment(tmp_path / "binary.yaml")
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(ConfigError, match=f"config='{path}': is no regular file"):
            load_experiment(path)
    (tmp_path / "endless.yaml").write_text("extends: /dev/zero\n")
    with pytest.raises(ConfigError, match="extends='/dev/zero': is no regular file"):
        load_experiment(tmp_path / "endless.yaml")
    (tmp_path / "nul.yaml").write_text('extends: "a\\0b"\n')
    with pytest.raises(ConfigError, match="extends=.*cannot be read"):
        load_experiment(tmp_path / "nul.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hook_name": 3}, "hook_name=3: must be text"),
        ({"model_name": {"a": 1}}, "model_name=.*: must be text"),
        ({"seqpos_slice": [0, 2**70]}, "seqpos_slice=.*: must be a list of whole numbers"),
        ({"model_name": "x" * 300}, "model_name="),
        ({"context_size": 2**40}, "context_size=.*: must be a whole number"),
    ],
)
def test_values_beyond_the_machine_are_refused(
    settings: Callable[..., dict[str, Any]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_experiment(settings({"d_in": None}, **changes))


def test_long_name_of_a_corpus_is_only_a_name(settings: Callable[..., dict[str, Any]]) -> None:
    names = {"forget": "x" * 300, "retain": "y" * 300}
    assert build_experiment(settings(ortho_corpora=names)).runner.corpora()


# ------------------------------------------------------------------- overrides


def test_overrides_are_nested_yaml_values(write_config: Callable[..., Path]) -> None:
    experiment = load_experiment(
        write_config(),
        [
            "sae.k=8",
            "lr=1e-4",
            "variants={only: {ortho_mode: off}}",
            "variants.only.ortho_alpha=0.25",
            "seeds=[3, 4]",
            "logger.wandb_project=a=b",
            "evals.core.n_contexts=4",
            "evals.subspace=null",
        ],
    )
    assert experiment.runner.sae.k == 8
    assert experiment.runner.lr == 1e-4
    assert experiment.variants == {"only": {"ortho_mode": "off", "ortho_alpha": 0.25}}
    assert experiment.seeds == [3, 4]
    assert experiment.runner.logger.wandb_project == "a=b"
    assert experiment.evals["core"]["n_contexts"] == 4
    assert experiment.evals["subspace"] == {}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sae.k", "must read key=value"),
        ("=3", "must read key=value"),
        ("lr.x=3", "'lr' is not a mapping"),
        ("sae.kk=3", "Did you mean sae.k?"),
        ("sae.k=[", "not valid YAML"),
    ],
)
def test_bad_override_is_refused(
    write_config: Callable[..., Path], override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_experiment(write_config(), [override])


# -------------------------------------------------------------------- extends


def test_file_overrides_the_one_it_extends(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    base = write_config(lr=1e-2)
    (tmp_path / "inner").mkdir()
    middle = tmp_path / "inner" / "middle.yaml"
    middle.write_text("extends: ../experiment.yaml\nlr: 1e-3\nsae: {k: 6}\n")
    top = tmp_path / "top.yaml"
    top.write_text("extends: inner/middle.yaml\nsae: {ortho_alpha: 0.75}\n")
    experiment = load_experiment(top)
    assert experiment.name == "top"
    assert (experiment.runner.lr, experiment.runner.sae.k) == (1e-3, 6)
    assert experiment.runner.sae.ortho_alpha == 0.75
    assert experiment.runner.sae.d_sae == load_experiment(base).runner.sae.d_sae


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("top.yaml", "extends itself"),
        ("missing.yaml", r"missing\.yaml.*No such file"),
        ("[a.yaml]", "must name a YAML file"),
    ],
)
def test_bad_extends_is_refused(tmp_path: Path, base: str, message: str) -> None:
    (tmp_path / "top.yaml").write_text(f"extends: {base}\n")
    with pytest.raises(ConfigError, match=message):
        load_experiment(tmp_path / "top.yaml")


# --------------------------------------------------------------------- configs


@pytest.mark.parametrize(
    "path",
    sorted(CONFIGS.rglob("*.yaml")),
    ids=lambda path: str(path.relative_to(CONFIGS)),
)
def test_every_shipped_config_is_valid(path: Path) -> None:
    experiment = load_experiment(path)
    assert experiment.name == path.stem
    assert experiment.runner.output_path is not None
