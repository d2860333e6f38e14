"""A pool of samples. It is drawn once per world, and every run reads it.

Drawing a batch takes longer than training on it. The pool holds the true feature activations in
compressed rows, because only a few features fire in a sample. The input activations are computed
from them batch by batch. Sample ``i`` depends only on the world and on ``i``. So a larger pool
begins with the samples of a smaller one.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import sae_lens
import torch
from jaxtyping import Float, Int
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import embedding_bag

from saelens_adaptive_ortho.files import recover_directory, write_failures_named
from saelens_adaptive_ortho.locks import write_lock
from saelens_adaptive_ortho.progress import progress
from saelens_adaptive_ortho.settings import check_fields
from saelens_adaptive_ortho.synthetic.worlds import World
from saelens_adaptive_ortho.text.models import tensors_digest

INTACT = "Pools drawn before are intact."
FORMAT = 1
CHUNK = 4096
TRAIN, HELD_OUT = "train", "held_out"


class Rows(NamedTuple):
    """Feature activations of samples in compressed rows.

    The entries of row i are ``starts[i]:starts[i + 1]``.
    """

    starts: Int[Tensor, " n_plus_1"]
    indices: Int[Tensor, " nnz"]
    values: Float[Tensor, " nnz"]

    @property
    def n_samples(self) -> int:
        """The number of rows."""
        return self.starts.shape[0] - 1

    def take(self, rows: Int[Tensor, " n"]) -> Rows:
        """The given rows, in the given order."""
        begin = self.starts[rows]
        lengths = self.starts[rows + 1] - begin
        starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        # The old position of each entry is the start of its row plus its rank in the row.
        at = torch.arange(int(starts[-1])) + (begin - starts[:-1]).repeat_interleave(lengths)
        return Rows(starts, self.indices[at], self.values[at])

    def activations(
        self, directions: Float[Tensor, "n_features d"], bias: Float[Tensor, " d"]
    ) -> Float[Tensor, "n d"]:
        """``x = sum_j f_j D_j + b`` for every row."""
        summed = embedding_bag(
            self.indices.long(),
            directions,
            self.starts[:-1],
            mode="sum",
            per_sample_weights=self.values,
        )
        return summed + bias

    def dense(self, n_features: int) -> Float[Tensor, "n n_features"]:
        """The activations as a matrix."""
        rows = torch.arange(self.n_samples).repeat_interleave(self.starts.diff())
        out = torch.zeros(self.n_samples, n_features)
        out[rows, self.indices.long()] = self.values
        return out


@dataclass(frozen=True)
class Pool:
    """Samples of a world.

    Args:
        directions, bias, groups: tensors of the world; see :class:`worlds.Source`.
        train: training samples, one entry per domain.
        held_out: samples for evaluation, one entry per domain.
    """

    directions: Float[Tensor, "n_features d"]
    bias: Float[Tensor, " d"]
    groups: Int[Tensor, " n_features"]
    train: list[Rows]
    held_out: list[Rows]

    @property
    def n_features(self) -> int:
        return self.directions.shape[0]

    @property
    def d_in(self) -> int:
        return self.directions.shape[1]

    def activations(self, rows: Rows) -> Float[Tensor, "n d"]:
        """Input activations ``x`` of some rows of the pool."""
        return rows.activations(self.directions, self.bias)

    def held_out_batches(
        self, batch_size: int
    ) -> Iterator[tuple[Float[Tensor, "batch d"], Float[Tensor, "batch n_features"]]]:
        """Yield input activations and true feature activations of the held-out samples.

        With two domains, the forget rows come first in each batch. Each domain's share of a batch
        is its share of all samples.
        """
        total = sum(r.n_samples for r in self.held_out)
        for start in range(0, total, batch_size):
            stop = min(start + batch_size, total)
            parts = [
                r.take(torch.arange(start * r.n_samples // total, stop * r.n_samples // total))
                for r in self.held_out
            ]
            yield (
                torch.cat([self.activations(p) for p in parts]),
                torch.cat([p.dense(self.n_features) for p in parts]),
            )


class Batches(Iterator[Tensor]):
    """An endless iterator of training batches.

    Batch ``t`` depends only on the pool, ``seed`` and ``t``. Each epoch has its own random order of
    each domain's samples. With two domains, a batch holds ``forget_rows`` rows of the forget
    domain, followed by rows of the retain domain.
    """

    def __init__(self, pool: Pool, batch_size: int, seed: int, forget_rows: int = 0) -> None:
        self.pool = pool
        self.seed = seed
        self.sizes = (
            [batch_size] if len(pool.train) == 1 else [forget_rows, batch_size - forget_rows]
        )
        self.position = 0
        self._orders: dict[int, tuple[int, Tensor]] = {}

    def seek(self, position: int) -> None:
        """Set the next batch to ``position``."""
        self.position = position

    def __next__(self) -> Float[Tensor, "batch d"]:
        parts = []
        for domain, (rows, size) in enumerate(zip(self.pool.train, self.sizes, strict=True)):
            start = self.position * size
            wanted = torch.arange(start, start + size)
            epochs = wanted // rows.n_samples
            at = torch.cat(
                [
                    self._order(domain, int(e))[wanted[epochs == e] % rows.n_samples]
                    for e in epochs.unique()
                ]
            )
            parts.append(self.pool.activations(rows.take(at)))
        self.position += 1
        return torch.cat(parts)

    def _order(self, domain: int, epoch: int) -> Int[Tensor, " n"]:
        if domain not in self._orders or self._orders[domain][0] != epoch:
            generator = torch.Generator().manual_seed(_mix(self.seed, domain, epoch))
            order = torch.randperm(self.pool.train[domain].n_samples, generator=generator)
            self._orders[domain] = (epoch, order)
        return self._orders[domain][1]


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """Number of samples in a pool. Each domain gets the same share.

    Args:
        train_samples: number of training samples; training repeats them as often as it needs to.
        held_out: number of samples for evaluation.
    """

    train_samples: Annotated[int, Field(ge=4)] = 600_000
    held_out: Annotated[int, Field(ge=4)] = 61_440

    def __post_init__(self) -> None:
        check_fields(self)


def load_pool(world: World, cache: str | Path, settings: PoolSettings | None = None) -> Pool:
    """Read the pool of a world from ``cache``, or draw it and write it there.

    If another process is drawing it, this one waits for it. A pool whose SHA-256 is not the one in
    its file is drawn again, with a warning.

    Args:
        cache: folder of pools. All parameters of the world and both sizes determine the file.

    Raises:
        StorageError: the pool could not be written.
    """
    settings = settings or PoolSettings()
    key = {
        "format": FORMAT,
        "sae_lens": sae_lens.__version__,
        "world": world.settings(),
        **asdict(settings),
    }
    text = json.dumps(key, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    path = Path(cache) / f"{world.name}-seed{world.seed}-{digest[:12]}.safetensors"
    with suppress(OSError):  # a folder that is only read may hold the lock of a killed process
        recover_directory(path)
    pool = _read(path, text, world.n_domains)
    if pool is not None:
        return pool
    with ExitStack() as stack:
        with write_failures_named(path, INTACT):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(write_lock(path))
        pool = _read(path, text, world.n_domains)  # another process may have drawn it meanwhile
        if pool is None:
            pool = draw_pool(world, settings.train_samples, settings.held_out)
            _write(path, text, pool)
    return pool


def draw_pool(world: World, train_samples: int, held_out: int) -> Pool:
    """Draw a pool. The result depends only on the arguments."""
    source = world.build()
    n = world.n_domains
    parts: dict[str, list[Rows]] = {}
    with progress(
        total=train_samples + held_out,
        desc=f"Drawing the {world.name} pool",
        unit=" samples",
        unit_scale=True,
        leave=True,
    ) as bar:
        for part, (name, size) in enumerate({TRAIN: train_samples, HELD_OUT: held_out}.items()):
            parts[name] = []
            for domain in range(n):
                share = size // n + (domain < size % n)
                chunks: list[Rows] = []
                for start in range(0, share, CHUNK):
                    # SAELens's generators use only the global random state.
                    with torch.random.fork_rng(devices=[]):
                        torch.manual_seed(_mix(world.seed, part, domain, start // CHUNK))
                        features = source.draw(CHUNK, domain)[: share - start]
                    chunks.append(_compress(features))
                    bar.update(len(features))
                parts[name].append(_join(chunks))
    return Pool(source.directions, source.bias, source.groups, parts[TRAIN], parts[HELD_OUT])


def _compress(features: Float[Tensor, "n n_features"]) -> Rows:
    counts = (features > 0).sum(1)
    rows, columns = (features > 0).nonzero(as_tuple=True)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Rows(starts, columns.int(), features[rows, columns])


def _join(chunks: list[Rows]) -> Rows:
    counts = torch.cat([c.starts.diff() for c in chunks])
    return Rows(
        torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        torch.cat([c.indices for c in chunks]),
        torch.cat([c.values for c in chunks]),
    )


def _write(path: Path, key: str, pool: Pool) -> None:
    tensors = {"directions": pool.directions, "bias": pool.bias, "groups": pool.groups}
    for name, domains in {TRAIN: pool.train, HELD_OUT: pool.held_out}.items():
        for domain, rows in enumerate(domains):
            for field, value in rows._asdict().items():
                tensors[f"{name}.{domain}.{field}"] = value
    temporary = path.with_name(f".{path.name}.tmp")  # of the process that holds the lock
    with write_failures_named(path, INTACT):
        try:
            save_file(tensors, temporary, _sums(key, tensors))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _sums(key: str, tensors: dict[str, Tensor]) -> dict[str, str]:
    """The metadata of a pool. One entry, because safetensors orders several at random."""
    return {"key and sha256": f"{key} {tensors_digest(tensors)}"}


def _read(path: Path, key: str, n_domains: int) -> Pool | None:
    """Read a pool. None if the file is missing or damaged. Old files have no checksum."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            sums = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if sums not in ({"key": key}, _sums(key, tensors)):
            raise ValueError("its checksum is wrong")

        def rows(name: str, domain: int) -> Rows:
            return Rows(*(tensors[f"{name}.{domain}.{f}"] for f in Rows._fields))

        return Pool(
            *(tensors[name] for name in ("directions", "bias", "groups")),
            train=[rows(TRAIN, d) for d in range(n_domains)],
            held_out=[rows(HELD_OUT, d) for d in range(n_domains)],
        )
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"
    warnings.warn(f"{path} is damaged ({reason}). The pool is drawn again.", stacklevel=3)
    return None


def _mix(*numbers: int) -> int:
    """One seed from several numbers. A sum of them would give equal seeds too easily."""
    digest = hashlib.sha256(",".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:7], "big")
