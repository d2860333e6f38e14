"""Common parts of the processes that download.

Downloads run in separate processes because huggingface_hub reads the hub's address at import. Each
process starts a local replacement of the hub, reaches no other host, and writes its results as
JSON.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.text.hub.server import Hub

CONFIG = Path(__file__).parents[3] / "configs/pythia-70m-deduped_layer3.yaml"
# The real experiment, reduced to the size of the test model.
TINY = {
    "device": "cpu",
    "autocast": False,
    "autocast_lm": False,
    "context_size": 32,
    "training_tokens": 1024,
    "train_batch_size_tokens": 128,
    "store_batch_size_prompts": 8,
    "n_batches_in_buffer": 2,
    "n_batches_for_norm_estimate": 2,
    "n_checkpoints": 0,
    "lr_warm_up_steps": 0,
    "lr_decay_steps": 0,
    "ortho_holdout_contexts": 8,
    "sae.d_in": 96,
    "sae.d_sae": 64,
    "sae.k": 4,
    "seeds": [0],
    "evals.core.n_contexts": 4,
    "evals.core.batch_size_prompts": 4,
}


def options(**changes: Any) -> list[str]:
    """``--set`` options for :data:`CONFIG`: :data:`TINY`, and changes (``__`` for a dot)."""
    settings = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    return [part for k, v in settings.items() for part in ("--set", f"{k}={json.dumps(v)}")]


class Client:
    """Serves ``root``, points every library at it, and records steps.

    Args:
        root: folder of the repositories.
        out: folder for the record and for everything that the libraries write.
        gated: ids of gated repositories.
        environment: additional environment variables.
    """

    def __init__(self, root: Path, out: Path, gated: list[str], **environment: str) -> None:
        self.hub = Hub(root, gated).__enter__()
        self.out = out
        self.steps: dict[str, dict[str, Any]] = {}
        for name in list(os.environ):
            if re.match(r"HF_|HUGGING|TRANSFORMERS_|.*_proxy$", name, re.IGNORECASE):
                del os.environ[name]
        usual = {
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(out / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            # A busy machine answers late.
            "HF_HUB_ETAG_TIMEOUT": "100",
            "HF_HUB_DOWNLOAD_TIMEOUT": "100",
            "OMP_NUM_THREADS": "1",
        }
        os.environ.update(usual | environment)
        (out / "work").mkdir(parents=True)
        os.chdir(out / "work")
        _stay_on_the_loopback()

    def step(self, name: str, action: Callable[[], Any]) -> None:
        """Record the result of ``action`` or its error, and its requests to the hub."""
        asked, started = len(self.hub.requests), time.perf_counter()
        step: dict[str, Any] = {"value": None, "error": None}
        try:
            step["value"] = action()
        except BaseException:
            step["error"] = traceback.format_exc()
        step["requests"] = self.hub.requests[asked:]
        print(f"{name}: {time.perf_counter() - started:.1f} s", file=sys.stderr)
        self.steps[name] = step
        (self.out / "steps.json").write_text(json.dumps(self.steps))


def _stay_on_the_loopback() -> None:
    resolve = socket.getaddrinfo

    def refuse_others(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in ("127.0.0.1", "localhost"):
            raise socket.gaierror(f"{host!r} is not the stand-in")
        return resolve(host, *args, **kwargs)

    socket.getaddrinfo = refuse_others
