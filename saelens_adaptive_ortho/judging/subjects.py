"""Finished SAEs from directories or from the hub, and the workbench on which they are judged.

The command line names an SAE by a directory, or by a pair ``release:sae_id`` of the hub. SAELens or
another library saved the directory (``judging.formats``). ``NAME=`` before it is optional and sets
the name in tables. All SAEs of one command share one model and one text.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sae_lens.constants import RUNNER_CFG_FILENAME
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.sae import SAE

from saelens_adaptive_ortho.checksums import SUMS, find_damage
from saelens_adaptive_ortho.devices import check_device
from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.files import read_cached, user_path
from saelens_adaptive_ortho.judging import formats
from saelens_adaptive_ortho.judging.contract import EvalContext, Workbench
from saelens_adaptive_ortho.judging.formats import Format, loading
from saelens_adaptive_ortho.judging.options import JudgingOptions
from saelens_adaptive_ortho.results import split_series
from saelens_adaptive_ortho.text import hub, mixture, models
from saelens_adaptive_ortho.text.corpora import (
    CorpusConfig,
    Tokenisation,
    local_files,
    single_corpus,
    tokenise_corpus,
)
from saelens_adaptive_ortho.text.mixture import FORGET, FORGET_TEST, RETAIN

SEED_FOLDER = re.compile(r"seed(\d+)")

# How to judge SAEs that need different texts or models.
TWO_COMMANDS = ". Judge them in two commands, each with an --out of its own."

# How text is packed and held out, if an SAE does not say it.
TEXT_SETTINGS: dict[str, Any] = {
    "sequence_separator_token": "bos",
    "disable_concat_sequences": False,
    "ortho_holdout_fraction": 0.05,
    "ortho_holdout_contexts": 512,
}


@dataclass(frozen=True)
class Subject:
    """An SAE to judge.

    Args:
        variant: name of the SAE in tables.
        seed: distinguishes SAEs of one variant; differences between variants are paired by seed.
        path: directory of the SAE; None for an SAE of the hub.
        release: release on the hub; empty for a directory.
        sae_id: id of the SAE in the release; empty for a directory.
        format: format of the directory, if another library saved it.
        hook: hook point of the SAE; by default the one that its files tell.
    """

    variant: str
    seed: int
    path: Path | None = None
    release: str = ""
    sae_id: str = ""
    format: Format | None = None
    hook: str | None = None

    @classmethod
    def parse(cls, text: str, hook: str | None = None) -> Subject:
        """Read ``[NAME=]DIRECTORY`` or ``[NAME=]release:sae_id``.

        ``NAME`` may end with ``=NUMBER``: ``topk=20=path`` is the SAE ``topk=20``, which is of the
        method ``topk``. In a run folder (``seed3/adaptive``), the name of the parent folder gives
        the seed.

        Raises:
            ConfigError: the text is neither a directory with an SAE nor such a pair, or the
                weights are not those that were written.
        """
        name, rest = _named_sae(text)
        path = user_path(rest)
        kind = formats.recognised(path)
        if kind is not None or (path / "cfg.json").is_file():
            _refuse_damage(path)
            match = SEED_FOLDER.fullmatch(path.resolve().parent.name)
            seed = int(match[1]) if match else 0
            variant = _file_name(name or path.resolve().name)
            return cls(variant, seed, path.resolve(), format=kind, hook=hook)
        if path.is_dir():
            raise reject(
                "SAE",
                rest,
                "the directory holds no cfg.json of SAELens, and no files of another library "
                f"({formats.in_words()}). Name the folder of one SAE.",
            )
        release, sep, sae_id = rest.partition(":")
        if not sep or not release or not sae_id:
            raise reject(
                "SAE", rest, "no such directory. Give one that holds an SAE, or release:sae_id."
            )
        variant = _file_name(name or f"{release}-{sae_id}")
        return cls(variant, 0, None, release, sae_id, hook=hook)

    def load(self, device: str = "cpu", dtype: str | None = None) -> SAE[Any]:
        """Load a fresh copy of the SAE.

        Raises:
            ConfigError: the SAE cannot be read or downloaded.
        """
        try:
            if self.path is not None and self.format is not None:
                sae = loading.load(self.format, self.path, self.hook, device)
            elif self.path is not None:
                sae = SAE.load_from_disk(self.path, device=device)
            else:
                with hub.offline_if_unreachable():
                    sae = SAE.from_pretrained(self.release, self.sae_id, device=device)
        except ConfigError:
            raise
        except Exception as error:
            raise reject("SAE", self.source, _explain(error, self.path)) from error
        if self.hook is not None:
            sae.cfg.metadata.hook_name = self.hook
        return sae if dtype is None else sae.to(dtype=models.str_to_dtype(dtype))

    @property
    def source(self) -> str:
        """The directory or ``release:sae_id`` of the SAE."""
        return str(self.path) if self.path is not None else f"{self.release}:{self.sae_id}"

    def on(self, bench: Workbench, raw_dir: Path) -> EvalContext:
        """The SAE on a workbench, on its device and in its dtype.

        Args:
            bench: model and text.
            raw_dir: folder for SAEBench's own result files.
        """
        load = partial(self.load, bench.device, bench.dtype)
        return EvalContext(bench, load, self.variant, self.seed, raw_dir)

    def record(self) -> dict[str, Any]:
        """The runner config saved beside the SAE, or an empty dict if there is none.

        Raises:
            ConfigError: the file is damaged.
        """
        file = self.path / RUNNER_CFG_FILENAME if self.path is not None else None
        if file is None or not file.is_file():
            return {}
        found = read_cached(file)
        if not isinstance(found, dict):
            rule = "is damaged. Delete it, and name the model and the corpora by options."
            raise reject("SAE", str(file), rule)
        return found


def _named_sae(text: str) -> tuple[str, str]:
    """The name, which may be empty, and the directory or ``release:sae_id``."""
    name, sep, rest = text.partition("=")
    if not sep or "/" in name or os.path.exists(user_path(text)):  # a path may contain `=`
        return "", text
    number, sep, behind = rest.partition("=")
    member = f"{name}={number}"
    if sep and split_series(member)[1] is not None and not os.path.exists(user_path(rest)):
        return member, behind
    return name, rest


def _refuse_damage(folder: Path) -> None:
    """Refuse weights whose checksum is wrong. Settings may be edited by hand: a warning is enough.

    Raises:
        ConfigError: a file of tensors is damaged. The message names it.
    """
    damaged = find_damage(folder)
    if damaged is None:
        return
    if damaged.suffix == ".json" and damaged.is_file():
        warnings.warn(
            f"{damaged} is not as it was written: its SHA-256 differs from {SUMS}. It is used as "
            f"it is. If you changed it, delete {SUMS}.",
            stacklevel=2,
        )
        return
    rule = f"is damaged: its SHA-256 differs from {SUMS}, or it is missing. Train or copy it again."
    raise reject("SAE", str(damaged), rule)


def _file_name(name: str) -> str:
    """``name`` with only the characters that file names of results may have."""
    return re.sub(r"[^A-Za-z0-9.=-]+", "-", name).strip("-") or "sae"


def _explain(error: Exception, path: Path | None) -> str:
    if path is not None:
        architecture = _architecture(path)
        if architecture is not None and architecture not in SAE_CLASS_REGISTRY:
            known = ", ".join(sorted(SAE_CLASS_REGISTRY))
            return f"SAELens knows no architecture {architecture!r}. It knows {known}."
        # The first line of torch's error only says that the weights do not fit.
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return (
            f"SAELens cannot read it ({text}). Is a file truncated or missing, or do cfg.json and "
            "the weights belong to different SAEs?"
        )
    return hub.explain_failure(error, "the SAE", "a local directory")


def _architecture(path: Path) -> str | None:
    """The architecture that cfg.json names; None if it names none."""
    try:
        found = json.loads((path / "cfg.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found.get("architecture") if isinstance(found, dict) else None


def named_subjects(saes: Sequence[str], hook: str | None = None) -> list[Subject]:
    """The SAEs to judge. Their pairs of name and seed are distinct.

    Args:
        hook: hook point of all SAEs; by default the one that the files of each tell.

    Raises:
        ConfigError: an SAE does not exist, or two SAEs have the same name and seed.
    """
    return distinct_subjects([Subject.parse(text, hook) for text in saes])


def distinct_subjects(subjects: list[Subject]) -> list[Subject]:
    """The SAEs, after a check that their pairs of name and seed are distinct.

    Raises:
        ConfigError: two SAEs have the same name and seed.
    """
    seen: dict[tuple[str, int], Subject] = {}
    for subject in subjects:
        other = seen.setdefault((subject.variant, subject.seed), subject)
        if other is not subject:
            raise reject(
                "SAE",
                subject.source,
                f"has the same name and seed as {other.source}; name it: NAME=...",
            )
    return subjects


def find_subject(text: str, variant: str, seed: int, hook: str | None = None) -> Subject:
    """The SAE of a variant and seed in a run folder, or what :meth:`Subject.parse` reads.

    Raises:
        ConfigError: the run has no such SAE, or the text names no SAE.
    """
    run = Path(text).expanduser()
    if not run.is_dir() or (run / "cfg.json").is_file():
        return Subject.parse(text, hook)
    found = [f.parent for f in run.glob("seed*/*/cfg.json") if SEED_FOLDER.fullmatch(f.parts[-3])]
    chosen = run / f"seed{seed}" / variant
    if found and chosen not in found:
        known = ", ".join(sorted(f"{folder.parent.name}/{folder.name}" for folder in found))
        raise reject("--variant", variant, f"{run} has no seed{seed}/{variant}. It has {known}.")
    return Subject.parse(str(chosen if found else run), hook)


def given_corpora(options: JudgingOptions) -> dict[str, CorpusConfig]:
    """The corpora of --forget, --retain and --forget-test, by name.

    A named retain corpus has share 0, so nothing is chosen by it unless --retain-share says so.

    Raises:
        ConfigError: a file does not exist, or a corpus is given twice.
    """
    texts = [(FORGET, options.forget), *map(_named, options.retain)]
    given: dict[str, CorpusConfig] = {}
    for name, text in [*texts, (FORGET_TEST, options.forget_test)]:
        if text is None:
            continue
        flag = _flag(name)
        if name in given:
            raise reject(flag, text, "is given twice; a further corpus is --retain NAME=CORPUS.")
        with _named_by_flag(flag):
            corpus = CorpusConfig.parse(flag, text)
            given[name] = corpus if name in mixture.ROLES else replace(corpus, share=0.0)
            try:
                local_files(corpus.path)
            except ConfigError as error:
                raise ConfigError(f"{flag}.{error}") from None
    return given


def _named(text: str) -> tuple[str, str]:
    """The name and the corpus of ``[NAME=]CORPUS``; a path may contain ``=``.

    Raises:
        ConfigError: the name is one that another option gives.
    """
    name, sep, rest = text.partition("=")
    if not sep or "/" in name or os.path.exists(user_path(text)):
        return RETAIN, text
    if name in mixture.ROLES:
        raise reject("--retain", text, f"{name} is no name for a retain corpus; use {_flag(name)}.")
    return name, rest


def _flag(name: str) -> str:
    """The option that gives a corpus."""
    flags = {FORGET: "--forget", RETAIN: "--retain", FORGET_TEST: "--forget-test"}
    return flags.get(name, f"--retain {name}")


def chosen_corpora(
    options: JudgingOptions, records: dict[str, dict[str, Any]]
) -> dict[str, CorpusConfig]:
    """The corpora of the options and of the SAEs' training, in order.

    A forget or retain corpus of the options replaces all corpora of the training. Other corpora of
    the options join them.

    Raises:
        ConfigError: an option cannot work, or the SAEs were trained on different corpora.
    """
    given = given_corpora(options)
    recorded = {} if FORGET in given or RETAIN in given else _recorded_corpora(records)
    corpora = {**recorded, **given}
    chosen: set[str] = set()
    for text in options.retain_share:
        name, share = _share(text)
        if name in chosen:
            raise reject("--retain-share", text, f"the share of {name} is given twice.")
        chosen.add(name)
        named = [n for n in corpora if n not in mixture.ROLES]
        if name not in named:
            known = f"there are {', '.join(named)}" if named else "give --retain NAME=CORPUS"
            raise reject("--retain-share", text, f"{name} is no named retain corpus; {known}.")
        corpora[name] = replace(CorpusConfig.from_dict(_flag(name), corpora[name]), share=share)
    if not corpora:
        return {}
    try:
        return mixture.arrange(corpora, _flag)
    except ConfigError as error:
        message = re.sub(r"^--retain (\S+)\.share=", r"--retain-share \1=", str(error))
        raise ConfigError(message) from error


def _share(text: str) -> tuple[str, float]:
    name, _, share = text.partition("=")
    try:
        number = float(share)
    except ValueError:
        number = math.nan
    if not 0 <= number < 1:
        rule = "must read NAME=SHARE with a share in [0, 1), such as near=0.2."
        raise reject("--retain-share", text, rule)
    return name, number


def check_device_and_dtype(options: JudgingOptions) -> None:
    """Refuse a device or a dtype that torch does not have on this machine.

    Raises:
        ConfigError: torch cannot use the device, or does not know the dtype.
    """
    try:
        models.str_to_dtype(options.dtype)
    except ValueError as error:
        raise reject("--dtype", options.dtype, f"must be one of {models.DTYPES}.") from error
    check_device("--device", options.device)


@contextmanager
def _named_by_flag(flag: str) -> Iterator[None]:
    """Make errors about ``FLAG.path`` name the option as the user types it, ``FLAG``."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error).replace(f"{flag}.path=", f"{flag}=", 1)) from error


