"""The work of ``adaptive-ortho push``: choose SAEs, write the model card, upload in one commit."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, constants, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

from saelens_adaptive_ortho.checksums import SUMS, find_damage, sha256_of
from saelens_adaptive_ortho.commands.push import PushOptions
from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.experiments.comparison import RECORD
from saelens_adaptive_ortho.files import (
    atomic_directory,
    check_new_folder,
    check_space,
    megabytes,
    read_cached,
    without_home,
)
from saelens_adaptive_ortho.judging.subjects import SEED_FOLDER
from saelens_adaptive_ortho.report.card import MARK, Card, CardSae, model_card
from saelens_adaptive_ortho.report.figures.files import save_figure
from saelens_adaptive_ortho.report.figures.tradeoff import tradeoff_figure
from saelens_adaptive_ortho.report.statistics import Summary, summarise
from saelens_adaptive_ortho.results import (
    RESULTS_FILE,
    Result,
    load_results,
    order_variants,
    write_results_file,
)
from saelens_adaptive_ortho.text import hub, models

README, FIGURE = "README.md", "tradeoff.png"
# Settings of the training that a model card shows, besides those of the SAE.
SHOWN = (
    *("training_tokens", "train_batch_size_tokens", "context_size", "lr", "lr_warm_up_steps"),
    *("lr_decay_steps", "exclude_special_tokens", "ortho_forget_fraction", "dtype"),
)
# Settings of the language model in the metadata, which may hold a token.
KWARGS = "model_from_pretrained_kwargs"
SECRET = re.compile(r"token|secret|passw|auth|api_?key", re.IGNORECASE)
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")  # a token of the hub

#: What is uploaded: the content or the file, by its path in the repository.
Files = dict[str, bytes | Path]


@dataclass(frozen=True)
class Trained:
    """A finished SAE of a run.

    Args:
        variant: its variant.
        seed: its seed.
        folder: its folder.
    """

    variant: str
    seed: int
    folder: Path

    @property
    def sae_id(self) -> str:
        """Its place in the run and in the repository."""
        return f"seed{self.seed}/{self.variant}"


def push(options: PushOptions, say: Callable[[str], None] = print) -> str | None:
    """Upload the SAEs of a run in SAELens's layout, with a model card, in one commit.

    ``SAE.from_pretrained(repo, "seed0/adaptive")`` of plain SAELens then loads an SAE.

    Args:
        options: the run, the repository, and what goes there.
        say: function that shows a line of progress.

    Returns:
        The address of the repository; None after a dry run.

    Raises:
        ConfigError: an option cannot work, an SAE is damaged, there is no token, or the hub refuses
            the upload or cannot be reached. The repository then shows nothing of the upload.
        ResultError: the run has no results, or one of them cannot be used.
        StorageError: the folder of a dry run could not be written.
    """
    _check_name("USER/REPO", options.repo)
    if options.base_model is not None:
        _check_name("--base-model", options.base_model)
    saes = _chosen(options)
    results = load_results(options.run_dir)
    if options.dry_run is not None:
        check_new_folder("--dry-run", options.dry_run)
    else:
        _check_repository(options)
    files = files_to_push(options, saes, results, say)
    size = sum(map(_size, files.values()))
    say(_announcement(options, saes, files, size))
    if options.dry_run is None:
        url = _upload(options.repo, options.private, files)
        say(f"Uploaded: {url}")
        return url
    check_space("--dry-run", options.dry_run, size)
    with atomic_directory(options.dry_run, "Nothing was written.") as folder:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            data = content.read_bytes() if isinstance(content, Path) else content
            (folder / name).write_bytes(data)
    say(f"{options.dry_run}: this would be uploaded. Nothing was.")
    return None


def _check_name(option: str, name: str) -> None:
    """Refuse what cannot be the name of a repository. The hub knows some names without an owner."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise reject(option, name, f"is no name of a repository ({error}).") from error
    if "/" not in name:
        raise reject(option, name, "must read owner/name, e.g. me/my-saes.")


# -------------------------------------------------------------------------- the SAEs


def trained_saes(run: Path) -> list[Trained]:
    """The finished SAEs of a run folder, by variant in the order of the report, then by seed."""
    found = [
        Trained(file.parent.name, int(match[1]), file.parent)
        for file in run.glob(f"seed*/*/{SAE_CFG_FILENAME}")
        if (match := SEED_FOLDER.fullmatch(file.parts[-3]))
    ]
    order = order_variants(sorted(sae.variant for sae in found))
    return sorted(found, key=lambda sae: (order.index(sae.variant), sae.seed))


