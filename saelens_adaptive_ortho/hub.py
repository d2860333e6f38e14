"""What went wrong with the hub, and what to do about it, in one sentence."""

from __future__ import annotations

REFUSED = ("gated", "401", "403", "authenticated", "restricted")
MISSING = ("404", "not found", "doesn't exist", "couldn't find")
UNREACHABLE = ("connect", "timed out", "timeout", "offline", "resolve", "reach")
CUT_SHORT = ("consistency check", "truncated", "incomplete", "unexpected end", "peer closed")


def explain_failure(error: BaseException, what: str, instead: str) -> str:
    """The kind of failure and its remedy.

    Args:
        error: what a download or a hub loader raised; its causes are looked at too.
        what: was asked for ("the model").
        instead: a thing that needs no hub ("a local model directory").
    """
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    text = f"{type(causes[-1]).__name__}: {causes[-1]}".split("\n")[0][:300]
    lower = " ".join(map(str, causes)).lower()
    if any(word in lower for word in REFUSED):
        return (
            f"access to {what} is refused ({text}). Accept its terms or request access on its "
            f"hub page and log in with `hf auth login`, or give {instead}."
        )
    if any(word in lower for word in CUT_SHORT):
        return f"the download of {what} was cut short ({text}). Try again."
    if any(word in lower for word in UNREACHABLE):
        return f"the hub cannot be reached ({text}). Check the connection, or give {instead}."
    if any(word in lower for word in MISSING):
        return f"the hub has no such thing as {what} ({text}). Check the name, or give {instead}."
    return f"{what} cannot be loaded ({text})."
