"""Make the examples of text before and after unlearning that a report shows.

The prompts are passages of held-out text, evenly spaced, and not picked by what the model writes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_lens.saes.sae import SAE

from saelens_adaptive_ortho import examples
from saelens_adaptive_ortho.commands.experiment import eval_settings
from saelens_adaptive_ortho.commands.unlearn import UnlearnOptions
from saelens_adaptive_ortho.commands.unlearning import JUDGING, Prompt, write
from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.evaluations.contract import SEED
from saelens_adaptive_ortho.evaluations.unlearning import Settings
from saelens_adaptive_ortho.examples import Example, Examples
from saelens_adaptive_ortho.files import check_writable, write_failures_named
from saelens_adaptive_ortho.judging.contract import EvalContext
from saelens_adaptive_ortho.judging.firing import uncounted_tokens
from saelens_adaptive_ortho.judging.options import JudgingOptions
from saelens_adaptive_ortho.judging.subjects import find_subject
from saelens_adaptive_ortho.judging.unlearning.choosing import (
    BUDGET,
    check_choice,
    choose,
    context_for,
)
from saelens_adaptive_ortho.judging.unlearning.use import unlearn
from saelens_adaptive_ortho.locks import run_lock
from saelens_adaptive_ortho.report.page import run as page
from saelens_adaptive_ortho.results import load_results
from saelens_adaptive_ortho.rng import state_kept
from saelens_adaptive_ortho.text.corpora import TokenisedCorpus

PROMPTS = 3  # of each corpus
PROMPT_TOKENS, NEW_TOKENS = 32, 40
SHORTEST = 4  # tokens of a prompt, and of what follows it
# Options of the command that have no effect on the examples.
OTHERS = ("prompt", "continuation", "prompt_file", "selection", "save", "temperature")


def make_examples(
    context: EvalContext, settings: Settings, budget: float = BUDGET, tokens: int = NEW_TOKENS
) -> Examples:
    """Choose a clamp on training text; the model continues held-out text without and with it.

    If anything fails, the examples hold the reason.

    Args:
        context: the SAE and its workbench.
        settings: settings of the unlearning evaluation.
        budget: largest rise of the loss, in nats per token, on any corpus of the retain side.
        tokens: largest number of tokens that the model writes.
    """
    known: dict[str, Any] = {
        "variant": context.variant,
        "seed": context.seed,
        "sae_digest": context.sae_digest,
    }
    try:
        with state_kept(SEED):
            return Examples(**known, **_written(context, settings, budget, tokens))
    except Exception as error:  # the report is written all the same, and shows the reason
        return Examples(**known, reason=str(error) or repr(error))


def _written(
    context: EvalContext, settings: Settings, budget: float, tokens: int
) -> dict[str, Any]:
    """The fields of the examples, without those that name the SAE."""
    selection = choose(context, budget, settings=settings)
    model: Any = context.bench.language_model(settings.model_name)
    sae = context.load()
    prompts = {c.domain: held_out_prompts(c, model, sae, tokens) for c in context.corpora}
    longest = model.cfg.n_ctx - 1 - PROMPT_TOKENS if model.cfg.n_ctx else tokens
    options = UnlearnOptions(sae=context.release, max_new_tokens=max(1, min(tokens, longest)))
    found: list[Example] = []
    for corpus, prompt in ((c, p) for c, some in prompts.items() for p in some):
        before = write(model, sae, prompt, options)
        with unlearn(model, sae, selection):
            after = write(model, sae, prompt, options)
        found.append(
            Example(
                corpus=corpus,
                prompt=prompt.prompt,
                truth=prompt.continuation or "",
                before=before.text,
                after=after.text,
                loss_before=before.loss or 0.0,
                loss_after=after.loss or 0.0,
            )
        )
    if not found:
        raise reject("context_size", context.bench.context_size, "the passages are too short.")
    assert selection.chosen_on is not None
    return {
        "latents": len(selection.latents),
        "strength": selection.strength,
        "gate": selection.gate,
        "budget": budget,
        "damage": {c.name: c.damage for c in selection.chosen_on.corpora},
        "tokens": options.max_new_tokens,
        "examples": found,
    }


def held_out_prompts(
    corpus: TokenisedCorpus, model: Any, sae: SAE[Any], tokens: int = NEW_TOKENS
) -> list[Prompt]:
    """Up to three prompts from evenly spaced held-out contexts, with how the text goes on.

    A prompt begins where a sentence begins, if one does in the first third of the passage. Passages
    that are too short are left out.
    """
    special = uncounted_tokens(sae, model)
    n = len(corpus.held_out)
    chosen = sorted({number * n // PROMPTS for number in range(PROMPTS)})
    found: list[Prompt] = []
    for ids in corpus.held_out[chosen].tolist():
        passage = _from_sentence(_longest_without(ids, special), model.tokenizer)
        size = min(PROMPT_TOKENS, len(passage) // 2)
        if size < SHORTEST:
            continue
        prompt = model.tokenizer.decode(passage[:size])
        whole = model.tokenizer.decode(passage[: size + tokens])
        if prompt.strip() and whole.startswith(prompt) and whole != prompt:
            found.append(Prompt(prompt, whole.removeprefix(prompt)))
    return found


def _longest_without(ids: list[int], special: set[int]) -> list[int]:
    """The longest stretch of tokens that are not special."""
    groups = itertools.groupby(ids, lambda token: token in special)
    return max((list(group) for inside, group in groups if not inside), key=len, default=[])


def _from_sentence(ids: list[int], tokenizer: Any) -> list[int]:
    """The tokens from the first sentence that begins in their first third, or all of them."""
    for number in range(len(ids) // 3):
        if tokenizer.decode([ids[number]]).rstrip().endswith((".", "!", "?")):
            return ids[number + 1 :]
    return ids


def write_examples(options: UnlearnOptions, say: Callable[[str], None] = print) -> Path:
    """Make the examples of an SAE of a run folder, write them there, and write the report again.

    Raises:
        ConfigError: an option cannot work. What can be checked without the model is checked before
            it is loaded.
        ResultError: the folder holds no results.
        StorageError: a file could not be written. An earlier file is still there.
    """
    for name in OTHERS:
        if getattr(options, name):
            flag = f"--{name.replace('_', '-')}"
            rule = "--example continues held-out text with the likeliest tokens; leave it out."
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
    settings = Settings(**eval_settings(["unlearning"], options.set)["unlearning"])
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
