"""Writing files so that nothing already written is lost: a temporary name first, then one rename; and what a file is known by."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on failure it is removed.

    A reader sees the old file or the new one, never a half-written one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # as of a write to an open file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def fingerprint(files: str | Path | Sequence[str]) -> str:
    """SHA-256 of a file; of several, that of their fingerprints one after the other."""
    if not isinstance(files, str | Path):
        return hashlib.sha256("".join(map(fingerprint, files)).encode()).hexdigest()
    with open(files, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
