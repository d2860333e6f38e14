"""The penalties. Each file has the pure functions of one penalty and its :class:`Penalty`."""

from __future__ import annotations

from saelens_adaptive_ortho.maths.penalties.adaptive import ADAPTIVE
from saelens_adaptive_ortho.maths.penalties.contract import PairStatistics, Penalty, PenaltyInputs
from saelens_adaptive_ortho.maths.penalties.fixed import FIXED
from saelens_adaptive_ortho.maths.penalties.gram import GRAM
from saelens_adaptive_ortho.maths.penalties.pair_cost import ChosenPairs, pair_penalty
from saelens_adaptive_ortho.plugins import Table

__all__ = [
    "PENALTIES",
    "ChosenPairs",
    "PairStatistics",
    "Penalty",
    "PenaltyInputs",
    "pair_penalty",
]

PENALTIES = Table(Penalty, "saelens_adaptive_ortho.penalties", [GRAM, FIXED, ADAPTIVE])
