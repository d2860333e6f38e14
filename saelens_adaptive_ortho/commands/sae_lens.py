"""``adaptive-ortho sae-lens``: SAELens's own command line, with this package's architectures."""

from __future__ import annotations

import runpy
import sys
import warnings

from saelens_adaptive_ortho.commands.options import Command


def run(argv: list[str]) -> int:
    """Hand the arguments to SAELens's training runner."""
    import saelens_adaptive_ortho.host.architectures  # noqa: F401  (registers)

    previous = sys.argv
    sys.argv = ["adaptive-ortho sae-lens", *argv]
    try:
        with warnings.catch_warnings():
            # runpy warns that the module is already imported. We run it again on purpose.
            warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
            runpy.run_module("sae_lens.llm_sae_training_runner", run_name="__main__")
    finally:
        sys.argv = previous
    return 0


#: This object serves the help only. SAELens parses the arguments after the name.
COMMAND = Command(
    name="sae-lens",
    help="SAELens's own training command line, with this package's architectures registered.",
)
