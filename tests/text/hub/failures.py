"""A process in which the hub fails in many ways, and the command line must explain it.

Usage: ``python failures.py ROOT OUT``
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.text.hub.client import CONFIG, Client, options
from tests.text.hub.server import STRANGER

GATED_MODEL, GATED_CORPUS, GATED_SAE = "google/gemma-2-2b", "cais/wmdp-bio-forget-corpus", "me/sae"
RELEASE = "pythia-70m-deduped-res-sm"
CACHED = f"{RELEASE}:blocks.3.hook_resid_post"
CUT = {"model.safetensors", "sae_weights.safetensors", "train-00000-of-00001.parquet"}


def main() -> None:
    root, out = Path(sys.argv[1]), Path(sys.argv[2])
    gated = [GATED_MODEL, GATED_CORPUS, GATED_SAE]
    client = Client(root, out, gated)
    hub, step = client.hub, client.step

    step("imports", lambda: import_module("saelens_adaptive_ortho.experiments.comparison").__name__)
    gated_things(step, "anonymous")
    step("missing model", command(model="EleutherAI/pythia-410m"))
    step("misspelt model", command(model="pythia-70m-dedupd"))
    step("missing corpus", command(corpus="cais/wmpd"))
    step("missing configuration", command(corpus="Salesforce/wikitext"))
    step("missing SAE", command(sae="me/nothing:x"))
    step("missing id", command(sae=f"{RELEASE}:blocks.9.hook_resid_post"))
    os.environ["HF_TOKEN"] = STRANGER
    gated_things(step, "stranger")
    step("missing corpus, logged in", command(corpus="cais/wmpd"))
    os.environ["HF_TOKEN"] = "hf_expired"
    gated_things(step, "expired")
    del os.environ["HF_TOKEN"]

    hub.cut = CUT
    step("cut model", command(model="EleutherAI/pythia-160m"))
    step("cut corpus", command(corpus="me/text"))
    step("cut SAE", command(sae=f"{RELEASE}:blocks.4.hook_resid_post"))
    hub.cut = {"config.json"}
    step("cut config", command(model="EleutherAI/pythia-1b"))
    hub.cut = set()

    hub.status = 503
    step("busy SAE", command(sae=f"{RELEASE}:blocks.4.hook_resid_post"))
    hub.status = None

    from huggingface_hub import constants
    from sae_lens import SAE

    step("cache", lambda: SAE.from_pretrained(*CACHED.split(":")).cfg.d_sae)
    hub.silent = True
    constants.HF_HUB_ETAG_TIMEOUT = constants.HF_HUB_DOWNLOAD_TIMEOUT = 1
    unreachable(step, "silent")
    step("silent model by command", command(model="EleutherAI/pythia-410m"))
    step("silent SAE by command", command(sae=f"{RELEASE}:blocks.4.hook_resid_post"))
    hub.silent = False
    hub.__exit__()
    unreachable(step, "closed")
    step("closed model by command", command(model="EleutherAI/pythia-410m"))
    step("closed SAE by command", command(sae=f"{RELEASE}:blocks.4.hook_resid_post"))


def gated_things(step: Callable[..., None], visitor: str) -> None:
    step(f"gated model, {visitor}", command(model=GATED_MODEL))
    step(f"gated corpus, {visitor}", command(corpus=GATED_CORPUS))
    step(f"gated SAE, {visitor}", command(sae=f"{GATED_SAE}:x"))


def unreachable(step: Callable[..., None], how: str) -> None:
    from sae_lens import SAE
    from sae_lens.load_model import load_model

    step(f"{how} corpus", command(corpus="me/text"))
    step(f"{how} model", guarded(lambda: load_model("HookedTransformer", "pythia-410m", "cpu")))
    step(f"{how} SAE", guarded(lambda: SAE.from_pretrained(RELEASE, "blocks.4.hook_resid_post")))
    step(f"{how} cache", guarded(lambda: SAE.from_pretrained(*CACHED.split(":")).cfg.d_sae))


def command(model: str = "", corpus: str = "", sae: str = "") -> Callable[[], dict[str, Any]]:
    """Run a command that fails, and return its status, message and waiting time."""

    def run() -> dict[str, Any]:
        from saelens_adaptive_ortho.commands import cli
        from saelens_adaptive_ortho.training import lockstep

        def fit(_: Any) -> None:
            raise AssertionError("training began")

        lockstep.LockstepTrainer.fit = fit
        if sae:
            arguments = ["eval", sae, "--model", "pythia-70m-deduped", "--out", "judged"]
        else:
            local = {"forget": "demo:forget", "retain": "demo:retain"}
            changes = (
                {"model_name": model, "ortho_corpora": local}
                if model
                else {"ortho_corpora__forget": {"path": corpus}}
            )
            arguments = ["compare", str(CONFIG), *options(output_path="run", **changes)]
        with waiting_counted() as waited, contextlib.redirect_stderr(io.StringIO()) as errors:
            status = cli.main(arguments)
        lines = errors.getvalue().strip().splitlines()
        return {
            "status": status,
            "message": lines[-1].removeprefix("adaptive-ortho: error: "),
            "traceback": "Traceback" in errors.getvalue(),
            "waited": sum(waited),
            "left": [str(p) for p in Path("run").rglob("*") if p.is_file()],
        }

    return run


def guarded(action: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
    """The library's result if it needs no answer of the hub, or the explanation of its failure."""

    def run() -> dict[str, Any]:
        from saelens_adaptive_ortho.text import hub

        with waiting_counted() as waited:
            try:
                with hub.offline_if_unreachable():
                    return {"value": action(), "waited": sum(waited)}
            except Exception as error:
                return {
                    "message": hub.explain_failure(error, "it", "a local one"),
                    "waited": sum(waited),
                }

    return run


@contextlib.contextmanager
def waiting_counted() -> Any:
    """Count the libraries' pauses between attempts instead of waiting."""
    sleep, waited = time.sleep, []

    def count(seconds: float) -> None:
        if threading.current_thread() is threading.main_thread():
            waited.append(seconds)
        else:
            sleep(seconds)

    time.sleep = count
    try:
        yield waited
    finally:
        time.sleep = sleep


if __name__ == "__main__":
    main()
