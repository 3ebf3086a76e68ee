"""Errors that a user can act on.

A :class:`UserError` says what was found, what is allowed and what to change, in one line. The command line prints that
line, writes the full trace to a log file and exits non-zero; library users get an ordinary exception.
"""

from __future__ import annotations


class UserError(Exception):
    """Bad input: the message is one clear line meant for the user's eyes."""


class DataError(UserError):
    """A data file or a label in it cannot be used as asked."""


class ConfigError(UserError):
    """A configuration value is unknown, missing or impossible."""


class CheckpointError(UserError):
    """A checkpoint cannot be read: not ours, truncated, or of a newer format."""


class StructureError(UserError):
    """A structure cannot be evaluated: unknown element, overlapping atoms, non-finite positions."""
