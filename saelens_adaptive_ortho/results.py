"""Result files: one JSON document per variant, seed and evaluation.

A file is named ``{variant}__seed{S}__{eval}.json`` and is in ``RUN/results``. Other files in that
folder (``summary.json``, temporary files) are not results and are ignored.

All results of a finished run can also be in one file, ``results.jsonl``, with one result per line.
"""

from __future__ import annotations

import json
import math
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from saelens_adaptive_ortho.checksums import breaks_seal, sealed
from saelens_adaptive_ortho.errors import Explained
from saelens_adaptive_ortho.files import without_home, write_text_atomic

SCHEMA_VERSION = 1

#: Variants that always come first. The others follow in order of appearance.
LEADING_VARIANTS = ("baseline", "fixed", "directions", "groups", "adaptive")
#: A variant of a series: ``groups=0.3``.
_SERIES = re.compile(r"(?P<name>.+)=(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)", re.I)

#: Name of the file with all results of a run, in a folder that replaces the run folder.
RESULTS_FILE = "results.jsonl"

_FILE_NAME = re.compile(r"^(?P<variant>.+?)__seed(?P<seed>\d+)__(?P<eval>.+)\.json$")
_RERUN = "delete this file and rerun compare"
_STATUSES = ("ok", "failed")


class ResultError(Explained, ValueError):
    """A result file or folder cannot be used. The message names it and the remedy."""


@dataclass(frozen=True)
class Result:
    """The result of one evaluation for one variant trained with one seed.

    ``metrics`` is flat: it maps names to floats, or to ``None`` if a value could not be computed.
    ``details`` holds JSON values that the evaluation adds for plots. If ``status`` is ``"failed"``,
    ``reason`` says why. ``seconds`` is the wall time of the evaluation.
    """

    eval: str
    variant: str
    seed: int
    status: str = "ok"
    reason: str | None = None
    seconds: float | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def ok(self) -> bool:
        """True if the evaluation finished."""
        return self.status == "ok"

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain dictionaries, lists, strings and finite numbers.

        The home folder is written ``~``.

        Raises:
            ValueError: a metric or a detail is NaN or infinite. The message names it.
        """
        return {
            "schema_version": self.schema_version,
            "eval": self.eval,
            "variant": self.variant,
            "seed": int(self.seed),
            "status": self.status,
            "reason": without_home(self.reason),
            "seconds": _plain(self.seconds, "seconds"),
            "metrics": {
                name: None if value is None else _finite(value, f"metric {name!r}")
                for name, value in self.metrics.items()
            },
            "details": without_home(_plain(self.details, "details")),
            "fingerprint": self.fingerprint,
            "versions": dict(self.versions),
        }


def _finite(value: Any, where: str) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(
            f"{where} is {number}, not a finite number (None stands for a missing value)"
        )
    return number


def _plain(value: Any, where: str) -> Any:
    """Convert mappings, sequences and array-likes to plain JSON values; NaN and inf are refused."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return _finite(value, where)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    # Arrays, tensors and their scalars have tolist(), so their types need not be imported.
    to_list = getattr(value, "tolist", None)
    if callable(to_list):
        return _plain(to_list(), where)
    raise ValueError(f"{where} has type {type(value).__name__}, which JSON cannot hold")


def result_path(run_dir: str | Path, variant: str, seed: int, eval: str) -> Path:
    """Return ``RUN/results/{variant}__seed{S}__{eval}.json``.

    Raises:
        ValueError: the names cannot be recovered from the file name (it has a path separator, or
            the variant's name contains ``__seed``).
    """
    name = f"{variant}__seed{seed}__{eval}.json"
    match = _FILE_NAME.match(name)
    if (
        match is None
        or "/" in name
        or "\\" in name
        or match.group("variant", "seed", "eval") != (variant, str(seed), eval)
    ):
        raise ValueError(f"variant {variant!r}, seed {seed!r}, eval {eval!r} give no file name")
    return Path(run_dir) / "results" / name


def is_result_name(name: str) -> bool:
    """Whether a file name is one that :func:`result_path` gives."""
    return _FILE_NAME.fullmatch(name) is not None


def result_text(result: Result, where: str | Path = "the result") -> str:
    """The text of a result file.

    Args:
        where: what the error names.

    Raises:
        ValueError: a metric or detail is NaN or infinite or no valid text, or the result is
            inconsistent (an unknown status, or a failure without a reason).
    """
    document = result.to_json()
    parse_result(document, where)
    return sealed(document)


def write_result(path: str | Path, result: Result) -> Path:
    """Write one result atomically and return its path.

    Raises:
        ValueError: as for :func:`result_text`. Nothing is written then.
    """
    return write_text_atomic(path, result_text(result, path))


