"""The synthetic worlds: their true features, when these fire, and the resulting activations.

An input activation is ``x = sum_j f_j D_j + b``, with unit directions ``D_j`` and non-negative
``f``. A world is a frozen dataclass of parameters. Its ``build()`` draws the directions from
``seed``, and returns a :class:`Source` of samples. Units are arbitrary. A feature fires with a
magnitude near 1 (near 4.5 in ``synthsaebench16k``).
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from sae_lens.synthetic import (
    FoldedNormalMagnitudeConfig,
    HierarchyConfig,
    LinearMagnitudeConfig,
    LowRankCorrelationConfig,
    OrthogonalizationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
)
from torch import Tensor

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.maths.grouping import FORGET, RETAIN, SHARED
from saelens_adaptive_ortho.settings import Seed, Share, check_fields

# These settings suit stock SAEs (BatchTopK and Matryoshka) in the small worlds. With a learning
# rate of 8e-4 or below, the SAEs are far from converged after 3,000 steps, and up to half of the
# latents are dead; then any penalty that keeps latents apart looks good. Above 6e-3, latents die.
# The rarest features fire in about one of 500 samples, so a latent that is silent for 200 batches
# of 1,024 samples is dead.
SHORT_TRAINING = {"steps": 3000, "lr": 3e-3, "dead_feature_window": 200}


class Source(NamedTuple):
    """The source of a world's samples.

    ``draw(n, domain)`` draws ``n`` rows of true feature activations [n, n_features] from torch's
    global random state. ``domain`` is 0 in a world with one domain.
    """

    directions: Float[Tensor, "n_features d"]
    bias: Float[Tensor, " d"]
    groups: Int[Tensor, " n_features"]
    """The domain of each feature (``grouping.FORGET`` etc.); SHARED in a world with one domain."""
    draw: Callable[[int, int], Float[Tensor, "n n_features"]]


@dataclass(frozen=True, kw_only=True)
class World(ABC):
    """Parameters of a world.

    Args:
        seed: seed of the directions, the structure and the samples.
    """

    name: ClassVar[str]
    n_domains: ClassVar[int] = 1

    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    @abstractmethod
    def training(self) -> dict[str, Any]:
        """Default d_sae, k and fields of :class:`~.run.TrainSettings` for an SAE of this world."""

    @abstractmethod
    def build(self) -> Source:
        """Draw the directions. The result depends only on the parameters."""

    def settings(self) -> dict[str, Any]:
        """The name and the parameters, as JSON."""
        return {"name": self.name, **dataclasses.asdict(self)}


@dataclass(frozen=True, kw_only=True)
class HierarchyWorld(World):
    """A forest of features: a child fires only with its parent, and siblings exclude each other.

    SAELens's generator draws the samples. In this structure, SAEs absorb a general feature into
    specific ones.

    Args:
        num_features: number of true features.
        hidden_dim: d_in.
        roots, branching_factor, depth: shape of the trees.
        exponent, max_prob, min_prob: Zipf law of the firing probabilities over the feature rank.
        std_magnitude: standard deviation of a firing feature's magnitude, whose mean is 1.
        correlation_rank, correlation_scale: low-rank correlation between firings.
    """

    name: ClassVar[str] = "hierarchy"

    num_features: PositiveInt = 1024
    hidden_dim: PositiveInt = 128
    roots: PositiveInt = 8
    branching_factor: PositiveInt = 4
    depth: PositiveInt = 3
    exponent: NonNegativeFloat = 0.5
    max_prob: Share = 0.4
    min_prob: Share = 2e-3
    std_magnitude: NonNegativeFloat = 0.15
    correlation_rank: NonNegativeInt = 8
    correlation_scale: NonNegativeFloat = 0.1

    @property
    def training(self) -> dict[str, Any]:
        return {"d_sae": 256, "k": 6, **SHORT_TRAINING}

    def build(self) -> Source:
        return _sae_lens_source(
            SyntheticModelConfig(
                num_features=self.num_features,
                hidden_dim=self.hidden_dim,
                firing_probability=ZipfianFiringProbabilityConfig(
                    exponent=self.exponent, max_prob=self.max_prob, min_prob=self.min_prob
                ),
                hierarchy=HierarchyConfig(
                    total_root_nodes=self.roots,
                    branching_factor=self.branching_factor,
                    max_depth=self.depth,
                    mutually_exclusive_portion=1.0,
                    compensate_probabilities=True,
                ),
                orthogonalization=OrthogonalizationConfig(num_steps=100, lr=0.01),
                correlation=LowRankCorrelationConfig(
                    rank=self.correlation_rank, correlation_scale=self.correlation_scale
                ),
                std_firing_magnitudes=self.std_magnitude,
                bias=False,
                seed=self.seed,
            )
        )


@dataclass(frozen=True, kw_only=True)
class SynthSAEBenchWorld(World):
    """SynthSAEBench-16k (arXiv 2602.14687), built from its published configuration.

    Args:
        scale: divisor of the numbers of features, dimensions, trees and latents. Firing
            probabilities and magnitudes stay the same. 1 is the standard itself, which needs a GPU.
    """

    name: ClassVar[str] = "synthsaebench16k"

    seed: Seed = 42
    scale: Literal[1, 2, 4, 8, 16, 32] = 8

    @property
    def training(self) -> dict[str, Any]:
        # The standard has 4,096 latents, L0 25, 200M samples and lr 3e-4. The number of features
        # is divided by the scale. The Zipf law keeps the frequent features, so the number of firing
        # features per sample falls only with about the square root (11 at scale 8).
        return {
            "d_sae": 4096 // self.scale,
            "k": round(25 / self.scale**0.5),
            "steps": 200_000_000 // 1024 // self.scale,
            "lr": 3e-4,
        }

    def build(self) -> Source:
        return _sae_lens_source(
            SyntheticModelConfig(
                num_features=16_384 // self.scale,
                hidden_dim=768 // self.scale,
                firing_probability=ZipfianFiringProbabilityConfig(
                    exponent=0.5, max_prob=0.4, min_prob=5e-4
                ),
                hierarchy=HierarchyConfig(
                    total_root_nodes=128 // self.scale,
                    branching_factor=4,
                    max_depth=3,
                    mutually_exclusive_portion=1.0,
                    mutually_exclusive_min_depth=0,
                    compensate_probabilities=True,
                    scale_children_by_parent=True,
                ),
                orthogonalization=OrthogonalizationConfig(num_steps=100, lr=3e-4),
                correlation=LowRankCorrelationConfig(rank=25, correlation_scale=0.1),
                mean_firing_magnitudes=LinearMagnitudeConfig(start=5.0, end=4.0),
                std_firing_magnitudes=FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
                bias=0.5,
                seed=self.seed,
            )
        )


@dataclass(frozen=True, kw_only=True)
class ClusterWorld(World):
    """Clusters of features that fire together and have similar directions.

    The direction of feature j of cluster k is
    ``normalise(sqrt(cosine) C_k + sqrt(1 - cosine) O_kj)`` with random unit vectors C and O. So the
    mean cosine within a cluster is ``cosine``. Cluster k (from 1) is active with probability
    ``cluster_prob / k^cluster_exponent``. In an active cluster, feature j fires with probability
    ``feature_prob / j^feature_exponent``.

    Args:
        clusters, cluster_size: their product is the number of true features.
        hidden_dim: d_in.
        cosine: mean cosine of two directions within a cluster.
        cluster_prob, cluster_exponent: probability of an active cluster, see above.
        feature_prob, feature_exponent: firing probability within an active cluster, see above.
        std_magnitude: standard deviation of a firing feature's magnitude, whose mean is 1.
    """

    name: ClassVar[str] = "cluster"

    clusters: PositiveInt = 32
    cluster_size: PositiveInt = 8
    hidden_dim: PositiveInt = 96
    cosine: Share = 0.4
    cluster_prob: Share = 0.25
    cluster_exponent: NonNegativeFloat = 0.5
    feature_prob: Share = 0.6
    feature_exponent: NonNegativeFloat = 0.7
    std_magnitude: NonNegativeFloat = 0.15

    @property
    def training(self) -> dict[str, Any]:
        return {"d_sae": 256, "k": 6, **SHORT_TRAINING}

    def firing_probabilities(self) -> Float[Tensor, " n_features"]:
        """``P(f_j > 0)`` of each feature, cluster by cluster."""
        cluster, feature = self._probabilities()
        return (cluster[:, None] * feature).flatten()

    def build(self) -> Source:
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.clusters, self.cluster_size, self.hidden_dim)
        centres = _unit(torch.randn(shape[0], 1, shape[2], generator=generator))
        offsets = _unit(torch.randn(shape, generator=generator))
        directions = _unit(math.sqrt(self.cosine) * centres + math.sqrt(1 - self.cosine) * offsets)
        cluster, feature = self._probabilities()

        def draw(n: int, _domain: int) -> Tensor:
            active = torch.rand(n, self.clusters, 1) < cluster[:, None]
            fires = active & (torch.rand(n, *shape[:2]) < feature)
            return (fires * _magnitudes(self.std_magnitude, n, *shape[:2])).flatten(1)

        return Source(
            directions.flatten(0, 1),
            torch.zeros(self.hidden_dim),
            torch.full((shape[0] * shape[1],), SHARED),
            draw,
        )

    def _probabilities(self) -> tuple[Tensor, Tensor]:
        return (
            _zipf(self.clusters, self.cluster_prob, self.cluster_exponent),
            _zipf(self.cluster_size, self.feature_prob, self.feature_exponent),
        )


@dataclass(frozen=True, kw_only=True)
class DomainsWorld(World):
    """Two domains with forget, retain and shared features, and similar forget/retain pairs.

    A sample comes from the forget domain or from the retain domain. Shared features fire equally
    often in both. A forget feature fires in the forget domain, and ``leak`` times as often in the
    retain domain. A retain feature fires in the retain domain, and ``leak`` times as often in the
    forget domain. Within each of the three sets, the feature of rank r (from 1) fires in its domain
    with probability ``p_r = max_prob / r^exponent``.

    There are ``pairs`` forget features, evenly spread over the ranks, whose direction has exactly
    the cosine ``cosine`` with the retain feature of the same rank. This retain feature fires with
    probability ``partner_rate * p_r`` in the retain domain, and ``leak`` times as often in the
    forget domain. An SAE may represent such a pair by one *merged* latent. Clamping this latent
    then damages the retain feature, too. The latent fires in the forget domain

        ``(1 + leak * partner_rate) / (leak + partner_rate)``

    times as often as in the retain domain. So with ``partner_rate`` 1, firing rates call a merged
    latent *shared*, and nothing that is selected by firing rates is merged. With a lower rate,
    they call it a forget latent, and clamping forget latents costs retain features.

    Args:
        forget, retain, shared: number of features in each set.
        hidden_dim: d_in.
        pairs: number of forget/retain pairs with similar directions.
        cosine: cosine of the two directions of a pair.
        max_prob, exponent: law of the firing probabilities, see above.
        leak: relative firing rate in the other domain, see above; in [0, 1].
        partner_rate: relative firing rate of a pair's retain feature, see above; in [0, 1].
        std_magnitude: standard deviation of a firing feature's magnitude, whose mean is 1.
    """

    name: ClassVar[str] = "domains"
    n_domains: ClassVar[int] = 2

    forget: PositiveInt = 48
    retain: PositiveInt = 48
    shared: PositiveInt = 64
    hidden_dim: PositiveInt = 96
    pairs: NonNegativeInt = 24
    cosine: Share = 0.5
    max_prob: Share = 0.15
    exponent: NonNegativeFloat = 0.5
    leak: Share = 0.02
    partner_rate: Share = 1.0
    std_magnitude: NonNegativeFloat = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        most = min(self.forget, self.retain)
        if self.pairs > most:
            raise reject("pairs", self.pairs, f"there are only {most} features to pair.")

    @property
    def training(self) -> dict[str, Any]:
        n = self.forget + self.retain + self.shared
        return {"d_sae": 4 * n // 5, "k": 4, **SHORT_TRAINING}

    def paired(self) -> Int[Tensor, " pairs"]:
        """Ranks (from 0) of the paired features. They are the same in both sets."""
        step = min(self.forget, self.retain) / max(self.pairs, 1)
        return (torch.arange(self.pairs) * step).long()

    def pair_indices(self) -> Int[Tensor, "pairs 2"]:
        """Indices of the forget and of the retain feature of each pair."""
        return torch.stack([self.paired(), self.forget + self.paired()], dim=1)

    def settings(self) -> dict[str, Any]:
        """The name and the parameters, as JSON.

        ``partner_rate`` was added after runs had been saved. It is left out if it has its default,
        so that the digests of saved runs and pools do not change.
        """
        kept = super().settings()
        if self.partner_rate == 1:
            del kept["partner_rate"]
        return kept

    def firing_probabilities(self, domain: int) -> Float[Tensor, " n_features"]:
        """``P(f_j > 0 | domain)`` for the forget, then the retain, then the shared features."""
        rates = [_zipf(n, self.max_prob, self.exponent) for n in self._sizes()]
        rates[RETAIN][self.paired()] *= self.partner_rate
        rates[RETAIN if domain == FORGET else FORGET] *= self.leak
        return torch.cat(rates)

    def build(self) -> Source:
        generator = torch.Generator().manual_seed(self.seed)
        forget, retain, shared = (
            _unit(torch.randn(n, self.hidden_dim, generator=generator)) for n in self._sizes()
        )
        at = self.paired()
        partner, rest = forget[at], retain[at]
        rest = _unit(rest - (rest * partner).sum(-1, keepdim=True) * partner)
        retain[at] = self.cosine * partner + math.sqrt(1 - self.cosine**2) * rest
        groups = torch.tensor([FORGET, RETAIN, SHARED]).repeat_interleave(
            torch.tensor(self._sizes())
        )
        rates = [self.firing_probabilities(domain) for domain in (FORGET, RETAIN)]

        def draw(n: int, domain: int) -> Tensor:
            fires = torch.rand(n, len(groups)) < rates[domain]
            return fires * _magnitudes(self.std_magnitude, n, len(groups))

        return Source(
            torch.cat([forget, retain, shared]), torch.zeros(self.hidden_dim), groups, draw
        )

    def _sizes(self) -> list[int]:
        return [self.forget, self.retain, self.shared]


WORLDS: dict[str, type[World]] = {
    world.name: world for world in (HierarchyWorld, ClusterWorld, DomainsWorld, SynthSAEBenchWorld)
}


def _sae_lens_source(cfg: SyntheticModelConfig) -> Source:
    try:
        model = SyntheticModel(cfg)
    except ValueError as error:
        raise reject("world", cfg.to_dict(), f"SAELens refuses it: {error}") from error
    features = model.feature_dict

    def draw(n: int, _domain: int) -> Tensor:
        return model.activation_generator.sample(n)

    return Source(
        features.feature_vectors.detach().clone(),
        features.bias.detach().clone(),
        torch.full((cfg.num_features,), SHARED),
        draw,
    )


def _zipf(n: int, first: float, exponent: float) -> Float[Tensor, " n"]:
    return first / torch.arange(1, n + 1, dtype=torch.float32) ** exponent


def _unit(x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    return x / x.norm(dim=-1, keepdim=True)


def _magnitudes(std: float, *shape: int) -> Tensor:
    return (1 + std * torch.randn(shape)).clamp(min=0)
