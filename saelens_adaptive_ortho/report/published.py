"""Results of others: files that SAEBench wrote, beside the results of a run.

SAEBench writes a JSON file per SAE and evaluation, ``..._eval_results.json``. Each evaluation says
how its files are read (``Evaluation.published``). The run keeps what was read in
``results/published.json``, so the report can be written again without the folder.

Other SAEs were judged on other text, with other settings. A method is *comparable* if its SAEs are
of the model and the hook of the run. Only comparable methods are drawn. A core file tells the L0 of
an SAE.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from pydantic import TypeAdapter, ValidationError

from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.evaluations import Evaluation, every
from saelens_adaptive_ortho.files import read_cached, read_text, without_home, write_sealed
from saelens_adaptive_ortho.report.sparsity import L0
from saelens_adaptive_ortho.results import results_dir

FIELD = "--published"
ENDING = "eval_results.json"  # SAEBench's own tools look for it in the names
STORED = "published.json"
RAW = "sae_bench"  # the folder of SAEBench's files that the run itself wrote
SHOWN_PROBLEMS = 10
LONGEST_NAME = 300  # characters
#: This package runs SAEBench's core once for each corpus.
_CORPUS = re.compile(r"(?P<sae>.+__seed\d+)__(?P<corpus>.+)")

Json = Mapping[str, Any]


@dataclass(frozen=True)
class PublishedSae:
    """An SAE that others judged.

    Args:
        release: release of the SAE in the file.
        sae_id: id of the SAE in the file.
        architecture: architecture, such as ``topk``; empty if no file says it.
        model: language model without its owner, such as ``gemma-2-2b``; empty if unknown.
        hook: hook point; empty if unknown.
        d_sae: number of latents; None if unknown.
        metrics: values by key (``{eval}/{name}``).
    """

    release: str
    sae_id: str
    architecture: str
    model: str
    hook: str
    d_sae: int | None
    metrics: Mapping[str, float]

    @property
    def family(self) -> str:
        """The release without the number that tells SAEs of one method apart.

        It is ``trainer_3`` in SAEBench's releases, and ``=40`` in those that this package wrote.
        """
        return re.sub(r"_?trainer_\d+|=[\d.]+(?=__seed)", "", self.release)


class PublishedMethod(NamedTuple):
    """SAEs of one release, architecture, model, hook and width, which differ in sparsity.

    Attributes:
        label: architecture and number of latents, and the release if others have the same.
        model: language model of the SAEs.
        hook: hook point of the SAEs.
        d_sae: number of latents; None if unknown.
        saes: the SAEs, by rising L0; those without L0 come last.
        reason: why the method is not drawn; empty if it is.
    """

    label: str
    model: str
    hook: str
    d_sae: int | None
    saes: Sequence[PublishedSae]
    reason: str

    def points(self, key: str) -> list[tuple[float, float]]:
        """L0 and value of each SAE that has both, by rising L0."""
        return [(s.metrics[L0], s.metrics[key]) for s in self.saes if {L0, key} <= set(s.metrics)]


class _File(NamedTuple):
    """What a file holds: an SAE with the metrics of one evaluation, and when it was made."""

    sae: PublishedSae
    eval: str
    time: float


def store(run_dir: str | Path, saes: Sequence[PublishedSae]) -> Path:
    """Write ``RUN/results/published.json``, in place of an earlier one, and return its path."""
    path = results_dir(run_dir) / STORED
    write_sealed(path, {"saes": [without_home(asdict(sae)) for sae in saes]})
    return path


def load(run_dir: str | Path) -> list[PublishedMethod]:
    """The published methods that :func:`store` has kept for a run; empty if there are none."""
    folder = results_dir(run_dir)
    found = read_cached(folder / STORED)
    if not isinstance(found, dict):
        return []
    try:
        saes = TypeAdapter(list[PublishedSae]).validate_python(cast("Json", found).get("saes"))
    except ValidationError as error:
        rule = f"was not written by this package. Delete it, or give {FIELD} again."
        raise reject(STORED, str(folder / STORED), rule) from error
    return group(saes, own_sites(folder))


def read_folder(folder: Path, say: Callable[[str], None] = print) -> list[PublishedSae]:
    """The SAEs of all ``*eval_results.json`` below a folder, in the order of their names.

    If two files hold the same SAE and evaluation, the newer one counts.

    Args:
        folder: a folder with files of SAEBench, at any depth.
        say: gets a line for each file that is left out, and one for the others.

    Raises:
        ConfigError: the folder does not exist, or no file in it can be used.
    """
    if not folder.is_dir():
        raise reject(FIELD, str(folder), "no such folder. Name one that holds SAEBench's results.")
    paths = sorted(path for path in folder.rglob(f"*{ENDING}") if path.is_file())
    if not paths:
        rule = f"holds no file *_{ENDING}. Name a folder of SAEBench's results."
        raise reject(FIELD, str(folder), rule)
    files: dict[tuple[str, str, str], _File] = {}
    problems: list[str] = []
    for path in paths:
        try:
            found = read_file(path)
        except ConfigError as error:
            problems.append(str(error))
            continue
        ours = _CORPUS.fullmatch(found.sae.release)
        if ours is not None and ours["corpus"] != "pooled":
            continue
        if ours is not None:
            found = found._replace(sae=replace(found.sae, release=ours["sae"]))
        key = (found.sae.release, found.sae.sae_id, found.eval)
        if key not in files or found.time >= files[key].time:
            files[key] = found
    if not files:
        raise reject(FIELD, str(folder), f"no file in it can be used. {problems[0]}")
    for problem in problems[:SHOWN_PROBLEMS]:
        say(f"Left out: {problem}")
    if len(problems) > SHOWN_PROBLEMS:
        say(f"Left out: {len(problems) - SHOWN_PROBLEMS} more files")
    saes: dict[tuple[str, str], PublishedSae] = {}
    for file in files.values():
        identity = (file.sae.release, file.sae.sae_id)
        saes[identity] = _merged(saes.get(identity, file.sae), file.sae)
    say(f"Published results: {len(saes)} SAEs from {len(files)} files in {folder}")
    return list(saes.values())


def read_file(path: Path) -> _File:
    """The SAE and the metrics of one result file of SAEBench.

    Raises:
        ConfigError: the file cannot be read, is no result of SAEBench, or is of an evaluation that
            is not among ours. The message names the file.
    """
    try:
        document: object = json.loads(read_text(FIELD, path))
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise reject(FIELD, str(path), f"is damaged, or no JSON ({error}).") from error
    content = _object(document)
    kind = content.get("eval_type_id")
    if not isinstance(kind, str) or not isinstance(content.get("eval_result_metrics"), dict):
        rule = "is no result of SAEBench: it has no eval_type_id and no eval_result_metrics."
        raise reject(FIELD, str(path), rule)
    chosen = _evaluations().get(kind)
    if chosen is None or chosen.published is None:
        raise reject(FIELD, str(path), f"is of the evaluation {kind!r}, which is not among ours.")
    try:
        values = chosen.published.read(content["eval_result_metrics"])
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        rule = f"does not have the form of SAEBench's {kind} ({type(error).__name__}: {error})."
        raise reject(FIELD, str(path), rule) from error
    prefix = f"{chosen.name}/{chosen.published.corpus}"
    numbers = {f"{prefix}{name}": _number(value) for name, value in values.items()}
    metrics = {key: value for key, value in numbers.items() if value is not None}
    if not metrics:
        raise reject(FIELD, str(path), "holds no number.")
    made = _number(content.get("datetime_epoch_millis"))
    return _File(_sae(content, metrics), chosen.name, made or 0.0)


def _evaluations() -> dict[str, Evaluation]:
    """The evaluations with files of SAEBench, by the ``eval_type_id`` in them."""
    return {e.published.eval_type: e for e in every().values() if e.published is not None}


def _number(value: Any) -> float | None:
    """The value as a float; None if it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _sae(content: Json, metrics: Mapping[str, float]) -> PublishedSae:
    """What a file says about its SAE. SAELens 6 keeps model and hook under ``metadata``."""
    config = _object(content.get("sae_cfg_dict"))
    known = {**_object(config.get("metadata")), **{k: v for k, v in config.items() if v}}
    model = known.get("model_name") or _object(content.get("eval_config")).get("model_name")
    width = known.get("d_sae")
    return PublishedSae(
        release=_text(content.get("sae_lens_release_id")),
        sae_id=_text(content.get("sae_lens_id")),
        architecture=_text(known.get("architecture")),
        model=_text(model).rstrip("/").rpartition("/")[2],
        hook=_text(known.get("hook_name")),
        d_sae=width if isinstance(width, int) else None,
        metrics=metrics,
    )