def load_result(path: str | Path) -> Result:
    """Load one result file.

    Raises:
        ResultError: the file is missing, broken or not as it was written, it has another schema
            version, or its name and its content differ in variant, seed or evaluation.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ResultError(f"{path}: cannot be read ({error})") from error
    except ValueError as error:
        _fail(path, f"is not valid JSON ({error})")
    document = _decode(text, path)
    result = parse_result(document, path)
    match = _FILE_NAME.match(path.name)
    if match is not None:
        named = (match["variant"], int(match["seed"]), match["eval"])
        held = (result.variant, result.seed, result.eval)
        if named != held:
            _fail(path, f"is named for {named} but holds {held}")
    if breaks_seal(text, document):
        _fail(path, "is not as it was written: its SHA-256 is another one")
    return result


def write_results_file(path: str | Path, results: Iterable[Result]) -> Path:
    """Write several results into one file atomically, one per line, and return its path.

    Raises:
        ValueError: as for `write_result`. Nothing is written then.
    """
    path = Path(path)
    lines = []
    for result in results:
        document = result.to_json()
        parse_result(document, path)
        lines.append(json.dumps(document, allow_nan=False, ensure_ascii=False))
    return write_text_atomic(path, "".join(f"{line}\n" for line in lines))


def read_results_file(path: str | Path) -> list[Result]:
    """Read a file that `write_results_file` wrote.

    Raises:
        ResultError: the file is missing or empty, or a line is not a result. The message names the
            file and the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"{path}: cannot be read ({error})") from error
    results = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line:
            where = f"{path}:{number}"
            results.append(parse_result(_decode(line, where), where))
    if not results:
        raise ResultError(f"{path}: holds no results; run compare first")
    return results


def results_dir(run_dir: str | Path) -> Path:
    """Return ``RUN/results`` if it exists, else ``RUN`` itself (a results folder)."""
    run_dir = Path(run_dir)
    inner = run_dir / "results"
    return inner if inner.is_dir() else run_dir


def load_results(run_dir: str | Path, variants: Sequence[str] | None = None) -> list[Result]:
    """Load every result of a run, ordered by variant, seed and evaluation.

    Args:
        run_dir: the run's folder, its ``results`` folder, a file that `write_results_file` wrote,
            or the folder of such a file named ``results.jsonl``.
        variants: the order of the variants; by default `order_variants` decides.

    Raises:
        ResultError: there is no result, or a result cannot be used (see `load_result`). A file
            that cannot be used is only named in a warning if no other result is of its variant and
            the run has no such SAE.
    """
    run_dir = Path(run_dir)
    file = run_dir if run_dir.is_file() else run_dir / RESULTS_FILE
    results = read_results_file(file) if file.is_file() else _load_folder(results_dir(run_dir))
    refuse_doubles(results, file if file.is_file() else run_dir)
    order = order_variants((result.variant for result in results), variants)
    return sorted(results, key=lambda r: (order.index(r.variant), r.seed, r.eval))


def left_out(run_dir: str | Path) -> dict[str, str]:
    """The files in the results of a run that `load_results` only warns of: name and reason."""
    run_dir = Path(run_dir)
    if run_dir.is_file() or (run_dir / RESULTS_FILE).is_file():
        return {}
    folder = results_dir(run_dir)
    others = _read_folder(folder)[1]
    return {name: why.removeprefix(f"{folder / name}: ") for name, why in others.items()}


def _load_folder(folder: Path) -> list[Result]:
    results, others = _read_folder(folder)
    for problem in others.values():
        warnings.warn(f"Left out, because no SAE of this run has its name: {problem}", stacklevel=3)
    return results


def _read_folder(folder: Path) -> tuple[list[Result], dict[str, str]]:
    """The results in a folder, and the files that are of no SAE of the run: name and problem."""
    if not folder.is_dir():
        raise ResultError(f"{folder}: no such folder; run compare first")
    paths = sorted(path for path in folder.glob("*.json") if _FILE_NAME.match(path.name))
    results: list[Result] = []
    failures: list[tuple[Path, ResultError]] = []
    others: dict[str, str] = {}
    for path in paths:
        try:
            results.append(load_result(path))
        except ResultError as error:
            failures.append((path, error))
    variants = {result.variant for result in results}
    for path, error in failures:
        if not results or _may_be_of_run(path, variants):
            raise error
        others[path.name] = str(error).removesuffix(f"; {_RERUN}")
    if not results:
        raise ResultError(f"{folder}: holds no results; run compare first")
    return results, others


def _may_be_of_run(path: Path, variants: set[str]) -> bool:
    """Whether a file that cannot be used has the name of a variant with results, or of an SAE."""
    match = _FILE_NAME.match(path.name)
    if match is None:
        return False
    sae = path.parent.parent / f"seed{match['seed']}" / match["variant"]
    return match["variant"] in variants or sae.is_dir()