def workbench_for(subjects: list[Subject], options: JudgingOptions) -> Workbench:
    """Load the model and the text that all SAEs share.

    Quick checks come first.

    Raises:
        ConfigError: an option cannot work.
    """
    check_device_and_dtype(options)
    records = {s.source: s.record() for s in subjects}
    corpora = chosen_corpora(options, records)
    loaded = {s.source: s.load() for s in subjects}
    names = {source: options.model or sae.cfg.metadata.model_name for source, sae in loaded.items()}
    model_name = _shared_value(names, "--model")
    if not model_name:
        raise reject("--model", None, "the SAEs do not say what model they are for.")
    sizes = {
        source: options.context_size or sae.cfg.metadata.context_size
        for source, sae in loaded.items()
    }
    known = {source: size for source, size in sizes.items() if size is not None}
    context_size = _shared_value(known, "--context-size") if known else 128
    how = _tokenisation(context_size, loaded, records)
    metadata = next(iter(loaded.values())).cfg.metadata
    hooks = sorted({sae.cfg.metadata.hook_name for sae in loaded.values()})
    model = models.load_language_model(
        model_name,
        options.device,
        metadata.model_class_name or "HookedTransformer",
        {**_model_settings(loaded), "dtype": options.dtype},
        hooks,
    )
    for sae in loaded.values():
        models.check_hook(model, sae.cfg.metadata.hook_name)
        models.check_d_in(
            model, sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_head_index, sae.cfg.d_in
        )
    models.check_context_size(model, context_size)
    cache = options.out.resolve() / "cache"
    shares = mixture.shares(corpora)
    tokenised = []
    for name, corpus in corpora.items():
        lone = FORGET if options.forget or not options.retain else RETAIN
        flag = _flag(lone if name == mixture.ONLY else name)
        with _named_by_flag(flag):
            found = tokenise_corpus(
                corpus, name, model.tokenizer, how, mixture.TRAIN_CONTEXTS, cache, flag
            )
        tokenised.append(replace(found, share=shares[name]))
    mixture.check_distinct(tokenised, corpora, _flag)
    return Workbench(
        model=model,
        model_name=model_name,
        corpora=tokenised,
        texts=corpora,
        context_size=context_size,
        cache=cache,
        prepend_bos=how.prepend_bos,
        device=options.device,
        dtype=options.dtype,
    )


