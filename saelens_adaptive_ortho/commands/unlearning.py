"""The work of ``adaptive-ortho unlearn``: choose or read a selection, write before and after."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Int
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text
from sae_lens.saes.sae import SAE
from torch import Tensor

from saelens_adaptive_ortho.commands.unlearn import UnlearnOptions
from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.evaluations.unlearning import Settings
from saelens_adaptive_ortho.experiments.experiment import eval_settings
from saelens_adaptive_ortho.files import check_new_file
from saelens_adaptive_ortho.judging.contract import EvaluationError
from saelens_adaptive_ortho.judging.options import JudgingOptions
from saelens_adaptive_ortho.judging.subjects import (
    Subject,
    check_device_and_dtype,
    find_subject,
    given_corpora,
)
from saelens_adaptive_ortho.judging.unlearning.choosing import (
    BUDGET,
    check_choice,
    choose,
    context_for,
)
from saelens_adaptive_ortho.judging.unlearning.saved import CLAMP, UnlearningSelection
from saelens_adaptive_ortho.judging.unlearning.use import Acted, n_tokens, unlearn
from saelens_adaptive_ortho.judging.unlearning.writing import Prompt, Written, encoded, write
from saelens_adaptive_ortho.settings import parse
from saelens_adaptive_ortho.text import models, reader

# Options that say how to choose, and their values when they are not given.
CHOOSING = {
    "budget": None,
    "kind": CLAMP,
    "set": [],
    "forget": None,
    "retain": [],
    "retain_share": [],
    "context_size": None,
}
# Options that the commands for finished SAEs share.
JUDGING = ("model", "hook", "forget", "retain", "retain_share", "context_size", "device", "dtype")


class Reach(NamedTuple):
    """How far an edit reached in a text.

    Attributes:
        text: which text it is, in words.
        tokens: its tokens.
        fires: those on which a latent of the selection fires.
        edited: those whose activations were edited.
    """

    text: str
    tokens: int
    fires: int
    edited: int


class Answer(NamedTuple):
    """A prompt, what the model does with it before and after, and where the edit acted."""

    prompt: Prompt
    before: Written
    after: Written
    reaches: tuple[Reach, ...]


def before_and_after(
    options: UnlearnOptions, say: Callable[[str], None] = print
) -> Iterator[Answer]:
    """Choose or read a selection, save it if asked to, and let the model continue the prompts.

    Raises:
        ConfigError: an option cannot work. What can be checked without the model is checked before
            it is loaded.
        StorageError: the selection could not be written.
    """
    prompts = read_prompts(options)
    subject = find_subject(options.sae, options.variant, options.seed, options.hook)
    selection = _given_selection(options)
    judging = JudgingOptions(out=Path(), **{name: getattr(options, name) for name in JUDGING})
    check_device_and_dtype(judging)
    if options.save is not None:
        check_new_file("--save", options.save.expanduser())
    if selection is None:
        check_choice(BUDGET if options.budget is None else options.budget, options.kind)
        settings = Settings(**eval_settings(["unlearning"], options.set)["unlearning"])
        given_corpora(judging)
        model, sae, selection = _choose(options, subject, judging, settings)
    else:
        sae = subject.load(options.device, options.dtype)
        selection.check_width(sae.cfg.d_in, sae.cfg.d_sae)
        selection.check_sae(sae)
        model = _load_model(options, sae, selection)
    say(in_words(selection))
    if options.save is not None:
        say(f"Selection: {selection.save(options.save)}")
    _check_lengths(model, sae, prompts, options.max_new_tokens)
    for prompt in prompts:
        how = (options.max_new_tokens, options.temperature, options.sampling_seed)
        before = write(model, sae, prompt, *how)
        acted: list[Acted] = []
        with unlearn(model, sae, selection, acted.append):
            after = write(model, sae, prompt, *how)
        reaches = _reaches(acted, *encoded(model, sae, prompt), model.tokenizer.bos_token_id)
        yield Answer(prompt, before, after, reaches)


def read_prompts(options: UnlearnOptions) -> list[Prompt]:
    """The prompts of the command line and of the file.

    Raises:
        ConfigError: there is nothing to do, a continuation has no prompt, or the file cannot be
            read.
    """
    given: list[str | None] = [*options.continuation]
    if given and len(given) != len(options.prompt):
        rule = f"give one for each of the {len(options.prompt)} --prompt, or none."
        raise reject("--continuation", options.continuation[-1], rule)
    pairs = zip(options.prompt, given or [None] * len(options.prompt), strict=True)
    prompts = [Prompt(*pair) for pair in pairs]
    if options.prompt_file is not None:
        prompts += _prompts_in(options.prompt_file.expanduser())
    for prompt in prompts:
        if not prompt.prompt.strip():
            raise reject("--prompt", prompt.prompt, "is empty.")
    if not prompts and options.save is None:
        rule = "give --prompt or --prompt-file; with --save alone a selection is only chosen."
        raise reject("--prompt", None, rule)
    return prompts


def _prompts_in(file: Path) -> list[Prompt]:
    """A prompt for each line of a text file, or for each object of a ``.jsonl`` file."""
    try:
        if reader.kind_of(file) in ("json", "parquet"):
            found = [_prompt(row) for row in reader.read_rows(file, ["prompt", "continuation"])]
        else:
            found = [Prompt(line) for line in reader.read_lines(file) if line.strip()]
    except reader.ReadError as error:
        raise reject("--prompt-file", str(file), str(error)) from error
    if not found:
        raise reject("--prompt-file", str(file), "holds no prompt.")
    return found


def _prompt(row: reader.Row) -> Prompt:
    fields = dict.fromkeys(row.names, "...") | row.values
    try:
        return parse(Prompt, fields)
    except ConfigError as error:
        raise ConfigError(f"--prompt-file, {row.place}: {error}") from error


def _given_selection(options: UnlearnOptions) -> UnlearningSelection | None:
    """The selection of the file; None if one is to be chosen."""
    if options.selection is None:
        return None
    for name, default in CHOOSING.items():
        value = getattr(options, name)
        if value != default:
            flag = f"--{name.replace('_', '-')}"
            raise reject(flag, value, "nothing is chosen with --selection; leave one of them out.")
    return UnlearningSelection.load(options.selection)


def _choose(
    options: UnlearnOptions, subject: Subject, judging: JudgingOptions, settings: Settings
) -> tuple[Any, SAE[Any], UnlearningSelection]:
    """The model and the SAE, and the selection that was chosen."""
    run = Path(options.sae).expanduser()
    is_run = subject.path is not None and run.is_dir() and run.resolve() != subject.path
    with ExitStack() as stack:
        if is_run and os.access(run, os.W_OK):
            folder = run  # with the tokenised corpora of the run
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        context = context_for(subject, replace(judging, out=folder))
        budget = BUDGET if options.budget is None else options.budget
        try:
            selection = choose(
                context,
                budget,
                options.kind,  # type: ignore[arg-type]  check_choice has checked it
                settings,
                subject.source,
            )
        except EvaluationError as error:
            raise reject("SAE", subject.source, str(error)) from error
    return context.bench.language_model(settings.model_name), context.load(), selection


def _load_model(options: UnlearnOptions, sae: SAE[Any], selection: UnlearningSelection) -> Any:
    """The model of the selection, without any text."""
    metadata = sae.cfg.metadata
    model = models.load_language_model(
        options.model or selection.model_name,
        options.device,
        metadata.model_class_name or "HookedTransformer",
        {"dtype": options.dtype},
        [selection.hook_name],
    )
    models.check_hook(model, selection.hook_name)
    selection.check_vocabulary(n_tokens(model))
    models.check_d_in(model, selection.hook_name, metadata.hook_head_index, sae.cfg.d_in)
    return model


# ------------------------------------------------------------------ what the model writes


def _check_lengths(model: Any, sae: SAE[Any], prompts: list[Prompt], new: int) -> None:
    """Refuse prompts that do not fit into the model's context window."""
    n_ctx = getattr(model.cfg, "n_ctx", None)
    for prompt in prompts:
        whole, n = encoded(model, sae, prompt)
        most = max(n + new, len(whole))
        if n_ctx is not None and most > n_ctx:
            rule = f"needs {most} tokens with what follows; the model sees {n_ctx} at most."
            raise reject("--prompt", prompt.prompt[:40], rule)


