"""Write the page of ``adaptive-ortho browse``: a list of latents, and what each of them does.

The page is ``index.html``, and files below ``latents/`` that it loads when they are needed. A page
that lies on a disk may not fetch files, but it may run scripts. So each file is a script that calls
``browse(name, value)`` with one JSON value. Text of a corpus is only ever a string in such a value.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from saelens_adaptive_ortho.files import without_home, write_text_atomic
from saelens_adaptive_ortho.report.page.parts import render

PAGE, FOLDER = "index.html", "latents"
#: Latents, and contexts, in one file.
LATENTS_PER_FILE = 128
CONTEXTS_PER_FILE = 128
#: Tokens in the label of a latent: those of its largest activations.
LABEL_TOKENS = 4
LONGEST_TOKEN = 16


@dataclass(frozen=True)
class Corpus:
    """A corpus: its name, its share of its side, and the number of its tokens that count."""

    name: str
    share: float
    tokens: int


@dataclass(frozen=True)
class Sae:
    """An SAE, and what the list shows of its latents.

    Args:
        name: name in the page.
        facts: what else is known about it, as pairs of words.
        corpora: the corpora; forget is the first one if there are groups.
        width: tokens of a passage on each side of its largest activation.
        edges: edges of the bins of the histograms.
        fired: number of tokens on which each latent fires, by corpus.
        largest: largest activation of each latent.
        groups: a letter for each latent: f(orget), r(etain), s(hared), i(nactive); empty without
            groups.
        lean: for each latent, log2 of how many times as often it fires on the forget side; empty
            without groups.
        merged: whether each latent is a candidate for a merged one.
        changed: whether each latent changes its group between the halves of the text.
    """

    name: str
    facts: Sequence[tuple[str, str]]
    corpora: Sequence[Corpus]
    width: int
    edges: Sequence[float]
    fired: Sequence[Sequence[int]]
    largest: Sequence[float]
    groups: str
    lean: Sequence[float]
    merged: Sequence[bool]
    changed: Sequence[bool]


@dataclass(frozen=True)
class Passage:
    """A passage that activates a latent.

    Args:
        corpus: number of its corpus.
        context: number of its context, counted through all corpora.
        position: position of the largest activation in the context.
        value: the largest activation.
        window: activations from ``width`` tokens before to ``width`` tokens after it.
    """

    corpus: int
    context: int
    position: int
    value: float
    window: Sequence[float]


@dataclass(frozen=True)
class Neighbour:
    """A similar latent; ``lift`` is None if one of the two never fires."""

    latent: int
    cosine: float
    lift: float | None


@dataclass(frozen=True)
class Latent:
    """What the page shows of one latent.

    Args:
        passages: its top passages.
        histogram: number of activations in each bin, by corpus.
        neighbours: the nearest latents.
        promoted: tokens that it promotes most, with their logits.
        suppressed: tokens that it suppresses most, with their logits.
    """

    passages: Sequence[Passage]
    histogram: Sequence[Sequence[int]]
    neighbours: Sequence[Neighbour]
    promoted: Sequence[tuple[str, float]]
    suppressed: Sequence[tuple[str, float]]


def write_page(out: Path, names: Sequence[str], report: str = "") -> Path:
    """Write ``index.html`` for SAEs of these names, and return its path.

    Args:
        out: folder of the page.
        names: names of the SAEs.
        report: address of the report of the run, as seen from the page; empty without one.
    """
    title = "Latents of " + (names[0] if len(names) == 1 else f"{len(names)} SAEs")
    given = {"title": title, "saes": list(names)}
    page = render("browse.html.j2", report=report, **without_home(given))
    return write_text_atomic(out / PAGE, page)


def write_sae(
    folder: Path,
    number: int,
    sae: Sae,
    latents: Iterable[Latent],
    contexts: Sequence[Sequence[str]],
) -> None:
    """Write the files of one SAE into ``folder``, which belongs to ``number``.

    Args:
        folder: new folder.
        number: number of the SAE in the page.
        sae: the SAE.
        latents: its latents, in order.
        contexts: the tokens of all contexts as text.
    """
    folder.mkdir(parents=True)
    labels: list[str] = []
    remaining = iter(latents)
    for count, part in enumerate(iter(lambda: list(islice(remaining, LATENTS_PER_FILE)), [])):
        labels += [label(latent, contexts) for latent in part]
        _write(folder, number, f"{count:03}", [_latent(latent) for latent in part])
    for first in range(0, len(contexts), CONTEXTS_PER_FILE):
        some = contexts[first : first + CONTEXTS_PER_FILE]
        _write(folder, number, f"text{first // CONTEXTS_PER_FILE:03}", _texts(some))
    _write(folder, number, "index", index(sae, labels))


def index(sae: Sae, labels: Sequence[str]) -> dict[str, Any]:
    """The part that the page loads first: what the list shows, as compact columns."""
    return {
        "name": without_home(sae.name),
        "facts": without_home([list(fact) for fact in sae.facts]),
        "corpora": [[c.name, round(c.share, 6), c.tokens] for c in sae.corpora],
        "perFile": LATENTS_PER_FILE,
        "contextsPerFile": CONTEXTS_PER_FILE,
        "width": sae.width,
        "edges": [short(edge) for edge in sae.edges],
        "fired": sae.fired,
        "max": [short(value) for value in sae.largest],
        "groups": sae.groups,
        "lean": [round(value, 2) for value in sae.lean],
        # A digit for each latent: 1 for merged, plus 2 for changed.
        "flags": "".join(
            str(int(merged) + 2 * int(changed))
            for merged, changed in zip(sae.merged, sae.changed, strict=True)
        ),
        "labels": labels,
    }


def label(latent: Latent, contexts: Sequence[Sequence[str]]) -> str:
    """The tokens of the largest activations, each one once, separated by line ends."""
    strongest = sorted(latent.passages, key=lambda passage: -passage.value)
    tokens = (contexts[p.context][p.position].strip()[:LONGEST_TOKEN] for p in strongest)
    distinct = dict.fromkeys(" ".join(token.split()) for token in tokens)
    return "\n".join(islice(filter(None, distinct), LABEL_TOKENS))


def short(value: float) -> float | int:
    """The value with three significant figures."""
    found = float(f"{value:.3g}")
    return int(found) if found.is_integer() else found


def script(name: str, value: Any) -> str:
    """A script that calls ``browse(name, value)``.

    The value holds no ``<`` and no line separator of Unicode: it stays a value wherever it is put.
    """
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<\N{LINE SEPARATOR}\N{PARAGRAPH SEPARATOR}":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'browse("{name}",{text})\n'


def _write(folder: Path, number: int, name: str, value: Any) -> None:
    text = script(f"{number}/{name}", value)
    (folder / f"{name}.js").write_text(text, encoding="utf-8", newline="")


def _latent(latent: Latent) -> list[Any]:
    used = [b for b, counts in enumerate(zip(*latent.histogram, strict=True)) if any(counts)]
    first, end = (used[0], used[-1] + 1) if used else (0, 0)
    return [
        [_passage(passage) for passage in latent.passages],
        [first, *(counts[first:end] for counts in latent.histogram)],
        [
            [n.latent, round(n.cosine, 3), None if n.lift is None else short(n.lift)]
            for n in latent.neighbours
        ],
        *(
            [[token, round(logit, 2)] for token, logit in tokens]
            for tokens in (latent.promoted, latent.suppressed)
        ),
    ]


def _passage(passage: Passage) -> list[Any]:
    """Corpus, context, position, and then place and value of each activation of the window."""
    firings = ((place, short(value)) for place, value in enumerate(passage.window) if value > 0)
    flat = [number for firing in firings for number in firing]
    return [passage.corpus, passage.context, passage.position, *flat]


def _texts(contexts: Sequence[Sequence[str]]) -> list[Any]:
    """A table of the tokens, and the numbers of the tokens of each context."""
    table: dict[str, int] = {}
    rows = [[table.setdefault(token, len(table)) for token in tokens] for tokens in contexts]
    return [list(table), rows]


def size_of(folder: Path) -> int:
    """Bytes of all files of a page."""
    return sum(path.stat().st_size for path in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())