def _tokenisation(
    context_size: int, saes: dict[str, SAE[Any]], records: dict[str, dict[str, Any]]
) -> Tokenisation:
    """How text becomes contexts for all SAEs, regardless of their order.

    Contexts begin with BOS if any SAE wants it: each SAE then sees them with or without it, as in
    its training (:func:`~saelens_adaptive_ortho.judging.firing.as_trained`).

    Raises:
        ConfigError: two SAEs were trained on text that was packed or held out in different ways.
    """
    wanted = [sae.cfg.metadata.prepend_bos for sae in saes.values()]
    known = {
        source: {**sae.cfg.metadata.to_dict(), **records[source]} for source, sae in saes.items()
    }
    agreed = {
        name: _agreed(name, {s: k[name] for s, k in known.items() if name in k}, default)
        for name, default in TEXT_SETTINGS.items()
    }
    return Tokenisation(
        context_size,
        any(wanted) or not any(want is not None for want in wanted),
        agreed["sequence_separator_token"],
        agreed["disable_concat_sequences"],
        agreed["ortho_holdout_fraction"],
        agreed["ortho_holdout_contexts"],
    )


def _model_settings(saes: dict[str, SAE[Any]]) -> dict[str, Any]:
    """How the SAEs' model was loaded, apart from its dtype and what is never done here.

    Raises:
        ConfigError: two SAEs were trained on a model that was loaded in different ways.
    """
    name, ours = "model_from_pretrained_kwargs", {"dtype", "torch_dtype", "center_writing_weights"}
    known = {source: sae.cfg.metadata[name] or {} for source, sae in saes.items()}
    return _agreed(
        name, {s: {k: v for k, v in kw.items() if k not in ours} for s, kw in known.items()}, {}
    )


