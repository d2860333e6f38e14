"""``adaptive-ortho analyse``: the geometry of finished SAEs, and the pairs worth reading."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.files import check_writable, write_failures_named, write_text_atomic
from saelens_adaptive_ortho.judging import pairs
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError, Workbench
from saelens_adaptive_ortho.judging.subjects import Subject, SuiteOptions, workbench_for
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
    settings = pairs.Settings(**{f.name: getattr(options, f.name) for f in fields(pairs.Settings)})
    try:
        outcome = pairs.run(context, settings)
    except EvaluationError as error:
        raise reject("SAE", subject.source, str(error)) from error
    cfg = context.load().cfg
    return Result(
        eval="subspace",
        variant=subject.variant,
        seed=subject.seed,
        metrics=outcome.metrics,
        details={
            **outcome.details,
            "source": subject.source,
            "d_in": cfg.d_in,
            "d_sae": cfg.d_sae,
        },
        versions=versions(),
    )
