"""The Hugging Face Hub: what went wrong with it, in one sentence, and no waiting in vain.

Failures are told apart by the types of the exceptions and by HTTP status. Types go by name: the
client library builds on requests, httpx or httpx2, depending on its version. Words of a message
decide only where a library has dropped the exception that it began with, as ``datasets`` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

from huggingface_hub import constants
from huggingface_hub.utils import get_session

Kind = Literal["refused", "missing", "cut short", "busy", "unreachable", "other"]
# Lines of the libraries' messages that the remedies here replace.
ADVICE = re.compile(r"^(Please make sure|If you are trying|For more|Make sure).*$", re.MULTILINE)


class _Rule(NamedTuple):
    kind: Kind
    types: frozenset[str] = frozenset()
    statuses: frozenset[int] = frozenset()
    words: tuple[str, ...] = ()

    def covers(self, error: BaseException) -> bool:
        """Whether the rule speaks of this exception."""
        status = getattr(getattr(error, "response", None), "status_code", None)
        text = str(error).lower()
        return (
            any(base.__name__ in self.types for base in type(error).__mro__)
            or status in self.statuses
            or any(word in text for word in self.words)
        )


# The first rule that covers an exception of the chain decides. A repository that is missing is
# also a 401 to whoever is not logged in, and a gated one is a subclass of a missing one.
RULES = (
    _Rule("refused", types=frozenset({"GatedRepoError", "DisabledRepoError"})),
    _Rule(
        "missing",
        types=frozenset(
            {"RepositoryNotFoundError", "RevisionNotFoundError", "RemoteEntryNotFoundError"}
        ),
    ),
    _Rule("refused", statuses=frozenset({401, 403})),
    _Rule("missing", statuses=frozenset({404})),
    _Rule("busy", statuses=frozenset({408, 429, 500, 502, 503, 504})),
    _Rule(
        "cut short",
        types=frozenset(
            {"RemoteProtocolError", "ChunkedEncodingError", "IncompleteRead", "ClientPayloadError"}
        ),
    ),
    _Rule(
        "unreachable",
        types=frozenset(
            {
                "TransportError",
                "ConnectionError",
                "ClientConnectionError",
                "Timeout",
                "TimeoutError",
            }
            | {"LocalEntryNotFoundError", "OfflineModeIsEnabled"}
        ),
    ),
    _Rule("refused", words=("gated dataset", "gated repo", "be authenticated", "is restricted")),
    _Rule("cut short", words=("consistency check failed", "peer closed connection")),
    _Rule(
        "unreachable",
        words=("localentrynotfounderror", "connection", "couldn't reach", "timed out"),
    ),
    _Rule("missing", words=("doesn't exist", "not found", "couldn't find")),
)


class Failure(NamedTuple):
    """What kind of failure an exception is, and the words that say so."""

    kind: Kind
    text: str


def diagnose(error: BaseException) -> Failure:
    """The kind of a failure that a hub loader raised, from the exception and its causes."""
    chain = list(_causes(error))
    for rule in RULES:
        for link in chain:
            if rule.covers(link):
                return Failure(rule.kind, _text(link))
    while error.__cause__ is not None:
        error = error.__cause__
    return Failure("other", _text(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and what it was raised from, or while handling."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _text(error: BaseException) -> str:
    words = " ".join(f"{type(error).__name__}: {ADVICE.sub('', str(error))}".split())
    return words if len(words) <= 300 else f"{words[:297]}..."


def explain_failure(error: BaseException, what: str, instead: str) -> str:
    """The kind of failure and its remedy.

    Args:
        error: what a download or a hub loader raised; its causes are looked at too.
        what: was asked for ("the model").
        instead: a thing that needs no hub ("a local model directory").
    """
    kind, text = diagnose(error)
    if kind == "refused":
        return (
            f"access to {what} is refused ({text}). Accept its terms or request access on its "
            f"hub page and log in with `hf auth login`, or give {instead}."
        )
    if kind == "missing":
        return (
            f"{what} is not on the hub ({text}). Check the name (if it is private, log in with "
            f"`hf auth login`), or give {instead}."
        )
    if kind == "cut short":
        return f"the download of {what} was cut short ({text}). Try again."
    if kind == "busy":
        return f"the hub fails to serve {what} ({text}). Try again later, or give {instead}."
    if kind == "unreachable" and constants.HF_HUB_OFFLINE:
        return f"{what} is not in the cache, and HF_HUB_OFFLINE is set ({text}). Unset it."
    if kind == "unreachable":
        return f"the hub cannot be reached ({text}). Check the connection, or give {instead}."
    return f"{what} cannot be loaded ({text})."


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Inside, what is cached loads and the rest fails at once, if the hub does not answer now.

    On their own the libraries repeat requests for minutes, and some requests have no time limit.

    Raises:
        ConnectionError: something that is not cached was asked for; says how the hub failed.
    """
    problem = None if constants.HF_HUB_OFFLINE else _problem()
    if problem is None:
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except Exception as error:
        if diagnose(error).kind != "unreachable":
            raise
        raise ConnectionError(f"no answer from {constants.ENDPOINT}: {problem}") from error
    finally:
        constants.HF_HUB_OFFLINE = False


def _problem() -> str | None:
    """Why the hub does not answer, within its own time limit for small requests; None if it does.

    Any answer will do, whatever its status.
    """
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:
        if diagnose(error).kind in ("unreachable", "cut short"):
            return _text(error)
    return None
