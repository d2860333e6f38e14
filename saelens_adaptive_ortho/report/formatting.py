"""Numbers as text, with as many decimals as their uncertainty supports and a true minus sign."""

from __future__ import annotations

import math
from collections.abc import Sequence

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"

_MOST = 8


def error_decimals(error: float) -> int:
    """Return the decimals that show two significant figures of ``error > 0`` (0.0235 gives 3)."""
    return _clamp(1 - math.floor(math.log10(error)))


def value_decimals(values: Sequence[float], figures: int = 4) -> int:
    """Return the decimals that show ``figures`` significant figures of the largest value.

    The answer is 0 if all values are whole numbers.
    """
    largest = max((abs(value) for value in values), default=0.0)
    if largest == 0 or all(value == round(value) for value in values):
        return 0
    return _clamp(figures - 1 - math.floor(math.log10(largest)))


def spread_decimals(means: Sequence[float], stds: Sequence[float]) -> int:
    """Return decimals for several ``mean ± std`` side by side.

    The largest deviation decides. Up to two decimals are added if a smaller deviation would
    otherwise read as zero.
    """
    errors = [std for std in stds if std > 0]
    if not errors:
        return value_decimals(means)
    return _until_visible(error_decimals(max(errors)), errors)


def interval_decimals(mean: float, interval: tuple[float, float] | None) -> int:
    """Return decimals for ``mean [low, high]``.

    Half the width decides. Up to two decimals are added if a bound that is not zero would
    otherwise read as zero, because the verdict depends on the sign of the bounds.
    """
    if interval is None:
        return value_decimals([mean], figures=3)
    low, high = interval
    half = (high - low) / 2
    if half <= 1e-12 * abs(mean):
        return value_decimals([mean], figures=3)
    return _until_visible(error_decimals(half), [bound for bound in interval if bound != 0])


def _until_visible(decimals: int, values: Sequence[float]) -> int:
    smallest = min((abs(value) for value in values), default=1.0)
    for extra in range(3):
        if round(smallest, decimals + extra) != 0:
            return _clamp(decimals + extra)
    return decimals


def _clamp(decimals: int) -> int:
    return max(0, min(_MOST, decimals))


def counted(n: int, what: str) -> str:
    """Return ``1 unit``, or ``2 units``."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def number(value: float | None, decimals: int) -> str:
    """Format with ``decimals`` and thousands separators; very large values as powers of ten."""
    if value is None:
        return DASH
    huge = abs(value) >= (1e9 if value == round(value) else 1e6)
    text = f"{value:.2e}" if huge else f"{value:,.{decimals}f}"
    if text.startswith("-"):
        # "-0.00" is zero at this precision, and its sign would suggest a direction.
        text = text[1:] if not text.strip("-0.,") else MINUS + text[1:]
    return text


def plus_minus(mean: float | None, std: float | None, decimals: int) -> str:
    """Format ``mean ± std``, or only the mean if ``std`` is None."""
    text = number(mean, decimals)
    return text if std is None else f"{text} ± {number(std, decimals)}"


def signed(value: float | None, decimals: int) -> str:
    """Format like `number`, with a plus sign before positive values."""
    text = number(value, decimals)
    if value is not None and value > 0 and text.strip("0.,"):
        return f"+{text}"
    return text


def estimate(mean: float, interval: tuple[float, float] | None, unit: str = "") -> tuple[str, str]:
    """Return mean and interval as ``("+11.6°", "[+8.1°, +15.2°]")``.

    The second text is empty without an interval.
    """
    decimals = interval_decimals(mean, interval)
    text = signed(mean, decimals) + unit
    if interval is None:
        return text, ""
    low, high = (signed(bound, decimals) + unit for bound in interval)
    return text, f"[{low}, {high}]"


def capital(text: str) -> str:
    """The text with its first letter as a capital; the others stay as they are."""
    return text[:1].upper() + text[1:]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int) -> str:
    """Return a markdown table without a trailing newline.

    The first ``text_columns`` columns are aligned left, the others (numbers) right.
    """
    lines = [_row(head), "|" + " --- |" * text_columns + " ---: |" * (len(head) - text_columns)]
    return "\n".join([*lines, *map(_row, rows)])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def duration(seconds: float) -> str:
    """Return a time in seconds, minutes or hours (95 s gives 1.6 min)."""
    if seconds < 90:
        return f"{number(seconds, 1 if seconds < 10 else 0)} s"
    if seconds < 5400:
        return f"{number(seconds / 60, 1)} min"
    return f"{number(seconds / 3600, 1)} h"
