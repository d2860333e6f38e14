"""The words of the first screen: what was compared, and text before and after unlearning."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.examples import Example, Examples
from saelens_adaptive_ortho.report.formatting import MINUS, number, signed
from saelens_adaptive_ortho.report.statistics import Summary
from saelens_adaptive_ortho.results import split_series
from saelens_adaptive_ortho.settings import parse_yaml

LONGEST_NAME = 34  # characters of a path; a longer one is shown by its end, and whole in a title
PLAIN = re.compile(r"[\w~./@%+=:,-]+")  # a shell reads it as it is
CORPORA = "the forget corpus from the retain corpus"
LAYER = re.compile(r"blocks\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Fact:
    """Something that was compared: what it is, its name, and its whole name if that is longer."""

    label: str
    name: str
    whole: str = ""


def question(summary: Summary) -> str:
    """What the run asks: about its focus, or its only variant, as far as it was measured."""
    measured = {name for name, found in summary.evaluations.items() if found.finished}
    focus = summary.focus
    if focus is None:
        variant = summary.variants[0]
        if "unlearning" not in measured:
            return f"What do the evaluations say about {variant}?"
        also = ", and how well does it reconstruct" if "core" in measured else ""
        return f"How far does {variant} separate knowledge, {CORPORA}{also}?"
    also = ", and at what cost in reconstruction" if "core" in measured else ""
    if "unlearning" not in measured:
        return f"How does {focus} differ from {summary.reference(focus)}{also}?"
    who = "adaptive orthogonality" if split_series(focus)[0] == "adaptive" else focus
    return f"Does {who} separate knowledge, {CORPORA}{also}?"


def compared(name: str, config: str | None, summary: Summary) -> list[Fact]:
    """Name, model, place, texts, SAEs and seeds of a run, as far as the config says them."""
    tree = _tree(config)
    facts = [Fact("run", name)]
    if isinstance(model := tree.get("model_name"), str):
        facts.append(_fact("model", model))
    if isinstance(hook := tree.get("hook_name"), str):
        found = LAYER.fullmatch(hook)
        facts.append(Fact("at", f"layer {found[1]}, {found[2]}" if found else hook, hook))
    facts += [_fact(name, path) for name, path in _texts(tree)]
    n = len(summary.seeds)
    return [
        *facts,
        Fact("SAEs", ", ".join(summary.variants)),
        Fact("", f"{n} seed" if n == 1 else f"{n} seeds"),
    ]


def _tree(config: str | None) -> Mapping[str, Any]:
    try:
        return parse_yaml(config or "", "config.yaml")
    except ConfigError:
        return {}


def _texts(tree: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and source of each corpus."""
    corpora = tree.get("ortho_corpora")
    if not isinstance(corpora, Mapping):
        path = tree.get("dataset_path")
        return [("text", path)] if isinstance(path, str) and path else []
    found: list[tuple[str, str]] = []
    for name, corpus in corpora.items():  # pyright: ignore[reportUnknownVariableType]
        source = corpus.get("path") if isinstance(corpus, Mapping) else corpus  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if isinstance(name, str) and isinstance(source, str):
            found.append((name, source))
    return found


def _fact(label: str, path: str) -> Fact:
    name = path
    if len(path) > LONGEST_NAME:
        name = "…/" + "/".join(PurePath(path).parts[-2:])
        name = name if len(name) <= LONGEST_NAME else f"…{path[1 - LONGEST_NAME :]}"
    return Fact(label, name, path if name != path else "")


def named_run(config: str, folder: Path) -> str:
    """The run folder as its config names it, for a command line; without a name, the folder."""
    path = _tree(config).get("output_path")
    path = path if isinstance(path, str) else str(folder)
    return path if PLAIN.fullmatch(path) else shlex.quote(path)


@dataclass(frozen=True)
class Pair:
    """How one prompt goes on: before, after, and in truth.

    Args:
        title: what the prompt is from.
        example: the texts.
        loss: losses on the true text, in words.
    """

    title: str
    example: Example
    loss: str


@dataclass(frozen=True)
class Texts:
    """The section with text before and after unlearning.

    Args:
        first: the first prompt of the forget and of the retain corpus.
        rest: the other prompts.
        sae: which SAE, and what is clamped.
        how: how that was chosen, and where the prompts come from.
        missing: why there is no text; empty if there is some.
        invitation: words before the command.
        command: the command that makes it; empty if no command can.
    """

    first: Sequence[Pair] = ()
    rest: Sequence[Pair] = ()
    sae: str = ""
    how: Sequence[str] = ()
    missing: str = ""
    invitation: str = "This command makes it:"
    command: str = ""


def texts(found: Examples | None, summary: Summary, run: str = "") -> Texts | None:
    """The section of a run; None if unlearning was not measured.

    Args:
        found: the examples of the run.
        summary: statistics of the run.
        run: the run folder as a command names it; empty if it holds no SAEs.
    """
    unlearning = summary.evaluations.get("unlearning")
    if unlearning is None or not unlearning.finished:
        return None
    command = f"adaptive-ortho unlearn {run} --example" if run else ""
    if found is None:
        return Texts(missing="No text was written yet.", command=command) if command else None
    if not found.examples:
        reason = f"No text, with {found.variant}, seed {found.seed}: {found.reason.rstrip('.')}."
        again = f"{command} --variant {found.variant} --budget 0.2" if command else ""
        return Texts(missing=reason, invitation="Another SAE or budget:", command=again)
    numbers: dict[str, int] = {}
    pairs: list[Pair] = []
    for example in found.examples:
        numbers[example.corpus] = numbers.get(example.corpus, 0) + 1
        pairs.append(_pair(example, numbers[example.corpus]))
    leading = found.corpora[:2]
    first = [next(p for p in pairs if p.example.corpus == corpus) for corpus in leading]
    rest = [pair for pair in pairs if pair not in first]
    return Texts(first, rest, _edit(found), _how(found))


def _pair(example: Example, count: int) -> Pair:
    role = {"forget": "Text to forget", "forget_test": "Second text to forget"}
    title = role.get(example.corpus, "Text to retain")
    if example.corpus not in (*role, "retain"):
        title += f", {example.corpus}"
    before, after = (number(loss, 2) for loss in (example.loss_before, example.loss_after))
    loss = f"{before} before, {after} nats per token after"
    return Pair(f"{title} {count}" if count > 1 else title, example, loss)


def _edit(found: Examples) -> str:
    where = "wherever they fire"
    if found.gate is not None:
        where = f"in texts where one or more fire on over {found.gate:.1%} of the tokens (gate)"
    return (
        f"With the SAE {found.variant}, seed {found.seed}. After: {found.latents} latents are "
        f"clamped at {MINUS}{found.strength:.3g} \N{MULTIPLICATION SIGN} their mean "
        f"activation, {where}."
    )


def _how(found: Examples) -> list[str]:
    damage = ", ".join(f"{name} {signed(value, 3)}" for name, value in found.damage.items())
    return [
        f"The setting was chosen on training text: the largest damage on forget, with at most "
        f"{found.budget:g} nats on any retain corpus. There the loss changes by {damage} nats per "
        "token.",
        "The prompts are evenly spaced passages of held-out text, not picked by what is written. "
        f"The model always writes the token that it finds most probable, {found.tokens} at most.",
    ]
