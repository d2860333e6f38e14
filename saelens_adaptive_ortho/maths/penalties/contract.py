"""The contract of a penalty: one object that holds everything its users need to know.

"Adding a penalty" in CONTRIBUTING.md shows how to write one.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.maths import coactivation
from saelens_adaptive_ortho.maths.coactivation import CoactivationState
from saelens_adaptive_ortho.maths.penalties.pair_cost import ChosenPairs
from saelens_adaptive_ortho.settings import parse

MEAN_COEFFICIENT = 0.05
"""Default lambda of penalties that average over latents or pairs."""

LIST_FIELDS = (
    "ortho_affinity",
    "ortho_domain_ratio",
    "ortho_forget_rows",
    "ortho_group_threshold",
    "ortho_min_captured",
    "ortho_neighbours",
    "ortho_refresh_every",
    "ortho_seed",
    "ortho_sketch_size",
    "ortho_statistics_decay",
    "ortho_statistics_every",
)
"""Fields that decide what the neighbour lists and statistics hold.

A penalty that needs lists depends on all of them.
"""


@dataclass(frozen=True, kw_only=True)
class PairStatistics:
    """Statistics of each latent and its candidate pairs, computed on request.

    Args:
        state: the co-activation counts.
        neighbours: ``N(i)``, the m most similar latents of each latent; never i itself.
        variance: running mean of the activations' total variance.
        measure: function that computes ``s_ij`` of the candidate pairs.
    """

    state: CoactivationState
    neighbours: Int[Tensor, "d_sae m"]
    variance: Float[Tensor, ""]
    measure: Callable[[], Tensor]

    def affinities(self) -> Float[Tensor, "d_sae m"]:
        """``s_ij`` in [0, 1]: how far each pair may share, from ``ortho_affinity`` and domains."""
        return self.measure()

    def firing_rates(self) -> Float[Tensor, " d_sae"]:
        """``P(i)``: share of the samples on which a latent fires."""
        return coactivation.firing_rates(self.state)

    def energies(self) -> Float[Tensor, " d_sae"]:
        """``e_i``: share of the activations' total variance that a latent contributes.

        It is 0 for activations without variance, which have nothing to contribute to. A variance
        far below a latent's energy is the rounding error of equal activations, and counts as none.
        """
        energies = coactivation.energies(self.state)
        varies = self.variance > energies * torch.finfo(torch.float32).eps ** 2
        return torch.where(varies, energies / self.variance, 0.0)


@dataclass(frozen=True, kw_only=True)
class PenaltyInputs:
    """The inputs of a penalty.

    Args:
        W_dec: decoder rows of any norm; the gradient flows here.
        cfg: the SAE's config, for its ``ortho_*`` fields.
        step: number of training steps before this one.
        settings: the penalty's own settings, an instance of :attr:`Penalty.settings`.
        lists: candidate pairs and statistics; None unless the penalty needs lists.
        kept: pairs that :attr:`Penalty.choose` has chosen; None without it, and while it chooses.
    """

    W_dec: Float[Tensor, "d_sae d_in"]
    cfg: Any
    step: int
    settings: Any = None
    lists: PairStatistics | None = None
    kept: ChosenPairs | None = None

    @property
    def pairs(self) -> PairStatistics:
        """Candidate pairs and statistics.

        Raises:
            RuntimeError: the penalty does not declare ``needs_lists``.
        """
        if self.lists is None:
            raise RuntimeError("a penalty that uses pairs must be declared with needs_lists=True.")
        return self.lists

    @property
    def chosen(self) -> ChosenPairs:
        """The pairs that :attr:`Penalty.choose` has chosen.

        Raises:
            RuntimeError: the penalty has no ``choose``.
        """
        if self.kept is None:
            raise RuntimeError("a penalty that uses chosen pairs must be declared with choose=...")
        return self.kept


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """A penalty ``L_ortho`` and everything its users need to know about it.

    Args:
        name: value of ``ortho_mode`` that selects it.
        help: one sentence with the formula.
        loss: function that returns ``L_ortho``, a scalar. It must neither read nor advance
            torch's global random state.
        fields: ``ortho_*`` fields that the loss reads, besides :data:`LIST_FIELDS`.
        needs_lists: whether the SAE keeps neighbour lists and co-activation statistics for it.
        choose: function that chooses one pair for each latent from the lists. The SAE calls it,
            without a gradient, when lists, groups or statistics have changed, and keeps the pairs
            for the ``loss`` of the steps between. None if the loss chooses for itself. It needs
            ``needs_lists``.
        coefficient: function that returns the default lambda for a config.
        every: function that returns n for a config. The penalty applies on every n-th step, with n
            times the coefficient.
        check: function that raises :class:`ConfigError` if the fields of a config contradict each
            other.
        settings: dataclass of settings that only this penalty has, given as ``ortho_settings``.
            Rules of one setting belong in its ``__post_init__``. None if there are no settings.
        version: raised when the same settings learn something else. Digests of runs contain it
            from 2 on, so finished runs of an earlier version train again.
    """

    name: str
    help: str
    loss: Callable[[PenaltyInputs], Tensor]
    fields: tuple[str, ...] = ()
    needs_lists: bool = False
    choose: Callable[[PenaltyInputs], ChosenPairs] | None = None
    coefficient: Callable[[Any], float] = lambda cfg: MEAN_COEFFICIENT  # noqa: ARG005
    every: Callable[[Any], int] = lambda cfg: 1  # noqa: ARG005
    check: Callable[[Any], None] = lambda cfg: None  # noqa: ARG005
    settings: type[Any] | None = None
    version: int = 1

    def __post_init__(self) -> None:
        if self.choose is not None and not self.needs_lists:
            raise TypeError(f"the penalty {self.name!r} has choose, so it needs needs_lists=True.")
        if self.settings is not None and not dataclasses.is_dataclass(self.settings):
            raise TypeError(f"settings of the penalty {self.name!r} must be a dataclass.")

    def own_settings(self, given: Any) -> Any:
        """``ortho_settings`` as an instance of :attr:`settings`; None if there are no settings.

        Raises:
            ConfigError: a setting is unknown, missing or of the wrong type, or a value cannot be
                saved as JSON.
        """
        if not isinstance(given, dict):
            raise reject("ortho_settings", given, "must be a mapping of settings by name.")
        tree = cast("dict[str, Any]", given)  # JSON has no other keys
        if not _is_plain(tree):
            rule = "must hold numbers, texts, lists and mappings only, as they are saved as JSON."
            raise reject("ortho_settings", tree, rule)
        known: list[str] = []
        if self.settings is not None:
            known = [f.name for f in dataclasses.fields(self.settings) if f.init]
        for key, value in tree.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                hint = f" Did you mean ortho_settings.{near[0]}?" if near else ""
                rule = f"ortho_mode {self.name} has {', '.join(known) or 'no settings'}.{hint}"
                raise reject(f"ortho_settings.{key}", value, rule)
        if self.settings is None:
            return None
        try:
            return parse(self.settings, tree, "ortho_settings.")
        except ConfigError:
            raise
        except (TypeError, ValueError) as error:
            raise reject("ortho_settings", tree, f"ortho_mode {self.name}: {error}") from error


def _is_plain(value: Any) -> bool:
    """Whether a value is unchanged after writing it to JSON and reading it back."""
    try:
        return json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError):
        return False
