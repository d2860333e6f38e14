"""Draw explained variance against every measure of separation, a panel for each.

python -m evals.separation.figures RUN [--out FILE]
python -m evals.separation.answer    # one panel for each study, for the first page
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from matplotlib.figure import Figure

from evals.draw import draw_study
from saelens_adaptive_ortho.report.figures.tradeoff import tradeoff_panels
from saelens_adaptive_ortho.report.statistics import summarise
from saelens_adaptive_ortho.results import Result, ResultError

READINGS = (
    "unlearning/token/forget_damage_at_0.10",
    "unlearning/loss/forget_damage_at_0.10",
    "unlearning/bounded/forget_damage_at_0.10",
    "unlearning/mcq/forget_accuracy_at_0.95",
    "unlearning/token/kept_forget_damage_at_0.10",
    "unlearning/token/near_per_forget_damage_at_0.10",
    "unlearning/token/transfer_per_forget_damage_at_0.10",
)


def separation_figure(results: Sequence[Result]) -> Figure:
    """Draw a panel for each reading that was measured.

    Raises:
        ResultError: no SAE has an explained variance and a reading.
    """
    figure = tradeoff_panels(summarise(results), READINGS)
    if figure is None:
        raise ResultError("no SAE has both results of core and of unlearning.")
    return figure


def is_separation_study(results: Sequence[Result]) -> bool:
    """Whether a variant is ``groups``, or of its series ``groups=NUMBER``; or there is ``near``."""
    return any(
        result.variant.partition("=")[0] == "groups"
        or "token/near_per_forget_damage_at_0.10" in result.metrics
        for result in results
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the figure; the exit status is 0, or 2 if there is nothing to draw."""
    return draw_study("separation", separation_figure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
