"""The process of a place, as ``drivers/keeping.py`` starts it, that dies at stages a test names.

The environment names a folder, which the test and this process share:

- ``UNIT.fate``: the stage at which the unit dies; the file is removed first, so it dies once
- ``hold``: while it is there, a unit waits at its checkpoint
- ``UNIT.held``: this unit waits there
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saelens_adaptive_ortho.experiments.comparison import TRAINING
from saelens_adaptive_ortho.judging import running
from saelens_adaptive_ortho.report import summary
from saelens_adaptive_ortho.report.page import run as page
from saelens_adaptive_ortho.results import Result
from saelens_adaptive_ortho.sweeps.attempts import Attempt, Attempts
from saelens_adaptive_ortho.sweeps.drivers.keeping import serve
from saelens_adaptive_ortho.training.lockstep import LockstepTrainer
from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner

FOLDER = "DYING"  # name of the variable
CLAIM, CHECKPOINT, SAE, RESULT = "claim", "checkpoint", "SAE", "result"
WORKER = "worker"  # at its checkpoint, the worker process of Ray dies, and this one with it


class Fates:
    """What happens to the unit that this process does.

    Args:
        folder: the folder that the test and this process share.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unit = ""

    def claimed(self, attempt: Attempt | None) -> None:
        self.unit = attempt.unit if attempt else ""
        self.reach(CLAIM)

    def judged(self, result: Result) -> None:
        if result.eval != TRAINING:
            self.reach(RESULT)

    def reach(self, stage: str) -> None:
        """Die, if this is the stage of the unit."""
        fate = self.folder / f"{self.unit}.fate"
        found = fate.read_text() if fate.exists() else ""
        if found == stage:
            fate.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        elif (found, stage) == (WORKER, CHECKPOINT):
            fate.unlink()
            os.kill(os.getppid(), signal.SIGKILL)
            signal.pause()  # the end of the standard input ends this process
        elif stage == CHECKPOINT and (self.folder / "hold").exists():
            (self.folder / f"{self.unit}.held").touch()
            while (self.folder / "hold").exists():
                time.sleep(0.02)


def after(owner: Any, name: str, then: Callable[[Any], None]) -> None:
    """Call ``then`` with what a function has returned, each time."""
    plain = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        found = plain(*args, **kwargs)
        then(found)
        return found

    setattr(owner, name, wrapped)


def main() -> int:
    fates = Fates(Path(os.environ[FOLDER]))
    after(Attempts, "claim", fates.claimed)
    after(LockstepTrainer, "save_checkpoint", lambda _: fates.reach(CHECKPOINT))
    after(AdaptiveOrthoRunner, "export", lambda _: fates.reach(SAE))
    after(running, "write_outcome", fates.judged)
    # Drawing takes longer than all else here.
    page.write_report = summary.write_summary = Path
    return serve()


if __name__ == "__main__":
    sys.exit(main())
