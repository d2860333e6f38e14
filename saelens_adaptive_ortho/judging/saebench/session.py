"""Where SAEBench runs: on our model, in a scratch folder, its output kept only when it is whole."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jaxtyping
import torch
from sae_lens.saes.sae import SAE

from saelens_adaptive_ortho.files import write_text_atomic
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError
from saelens_adaptive_ortho.judging.isolation import model_served


def prepared_sae(context: EvalContext, dtype: torch.dtype | None = None) -> SAE[Any]:
    """A fresh SAE as SAEBench wants it: ``prepend_bos`` known, decoder rows of unit norm.

    Args:
        dtype: to compute in; by default the SAE's own.
    """
    sae = context.load()
    if dtype is not None:
        sae = sae.to(dtype)
    sae.cfg.metadata.prepend_bos = bool(context.bench.prepend_bos)
    with contextlib.suppress(NotImplementedError):
        sae.fold_W_dec_norm()  # topk without rescaling refuses; SAEBench then only warns
    return sae


def block_of(sae: SAE[Any]) -> int:
    """The block at whose end the SAE sits.

    Raises:
        EvaluationError: it sits elsewhere.
    """
    hook_name = sae.cfg.metadata.hook_name
    parts = hook_name.split(".")
    if len(parts) != 3 or parts[0] != "blocks" or parts[2] != "hook_resid_post":
        raise EvaluationError(
            f"needs an SAE on blocks.N.hook_resid_post, where SAEBench intervenes, not {hook_name}"
        )
    return int(parts[1])


@contextmanager
def session(context: EvalContext) -> Iterator[Path]:
    """Inside: SAEBench gets our model, whatever its name, and runs in the folder yielded.

    The folder is the working directory and is deleted afterwards, so relative paths that
    SAEBench writes to leave nothing behind. Its prints are swallowed; its progress bars show.
    Type checks of jaxtyping are off: SAEBench breaks its own annotations.
    """
    cwd = os.getcwd()
    checks_off = jaxtyping.config.jaxtyping_disable
    with (
        tempfile.TemporaryDirectory(prefix="adaptive-ortho-") as folder,
        model_served(context.model),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        os.chdir(folder)
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            yield Path(folder)
        finally:
            jaxtyping.config.update("jaxtyping_disable", checks_off)
            os.chdir(cwd)


def keep_output(context: EvalContext, name: str, file: Path, schema: type) -> str:
    """Check a result file of SAEBench against its schema class and keep it in ``raw_dir/name``.

    Returns the file's name.

    Raises:
        EvaluationError: there is no such file, or it is not what SAEBench promises.
    """
    from pydantic import TypeAdapter, ValidationError

    if not file.is_file():
        raise EvaluationError(f"SAEBench {name} wrote no result")
    text = file.read_text(encoding="utf-8")
    try:
        TypeAdapter(schema).validate_json(text)
    except ValidationError as error:
        raise EvaluationError(f"SAEBench {name} wrote an invalid result: {error}") from error
    return write_text_atomic(context.raw_dir / name / file.name, text).name


def keep_result(context: EvalContext, name: str, output: Any) -> str:
    """Like :func:`keep_output`, for an instance of a schema class of SAEBench made by us."""
    text = json.dumps(dataclasses.asdict(output), indent=2, default=str)
    file_name = f"{context.release}_custom_sae_eval_results.json"
    return write_text_atomic(context.raw_dir / name / file_name, text).name
