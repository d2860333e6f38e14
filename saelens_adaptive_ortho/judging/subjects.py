"""Finished SAEs from directories or from the hub, and the workbench on which they are judged.

The command line names an SAE by a directory that SAELens saved, or by a pair ``release:sae_id`` of
the hub. ``NAME=`` before it is optional and sets the name in tables. All SAEs of one command share
one model and one text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import RUNNER_CFG_FILENAME
from sae_lens.saes.sae import SAE

from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.judging.contract import Workbench
from saelens_adaptive_ortho.judging.options import JudgingOptions
from saelens_adaptive_ortho.text import hub, models
from saelens_adaptive_ortho.text.corpora import (
    DOMAINS,
    CorpusConfig,
    Tokenisation,
    local_files,
    tokenise_corpus,
)

SEED_FOLDER = re.compile(r"seed(\d+)")
TRAIN_CONTEXTS = 1024  # per corpus; some evaluations select latents on training text


@dataclass(frozen=True)
class Subject:
    """An SAE to judge.

    Args:
        variant: name of the SAE in tables.
        seed: distinguishes SAEs of one variant; differences between variants are paired by seed.
        path: directory of the SAE; None for an SAE of the hub.
        release: release on the hub; empty for a directory.
        sae_id: id of the SAE in the release; empty for a directory.
    """

    variant: str
    seed: int
    path: Path | None = None
    release: str = ""
    sae_id: str = ""

    @classmethod
    def parse(cls, text: str) -> Subject:
        """Read ``[NAME=]DIRECTORY`` or ``[NAME=]release:sae_id``.

        In a run folder (``seed3/adaptive``), the name of the parent folder gives the seed.

        Raises:
            ConfigError: the text is neither a directory with an SAE nor such a pair.
        """
        name, sep, rest = text.partition("=")
        name, rest = (name, rest) if sep else ("", text)
        path = Path(rest).expanduser()
        if (path / "cfg.json").is_file():
            match = SEED_FOLDER.fullmatch(path.resolve().parent.name)
            seed = int(match[1]) if match else 0
            return cls(_file_name(name or path.resolve().name), seed, path.resolve())
        if path.is_dir():
            raise reject("SAE", rest, "the directory holds no cfg.json; is it a SAELens export?")
        release, sep, sae_id = rest.partition(":")
        if not sep or not release or not sae_id:
            raise reject(
                "SAE", rest, "no such directory. Give one that SAELens saved, or release:sae_id."
            )
        return cls(_file_name(name or f"{release}-{sae_id}"), 0, None, release, sae_id)

    def load(self, device: str = "cpu", dtype: str | None = None) -> SAE[Any]:
        """Load a fresh copy of the SAE.

        Raises:
            ConfigError: the SAE cannot be read or downloaded.
        """
        try:
            if self.path is not None:
                sae = SAE.load_from_disk(self.path, device=device)
            else:
                with hub.offline_if_unreachable():
                    sae = SAE.from_pretrained(self.release, self.sae_id, device=device)
        except Exception as error:
            raise reject("SAE", self.source, _explain(error, self.path)) from error
        return sae if dtype is None else sae.to(dtype=models.str_to_dtype(dtype))

    @property
    def source(self) -> str:
        """The directory or ``release:sae_id`` of the SAE."""
        return str(self.path) if self.path is not None else f"{self.release}:{self.sae_id}"

    def record(self) -> dict[str, Any]:
        """The runner config saved beside the SAE, or an empty dict if there is none."""
        file = self.path / RUNNER_CFG_FILENAME if self.path is not None else None
        return json.loads(file.read_text()) if file is not None and file.is_file() else {}


def _file_name(name: str) -> str:
    """``name`` with only the characters that file names of results may have."""
    return re.sub(r"[^A-Za-z0-9.=-]+", "-", name).strip("-") or "sae"


def _explain(error: Exception, path: Path | None) -> str:
    text = f"{type(error).__name__}: {error}".split("\n")[0][:300]
    if path is not None:
        return f"SAELens cannot read it ({text}). Is a file truncated or missing?"
    return hub.explain_failure(error, "the SAE", "a local directory")


def named_subjects(saes: Sequence[str]) -> list[Subject]:
    """The SAEs to judge. Their pairs of name and seed are distinct.

    Raises:
        ConfigError: an SAE does not exist, or two SAEs have the same name and seed.
    """
    subjects = [Subject.parse(text) for text in saes]
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


def given_corpora(options: JudgingOptions) -> dict[str, CorpusConfig] | None:
    """The corpora of --forget and --retain, by domain. A single corpus has the domain ``corpus``.

    Raises:
        ConfigError: a file does not exist.
    """
    given: dict[str, CorpusConfig] = {}
    for domain in DOMAINS:
        text = getattr(options, domain)
        if text is None:
            continue
        flag = f"--{domain}"
        given[domain] = CorpusConfig.parse(flag, text)
        with _named_by_flag(flag):
            try:
                local_files(given[domain].path)
            except ConfigError as error:
                raise ConfigError(f"{flag}.{error}") from None
    if len(given) == 1:
        return {"corpus": next(iter(given.values()))}
    return given or None


def check_device_and_dtype(options: JudgingOptions) -> None:
    """Refuse a device or a dtype that torch does not have on this machine.

    Raises:
        ConfigError: torch cannot use the device, or does not know the dtype.
    """
    try:
        models.str_to_dtype(options.dtype)
    except ValueError as error:
        known = "float32, bfloat16, float16, float64"
        raise reject("--dtype", options.dtype, f"must be one of {known}.") from error
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise reject("--device", options.device, f"torch cannot use it ({reason}).") from error


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
    corpora = given_corpora(options)
    loaded = {s.source: s.load() for s in subjects}
    records = {s.source: s.record() for s in subjects}
    names = {source: options.model or sae.cfg.metadata.model_name for source, sae in loaded.items()}
    model_name = _shared_value(names, "--model")
    if not model_name:
        raise reject("--model", None, "the SAEs do not say what model they are for.")
    if corpora is None:
        corpora = _recorded_corpora(records)
    record = next((r for r in records.values() if r), {})
    sizes = {
        source: options.context_size or sae.cfg.metadata.context_size
        for source, sae in loaded.items()
    }
    context_size = _shared_value(sizes, "--context-size") or 128
    metadata = next(iter(loaded.values())).cfg.metadata
    hooks = sorted({sae.cfg.metadata.hook_name for sae in loaded.values()})
    model = models.load_language_model(
        model_name,
        options.device,
        metadata.model_class_name or "HookedTransformer",
        {"dtype": options.dtype},
        hooks,
    )
    for sae in loaded.values():
        models.check_hook(model, sae.cfg.metadata.hook_name)
        models.check_d_in(
            model, sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_head_index, sae.cfg.d_in
        )
    models.check_context_size(model, context_size)
    prepend_bos = metadata.prepend_bos if metadata.prepend_bos is not None else True
    how = Tokenisation(
        context_size,
        prepend_bos,
        record.get("sequence_separator_token", "bos"),
        record.get("disable_concat_sequences", False),
        record.get("ortho_holdout_fraction", 0.05),
        record.get("ortho_holdout_contexts", 512),
    )
    cache = options.out.resolve() / "cache"
    tokenised = []
    for domain, corpus in corpora.items():
        lone = "retain" if options.forget is None and options.retain else "forget"
        flag = f"--{lone if domain == 'corpus' else domain}"
        with _named_by_flag(flag):
            tokenised.append(
                tokenise_corpus(corpus, domain, model.tokenizer, how, TRAIN_CONTEXTS, cache, flag)
            )
    return Workbench(
        model=model,
        model_name=model_name,
        corpora=tokenised,
        texts=corpora,
        context_size=context_size,
        cache=cache,
        prepend_bos=prepend_bos,
        device=options.device,
        dtype=options.dtype,
    )


def _shared_value(values: dict[str, Any], option: str) -> Any:
    """The value that all SAEs share.

    Raises:
        ConfigError: two SAEs have different values.
    """
    first, *others = values.items()
    for source, value in others:
        if value != first[1]:
            raise reject(
                option,
                value,
                f"{source} was trained with it, {first[0]} with {first[1]!r}; SAEs are compared "
                f"on one, so give {option}.",
            )
    return first[1]


def _recorded_corpora(records: dict[str, dict[str, Any]]) -> dict[str, CorpusConfig]:
    """The corpora of the SAEs' training, from their runner configs; empty if no config has them."""
    recorded = {s: r["ortho_corpora"] for s, r in records.items() if r.get("ortho_corpora")}
    if not recorded:
        return {}
    corpora = _shared_value(recorded, "--forget and --retain")
    parsed = {d: CorpusConfig.from_dict(f"--{d}", corpora[d]) for d in corpora}
    return parsed if len(parsed) == 2 else {"corpus": next(iter(parsed.values()))}