def _reaches(
    acted: Sequence[Acted], tokens: Int[Tensor, " n"], n: int, bos: int | None
) -> tuple[Reach, ...]:
    """How far the edit reached in the prompt, in what was written, and in the true text.

    Args:
        acted: what the edit did in each call of :func:`write`.
        tokens: tokens of the prompt and of the true text.
        n: those of the prompt.
        bos: the token that begins a text, which is not counted; None without one.
    """
    steps, truth = list(acted[1:]), []
    if len(tokens) > n:
        truth = [steps.pop()]
    parts = (
        ("the prompt", acted[:1], slice(int(int(tokens[0]) == bos), n)),
        ("the text that was written", steps, slice(-1, None)),
        ("the true text", truth, slice(n, None)),
    )
    return tuple(
        Reach(
            text,
            sum(call.edited[:, columns].numel() for call in calls),
            sum(int(call.fires[:, columns].sum()) for call in calls),
            sum(int(call.edited[:, columns].sum()) for call in calls),
        )
        for text, calls, columns in parts
        if calls
    )


# ------------------------------------------------------------------ what is shown


def in_words(selection: UnlearningSelection) -> str:
    """The selection in a line or two."""
    n = len(selection.latents)
    if selection.kind == CLAMP:
        where = "wherever they fire"
        if selection.gate is not None:
            where = f"in texts where one or more fire on over {selection.gate:.1%} of the tokens"
        text = f"Clamp of {n} latents at -{selection.strength:.3g} times their mean, {where}."
    else:
        share = f"{selection.strength:.0%}"
        text = f"{len(selection.basis)} directions of {n} latents removed by {share} everywhere."
    on = selection.chosen_on
    if on is None:
        return text
    damages = ", ".join(f"{c.name} {c.damage:+.3f}" for c in on.corpora)
    return f"{text}\nLoss on training text: {damages} nats per token (budget {on.budget:g})."