def _chosen(options: PushOptions) -> list[Trained]:
    run = options.run_dir
    if not run.is_dir():
        raise reject("RUN_DIR", str(run), "no such folder. Name a run folder of `compare`.")
    saes = trained_saes(run)
    if not saes:
        raise reject("RUN_DIR", str(run), _no_saes(run))
    for option, given, of in (
        ("--variants", options.variants, lambda sae: sae.variant),
        ("--seeds", options.seeds, lambda sae: str(sae.seed)),
    ):
        if given is None:
            continue
        wanted = [word.strip() for word in given.split(",")]
        known = list(dict.fromkeys(map(of, saes)))
        if unknown := [word for word in wanted if word not in known]:
            rule = f"{run} has no SAE of {unknown[0]!r}; it has {', '.join(known)}."
            raise reject(option, given, rule)
        saes = [sae for sae in saes if of(sae) in wanted]
    if not saes:
        raise reject("--seeds", options.seeds, f"no chosen variant was trained with it in {run}.")
    return saes


def _no_saes(run: Path) -> str:
    """Why a folder has nothing to push."""
    if (run / SAE_CFG_FILENAME).is_file():
        return "is one SAE. Name the run folder that holds it and the results."
    hooks = sorted(file.parts[-4] for file in run.glob(f"*/seed*/*/{SAE_CFG_FILENAME}"))
    if hooks:
        names = ", ".join(dict.fromkeys(hooks))
        return f"holds several runs. Push each to a repository of its own: {names}."
    return "holds no finished SAE. Run `adaptive-ortho compare` first."


def _refuse_damage(sae: Trained) -> dict[str, Any]:
    """The settings of an SAE, of which every file is as it was written.

    Raises:
        ConfigError: a file is damaged, or plain SAELens does not know the architecture.
    """
    damaged = find_damage(sae.folder)
    for name in (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME):
        if damaged is None and not (sae.folder / name).is_file():
            damaged = sae.folder / name
    if damaged is not None:
        rule = f"is missing, or is not as it was written: its SHA-256 differs from {SUMS}."
        raise reject("RUN_DIR", str(damaged), f"{rule} `compare` trains a damaged SAE again.")
    file = sae.folder / SAE_CFG_FILENAME
    cfg = read_cached(file)
    architecture = cfg.get("architecture") if isinstance(cfg, dict) else None
    if architecture not in SAE_CLASS_REGISTRY:
        known = ", ".join(sorted(SAE_CLASS_REGISTRY))
        rule = f"names no architecture that SAELens can load ({architecture!r}). It loads {known}."
        raise reject("RUN_DIR", str(file), rule)
    return cfg


# ------------------------------------------------------------------------- the files


def files_to_push(
    options: PushOptions,
    saes: Sequence[Trained],
    results: Sequence[Result],
    say: Callable[[str], None] = print,
) -> Files:
    """What goes to the repository.

    Of each SAE these are the settings, the weights, the sparsity and their SHA-256 sums. Settings
    name neither folders of this machine nor secrets; the weights are the file of the run.

    Raises:
        ConfigError: an SAE is damaged, or a file holds what looks like a token of the hub.
    """
    configs = {sae: _refuse_damage(sae) for sae in saes}
    model_name = str(_metadata(configs[saes[0]]).get("model_name") or "")
    base_model = options.base_model or _hub_name(model_name)
    demo = model_name == models.DEMO_MODEL
    if not base_model and not demo:
        say(
            f"The language model is {model_name!r}, which others do not have: --base-model "
            "USER/MODEL names it on the hub."
        )
    files: Files = {}
    for sae, cfg in configs.items():
        public = _public_config(cfg, options.base_model)
        # The same text as in the run if nothing in it is private.
        file = sae.folder / SAE_CFG_FILENAME
        parts: Files = {
            SAE_CFG_FILENAME: file.read_bytes() if public == cfg else json.dumps(public).encode(),
            SAE_WEIGHTS_FILENAME: sae.folder / SAE_WEIGHTS_FILENAME,
        }
        if (sae.folder / SPARSITY_FILENAME).is_file():
            parts[SPARSITY_FILENAME] = sae.folder / SPARSITY_FILENAME
        sums = "".join(f"{_sha256(content)}  {name}\n" for name, content in parts.items())
        parts[SUMS] = sums.encode()
        files |= {f"{sae.sae_id}/{name}": content for name, content in parts.items()}
    summary = summarise(results)
    figure = _figure(summary)
    if figure:
        files[FIGURE] = figure
    if options.with_results:
        files[RESULTS_FILE] = _results_text(results)
    card = Card(
        repo=options.repo,
        saes=_card_saes(configs),
        model=base_model or _model_in_words(model_name),
        base_model=base_model,
        model_argument=base_model or (model_name if demo else "path/to/model"),
        hook=str(_metadata(configs[saes[0]]).get("hook_name") or "unknown"),
        corpora=_corpora(configs[saes[0]]),
        license=_licence(options, model_name, base_model),
        versions=summary.versions,
        figure=FIGURE if figure else "",
        results=RESULTS_FILE if options.with_results else "",
    )
    files[README] = model_card(card, summary).encode()
    _refuse_tokens(files)
    return files


