"""The work of ``adaptive-ortho analyse``: geometry of each SAE, similar pairs, and the page."""

from __future__ import annotations

import json
from collections.abc import Callable

from torch.linalg import LinAlgError  # pyright: ignore[reportAttributeAccessIssue]  untyped

from saelens_adaptive_ortho.commands.analyse import AnalyseOptions
from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.files import (
    check_writable,
    remove_litter,
    write_failures_named,
    write_text_atomic,
)
from saelens_adaptive_ortho.judging import pairs
from saelens_adaptive_ortho.judging.contract import EvaluationError, Workbench
from saelens_adaptive_ortho.judging.running import storable
from saelens_adaptive_ortho.judging.subjects import Subject, named_subjects, workbench_for
from saelens_adaptive_ortho.locks import run_lock
from saelens_adaptive_ortho.report.page.analysis import write_analysis
from saelens_adaptive_ortho.results import Result, versions

FILE = "analysis.json"
PAGE = "analysis.html"


def analyse(options: AnalyseOptions, say: Callable[[str], None] = print) -> list[Result]:
    """Analyse each SAE, write ``analysis.json``, ``analysis.html`` and ``plots/``.

    Raises:
        ConfigError: a setting cannot work. This is checked before anything is measured.
        StorageError: a file could not be written.
    """
    subjects = named_subjects(options.saes, options.hook)
    check_writable("--out", options.out)
    with run_lock("--out", options.out, "adaptive-ortho analyse"):
        remove_litter([options.out])
        return _analyse(subjects, options, say)


def _analyse(
    subjects: list[Subject], options: AnalyseOptions, say: Callable[[str], None]
) -> list[Result]:
    bench = workbench_for(subjects, options)
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
    context = subject.on(bench, options.out)
    settings = pairs.Settings(
        n_contexts=options.contexts,
        domain_ratio=options.domain_ratio,
        energy=options.energy,
        batch_size_prompts=options.batch_size_prompts,
        min_cosine=options.min_cosine,
        max_lift=options.max_lift,
        n_candidates=options.candidates,
        n_texts=options.texts,
    )
    try:
        outcome = storable(pairs.run(context, settings))
    except EvaluationError as error:
        raise reject("SAE", subject.source, str(error)) from error
    except LinAlgError as error:
        rule = f"its decoder cannot be analysed ({error}). Are its weights finite?"
        raise reject("SAE", subject.source, rule) from error
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
