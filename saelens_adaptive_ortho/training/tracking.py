"""Weights & Biases: a run for each SAE, with the history of its training and its results.

It is on with ``logger.log_to_wandb``. Nothing here changes what is learned. If W&B fails during a
run, there is a warning, and the run goes on without it.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

from sae_lens.config import LoggingConfig

from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.files import read_cached, without_home, write_sealed
from saelens_adaptive_ortho.signals import Interrupted

FIELD = "logger.log_to_wandb"
ID_FILE = "wandb.json"
Row = Mapping[str, float]


def check_tracking(logger: LoggingConfig) -> None:
    """Refuse ``log_to_wandb`` where the package wandb is missing.

    Raises:
        ConfigError: it is missing. The message says how to install it.
    """
    if logger.log_to_wandb:
        _wandb()


class TrackedRun:
    """One W&B run.

    It is a context manager. At its end it closes the run; after an exception, the run is marked as
    failed.

    Args:
        logger: project and entity.
        name: name of the run.
        config: settings that W&B shows.
        folder: folder for W&B's files; None for the working directory.
        group: name of the group of runs; None for none.
        id: W&B's id of the run. A run with this id is continued.
        quiet: print nothing.

    Raises:
        ConfigError: wandb is missing, or W&B cannot start the run (for example, nobody is logged
            in).
    """

    def __init__(
        self,
        logger: LoggingConfig,
        name: str | None,
        config: dict[str, Any],
        folder: Path | None = None,
        group: str | None = None,
        id: str | None = None,
        quiet: bool = False,
    ) -> None:
        wandb = _wandb()
        try:
            self.run = wandb.init(
                project=logger.wandb_project,
                entity=logger.wandb_entity,
                name=name,
                group=group,
                id=id,
                config=config,
                dir=folder,
                resume="allow",
                reinit="create_new",  # runs of several SAEs are open at the same time
                settings=wandb.Settings(console="off", silent=quiet),
            )
        except Exception as error:  # W&B has many kinds, and some are those of its own parts
            rule = f"W&B does not start ({error}). Run `wandb login`, set the environment variable "
            raise reject(FIELD, True, f"{rule}WANDB_MODE=offline, or log nothing there.") from error
        self.works = True

    def log(self, step: int, row: Row) -> None:
        """Add a row of the history. Rows that an earlier process logged already are left out."""

        def send() -> None:
            if step >= self.run.step:
                self.run.log(dict(row), step=step)

        self._try(send)

    def summarise(self, metrics: Row, report: Path) -> None:
        """Set the final metrics, and show the report, if it exists."""

        def send() -> None:
            self.run.summary.update(dict(metrics))
            if report.is_file():
                self.run.log({"report": _wandb().Html(report, inject=False)})

        self._try(send)

    def __enter__(self) -> TrackedRun:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        status = error.status if isinstance(error, Interrupted) else int(error is not None)
        self._try(lambda: self.run.finish(exit_code=status))

    def _try(self, send: Callable[[], None]) -> None:
        if not self.works:
            return
        try:
            send()
        except Exception as error:
            self.works = False
            warnings.warn(f"W&B failed and gets nothing more: {error}", stacklevel=3)


class Tracking:
    """The W&B runs of a comparison: one for each SAE, in one group. If it is off, it does nothing.

    A continued comparison continues its runs: their ids follow from the file ``wandb.json`` in its
    folder. Use it as a context manager, which closes the runs.

    Args:
        logger: SAELens's logging settings. The name of the group begins with ``run_name``.
        folder: the folder of the comparison.
        say: function that shows a line of progress.

    Raises:
        ConfigError: wandb is missing, or ``wandb_id`` is set.
    """

    def __init__(self, logger: LoggingConfig, folder: Path, say: Callable[[str], None]) -> None:
        self.logger = logger
        self.folder = folder
        self.say = say
        self.runs: dict[tuple[str, int], TrackedRun] = {}
        self.open_runs = ExitStack()
        check_tracking(logger)
        if logger.log_to_wandb and logger.wandb_id is not None:
            rule = "names one W&B run, but there is one for each SAE. Leave it out."
            raise reject("logger.wandb_id", logger.wandb_id, rule)

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *error: Any) -> None:
        self.open_runs.__exit__(*error)
        self.runs.clear()

    def open(
        self, variant: str, seed: int, settings: dict[str, Any], history: Iterable[Row]
    ) -> None:
        """Open the run of one SAE, and log the rows of its history so far."""
        if not self.logger.log_to_wandb or (variant, seed) in self.runs:
            return
        own = self._id()
        run = TrackedRun(
            self.logger,
            name=f"{variant}-seed{seed}",
            config=without_home({**settings, "variant": variant, "seed": seed}),
            folder=self.folder,
            group=f"{self.logger.run_name}-{own}",
            id=sha256(f"{own}/{variant}/{seed}".encode()).hexdigest()[:16],
            quiet=True,
        )
        if run.run.url:  # there is none offline
            self.say(f"Seed {seed}: W&B run of {variant}: {run.run.url}")
        self.runs[variant, seed] = self.open_runs.enter_context(run)
        for row in history:
            run.log(int(row["step"]), _without_step(row))

    def log(self, seed: int, step: int, rows: Mapping[str, Row]) -> None:
        """Add a row to the history of each SAE of a seed, by variant."""
        for variant, row in rows.items():
            if (variant, seed) in self.runs:
                self.runs[variant, seed].log(step, _without_step(row))

    def summarise(self, variant: str, seed: int, metrics: Row, report: Path) -> None:
        """Set the final metrics of one SAE, and show the report of the comparison."""
        if (variant, seed) in self.runs:
            self.runs[variant, seed].summarise(metrics, report)

    def _id(self) -> str:
        """Eight random characters that belong to the folder."""
        file = self.folder / ID_FILE
        if not file.is_file():
            write_sealed(file, {"id": secrets.token_hex(4)})
        found = read_cached(file)
        if not isinstance(found, dict) or "id" not in found:
            raise ConfigError(f"{file} is damaged. Delete it; the SAEs then get new W&B runs.")
        return str(found["id"])


def _without_step(row: Row) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "step"}


def _wandb() -> Any:
    """The package wandb, which is loaded only if it is used."""
    try:
        import wandb
    except ImportError as error:
        rule = "needs the package wandb: pip install 'saelens-adaptive-ortho[wandb]'."
        raise reject(FIELD, True, rule) from error
    return wandb