def _metadata(cfg: Mapping[str, Any]) -> dict[str, Any]:
    found = cfg.get("metadata")
    return found if isinstance(found, dict) else {}


def _public_config(cfg: dict[str, Any], base_model: str | None) -> dict[str, Any]:
    """Settings without folders of this machine and without secrets.

    Args:
        cfg: the settings.
        base_model: name of the language model that others know, or None.
    """
    public = _without_folders(cfg)
    metadata = _metadata(public)
    if isinstance(given := metadata.get(KWARGS), dict):
        metadata[KWARGS] = {name: v for name, v in given.items() if not SECRET.search(name)}
    if base_model is not None:
        public["metadata"] = metadata | {"model_name": base_model}
    return public


def _without_folders(value: Any) -> Any:
    """A JSON value with the last name of every path that only this machine has."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if isinstance(value, str) and (os.path.isabs(value) or value.startswith("~")):
        return Path(value).name
    return without_home(value)


def _corpora(cfg: dict[str, Any]) -> dict[str, str]:
    """The texts of the training by name; one text is a lone name."""
    found = _without_folders(_metadata(cfg).get("dataset_path"))
    if isinstance(found, dict):
        return {str(name): str(path) for name, path in found.items()}
    return {"text": str(found)} if found else {}


def _card_saes(configs: Mapping[Trained, dict[str, Any]]) -> list[CardSae]:
    settings = {sae: _settings(sae, cfg) for sae, cfg in configs.items()}
    defaults = _defaults(configs.values())
    shown = {
        name
        for found in settings.values()
        for name, value in found.items()
        if name not in defaults or value != defaults[name]
    }
    return [
        CardSae(
            sae_id=sae.sae_id,
            variant=sae.variant,
            seed=sae.seed,
            architecture=str(cfg["architecture"]),
            d_sae=int(cfg["d_sae"]),
            l0=l0 if isinstance(l0 := _metadata(cfg).get("l0"), int | float) else None,
            settings={name: v for name, v in settings[sae].items() if name in shown},
        )
        for sae, cfg in configs.items()
    ]


def _settings(sae: Trained, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the training, as far as they were recorded."""
    metadata = _metadata(cfg)
    record = read_cached(sae.folder / RECORD)
    of_run = record.get("settings", {}) if isinstance(record, dict) else {}
    of_sae = metadata.get("training_architecture_details") or {}
    found = {"architecture": metadata.get("training_architecture")}
    found |= {name: of_run.get(name) for name in SHOWN} | of_sae
    return _without_folders({name: value for name, value in found.items() if value is not None})


