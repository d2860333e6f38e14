"""``adaptive-ortho evaluations``: list the evaluations with their settings, defaults and needs.

All texts come from the evaluation objects, including those of other packages.
"""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, dataclass, field
from typing import Any

from saelens_adaptive_ortho.commands.options import Command, field_help, paragraphs
from saelens_adaptive_ortho.evaluations import Evaluation, find_runnable, runnable


@dataclass(frozen=True, kw_only=True)
class EvaluationsOptions:
    """The evaluation to show.

    Args:
        name: name of an evaluation; shows what its settings mean.
    """

    name: str | None = field(default=None, metadata={"positional": "NAME"})


def run(options: EvaluationsOptions) -> int:
    """Print the list of evaluations, or all information about one."""
    known = runnable()
    if options.name is None:
        print("\n\n".join(_short(e) for e in known.values()))
        print("\n`adaptive-ortho evaluations NAME` says what its settings mean.")
        return 0
    print(_long(find_runnable("NAME", options.name)))
    return 0


def titles() -> str:
    """A line with name and title for each evaluation."""
    known = runnable()
    width = max(map(len, known))
    return "\n".join(f"  {e.name:<{width}}  {e.title}" for e in known.values())


def _short(evaluation: Evaluation) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in _defaults(evaluation).items())
    return "\n".join(
        (
            f"{evaluation.name}: {evaluation.title}",
            "    " + paragraphs(f"settings: {settings or 'none'}", 6, 92),
            "    " + paragraphs(f"needs: {_needs(evaluation)}", 6, 92),
        )
    )


def _long(evaluation: Evaluation) -> str:
    parts = [f"{evaluation.name}: {evaluation.title}", paragraphs(evaluation.description, 0)]
    if evaluation.caveat:
        parts.append(paragraphs(evaluation.caveat, 0))
    parts.append(f"needs: {_needs(evaluation)}")
    judged = ", ".join(evaluation.primary)
    parts.append(paragraphs(f"verdict by: {judged or 'none'}", 4))
    lines = []
    texts = field_help(evaluation.settings) if evaluation.settings else {}
    for name, value in _defaults(evaluation).items():
        lines.append(f"  --set {evaluation.name}.{name}={value}")
        lines.append(" " * 6 + paragraphs(texts.get(name, ""), 6, 90))
    parts.append("settings, with their defaults:\n" + "\n".join(lines) if lines else "no settings")
    return "\n\n".join(parts)


def _needs(evaluation: Evaluation) -> str:
    lack = evaluation.lacks
    if lack is not None:
        return f"{', '.join(evaluation.needs)} (missing here; {lack})"
    return ", ".join(evaluation.needs) or "nothing else"


def _defaults(evaluation: Evaluation) -> dict[str, str]:
    """The settings and their defaults, in YAML."""
    if evaluation.settings is None:
        return {}
    found: dict[str, str] = {}
    for f in dataclasses.fields(evaluation.settings):
        value: Any = f.default if f.default_factory is MISSING else f.default_factory()
        plain = {None: "null", True: "true", False: "false"}
        if value is MISSING:
            found[f.name] = "(must be given)"
        elif value is None or isinstance(value, bool):
            found[f.name] = plain[value]
        else:
            text = str(value)
            found[f.name] = repr(text) if " " in text and isinstance(value, str) else text
    return found


COMMAND = Command(
    name="evaluations",
    help="List the evaluations, or the settings of one: meaning, defaults, needs.",
    options=EvaluationsOptions,
    run=run,
    needs_sae_lens=False,
)
