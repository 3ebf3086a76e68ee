"""Errors that a user can act on.

A :class:`UserError` says what was found, what is allowed and what to change, in one line. The command line prints that
line, writes the full trace to a log file and exits non-zero; library users get an ordinary exception.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Of the operating system: there is no room to write."""
FORBIDDEN = (errno.EACCES, errno.EROFS, errno.EPERM)
"""Of the operating system: one may not write there."""


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


@contextmanager
def fitting(path: Path, kind: type[UserError], option: str) -> Iterator[None]:
    """Within, the content of the state file ``path`` is put in place.

    Raises:
        UserError: of the given ``kind``, where it does not fit; ``option`` is the one for a new start.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        why = f"no {why}" if isinstance(error, KeyError) else why
        raise kind(f"{path} does not fit this run ({why}); start anew with {option}") from error
