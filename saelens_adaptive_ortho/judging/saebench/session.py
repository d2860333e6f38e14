"""Run SAEBench on our model in a temporary folder, and keep its output only if it is valid."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jaxtyping
import torch
from sae_lens.saes.sae import SAE

from saelens_adaptive_ortho.files import scratch_folder, without_home, write_text_atomic
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError
from saelens_adaptive_ortho.judging.isolation import model_served, replaced


def prepared_sae(context: EvalContext, dtype: torch.dtype | None = None) -> SAE[Any]:
    """A fresh copy of the SAE for SAEBench, with ``prepend_bos`` set and unit-norm decoder rows.

    SAEBench needs the name of the model and the context size. If the SAE does not say them, they
    are those of the workbench.

    Args:
        dtype: dtype of the computation; by default the SAE's own dtype.
    """
    sae = context.load()
    if dtype is not None:
        sae = sae.to(dtype)
    metadata, bench = sae.cfg.metadata, context.bench
    metadata.prepend_bos = bool(bench.prepend_bos)
    if metadata.model_name is None:
        metadata.model_name = bench.model_name
    if metadata.context_size is None:
        metadata.context_size = bench.context_size
    with contextlib.suppress(NotImplementedError):
        # A topk SAE without rescaling cannot do this. SAEBench then only warns.
        sae.fold_W_dec_norm()
    return sae


def block_of(sae: SAE[Any]) -> int:
    """The index of the block at whose end the SAE's hook is.

    Raises:
        EvaluationError: the hook is not ``blocks.N.hook_resid_post``.
    """
    hook_name = sae.cfg.metadata.hook_name
    parts = hook_name.split(".")
    if len(parts) != 3 or parts[0] != "blocks" or parts[2] != "hook_resid_post":
        raise EvaluationError(
            f"needs an SAE on blocks.N.hook_resid_post, where SAEBench intervenes, not {hook_name}"
        )
    return int(parts[1])


# SAELens's store warns that our held-out contexts are few for a training.
NO_TRAINING_DATA = ("The training dataset contains fewer", "All samples in the training dataset")


@contextmanager
def session(context: EvalContext) -> Iterator[Path]:
    """Inside the block, SAEBench gets our model for any name, and runs in the yielded folder.

    The folder is the working directory and is deleted afterwards. So SAEBench leaves no files at
    relative paths. It is in the workbench's cache, where the next run deletes what a killed one
    left. SAEBench's printed text is hidden, and its progress bars are shown. The type checks of
    jaxtyping are off, because SAEBench violates its own annotations. ``torch.load`` reads tensors
    only, because a pickle from a run folder could run any code.
    """
    cwd = os.getcwd()
    checks_off = jaxtyping.config.jaxtyping_disable
    with (
        scratch_folder(context.bench.cache.resolve()) as folder,
        model_served(context.model),
        replaced(torch, "load", _tensors_only(torch.load)),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        for message in NO_TRAINING_DATA:
            warnings.filterwarnings("ignore", message=message)
        os.chdir(folder)
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            yield folder
        finally:
            jaxtyping.config.update("jaxtyping_disable", checks_off)
            os.chdir(cwd)


def _tensors_only(load: Callable[..., Any]) -> Callable[..., Any]:
    def tensors_only(*args: Any, **kwargs: Any) -> Any:
        return load(*args, **(kwargs | {"weights_only": True}))

    return tensors_only


def keep_output(context: EvalContext, name: str, file: Path, schema: type) -> str:
    """Check a result file of SAEBench against its schema class, and keep it in ``raw_dir/name``.

    Returns:
        The name of the file.

    Raises:
        EvaluationError: the file does not exist, or does not match the schema.
    """
    from pydantic import TypeAdapter, ValidationError

    if not file.is_file():
        raise EvaluationError(f"SAEBench {name} wrote no result")
    text = file.read_text(encoding="utf-8")
    try:
        TypeAdapter(schema).validate_json(text)
    except ValidationError as error:
        raise EvaluationError(f"SAEBench {name} wrote an invalid result: {error}") from error
    return write_text_atomic(context.raw_dir / name / file.name, _clean_json(text)).name


def keep_result(context: EvalContext, name: str, output: Any) -> str:
    """Like :func:`keep_output`, for an instance of SAEBench's schema class that we have made."""
    text = json.dumps(dataclasses.asdict(output), indent=2, default=str)
    file_name = f"{context.release}_custom_sae_eval_results.json"
    return write_text_atomic(context.raw_dir / name / file_name, _clean_json(text)).name


def _clean_json(text: str) -> str:
    """The text with null for NaN and infinity, which are not JSON, and ``~`` for the home folder.

    A text without them is returned as it is.
    """
    odd: list[str] = []
    document = json.loads(text, parse_constant=odd.append)
    cleaned = without_home(document)
    return json.dumps(cleaned, indent=2) if odd or cleaned != document else text