def _object(value: Any) -> Json:
    return cast("Json", value) if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    """A text that can be shown; empty if the value is none."""
    text = value if isinstance(value, str) else ""
    return text.encode("utf-8", "backslashreplace").decode()[:LONGEST_NAME]


def _merged(first: PublishedSae, other: PublishedSae) -> PublishedSae:
    """An SAE with the metrics of both, and with what the first does not say from the other."""
    return replace(
        first,
        architecture=first.architecture or other.architecture,
        model=first.model or other.model,
        hook=first.hook or other.hook,
        d_sae=first.d_sae or other.d_sae,
        metrics={**first.metrics, **other.metrics},
    )


def own_sites(results: Path) -> set[tuple[str, str]]:
    """Model and hook of the SAEs of a run, from the core files that SAEBench wrote for it.

    The set is empty if the files are not there.
    """
    sites: set[tuple[str, str]] = set()
    for path in sorted((results / RAW / "core").glob(f"*__pooled_*{ENDING}")):
        try:
            sae = read_file(path).sae
        except ConfigError:
            continue
        sites.add((sae.model.lower(), sae.hook))
    return sites


def group(
    saes: Sequence[PublishedSae], own: set[tuple[str, str]] | None = None
) -> list[PublishedMethod]:
    """The published methods, comparable ones first.

    Args:
        saes: SAEs that others judged.
        own: model and hook of the SAEs of the run; without it, every method counts as comparable.
    """
    members: dict[tuple[str, str, str, str, int | None], list[PublishedSae]] = {}
    for sae in saes:
        key = (sae.family, sae.architecture, sae.model, sae.hook, sae.d_sae)
        members.setdefault(key, []).append(sae)
    labels = [_label(key[1], key[4]) for key in members]
    found = [
        PublishedMethod(
            label if labels.count(label) == 1 else f"{label} ({family})",
            model,
            hook,
            d_sae,
            sorted(some, key=lambda sae: sae.metrics.get(L0, math.inf)),
            _reason(some, own or set()),
        )
        for label, ((family, _, model, hook, d_sae), some) in zip(
            labels, members.items(), strict=True
        )
    ]
    return sorted(found, key=lambda method: bool(method.reason))


def comparable(published: Sequence[PublishedMethod]) -> list[PublishedMethod]:
    """The methods that are drawn beside those of the run."""
    return [method for method in published if not method.reason]


def keys_of(published: Sequence[PublishedMethod]) -> set[str]:
    """The metrics that these methods have."""
    return {key for method in published for sae in method.saes for key in sae.metrics}


def _label(architecture: str, d_sae: int | None) -> str:
    latents = "" if d_sae is None else f", {d_sae:,} latents"
    return f"{architecture or 'unknown architecture'}{latents}"


def _reason(saes: Sequence[PublishedSae], own: set[tuple[str, str]]) -> str:
    model, hook = saes[0].model, saes[0].hook
    if own and model.lower() not in {name for name, _ in own}:
        return "another model than in this run"
    if own and (model.lower(), hook) not in own:
        return "another hook than in this run"
    if not any(L0 in sae.metrics for sae in saes):
        return "no core file tells the L0"
    return ""
