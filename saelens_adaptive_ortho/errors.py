"""Errors whose message is all a user needs, and the one form of every error about a setting."""

from __future__ import annotations


class Explained(Exception):
    """An error that the command line shows as one line, without a traceback."""


class ConfigError(Explained, ValueError):
    """A setting that cannot work: names the field, the value and the remedy."""


def reject(field: str, value: object, rule: str) -> ConfigError:
    """A :class:`ConfigError` in the one form used everywhere."""
    return ConfigError(f"{field}={value!r}: {rule}")
