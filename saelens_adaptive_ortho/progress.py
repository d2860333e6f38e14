"""Progress of long work: a bar in a terminal or a notebook, a plain line now and then elsewhere.

Short work shows nothing. A file that collects the output (a log of Slurm, a pipe) gets no bars,
which would overwrite themselves there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

from tqdm.auto import tqdm
from tqdm.std import tqdm as plain

#: Seconds after which work is long enough for a bar.
DELAY = 2.0
#: Seconds between two lines where no bar can be.
EVERY = 60.0

_start = plain.__init__  # also while `calm_bars` replaces it


class Lines(plain):
    """A progress bar that writes whole lines, each below the last one."""

    def __init__(self, work: Iterable[Any] | None, **kwargs: Any) -> None:
        kwargs.update(mininterval=EVERY, maxinterval=2 * EVERY, delay=EVERY, leave=False)
        shown = "{desc}: {n_fmt} of {total_fmt}{unit} in {elapsed}, {remaining} left{postfix}"
        _start(self, work, **kwargs, bar_format=shown)

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """A function that writes a line."""

        def write(line: str) -> None:
            print(line, file=file, flush=True)

        return write

    def moveto(self, n: int) -> None:
        """Nothing: a file has no lines to go back to."""

    def clear(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: a line stays."""

    def refresh(self, nolock: bool = False, lock_args: Any = None) -> None:
        """Write a line, but not for a message of others, which passes ``nolock``."""
        if not nolock:
            super().refresh(lock_args=lock_args)

    def close(self) -> None:
        """End without a last line."""
        if not self.disable:
            self.disable = True
            self._decr_instances(self)  # pyright: ignore[reportAttributeAccessIssue]  (no stub)


def progress(
    work: Iterable[Any] | None = None, desc: str = "", total: float | None = None, **options: Any
) -> Any:
    """Show the progress of ``work``, as ``tqdm`` does: iterate over it, or call ``update``.

    Nothing is shown before `DELAY` seconds. Without a terminal, a line comes every `EVERY` seconds.

    Args:
        work: what is iterated over; None for work that calls ``update``.
        desc: what is done, in a few words.
        total: number of steps, if it is known and ``work`` has no length.
        options: further options of ``tqdm``. By default a finished bar disappears.
    """
    shown: dict[str, Any] = {"desc": desc, "total": total, "leave": False, **options}
    return tqdm(work, delay=DELAY, **shown) if _shows_bars() else Lines(work, **shown)


def _shows_bars() -> bool:
    """Whether bars can be shown: in a terminal, or by the widgets of a notebook."""
    notebook = any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)
    return notebook or sys.stderr.isatty()


@contextmanager
def calm_bars() -> Iterator[None]:
    """Apply the same rule to the bars of SAELens, SAEBench and other libraries in this process.

    In a terminal they appear after `DELAY` seconds; elsewhere they are off.
    """
    before = plain.__init__
    calm = {"delay": DELAY} if _shows_bars() else {"disable": True}
    plain.__init__ = partialmethod(before, **calm)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        plain.__init__ = before  # type: ignore[method-assign]
