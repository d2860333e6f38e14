"""Failures of the Hugging Face Hub: a message that explains each, and no useless waiting.

Failures are distinguished by exception type and HTTP status. Types are compared by name, because
the client library uses requests, httpx or httpx2, depending on its version. The words of a message
decide only if a library has dropped the original exception, as ``datasets`` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

from huggingface_hub import constants
from huggingface_hub.utils import get_session

Kind = Literal["refused", "missing", "cut short", "busy", "unreachable", "other"]
# Advice in the libraries' messages, which the remedies here replace.
ADVICE = re.compile(r"^(Please make sure|If you are trying|For more|Make sure).*$", re.MULTILINE)


class _Rule(NamedTuple):
    kind: Kind
    types: frozenset[str] = frozenset()
    statuses: frozenset[int] = frozenset()
    words: tuple[str, ...] = ()

    def covers(self, error: BaseException) -> bool:
        """Whether the rule applies to this exception."""
        status = getattr(getattr(error, "response", None), "status_code", None)
        text = str(error).lower()
        return (
            any(base.__name__ in self.types for base in type(error).__mro__)
            or status in self.statuses
            or any(word in text for word in self.words)
        )


# The first rule that covers an exception of the chain decides. The order matters: without login a
# missing repository also gives status 401, and the exception of a gated repository is a subclass of
# the exception of a missing one.
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
    """The kind of a failure, and the text of the exception that shows it."""

    kind: Kind
    text: str


def diagnose(error: BaseException) -> Failure:
    """Find the kind of a hub failure from the exception and its causes."""
    chain = list(_causes(error))
    for rule in RULES:
        for link in chain:
            if rule.covers(link):
                return Failure(rule.kind, _text(link))
    while error.__cause__ is not None:
        error = error.__cause__
    return Failure("other", _text(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and the chain of its causes or contexts."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _text(error: BaseException) -> str:
    words = " ".join(f"{type(error).__name__}: {ADVICE.sub('', str(error))}".split())
    return words if len(words) <= 300 else f"{words[:297]}..."


def explain_failure(error: BaseException, what: str, instead: str) -> str:
    """A message with the kind of failure and its remedy.

    Args:
        error: exception of a download or a hub loader; its causes are used too.
        what: the requested thing ("the model").
        instead: an alternative that needs no hub ("a local model directory").
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
    """Use offline mode inside the block if the hub does not answer now.

    Cached files then load, and all other requests fail at once. Otherwise the libraries would
    repeat requests for minutes, and some of their requests have no time limit.

    Raises:
        ConnectionError: a requested file is not cached. The message says how the hub failed.
    """
    reason = None if constants.HF_HUB_OFFLINE else problem()
    if reason is None:
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except Exception as error:
        if diagnose(error).kind != "unreachable":
            raise
        raise ConnectionError(f"no answer from {constants.ENDPOINT}: {reason}") from error
    finally:
        constants.HF_HUB_OFFLINE = False


def problem() -> str | None:
    """The reason why the hub does not answer; None if it answers.

    The time limit is that of the client library for small requests. An answer with any status
    counts.
    """
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:
        if diagnose(error).kind in ("unreachable", "cut short"):
            return _text(error)
    return None


def explain_upload_failure(error: BaseException, repo: str) -> str:
    """A message with the kind of a failed upload to a repository, and its remedy.

    Args:
        error: exception of the client library.
        repo: the repository, ``user/name``.
    """
    kind, text = diagnose(error)
    if kind in ("refused", "missing"):
        return (
            f"the hub refuses the upload ({text}). Use a token that may write to "
            f"{repo.partition('/')[0]} (`hf auth login`, or HF_TOKEN), or name another repository."
        )
    if kind == "busy":
        return f"the hub fails to take the upload ({text}). Run the same command again later."
    if kind in ("cut short", "unreachable"):
        return (
            f"the hub cannot be reached ({text}). Check the connection and run the same command "
            "again."
        )
    return f"the upload failed ({_text(error)})."
