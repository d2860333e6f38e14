"""An experiment is one strict YAML file: a runner config with variants, seeds and evaluations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from sae_lens.config import LoggingConfig
from sae_lens.registry import get_sae_training_class

from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.evaluations import find_runnable, runnable
from saelens_adaptive_ortho.experiments.shipped import find_config
from saelens_adaptive_ortho.files import read_text, user_path
from saelens_adaptive_ortho.host.architectures import ARCHITECTURES, SAE_FIELDS, construct_sae
from saelens_adaptive_ortho.settings import (
    LONGEST,
    Seed,
    apply_override,
    check_one_of,
    check_value,
    check_values,
    init_fields,
    parse,
    parse_yaml,
    reject_unknown,
)
from saelens_adaptive_ortho.text.models import hook_width
from saelens_adaptive_ortho.training.memory import check_memory
from saelens_adaptive_ortho.training.runner_config import (
    RUNNER_FIELDS,
    AdaptiveOrthoRunnerConfig,
    with_sae,
)

DEFAULT_VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {"ortho_mode": "off"},
    "fixed": {"ortho_mode": "fixed"},
    "adaptive": {"ortho_mode": "adaptive"},
}
DEFAULT_EVALS = {"core": {}, "subspace": {}}
EXPERIMENT_KEYS = ("variants", "seeds", "evals")
HOOK_NAMES = Annotated[list[str], Field(min_length=1, examples=[["blocks.5.hook_resid_post"]])]
SEEDS = Annotated[list[Seed], Field(min_length=1, examples=[[0, 1, 2]])]
MOST_EXTENDED = 20
MERGED_KEYS = ("sae", "logger")  # an extending file may change single fields of these


@dataclass
class Experiment:
    """An experiment, as ``adaptive-ortho compare`` runs it.

    Args:
        runner: model, corpora, training, and the SAE config that all variants start from.
        variants: changes to the ``sae`` fields, by variant name.
        seeds: each variant is trained once per seed. All variants of a seed share the initial
            weights and the stream of activations.
        evals: settings of the evaluations, by name.
        name: name of the experiment (the stem of the file's name).
    """

    runner: AdaptiveOrthoRunnerConfig
    variants: dict[str, dict[str, Any]] = field(default_factory=lambda: dict(DEFAULT_VARIANTS))
    seeds: list[int] = field(default_factory=lambda: [0])
    evals: dict[str, dict[str, Any]] = field(default_factory=lambda: dict(DEFAULT_EVALS))
    name: str = "experiment"


@dataclass
class NoSettings:
    """The settings of an evaluation without settings."""


def load_experiment(path: str | Path, overrides: list[str] | None = None) -> Experiment:
    """Read a YAML file and the files that it extends, apply overrides, and validate the result.

    Args:
        path: path of the file, or the bare name of a config that ships with the package.
        overrides: texts of the form ``key=value``.

    Raises:
        ConfigError: the file cannot be read, the YAML is malformed, a key is unknown, a type or
            value is wrong, or there is more than one hook.
    """
    tree, name = overridden_tree(path, overrides)
    if "hook_names" in tree:
        rule = "this command takes one hook. Leave it out, and set hook_name."
        raise reject("hook_names", tree["hook_names"], rule)
    return build_experiment(tree, name)


def check_fits(experiments: Sequence[Experiment]) -> None:
    """Refuse experiments whose SAEs, trained together, cannot fit into memory.

    Raises:
        ConfigError: see :func:`~saelens_adaptive_ortho.training.memory.check_memory`.
    """
    check_memory([with_sae(e.runner, v) for e in experiments for v in e.variants.values()])


def load_experiments(
    path: str | Path, overrides: list[str] | None = None, compared: bool = False
) -> list[Experiment]:
    """The experiment of :func:`load_experiment` at each hook of its ``hook_names``.

    Each has a folder of its own in ``output_path``, with the name of the hook. Without
    ``hook_names`` there is one experiment.

    Args:
        path: see :func:`load_experiment`.
        overrides: see :func:`load_experiment`.
        compared: also refuse settings that have no effect on a comparison.
    """
    tree, name = overridden_tree(path, overrides)
    if compared:
        check_compared(tree)
    given = {override.partition("=")[0] for override in overrides or []}
    if {"hook_name", "hook_names"} <= given:
        raise reject("hook_names", tree["hook_names"], "give it or hook_name, not both.")
    if "hook_names" not in tree:
        return [build_experiment(tree, name)]
    hooks = tree.pop("hook_names")
    check_value("hook_names", hooks, HOOK_NAMES)
    if len(set(hooks)) != len(hooks):
        twice = next(hook for hook in hooks if hooks.count(hook) > 1)
        raise reject("hook_names", hooks, f"names {twice} twice.")
    if not isinstance(folder := tree.get("output_path"), str):
        raise reject("output_path", folder, "several hooks need a folder to write to.")
    tree = {"hook_name": hooks[0], **tree}
    return [
        build_experiment(
            lay_over(tree, {"hook_name": hook, "output_path": str(Path(folder) / hook)}), name
        )
        for hook in hooks
    ]


def check_compared(tree: dict[str, Any]) -> None:
    """Refuse settings that only the training of one SAE uses.

    Raises:
        ConfigError: there is one.
    """
    seeds = tree.get("seeds", [0])
    reasons = {
        "resume_from_checkpoint": "a comparison continues from its own checkpoints. Leave it out.",
        "checkpoint_path": "a comparison keeps its checkpoints in output_path. Leave it out.",
        "seed": f"a comparison trains the seeds of `seeds`: {seeds}. Set that one.",
        "ortho_shards": "only `train` divides an SAE among processes. Leave it out.",
    }
    for name, reason in reasons.items():
        value = tree.get(name)
        # A seed of 0 is the default, which a file may write down: it asks for nothing.
        used = name == "seed" and isinstance(seeds, list) and value in [0, *seeds]
        used |= name == "ortho_shards" and value == 1
        if value is not None and not used:
            raise reject(name, value, reason)


def overridden_tree(path: str | Path, overrides: list[str] | None) -> tuple[dict[str, Any], str]:
    """The settings of a file with overrides, not validated, and the name of the experiment.

    Raises:
        ConfigError: the file cannot be read, or an override is malformed.
    """
    path = find_config(path)
    tree = read_tree(path)
    before = _site(tree)
    for override in overrides or []:
        apply_override(tree, override)
    if _site(tree) != before and not any(o.startswith("sae.d_in=") for o in overrides or []):
        tree = _without_width(tree)
    return tree, path.stem


def read_tree(path: str | Path) -> dict[str, Any]:
    """The settings of a file, merged into those of the file that it ``extends``, not validated.

    Raises:
        ConfigError: a file cannot be read, its YAML is malformed, or it extends itself.
    """
    return _read_tree(Path(path), ())


def lay_over(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The settings of ``tree``, overridden by those of ``changes``.

    ``sae`` and ``logger`` are merged field by field. Any other setting is replaced as a whole, such
    as the variants or a corpus. With another model or another kind of hook, ``sae.d_in`` is dropped
    unless it is among the changes: it is then that of the new model.
    """
    if _site({**tree, **changes}) != _site(tree):
        tree = _without_width(tree)
    merged = {
        key: {**tree[key], **changes[key]}
        for key in MERGED_KEYS
        if isinstance(tree.get(key), dict) and isinstance(changes.get(key), dict)
    }
    return {**tree, **changes, **merged}


def _site(tree: dict[str, Any]) -> tuple[object, str]:
    """The model and the kind of hook; the layer does not count."""
    return tree.get("model_name"), re.sub(r"\d+", "N", str(tree.get("hook_name")))


def _without_width(tree: dict[str, Any]) -> dict[str, Any]:
    sae = tree.get("sae")
    if not isinstance(sae, dict):
        return tree
    return {**tree, "sae": {name: value for name, value in sae.items() if name != "d_in"}}


def _read_tree(path: Path, extended_by: tuple[Path, ...]) -> dict[str, Any]:
    text = read_text("extends" if extended_by else "config", path, LONGEST)
    if path.resolve() in extended_by:
        raise reject("extends", str(path), "extends itself.")
    tree = parse_yaml(text, str(path))
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise reject("extends", base, "must name a YAML file, relative to this one.")
    if len(extended_by) >= MOST_EXTENDED:
        rule = f"extends a file that extends another one, and so on, {MOST_EXTENDED} times at most."
        raise reject("extends", base, rule)
    return lay_over(_read_tree(path.parent / user_path(base), (*extended_by, path.resolve())), tree)


def eval_settings(names: list[str], overrides: list[str]) -> dict[str, dict[str, Any]]:
    """Settings of the named evaluations, with overrides of the form ``eval.field=value``.

    Raises:
        ConfigError: an evaluation or a field is unknown, or a value has the wrong type.
    """
    return _overridden_evals({name.strip(): {} for name in names}, overrides)


def recorded_settings(run: Path, name: str, overrides: Sequence[str] = ()) -> Any:
    """The settings object of an evaluation, as the comparison in a folder has it.

    Where its ``config.yaml`` says nothing, or if there is none, the defaults count.

    Args:
        run: folder of the run.
        name: name of the evaluation, which has settings.
        overrides: texts of the form ``eval.field=value``, which count more than the run's.

    Raises:
        ConfigError: a field is unknown, or a value has the wrong type.
    """
    kind = find_runnable("evals", name).settings
    assert kind is not None
    found = _overridden_evals({name: _recorded(run, name)}, overrides)
    return kind(**found[name])


def _recorded(run: Path, name: str) -> dict[str, Any]:
    """The settings of an evaluation in the config of a run; none if it does not have it."""
    file = run / "config.yaml"
    if not file.is_file():
        return {}
    evals = parse_yaml(read_text("config", file, LONGEST), str(file)).get("evals")
    if not isinstance(evals, dict) or not isinstance(evals.get(name), dict):
        return {}
    return dict(_check_evals({name: evals[name]})[name])


def _overridden_evals(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    for override in overrides:
        if override.partition(".")[0] not in tree:
            raise reject("--set", override, f"must begin with one of {', '.join(tree)} and a dot.")
        apply_override(tree, override)
    return _check_evals(tree, "--evals", "--set ")


def build_experiment(tree: dict[str, Any], name: str = "experiment") -> Experiment:
    """Validate a tree of settings, and build the experiment.

    Raises:
        ConfigError: a setting cannot work. The message names field, value and remedy.
    """
    tree = dict(tree)
    if "sweep" in tree:
        rule = "this command takes one experiment. `adaptive-ortho sweep` runs a sweep."
        raise reject("sweep", tree["sweep"], rule)
    runner_fields = init_fields(AdaptiveOrthoRunnerConfig)
    reject_unknown(tree, [*runner_fields, *EXPERIMENT_KEYS], "")
    variants = tree.pop("variants", DEFAULT_VARIANTS)
    seeds = tree.pop("seeds", [0])
    evals = tree.pop("evals", DEFAULT_EVALS)
    runner = _build_runner(tree)
    _check_variants(variants, runner)
    check_value("seeds", seeds, SEEDS)
    if len(set(seeds)) != len(seeds):
        raise reject("seeds", seeds, "names a seed twice.")
    return Experiment(
        runner=runner,
        variants={k: dict(v or {}) for k, v in variants.items()},
        seeds=seeds,
        evals=_check_evals(evals),
        name=name,
    )


def _build_runner(tree: dict[str, Any]) -> AdaptiveOrthoRunnerConfig:
    sae = tree.pop("sae", None)
    if not isinstance(sae, dict):
        raise reject("sae", sae, "must be a mapping with at least architecture and d_sae.")
    logger = tree.pop("logger", {"log_to_wandb": False})
    if not isinstance(logger, dict):
        raise reject("logger", logger, "must be a mapping of SAELens LoggingConfig fields.")
    for key in ("model_name", "hook_name"):  # SAELens's defaults belong to its own example
        if not tree.get(key):
            raise reject(key, tree.get(key), "must be given.")
        check_value(key, tree[key], str)
    if "d_in" not in sae:
        sae = {**sae, "d_in": _width(tree)}
    built = {
        "sae": _build_sae(sae),
        "logger": parse(LoggingConfig, {"log_to_wandb": False, **logger}, "logger."),
    }
    if isinstance(tree.get("seqpos_slice"), list):
        tree["seqpos_slice"] = tuple(tree["seqpos_slice"])
    corpora = tree.get("ortho_corpora", {})
    if not isinstance(corpora, dict):
        raise reject("ortho_corpora", corpora, "must map forget and retain to corpora.")
    tree["ortho_corpora"] = corpora
    try:
        return parse(AdaptiveOrthoRunnerConfig, tree, "", RUNNER_FIELDS, **built)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:  # SAELens's own checks
        raise ConfigError(f"config: SAELens refuses it: {error}") from error


def _width(tree: dict[str, Any]) -> int:
    """The width at the hook, from the config of the model."""
    width = hook_width(tree["model_name"], tree["hook_name"], tree.get("hook_head_index"))
    if width is None:
        rule = (
            "is no hook point whose width is known, such as blocks.3.hook_resid_post. If the model "
            "has it, set sae.d_in to its width."
        )
        raise reject("hook_name", tree["hook_name"], rule)
    return width


def _build_sae(sae: dict[str, Any]) -> Any:
    sae = dict(sae)
    architecture = sae.pop("architecture", None)
    check_one_of("sae.architecture", architecture, ARCHITECTURES)
    return construct_sae(architecture, sae, "sae.")


def _check_variants(variants: object, runner: AdaptiveOrthoRunnerConfig) -> None:
    if not isinstance(variants, dict) or not variants:
        raise reject("variants", variants, "must map variant names to changes of `sae` fields.")
    for name, changes in variants.items():
        where = f"variants.{name}"
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.=-]{0,99}", name):
            raise reject("variants", name, "a name has letters, digits and .=- only, 100 at most.")
        if name.lower() == "checkpoints":  # see `Comparison`
            rule = "this folder of a run holds its checkpoints. Give the variant another name."
            raise reject("variants", name, rule)
        changes = {} if changes is None else changes
        if not isinstance(changes, dict):
            raise reject(where, changes, "must be a mapping of `sae` fields.")
        architecture = changes.get("architecture", runner.sae.architecture())
        check_one_of(f"{where}.architecture", architecture, ARCHITECTURES)
        config_class = get_sae_training_class(architecture)[1]
        reject_unknown(changes, ["architecture", *init_fields(config_class)], f"{where}.")
        fields_changed = {k: v for k, v in changes.items() if k != "architecture"}
        check_values(fields_changed, config_class, f"{where}.", SAE_FIELDS)
        for shared in ("d_in", "normalize_activations"):
            if shared in changes and changes[shared] != getattr(runner.sae, shared):
                raise reject(
                    f"{where}.{shared}", changes[shared], "variants share one activation stream."
                )
        try:
            with_sae(runner, changes)
        except ConfigError as error:
            raise ConfigError(f"{where}.{error}") from error
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: SAELens refuses it: {error}") from error


def _check_evals(
    evals: object, where: str = "evals", prefix: str = "evals."
) -> dict[str, dict[str, Any]]:
    """Check the settings of the evaluations, and return them by name.

    Args:
        where: name of the setting that lists evaluations, for error messages.
        prefix: text before an evaluation's name in error messages about its settings.
    """
    known = runnable()
    if not isinstance(evals, (list, dict)):
        raise reject(where, evals, f"must list evaluations; known: {', '.join(known)}.")
    checked: dict[str, dict[str, Any]] = {}
    for name, settings in [(e, {}) for e in evals] if isinstance(evals, list) else evals.items():
        kind = find_runnable(where, name).settings
        kind = kind or NoSettings
        settings = {} if settings is None else settings
        if isinstance(settings, dict):
            remedy = f"`adaptive-ortho evaluations {name}` lists the settings."
            reject_unknown(settings, init_fields(kind), f"{prefix}{name}.", remedy)
        parse(kind, settings, f"{prefix}{name}.")
        checked[name] = settings
    return checked
