"""What every command of ``mlip`` and ``scf-accel`` does with an error: one clear line, a log file, an exit code."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from mlip.errors import FORBIDDEN, FULL

STAYS = "what was written stays"
GOES_ON = {"md": "--resume goes on from there", "train": "the same command goes on from there", "label": "the same command goes on"}


def write_trace(program: str, folder: str | Path | None = None) -> Path | None:
    """Write the current exception's trace to a new log file; return its path, or ``None`` if no place can be written."""
    stem = f"{program}-error-{datetime.now():%Y%m%d-%H%M%S}"
    names = [f"{stem}.log", *(f"{stem}-{count}.log" for count in range(2, 100))]  # of one second: another's log stays
    for place in (*([] if folder is None else [Path(folder)]), Path.cwd(), Path(tempfile.gettempdir())):
        for name in names:
            try:
                path = place / name
                with path.open("x", encoding="utf-8", errors="backslashreplace") as file:  # a file's name may not be UTF-8
                    file.write(f"{program} {' '.join(sys.argv[1:])}\n\n{traceback.format_exc()}")
                return path
            except FileExistsError:
                continue
            except OSError:
                break
    return None


def printable(text: str) -> str:
    """One line of ``text`` with control characters written out: a file from a stranger must not steer the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))


def of_the_disk(error: BaseException | None) -> str | None:
    """What to say of a full disk or a place where nothing may be written, also where a library wrapped it; else ``None``.

    HDF5 and PyTorch raise their own errors, with the operating system's words in the text.
    """
    while error is not None:
        number, text = getattr(error, "errno", None), str(error)
        words = {code: os.strerror(code) for code in (*FULL, *FORBIDDEN)}
        found = next((code for code, name in words.items() if number == code or f"errno = {code}," in text or name in text), None)
        if found is None and isinstance(error, RuntimeError) and "PytorchStreamWriter" in text:
            found = errno.ENOSPC
        if found is not None:
            name = getattr(error, "filename", None)
            where = f"{name}: " if name else ""
            advice = "free some space" if found in FULL else "choose files that you may read and a folder that you may write to"
            again = " (with --resume once it had begun)" if _command() == "md" and found in FULL else ""
            return f"{where}{words[found].lower()}; {advice} and run the same command again{again}; what was written before stays"
        error = error.__cause__ or error.__context__
    return None


def _command() -> str:
    """The command that this process was started for: ``train``, ``md``, ..."""
    return next((word for word in sys.argv[1:] if not word.startswith("-")), "")


def interrupted(program: str) -> str:
    """What to say after Ctrl-C."""
    more = GOES_ON.get(_command())
    return f"{program}: interrupted; {STAYS}" + (f", {more}" if more else "")


def run_guarded(program: str, main: Callable[[], object]) -> None:
    """Run ``main``; turn exceptions into one line on stderr, a trace in a log file and a non-zero exit.

    An exception with an attribute ``trace_folder`` has its trace written there.

    Exit codes: 1 for an error, 2 for wrong usage (click's own), 130 for Ctrl-C.
    """
    try:
        main()
    except KeyboardInterrupt:
        print(interrupted(program), file=sys.stderr)
        sys.exit(130)
    except SystemExit as stop:
        # typer turns Ctrl-C into Exit(130) from KeyboardInterrupt; a command that handled Ctrl-C itself has said its own line
        if isinstance(getattr(stop.__context__, "__cause__", None), KeyboardInterrupt):
            print(interrupted(program), file=sys.stderr)
        raise
    except Exception as error:
        from mlip.errors import UserError

        trace = write_trace(program, getattr(error, "trace_folder", None))
        where = f" (full trace: {trace})" if trace else ""
        text = printable(str(error))
        what = text if isinstance(error, (UserError, OSError)) and text else f"unexpected {type(error).__name__}: {text}"
        what = (None if isinstance(error, UserError) else of_the_disk(error)) or what
        print(f"{program}: error: {what}{where}", file=sys.stderr)
        sys.exit(1)
