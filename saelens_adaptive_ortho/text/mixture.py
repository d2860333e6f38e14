"""Several corpora: their names, and the share of the retain rows that each one gets.

``forget`` and ``retain`` are the two sides. Any other name is a *named retain corpus*. Its
``share`` is the share of the retain rows of every training batch that come from it; ``retain`` gets
the rest. With share 0 a corpus is never trained on and only evaluated. ``forget_test`` is a second
forget text. It is never trained on; evaluations read the damage on it.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.files import user_path
from saelens_adaptive_ortho.text.corpora import DOMAINS, CorpusConfig, TokenisedCorpus

FORGET, RETAIN = DOMAINS
FORGET_TEST = "forget_test"
ONLY = "corpus"  # the name of a single corpus
ROLES = (FORGET, RETAIN, FORGET_TEST)
# Results use these words for other things than a corpus.
RESERVED = (*ROLES, ONLY, "all", "inactive", "kept", "pooled", "shared", "transfer")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
LONGEST_NAME = 64  # file names and tables hold the names
TRAIN_CONTEXTS = 1024  # contexts of a corpus's training part that evaluations may read
MISSPELT = 0.8  # a name this similar to a missing role is a spelling mistake


def arrange(given: Mapping[str, object], where: Callable[[str], str]) -> dict[str, CorpusConfig]:
    """The corpora in the order forget, retain, named retain corpora, forget_test.

    The named ones keep their order. A single corpus, whether given as forget or as retain, gets
    the name ``corpus``.

    Args:
        given: paths, mappings of fields, or configs of the corpora, by name.
        where: function that gives the name of a corpus's setting, for errors.

    Raises:
        ConfigError: a name is misspelt or reserved, a named corpus or ``forget_test`` lacks forget
            or retain, forget and retain are the same source, or a share is missing, out of place,
            or leaves nothing to retain.
    """
    named = [name for name in given if name not in ROLES]
    test = [FORGET_TEST] if FORGET_TEST in given else []
    for name in named:
        _check_name(name, given, where)
    missing = [side for side in DOMAINS if side not in given]
    if missing and (named or test):
        first = (named + test)[0]
        raise reject(
            where(first),
            _source(given[first]),
            f"needs both a forget and a retain corpus; give {where(missing[0])}.",
        )
    corpora = {
        name: CorpusConfig.from_dict(where(name), given[name])
        for name in (*DOMAINS, *named, *test)
        if name in given
    }
    for name, corpus in corpora.items():
        _check_share(name, corpus, where)
    if len(corpora) == 1:
        return {ONLY: next(iter(corpora.values()))}
    if _place(corpora[FORGET]) == _place(corpora[RETAIN]):
        raise _same_sides(corpora, where)
    if shares(corpora)[RETAIN] <= 0:
        last = named[-1]
        raise reject(
            f"{where(last)}.share",
            corpora[last].share,
            f"leaves nothing for {where(RETAIN)}: the shares of {', '.join(named)} must add up to "
            "less than 1.",
        )
    return corpora


def check_distinct(
    tokenised: Sequence[TokenisedCorpus],
    corpora: Mapping[str, CorpusConfig],
    where: Callable[[str], str],
) -> None:
    """Refuse forget and retain corpora with the same text; warn if others have the same text.

    Two corpora have the same text if one begins with all training contexts of the other.

    Args:
        tokenised: the corpora.
        corpora: where they come from, by name.
        where: function that gives the name of a corpus's setting.

    Raises:
        ConfigError: forget and retain have the same text.
    """
    for first, second in itertools.combinations(tokenised, 2):
        n = min(len(first.train), len(second.train))
        if not all(torch.equal(first.train[:k], second.train[:k]) for k in (1, n)):
            continue
        if {first.domain, second.domain} == set(DOMAINS):
            raise _same_sides(corpora, where)
        warnings.warn(
            f"{where(first.domain)} and {where(second.domain)} have the same text "
            f"({corpora[second.domain].path}). The second one says nothing of its own.",
            stacklevel=2,
        )


def _same_sides(corpora: Mapping[str, CorpusConfig], where: Callable[[str], str]) -> ConfigError:
    rule = f"has the same text as {where(FORGET)}. Give text that is to be kept."
    return reject(where(RETAIN), corpora[RETAIN].path, rule)


def _place(corpus: CorpusConfig) -> dict[str, Any]:
    """Everything that names the text of a corpus."""
    path = user_path(corpus.path)
    # Of a name that is too long, os.path says that it does not exist.
    resolved = str(path.resolve()) if os.path.exists(path) else corpus.path
    return {**asdict(corpus), "path": resolved, "share": None}


def shares(corpora: Mapping[str, CorpusConfig]) -> dict[str, float]:
    """The share of each corpus in the training rows of its side, for :func:`arrange`'s corpora.

    It is 1 for forget and for a single corpus, 0 for a corpus that is only evaluated. The shares of
    retain and of the named retain corpora add up to 1.
    """
    given = {name: float(c.share or 0) for name, c in corpora.items() if name not in RESERVED}
    rest = round(1 - sum(given.values()), 9)
    fixed = {FORGET: 1.0, ONLY: 1.0, RETAIN: rest, FORGET_TEST: 0.0}
    return {name: given[name] if name in given else fixed[name] for name in corpora}


def trained(corpora: Mapping[str, CorpusConfig]) -> dict[str, CorpusConfig]:
    """The corpora that are trained on."""
    share = shares(corpora)
    return {name: corpus for name, corpus in corpora.items() if share[name] > 0}


def _check_name(name: str, given: Mapping[str, object], where: Callable[[str], str]) -> None:
    value = given[name]
    shown = _source(value)
    has_share = isinstance(value, CorpusConfig) or (isinstance(value, dict) and "share" in value)
    # With a share it is a named corpus on purpose, unless the role itself is missing.
    roles = [role for role in ROLES if role not in given or not has_share]
    near = difflib.get_close_matches(name.lower(), roles, n=1, cutoff=MISSPELT)
    if near:
        raise reject(where(name), shown, f"unknown key. Did you mean {where(near[0])}?")
    if not NAME.fullmatch(name):
        rule = "the name of a corpus has letters, digits, - and _ only, no - or _ at its start."
        raise reject(where(name), shown, rule)
    if len(name) > LONGEST_NAME:
        rule = f"the name of the corpus has {len(name)} characters; {LONGEST_NAME} are allowed."
        raise reject(where(name), shown, rule)
    if name.lower() in RESERVED:
        rule = f"{name!r} has a meaning of its own in results; choose another name."
        raise reject(where(name), shown, rule)


def _source(value: object) -> object:
    """What an error shows of a corpus: the path if it is known."""
    return value.path if isinstance(value, CorpusConfig) else value


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
