"""``adaptive-ortho analyse``: the geometry of finished SAEs, and the pairs worth reading."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from sae_lens.saes.sae import SAE
from torch import Tensor

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.files import check_writable, write_failures_named, write_text_atomic
from saelens_adaptive_ortho.judging import geometry
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError, Workbench
from saelens_adaptive_ortho.judging.firing import hooked_rows
from saelens_adaptive_ortho.judging.subjects import Subject, SuiteOptions, workbench_for
from saelens_adaptive_ortho.maths import grouping, similar_pairs
from saelens_adaptive_ortho.maths.directions import decoder_directions
from saelens_adaptive_ortho.maths.similar_pairs import PairCounts, Pairs
from saelens_adaptive_ortho.report.page.analysis import write_analysis
from saelens_adaptive_ortho.results import Result, versions
from saelens_adaptive_ortho.text.corpora import CorpusConfig

FILE = "analysis.json"
PAGE = "analysis.html"


@dataclass(frozen=True)
class AnalyseOptions:
    """What to look at, and on which text; None takes it from the SAEs' own records.

    Args:
        out: folder for ``analysis.json``, ``analysis.html`` and ``plots/``.
        model_name: the language model.
        corpora: forget and retain, or one called ``corpus``.
        context_size: tokens in a context.
        n_contexts: training contexts per corpus in the pass over text.
        domain_ratio: firing-rate ratio from which a latent belongs to one corpus.
        energy: share of a group's energy its subspace keeps for principal angles.
        min_cosine: similarity from which a pair is looked at.
        max_lift: co-firing, relative to chance, up to which a similar pair is a candidate.
        n_candidates: candidates kept, the most similar ones.
        n_texts: top-activating texts of each latent of a candidate.
        batch_size_prompts: contexts per forward pass.
        device: for the model and the SAEs.
        dtype: of the model and the SAEs.
    """

    out: Path
    model_name: str | None = None
    corpora: dict[str, CorpusConfig] | None = None
    context_size: int | None = None
    n_contexts: int = 256
    domain_ratio: float = 9.0
    energy: float = 0.9
    min_cosine: float = 0.3
    max_lift: float = 0.25
    n_candidates: int = 20
    n_texts: int = 3
    batch_size_prompts: int = 32
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, low in (
            ("n_contexts", 2),
            ("n_candidates", 0),
            ("n_texts", 0),
            ("batch_size_prompts", 1),
        ):
            if getattr(self, name) < low:
                flag = f"--{name.replace('_', '-')}"
                raise reject(flag, getattr(self, name), f"must be at least {low}.")
        for name, low, high in (("min_cosine", -1, 1), ("energy", 0, 1), ("max_lift", 0, 1)):
            if not low <= getattr(self, name) <= high:
                flag = f"--{name.replace('_', '-')}"
                raise reject(flag, getattr(self, name), f"must lie in [{low}, {high}].")
        if not self.domain_ratio > 1:
            raise reject("--domain-ratio", self.domain_ratio, "must be above 1.")


class Survey(NamedTuple):
    """One pass over text.

    ``halves`` are the firing rates in the first and the second half of each corpus's contexts;
    ``top`` and ``where`` the largest activations of some latents and the tokens they fell on, as
    (corpus, context, position).
    """

    counts: PairCounts
    halves: Float[Tensor, "2 n_corpora d_sae"]
    top: Float[Tensor, "n_texts n_latents"]
    where: Int[Tensor, "n_texts n_latents 3"]


@torch.no_grad()
def survey(
    sae: SAE[Any],
    bench: Workbench,
    corpora: list[Int[Tensor, "n context"]],
    pairs: Pairs,
    latents: Int[Tensor, " n_latents"],
    n_texts: int,
    batch_size: int = 32,
) -> Survey:
    """Firings of all latents, co-firings of pairs, top activations of ``latents``."""
    d_sae, device = sae.cfg.d_sae, sae.device
    counts = PairCounts(
        0,
        torch.zeros(d_sae, dtype=torch.int64, device=device),
        torch.zeros(len(pairs.indices), dtype=torch.int64, device=device),
    )
    fired = torch.zeros(2, len(corpora), d_sae, dtype=torch.float64, device=device)
    seen = torch.zeros(2, len(corpora), 1, dtype=torch.float64, device=device)
    top = torch.zeros(n_texts, len(latents), device=device)
    where = torch.full((n_texts, len(latents), 3), -1, device=device)
    positions = torch.arange(corpora[0].shape[1])[slice(*bench.seqpos_slice)].to(device)
    for number, contexts in enumerate(corpora):
        middle = len(contexts) // 2
        for half, start, end in ((0, 0, middle), (1, middle, len(contexts))):
            for first in range(start, end, batch_size):
                tokens = contexts[first : min(first + batch_size, end)]
                rows = hooked_rows(sae, bench.model, tokens, bench.seqpos_slice)
                encoded = sae.encode(rows)
                active = encoded > 0
                counts = similar_pairs.count_pairs(counts, active, pairs.indices)
                fired[half, number] += active.sum(0)
                seen[half, number] += len(active)
                if not n_texts or not len(latents):
                    continue
                values, tops = encoded[:, latents].float().topk(min(n_texts, len(active)), dim=0)
                place = torch.stack(
                    [
                        torch.full_like(tops, number),
                        first + tops // len(positions),
                        positions[tops % len(positions)],
                    ],
                    -1,
                )
                top, order = torch.cat([top, values]).topk(n_texts, dim=0)
                where = torch.cat([where, place]).gather(0, order.unsqueeze(-1).expand(-1, -1, 3))
    return Survey(counts, fired / seen.clamp(min=1), top, where)


def analyse(
    saes: Sequence[str], options: AnalyseOptions, say: Callable[[str], None] = print
) -> list[Result]:
    """Analyse each SAE, write ``analysis.json``, ``analysis.html`` and ``plots/``.

    Raises:
        ConfigError: a setting that cannot work, before anything is measured.
        StorageError: something could not be written.
    """
    check_writable("--out", options.out)
    subjects = [Subject.parse(text) for text in saes]
    names = [(s.variant, s.seed) for s in subjects]
    for name, subject in zip(names, subjects, strict=True):
        if names.count(name) > 1:
            raise reject("SAE", subject.source, "has the name of another; name it: NAME=...")
    suite = SuiteOptions(
        evals={},
        out=options.out,
        model_name=options.model_name,
        corpora=options.corpora,
        context_size=options.context_size,
        device=options.device,
        dtype=options.dtype,
    )
    bench = workbench_for(subjects, suite)
    if not bench.corpora:
        raise reject(
            "--forget and --retain", None, "groups are found by a pass over text; name corpora."
        )
    results = []
    with write_failures_named(options.out, "Nothing else was changed."):
        for subject in subjects:
            say(f"Analysing {subject.source}")
            results.append(_analyse_one(subject, bench, options))
        documents = [result.to_json() for result in results]
        text = json.dumps(documents, indent=1, allow_nan=False, ensure_ascii=False)
        write_text_atomic(options.out / FILE, text + "\n")
        page = write_analysis(options.out, results)
    say(f"Page: {page}")
    return results


def _analyse_one(subject: Subject, bench: Workbench, options: AnalyseOptions) -> Result:
    context = EvalContext(
        bench=bench,
        load=lambda: subject.load(options.device, options.dtype),
        variant=subject.variant,
        seed=subject.seed,
        raw_dir=options.out,
    )
    settings = geometry.Settings(
        n_contexts=options.n_contexts,
        domain_ratio=options.domain_ratio,
        energy=options.energy,
        batch_size_prompts=options.batch_size_prompts,
    )
    try:
        outcome = geometry.run(context, settings)
    except EvaluationError as error:
        raise reject("SAE", subject.source, str(error)) from error
    metrics, details = dict(outcome.metrics), dict(outcome.details)
    sae = context.load()
    found = _candidates(sae, bench, options)
    metrics |= found.metrics
    details |= found.details
    return Result(
        eval="subspace",
        variant=subject.variant,
        seed=subject.seed,
        metrics=metrics,
        details={**details, "source": subject.source, "d_in": sae.cfg.d_in, "d_sae": sae.cfg.d_sae},
        versions=versions(),
    )


class _Found(NamedTuple):
    metrics: dict[str, float | None]
    details: dict[str, Any]


def _candidates(sae: SAE[Any], bench: Workbench, options: AnalyseOptions) -> _Found:
    directions = decoder_directions(sae.W_dec.detach()).to(sae.device)
    pairs = similar_pairs.similar_pairs(directions, options.min_cosine)
    latents = pairs.indices.unique()
    contexts = [c.train[: options.n_contexts] for c in bench.corpora]
    seen = survey(sae, bench, contexts, pairs, latents, options.n_texts, options.batch_size_prompts)
    kept = similar_pairs.absorption_candidates(seen.counts, pairs, options.max_lift)
    column = {latent: place for place, latent in enumerate(latents.tolist())}
    domains = [c.domain for c in bench.corpora]

    def texts(latent: int) -> list[dict[str, Any]]:
        shown = []
        for value, place in zip(
            seen.top[:, column[latent]].tolist(),
            seen.where[:, column[latent]].tolist(),
            strict=True,
        ):
            if value > 0:
                corpus, row, position = place
                window = _window(bench, contexts[corpus][row], position)
                shown.append({"activation": value, "corpus": domains[corpus], **window})
        return shown

    lift = similar_pairs.lifts(seen.counts, pairs.indices)
    metrics: dict[str, float | None] = {
        "similar_pairs_examined": float(len(pairs.indices)),
        "absorption_candidates": float(len(kept)),
    }
    details: dict[str, Any] = {
        "similar_pairs": [
            [i, j, round(c, 4), round(x, 4)]
            for (i, j), c, x in zip(
                pairs.indices.tolist(), pairs.cosines.tolist(), lift.tolist(), strict=True
            )
            if x == x  # a pair of which one never fired has no lift
        ],
        "absorption_candidates": [
            {**c._asdict(), "texts": {"frequent": texts(c.frequent), "rare": texts(c.rare)}}
            for c in kept[: options.n_candidates]
        ],
    }
    if len(bench.corpora) == 2:
        first, second = (grouping.domain_groups(h, options.domain_ratio) for h in seen.halves)
        alive = (first != grouping.INACTIVE) & (second != grouping.INACTIVE)
        moved = (first != second) & alive
        metrics["domain_churn"] = float(moved.sum() / alive.sum().clamp(min=1))
    return _Found(metrics, details)


def _window(bench: Workbench, tokens: Tensor, position: int, width: int = 10) -> dict[str, str]:
    """The token and what stands around it, as text."""
    tokenizer: Any = bench.model.tokenizer
    decode = tokenizer.decode
    ids = tokens.tolist()
    return {
        "before": decode(ids[max(0, position - width) : position]),
        "token": decode(ids[position : position + 1]),
        "after": decode(ids[position + 1 : position + 1 + width]),
    }
