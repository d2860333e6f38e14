"""The latents of a page in the JSON of SAEDashboard, which Neuronpedia reads.

The format is that of ``NeuronpediaDashboardBatch`` in SAEDashboard
(https://github.com/jbloomAus/SAEDashboard, ``sae_dashboard/neuronpedia/neuronpedia_dashboard.py``):
files ``batch-N.json`` with ``model_id``, ``layer``, ``sae_set`` and ``features``. Tables that the
page does not have, such as correlated neurons, are empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from saelens_adaptive_ortho.report.page.browse import LATENTS_PER_FILE, Latent, Passage, Sae


class Origin(NamedTuple):
    """The model of an SAE, and the layer of its hook."""

    model: str
    layer: int


def origin(model: str, hook_name: str) -> Origin:
    """The origin of an SAE; the layer is the first number in the name of the hook, or 0."""
    layer = re.search(r"\d+", hook_name)
    return Origin(model, int(layer[0]) if layer else 0)


def copied(
    latents: Iterable[Latent],
    folder: Path,
    origin: Origin,
    sae: Sae,
    contexts: Sequence[Sequence[str]],
) -> Iterator[Latent]:
    """The latents, unchanged; they are written to ``folder`` on the way."""
    folder.mkdir(parents=True)
    remaining, done = iter(latents), 0
    for number, part in enumerate(iter(lambda: list(islice(remaining, LATENTS_PER_FILE)), [])):
        features = [
            feature(done + place, latent, sae, contexts) for place, latent in enumerate(part)
        ]
        batch = {
            "model_id": origin.model,
            "layer": origin.layer,
            "sae_set": sae.name,
            "features": features,
        }
        text = json.dumps(batch, ensure_ascii=False, allow_nan=False)
        (folder / f"batch-{number}.json").write_text(text, encoding="utf-8", newline="")
        done += len(part)
        yield from part


def feature(
    number: int, latent: Latent, sae: Sae, contexts: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """One latent, as ``NeuronpediaDashboardFeature``."""
    tokens = sum(corpus.tokens for corpus in sae.corpora)
    counts = [sum(by_corpus) for by_corpus in zip(*latent.histogram, strict=True)]
    used = [b for b, count in enumerate(counts) if count]
    bins = range(used[0], used[-1] + 1) if used else range(0)
    strongest = sorted(latent.passages, key=lambda passage: -passage.value)
    empty: dict[str, list[Any]] = {
        f"{table}_{column}": []
        for table, columns in (
            ("neuron_alignment", ("indices", "values", "l1")),
            ("correlated_neurons", ("indices", "l1", "pearson")),
            ("correlated_features", ("indices", "l1", "pearson")),
            ("logits_hist_data_bar", ("heights", "values")),
        )
        for column in columns
    }
    return {
        "feature_index": number,
        **empty,
        "decoder_weights_dist": [],
        "pos_str": [token for token, _ in latent.promoted],
        "pos_values": [round(logit, 3) for _, logit in latent.promoted],
        "neg_str": [token for token, _ in latent.suppressed],
        "neg_values": [round(logit, 3) for _, logit in latent.suppressed],
        "frac_nonzero": sum(fired[number] for fired in sae.fired) / max(1, tokens),
        "freq_hist_data_bar_values": [
            round((sae.edges[b] * sae.edges[b + 1]) ** 0.5, 5) for b in bins
        ],
        "freq_hist_data_bar_heights": [counts[b] for b in bins],
        "n_prompts_total": len(contexts),
        "n_tokens_in_prompt": max(map(len, contexts), default=0),
        "dataset": ", ".join(corpus.name for corpus in sae.corpora),
        "activations": [
            _activation(passage, sae, contexts[passage.context]) for passage in strongest
        ],
    }


def _activation(passage: Passage, sae: Sae, context: Sequence[str]) -> dict[str, Any]:
    """One passage; the bounds are those that SAEDashboard gives the top activations."""
    first = passage.position - sae.width
    places = [p for p in range(first, first + len(passage.window)) if 0 <= p < len(context)]
    return {
        "bin_min": -1,
        "bin_max": round(passage.value, 3),
        "bin_contains": -1,
        "tokens": [context[p] for p in places],
        "values": [round(passage.window[p - first], 3) for p in places],
    }
