"""The model card (README.md) of SAEs that are published: what they are, results, limits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from saelens_adaptive_ortho.report.formatting import DASH, markdown, number
from saelens_adaptive_ortho.report.statistics import MIN_SEEDS, Summary
from saelens_adaptive_ortho.report.tables import seeds_text, short_table
from saelens_adaptive_ortho.report.verdicts import judge
from saelens_adaptive_ortho.settings import dump_yaml

#: A card with this line was written by the program, so the program may replace it.
MARK = "<!-- written by adaptive-ortho push -->"
TAGS = ("saelens", "sparse-autoencoder", "mechanistic-interpretability", "machine-unlearning")

_WHAT = (
    "Sparse autoencoders (SAEs) for the activations of {model} at `{hook}`, trained on text to "
    "forget and text to retain ({corpora}). The variants differ in a penalty that keeps latents "
    "apart; `baseline` has none. The penalty changes only the training: "
    "[SAELens](https://github.com/decoderesearch/SAELens) alone loads every SAE here."
)
_FORGET = """\
With the Python package `saelens-adaptive-ortho` and text of both kinds, this command chooses
latents, shows what the model writes before and after, and saves the choice:

```bash
adaptive-ortho unlearn {sae} --model {model} \\
    --forget forget.jsonl --retain retain.jsonl --prompt "..." --save selection.json
```

In Python, the choice is used on a HookedTransformer, a TransformerBridge or a model of
transformers:

```python
import saelens_adaptive_ortho as ortho

with ortho.unlearn(model, sae, ortho.UnlearningSelection.load("selection.json")):
    model.generate(...)
```
"""
_LIMITS = (
    "The numbers were measured with {seeds}. They hold for this model, hook, text and these "
    "settings, and say nothing about others.",
    "A verdict needs at least {least} seeds.",
    "An edit of latents works only while it is switched on. The knowledge stays in the weights of "
    "the model, and whoever has them can switch the edit off. It is no guarantee of safety.",
    "What a latent stands for was not checked by people.",
)


@dataclass(frozen=True)
class CardSae:
    """An SAE of the repository.

    Args:
        sae_id: its id for SAELens, which is its folder in the repository.
        variant: its variant.
        seed: its seed.
        architecture: the inference architecture.
        d_sae: number of latents.
        l0: mean number of latents that fire at a token; None if it is not known.
        settings: settings of the training by name.
    """

    sae_id: str
    variant: str
    seed: int
    architecture: str
    d_sae: int
    l0: float | None
    settings: Mapping[str, object]


@dataclass(frozen=True)
class Card:
    """What a card says besides the results.

    Args:
        repo: the repository, ``user/name``.
        saes: the SAEs of the repository.
        model: the language model, as a hub name or in words.
        base_model: hub name of the language model; empty if it is not known.
        model_argument: how the commands of this package name the language model.
        hook: the hook.
        corpora: the texts of the training by name.
        license: fields of the front matter about the licence; empty if it is not known.
        versions: versions of the packages.
        figure: file name of the trade-off figure in the repository; empty without one.
        results: file name of the results in the repository; empty without them.
    """

    repo: str
    saes: Sequence[CardSae]
    model: str
    base_model: str
    model_argument: str
    hook: str
    corpora: Mapping[str, str]
    license: Mapping[str, str] = field(default_factory=dict[str, str])
    versions: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    figure: str = ""
    results: str = ""


def model_card(card: Card, summary: Summary) -> str:
    """Return the card as markdown with YAML front matter, as the Hugging Face hub reads it."""
    example = _example(card, summary)
    verdicts = judge(summary)
    parts = [
        f"---\n{dump_yaml(_front_matter(card))}---\n{MARK}",
        f"# {card.repo.partition('/')[2]}",
        _what(card),
        _sae_table(card.saes),
        "## Load",
        _load(card.repo, example.sae_id),
        "## Results",
        f"![Explained variance against unlearning, a point per SAE]({card.figure})"
        if card.figure
        else "",
        f"**Verdict.** {verdicts.text}",
        short_table(summary).rstrip(),
        f"All values are in [{card.results}]({card.results})." if card.results else "",
        "## Training",
        _training(card),
        "## Make the model forget",
        _forget(card, example),
        "## Limits",
        _limits(summary),
    ]
    return "\n\n".join(part.rstrip() for part in parts if part) + "\n"


def _front_matter(card: Card) -> dict[str, object]:
    base = {"base_model": card.base_model} if card.base_model else {}
    return {"library_name": "saelens", **card.license, **base, "tags": list(TAGS)}


def _example(card: Card, summary: Summary) -> CardSae:
    """The SAE that the examples name: the first one of the variant that the run asks about."""
    of_focus = [sae for sae in card.saes if sae.variant == summary.focus]
    return (of_focus or list(card.saes))[0]


def _what(card: Card) -> str:
    corpora = ", ".join(f"{name}: `{path}`" for name, path in card.corpora.items())
    model = f"[{card.model}]({_url(card.base_model)})" if card.base_model else card.model
    return _WHAT.format(model=model, hook=card.hook, corpora=corpora or "not recorded")


def _url(hub_name: str) -> str:
    return f"https://huggingface.co/{hub_name}"


def _sae_table(saes: Sequence[CardSae]) -> str:
    rows = [
        [
            f"`{sae.sae_id}`",
            sae.variant,
            sae.architecture,
            str(sae.seed),
            number(sae.d_sae, 0),
            DASH if sae.l0 is None else f"{sae.l0:.1f}",
        ]
        for sae in saes
    ]
    head = ["`sae_id`", "variant", "architecture", "seed", "latents", "L0"]
    return markdown(head, rows, text_columns=3)


def _load(repo: str, sae_id: str) -> str:
    return f"""\
```python
from sae_lens import SAE

sae = SAE.from_pretrained("{repo}", "{sae_id}")
```"""


def _training(card: Card) -> str:
    """The settings that all SAEs share, and a table of those that differ between variants."""
    by_variant: dict[str, Mapping[str, object]] = {}
    for sae in card.saes:
        by_variant.setdefault(sae.variant, sae.settings)
    names = list(dict.fromkeys(name for found in by_variant.values() for name in found))
    values = {
        name: [_code(found[name]) if name in found else DASH for found in by_variant.values()]
        for name in names
    }
    common = [f"{name} {found[0]}" for name, found in values.items() if len(set(found)) == 1]
    rows = [[f"`{name}`", *found] for name, found in values.items() if len(set(found)) > 1]
    packages = [f"{name} {' / '.join(seen)}" for name, seen in card.versions.items()]
    parts = [
        f"Settings of every SAE: {'; '.join(common)}. Others have their defaults."
        if common
        else "",
        markdown(["setting", *by_variant], rows, text_columns=1) if rows else "",
        f"Made with {', '.join(packages)}." if packages else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _code(value: object) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _forget(card: Card, example: CardSae) -> str:
    sae = f"{card.repo}:{example.sae_id}"
    if "=" in sae:  # the command reads what stands before it as a name
        sae = f"sae={sae}"
    return _FORGET.format(sae=sae, model=card.model_argument)


def _limits(summary: Summary) -> str:
    found = [caveat for each in summary.evaluations.values() for caveat in each.caveats]
    words = {"seeds": seeds_text(summary), "least": MIN_SEEDS}
    limits = [text.format(**words) for text in _LIMITS]
    return "\n".join(f"- {' '.join(text.split())}" for text in [*limits, *dict.fromkeys(found)])
