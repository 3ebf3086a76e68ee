"""Writing files so that nothing already written is lost: a temporary name first, then one rename; and what a file is known by."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mlip.errors import UserError

OLD = 600.0
"""Seconds after which a temporary file that nobody writes to is a leftover."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on failure it is removed.

    A reader sees the old file or the new one, never a half-written one. What a killed process of this machine left of the same file
    is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    _remove_leftovers(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):  # None: of a write to an open file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path, process: int | str | None = None) -> Path:
    """The hidden name under which a process of this machine writes ``path``."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid() if process is None else process}.tmp")


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of ``path`` whose process, of this machine, is gone, and that nobody wrote to for a while.

    The wait is for containers of one name, which do not see each other's processes.
    """
    start = _temporary(path, "").name.removesuffix(".tmp")
    for found in path.parent.glob(f"{glob.escape(start)}*.tmp"):
        process = found.name.removeprefix(start).removesuffix(".tmp")
        with suppress(OSError):
            if process.isdigit() and not _runs(int(process)) and time.time() - found.stat().st_mtime > OLD:
                found.unlink()


def _runs(process: int) -> bool:
    if os.name != "posix":  # elsewhere this signal does harm
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def check_writable(path: str | Path) -> None:
    """Raise :class:`OSError` where ``path`` cannot be written or replaced; what is there stays."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    temporary = _temporary(path, "probe")
    try:
        temporary.touch()
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold ``path``, a folder or a file that is made if it is not there; the lock goes with the process and its children, however
    they die.

    Raises:
        UserError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on this operating system
        yield
        return
    path = Path(path)
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another run is writing to {path}; wait until it ends, or choose another output") from None
        except OSError:
            pass  # a file system that knows no locks
        yield
    finally:
        os.close(handle)


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
