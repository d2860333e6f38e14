"""The work of ``adaptive-ortho unlearn --example``: text before and after, for a report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from saelens_adaptive_ortho import examples
from saelens_adaptive_ortho.commands.unlearn import UnlearnOptions
from saelens_adaptive_ortho.commands.unlearning import JUDGING
from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.evaluations.unlearning import UNLEARNING
from saelens_adaptive_ortho.experiments.experiment import recorded_settings
from saelens_adaptive_ortho.files import check_writable, write_failures_named
from saelens_adaptive_ortho.judging.options import JudgingOptions
from saelens_adaptive_ortho.judging.subjects import find_subject
from saelens_adaptive_ortho.judging.unlearning.choosing import BUDGET, check_choice, context_for
from saelens_adaptive_ortho.judging.unlearning.examples import make_examples
from saelens_adaptive_ortho.locks import run_lock
from saelens_adaptive_ortho.report.page import run as page
from saelens_adaptive_ortho.results import load_results

# Options of the command that have no effect on the examples.
OTHERS = ("prompt", "continuation", "prompt_file", "selection", "save", "temperature")


def write_examples(options: UnlearnOptions, say: Callable[[str], None] = print) -> Path:
    """Make the examples of an SAE of a run folder, write them there, and write the report again.

    The settings of the unlearning evaluation are those of the run, as in its own examples.

    Raises:
        ConfigError: an option cannot work. What can be checked without the model is checked before
            it is loaded.
        ResultError: the folder holds no results.
        StorageError: a file could not be written. An earlier file is still there.
    """
    for name in OTHERS:
        if getattr(options, name):
            flag = f"--{name.replace('_', '-')}"
            rule = "--example continues held-out text with the most probable tokens; leave it out."
            raise reject(flag, getattr(options, name), rule)
    if options.kind != "clamp":
        raise reject("--kind", options.kind, "the examples of a report are those of a clamp.")
    run = Path(options.sae).expanduser()
    if not (run / "results").is_dir():
        raise reject("RUN_OR_SAE", options.sae, "--example needs a run folder with results.")
    load_results(run)
    subject = find_subject(options.sae, options.variant, options.seed, options.hook)
    budget = BUDGET if options.budget is None else options.budget
    check_choice(budget, options.kind)
    settings = recorded_settings(run, UNLEARNING.name, options.set)
    check_writable("RUN_OR_SAE", run)
    given = {name: getattr(options, name) for name in JUDGING}
    with (
        run_lock("RUN_OR_SAE", run, "adaptive-ortho unlearn"),
        write_failures_named(run, "An earlier example is unchanged."),
    ):
        context = context_for(subject, JudgingOptions(out=run, **given))
        found = make_examples(context, settings, budget, options.max_new_tokens)
        if found.reason:
            raise reject("RUN_OR_SAE", options.sae, found.reason)
        say(f"Examples: {examples.write(run / 'results', found)}")
        report = page.write_report(run)
        say(f"Report: {report}")
    return report
