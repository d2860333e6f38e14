"""The command that draws the figure of a study from a run folder or from committed results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from saelens_adaptive_ortho.report.figures.files import save_figure
from saelens_adaptive_ortho.results import Result, ResultError, load_results


def draw_study(
    name: str,
    figure: Callable[[Sequence[Result]], Figure],
    description: str | None,
    argv: Sequence[str] | None = None,
) -> int:
    """Draw the figure of a study.

    Args:
        name: name of the study: its folder in ``evals/``, and the stem of the figure's files.
        figure: draws the figure; raises :class:`ResultError` if the results are of another study.
        description: text of ``--help``.
        argv: arguments; None for those of the process.

    Returns:
        The exit status: 0, or 2 if there is nothing to draw.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("run", type=Path, help=f"a run folder, or evals/{name}/results/NAME")
    parser.add_argument(
        "--out", type=Path, help=f"file name without ending; default RUN/plots/{name}"
    )
    args = parser.parse_args(argv)
    try:
        drawn = figure(load_results(args.run))
    except ResultError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    for path in save_figure(drawn, args.out or args.run / "plots" / name):
        print(path)
    return 0


def keep_png(plots: Sequence[Path]) -> list[Path]:
    """Delete the files of figures that are no PNG, because a README shows the PNG only."""
    for plot in plots:
        if plot.suffix != ".png":
            plot.unlink()
    return [plot for plot in plots if plot.suffix == ".png"]