def refuse_doubles(results: Iterable[Result], where: object) -> None:
    """Refuse two results of one variant, seed and evaluation.

    Args:
        where: what holds the results, for the error.

    Raises:
        ResultError: there are two or more.
    """
    counts = Counter((result.variant, result.seed, result.eval) for result in results)
    for identity, count in counts.items():
        if count > 1:
            raise ResultError(f"{where}: holds {count} results of {identity}; keep one of them")


def split_series(variant: str) -> tuple[str, float | None]:
    """Return the name of a variant's series and its number: ``alpha`` and 0.5 for ``alpha=0.5``.

    The number is None, and the name is that of the variant, if it does not end with one.
    """
    match = _SERIES.fullmatch(variant)
    return (match["name"], float(match["number"])) if match else (variant, None)


def order_variants(names: Iterable[str], first: Sequence[str] | None = None) -> list[str]:
    """Return the distinct names in report order.

    The names in ``first`` come first, by default :data:`LEADING_VARIANTS`. If the run has none of
    these, or has the baseline only as a series (``baseline=20``), series of these names lead, too.
    The others follow in order of appearance; those of a series (``alpha=0.5``, ``alpha=1``) follow
    its first one, in order of their numbers. The first returned name is the reference of
    comparisons.
    """
    distinct = list(dict.fromkeys(names))
    leading = [name for name in (first or LEADING_VARIANTS) if name in distinct]
    if first is None:
        baseline = LEADING_VARIANTS[0]
        series: dict[tuple[str, bool], list[tuple[float, str]]] = {}
        for name in distinct:
            start, number = split_series(name)
            member = (number or 0.0, name)
            series.setdefault((start, number is not None), []).append(member)
        distinct = [name for members in series.values() for _, name in sorted(members)]
        starts = {name: split_series(name)[0] for name in distinct}
        if not leading or (baseline not in leading and baseline in starts.values()):
            leading = [n for start in LEADING_VARIANTS for n in distinct if starts[n] == start]
    return leading + [name for name in distinct if name not in leading]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _decode(text: str, where: Path | str) -> object:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        _fail(where, f"is not valid JSON ({error})")


def _fail(path: Path | str, problem: str) -> NoReturn:
    # Only a file with the name of a result was written by a run, and a run can write it again.
    named = _FILE_NAME.match(Path(path).name) is not None
    remedy = _RERUN if named else "is it a file of results?"
    raise ResultError(f"{path}: {problem}; {remedy}")


def _is_number(value: object) -> bool:
    """Whether a value is a number, and a float can hold it."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return isinstance(value, float) or abs(value) <= sys.float_info.max


def parse_result(document: object, path: Path | str) -> Result:
    """Check each field of a decoded document and build the `Result`.

    Args:
        document: what :meth:`Result.to_json` returns.
        path: what the error names.

    Raises:
        ResultError: a field is missing or wrong.
    """
    if not isinstance(document, dict):
        _fail(path, "does not hold a JSON object")
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        _fail(path, f"has schema_version {version!r}, this version reads {SCHEMA_VERSION}")
    for name in ("eval", "variant"):
        if not isinstance(document.get(name), str) or not document[name]:
            _fail(path, f"has no text under {name!r}")
    seed = document.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool):
        _fail(path, "has no whole number under 'seed'")
    status, reason = document.get("status"), document.get("reason")
    if status not in _STATUSES:
        _fail(path, f"has status {status!r}, expected one of {_STATUSES}")
    if reason is not None and not isinstance(reason, str):
        _fail(path, "has a 'reason' that is not text")
    if status == "failed" and not reason:
        _fail(path, "says 'failed' without a 'reason'")
    seconds = document.get("seconds")
    if seconds is not None and not _is_number(seconds):
        _fail(path, "has 'seconds' that is not a number")
    mappings: dict[str, dict[str, Any]] = {}
    for name in ("metrics", "details", "versions"):
        value = document.get(name)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            _fail(path, f"has {name!r} that is not an object")
        mappings[name] = value
    metrics: dict[str, float | None] = {}
    for name, value in mappings["metrics"].items():
        if value is not None and not (_is_number(value) and math.isfinite(value)):
            _fail(path, f"has metric {name!r} = {value!r}, expected a finite number or null")
        metrics[name] = None if value is None else float(value)
    return Result(
        eval=document["eval"],
        variant=document["variant"],
        seed=seed,
        status=status,
        reason=reason,
        seconds=None if seconds is None else float(seconds),
        metrics=metrics,
        details=mappings["details"],
        fingerprint=str(document.get("fingerprint") or ""),
        versions={key: str(value) for key, value in mappings["versions"].items()},
        schema_version=version,
    )


def versions(also: Iterable[str] = ()) -> dict[str, str]:
    """Versions of the packages that determine the numbers.

    Args:
        also: names of further packages. Those that are not installed as a package are left out.
    """
    found = {name: version(name) for name in ("saelens-adaptive-ortho", "sae-lens", "torch")}
    for name in also:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