def _defaults(configs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The default values of the settings of the architecture that the SAEs were trained with."""
    names = {_metadata(cfg).get("training_architecture") for cfg in configs}
    known = [SAE_TRAINING_CLASS_REGISTRY[n][1] for n in names if n in SAE_TRAINING_CLASS_REGISTRY]
    return {
        f.name: f.default if f.default_factory is MISSING else f.default_factory()
        for config in known
        for f in fields(config)
    }


def _figure(summary: Summary) -> bytes:
    """The trade-off figure as PNG; empty if no SAE has both of its metrics."""
    figure = tradeoff_figure(summary)
    if figure is None:
        return b""
    with tempfile.TemporaryDirectory() as folder:
        _, png = save_figure(figure, Path(folder) / "figure")
        return png.read_bytes()


def _results_text(results: Sequence[Result]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_results_file(Path(folder) / RESULTS_FILE, results).read_bytes()


def _refuse_tokens(files: Files) -> None:
    """Refuse a text that holds what looks like a token of the hub."""
    own = get_token()
    for name, content in files.items():
        if isinstance(content, Path) or name == FIGURE:
            continue
        text = content.decode()
        if TOKEN.search(text) or (own and own in text):
            rule = "holds what looks like a token of the hub. Remove it from the run."
            raise reject("RUN_DIR", name, rule)


# ---------------------------------------------------------------- the language model


def _hub_name(model_name: str) -> str:
    """The hub name of a language model; empty if it is a local or the included one."""
    if models.local_model_dir(model_name) is not None:
        return ""
    name = models.official_name(model_name)
    with suppress(HFValidationError):
        validate_repo_id(name)
        return name if "/" in name else ""
    return ""


def _model_in_words(model_name: str) -> str:
    if model_name == models.DEMO_MODEL:
        return "the tiny language model that saelens-adaptive-ortho includes (`demo:model`)"
    return f"`{_without_folders(model_name)}`" if model_name else "an unknown language model"


def _licence(options: PushOptions, model_name: str, base_model: str) -> dict[str, str]:
    """What the front matter says about the licence; empty if it is not known."""
    if options.license is not None:
        return {"license": options.license}
    if model_name == models.DEMO_MODEL:
        return {"license": "mit"}
    folder = models.local_model_dir(model_name)
    card: Any = None
    if folder is not None and (folder / README).is_file():
        with suppress(OSError, ValueError):
            card = ModelCard.load(folder / README).data
    elif base_model and not constants.HF_HUB_OFFLINE:
        with suppress(Exception):  # without an answer of the hub, the licence is not known
            card = HfApi().model_info(base_model, timeout=constants.HF_HUB_ETAG_TIMEOUT).card_data
    found = card.to_dict() if card is not None else {}
    names = ("license", "license_name", "license_link")
    return {name: found[name] for name in names if isinstance(found.get(name), str)}


# ------------------------------------------------------------------------ the upload


def _announcement(options: PushOptions, saes: Sequence[Trained], files: Files, size: int) -> str:
    """What will be uploaded, in a sentence."""
    by_variant: dict[str, list[str]] = {}
    for sae in saes:
        by_variant.setdefault(sae.variant, []).append(str(sae.seed))
    named = "; ".join(f"{variant}, seed {', '.join(of)}" for variant, of in by_variant.items())
    private = " (private)" if options.private else ""
    others = ", ".join(name for name in files if "/" not in name)
    return (
        f"{options.repo}{private}: {len(files)} files, {megabytes(size)}. SAEs: {named}. "
        f"Beside them: {others}."
    )


def _check_repository(options: PushOptions) -> None:
    """Refuse what the hub would refuse, and a repository that something else is in.

    Raises:
        ConfigError: there is no token, the hub cannot be reached, the repository is public and
            should not be, or it has a model card that this command did not write.
    """
    repo = options.repo
    if constants.HF_HUB_OFFLINE:
        rule = "cannot be uploaded while HF_HUB_OFFLINE is set. Unset it, or use --dry-run DIR."
        raise reject("USER/REPO", repo, rule)
    if get_token() is None:
        rule = "needs a token of the hub that may write. Log in with `hf auth login`, or set "
        raise reject("USER/REPO", repo, rule + "HF_TOKEN; or use --dry-run DIR.")
    if (reason := hub.problem()) is not None:
        rule = f"the hub cannot be reached ({reason}). Check the connection, or use --dry-run DIR."
        raise reject("USER/REPO", repo, rule)
    try:
        api = HfApi()
        try:
            info = api.model_info(repo)
        except RepositoryNotFoundError:
            return
        if options.private and not info.private:
            rule = "is public already. Make it private on its page, or name another repository."
            raise reject("--private", repo, rule)
        if options.replace_card or README not in {file.rfilename for file in info.siblings or []}:
            return
        card = Path(api.hf_hub_download(repo, README)).read_text(encoding="utf-8")
    except ConfigError:
        raise
    except Exception as error:
        raise reject("USER/REPO", repo, hub.explain_upload_failure(error, repo)) from error
    if MARK not in card:
        rule = (
            "has a model card that this command did not write. Name another repository, or "
            "replace the card with --replace-card (the history of the repository keeps it)."
        )
        raise reject("USER/REPO", repo, rule)


def _upload(repo: str, private: bool, files: Files) -> str:
    """Upload the files in one commit, so that the repository shows all of them or none.

    Returns:
        The address of the repository.

    Raises:
        ConfigError: the hub refuses the upload, or cannot be reached.
    """
    api = HfApi()
    operations = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in files.items()
    ]
    try:
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        api.create_commit(repo, operations, commit_message="SAEs of saelens_adaptive_ortho")
    except Exception as error:
        raise reject("USER/REPO", repo, hub.explain_upload_failure(error, repo)) from error
    return str(url)


def _size(content: bytes | Path) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _sha256(content: bytes | Path) -> str:
    return sha256_of(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()