def shown(answer: Answer) -> Group:
    """Before and after, side by side, under the prompt, and below it where the edit acted."""
    title = Text("Prompt: ", style="bold") + Text(answer.prompt.prompt, style="not bold")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, expand=True, padding=(0, 1))
    table.add_column("before", ratio=1)
    table.add_column("after", ratio=1)
    table.add_row(Text(answer.before.text), Text(answer.after.text))
    if answer.before.loss is not None and answer.after.loss is not None:
        table.add_section()
        losses = (answer.before.loss, answer.after.loss)
        table.add_row(*(f"true text: {loss:.2f} nats per token" for loss in losses))
    return Group(table, Text(reach_in_words(answer.reaches)))


def reach_in_words(reaches: Sequence[Reach]) -> str:
    """On how many tokens the edit acted, and why it did nothing if it did nothing."""
    parts = [f"{reach.edited} of {reach.tokens} tokens of {reach.text}" for reach in reaches]
    text = f"The edit acted on {', '.join(parts)}."
    if any(reach.edited for reach in reaches):
        return text
    fires = sum(reach.fires for reach in reaches)
    if not fires:
        return f"{text} No latent of the selection fires here, so nothing changes."
    return (
        f"{text} Latents of the selection fire on {fires} of these tokens, too few to open the "
        "gate, so nothing changes. A longer text may open it."
    )
