"""Several corpora: their names, and the share of the retain rows that each one gets.

``forget`` and ``retain`` are the two sides. Any other name is a *named retain corpus*. Its ``share``
is the share of the retain rows of every training batch that come from it; ``retain`` gets the rest.
With share 0 a corpus is never trained on and only evaluated. ``forget_test`` is a second forget
text. It is never trained on; evaluations read the damage on it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.text.corpora import DOMAINS, CorpusConfig

FORGET, RETAIN = DOMAINS
FORGET_TEST = "forget_test"
ONLY = "corpus"  # the name of a single corpus
ROLES = (FORGET, RETAIN, FORGET_TEST)
# Results use these words for other things than a corpus.
RESERVED = (*ROLES, ONLY, "all", "inactive", "pooled", "shared")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
MISSPELT = 0.8  # a name this similar to a missing role is a spelling mistake


def arrange(
    corpora: Mapping[str, CorpusConfig], where: Callable[[str], str]
) -> dict[str, CorpusConfig]:
    """The corpora in the order forget, retain, named retain corpora, forget_test.

    The named ones keep their order. A single corpus, whether given as forget or as retain, gets
    the name ``corpus``.

    Args:
        corpora: the corpora by name.
        where: function that gives the name of a corpus's setting, for errors.

    Raises:
        ConfigError: a name is misspelt or reserved, a named corpus or ``forget_test`` lacks forget
            or retain, or a share is missing, out of place, or leaves nothing to retain.
    """
    named = [name for name in corpora if name not in ROLES]
    for name in named:
        _check_name(name, corpora, where)
    missing = [role for role in DOMAINS if role not in corpora]
    for name in [*named, *(r for r in (FORGET_TEST,) if r in corpora)]:
        if missing:
            raise reject(
                where(name),
                corpora[name].path,
                f"needs both a forget and a retain corpus; give {where(missing[0])}.",
            )
    for name, corpus in corpora.items():
        _check_share(name, corpus, where)
    if len(corpora) == 1:
        return {ONLY: next(iter(corpora.values()))}
    ordered = {name: corpora[name] for name in (*DOMAINS, *named)}
    if shares(ordered)[RETAIN] <= 0:
        given = {name: corpora[name].share for name in named}
        raise reject(
            " + ".join(f"{where(name)}.share" for name in named),
            given,
            f"nothing is left for {where(RETAIN)}; the shares must add up to less than 1.",
        )
    return ordered | {r: corpora[r] for r in (FORGET_TEST,) if r in corpora}


def shares(corpora: Mapping[str, CorpusConfig]) -> dict[str, float]:
    """The share of each corpus in the training rows of its side, for :func:`arrange`'s corpora.

    It is 1 for forget and for a single corpus, 0 for a corpus that is only evaluated. The shares of
    retain and of the named retain corpora add up to 1.
    """
    given = {name: float(c.share or 0) for name, c in corpora.items() if name not in RESERVED}
    rest = round(1 - sum(given.values()), 9)
    fixed = {FORGET: 1.0, ONLY: 1.0, RETAIN: rest, FORGET_TEST: 0.0}
    return {name: given[name] if name in given else fixed[name] for name in corpora}


def _check_name(
    name: str, corpora: Mapping[str, CorpusConfig], where: Callable[[str], str]
) -> None:
    missing = [role for role in ROLES if role not in corpora]
    near = difflib.get_close_matches(name.lower(), missing, n=1, cutoff=MISSPELT)
    if near:
        raise reject(
            where(name), corpora[name].path, f"unknown key. Did you mean {where(near[0])}?"
        )
    if not NAME.fullmatch(name):
        raise reject(
            where(name),
            corpora[name].path,
            "the name of a corpus has letters, digits, - and _ only, and begins with a letter or "
            "digit.",
        )
    if name.lower() in RESERVED:
        raise reject(
            where(name),
            corpora[name].path,
            f"the name {name!r} has a meaning of its own in results; choose another one.",
        )


def _check_share(name: str, corpus: CorpusConfig, where: Callable[[str], str]) -> None:
    field = f"{where(name)}.share"
    if name not in ROLES and corpus.share is None:
        raise reject(
            field,
            None,
            "give the share of the retain rows that come from this corpus; 0 to evaluate only.",
        )
    if name in ROLES and corpus.share is not None:
        reasons = {
            FORGET: "set ortho_forget_fraction instead.",
            RETAIN: "retain gets the rest of the named retain corpora.",
            FORGET_TEST: "it is never trained on.",
        }
        raise reject(field, corpus.share, f"{name} has no share: {reasons[name]}")