def _agreed(name: str, known: dict[str, Any], default: Any, remedy: str = TWO_COMMANDS) -> Any:
    """The value that all SAEs were trained with; ``default`` if none says it.

    Raises:
        ConfigError: two SAEs have different values. The message ends with the remedy.
    """
    agreed = next(iter(known.values()), default)
    for source, value in known.items():
        if value != agreed:
            trained = f"{source} was trained with it, {next(iter(known))} with {agreed!r}"
            raise reject(name, value, trained + remedy)
    return agreed


def _shared_value(values: dict[str, Any], option: str) -> Any:
    """The value that all SAEs share; None if there is none.

    Raises:
        ConfigError: two SAEs have different values.
    """
    return _agreed(option, values, None, f"; SAEs are compared on one, so give {option}.")


def _recorded_corpora(records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The corpora of the SAEs' training, from their runner configs; empty if no config has them."""
    recorded = {s: found for s, r in records.items() if (found := _corpora_of(r))}
    return _shared_value(recorded, "--forget and --retain") if recorded else {}


def _corpora_of(record: dict[str, Any]) -> dict[str, Any]:
    """The corpora of one training; a single one, ``dataset_path``, counts as retain."""
    if record.get("ortho_corpora") or not record.get("dataset_path"):
        return record.get("ortho_corpora") or {}
    tokenised = bool(record.get("is_dataset_tokenized"))
    return {RETAIN: single_corpus(record["dataset_path"], tokenised)}
