"""Errors with messages for users, and the common form of errors about settings."""

from __future__ import annotations


class Explained(Exception):
    """An error that the command line shows as one line, without a traceback."""


class ConfigError(Explained, ValueError):
    """A setting that cannot work. The message names the field, the value and the remedy."""


def reject(field: str, value: object, rule: str) -> ConfigError:
    """A :class:`ConfigError` in the common form ``field=value: rule and remedy``."""
    return ConfigError(f"{field}={value!r}: {rule}")
