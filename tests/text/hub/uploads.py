"""A process that uploads a run to the hub, and loads it back with plain SAELens.

Usage: ``python uploads.py ROOT OUT RUN``
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.text.hub.client import Client
from tests.text.hub.server import MEMBER, STRANGER

LOADED = ("seed0/adaptive", "seed1/baseline")
# SAELens without the plugin: the package cannot be imported.
PLAIN = """
import sys
sys.modules["saelens_adaptive_ortho"] = None
from sae_lens import SAE
from safetensors.torch import save_file
for sae_id in sys.argv[2:]:
    sae, _, sparsity = SAE.from_pretrained_with_cfg_and_sparsity("me/saes", sae_id)
    assert sparsity is not None
    weights = {name: value.contiguous() for name, value in sae.state_dict().items()}
    save_file(weights, f"{sys.argv[1]}/{sae_id.replace('/', '-')}.safetensors")
    print(type(sae).__name__, sae.cfg.metadata.hook_name, sae.cfg.metadata.model_name)
"""


def main() -> None:
    root, out, run = map(Path, sys.argv[1:])
    client = Client(root, out, [], HF_TOKEN=MEMBER)
    hub, step = client.hub, client.step

    hub.broken = "/commit/"
    step("commit fails", push(run, "me/saes"))
    step("nothing is there", lambda: names(root / "models/me/saes"))
    hub.broken = ""
    step("push", push(run, "me/saes", "--with-results"))
    step("files", lambda: names(root / "models/me/saes"))
    step("plain", lambda: plain(out))
    step("by command", subject)
    step("again", push(run, "me/saes", "--variants", "adaptive"))
    step("private", push(run, "me/hidden", "--private", "--seeds", "0"))
    step("who sees it", lambda: sorted(hub.private))

    step("public already", push(run, "me/saes", "--private"))
    (root / "models/me/mine").mkdir(parents=True)
    (root / "models/me/mine/README.md").write_text("my own card")
    step("card of others", push(run, "me/mine"))
    step("card replaced", push(run, "me/mine", "--replace-card"))
    step("licence", push(run, "me/saes", "--license", "mine"))
    step("other owner", push(run, "you/saes"))
    os.environ["HF_TOKEN"] = STRANGER
    step("stranger", push(run, "me/saes"))
    os.environ["HF_TOKEN"] = "hf_expired"
    step("expired", push(run, "me/saes"))
    os.environ["HF_TOKEN"] = MEMBER
    from huggingface_hub import constants

    hub.silent = True
    constants.HF_HUB_ETAG_TIMEOUT = constants.HF_HUB_DOWNLOAD_TIMEOUT = 1
    step("silent", push(run, "me/saes"))
    hub.silent = False
    hub.__exit__()
    step("closed", push(run, "me/saes"))


def push(run: Path, *arguments: str) -> Callable[[], dict[str, Any]]:
    def action() -> dict[str, Any]:
        from saelens_adaptive_ortho.commands.cli import main

        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(["push", str(run), *arguments])
        return {"status": status, "out": out.getvalue(), "err": err.getvalue()}

    return action


def plain(out: Path) -> list[str]:
    command = [sys.executable, "-c", PLAIN, str(out), *LOADED]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split("\n")


def subject() -> list[int]:
    """An SAE of the repository as ``eval`` and ``unlearn`` name it."""
    from saelens_adaptive_ortho.judging.subjects import find_subject

    return list(find_subject("me/saes:seed0/adaptive", "adaptive", 0).load().W_dec.shape)


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


if __name__ == "__main__":
    main()
