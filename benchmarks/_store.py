"""What resumable benchmarks share: a store of rows that survives a kill, a time budget, the commit that is measured."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any


class Store:
    """Rows in a JSONL file, each appended at once; of two with one key the later counts.

    A last line that a kill cut short does not count; it leaves the file when the next row is written.

    Args:
        path: of the file; made with its first row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, dict[str, Any]] = {}
        for line in self._complete().decode("utf-8").splitlines():
            try:
                row = json.loads(line)
                self._rows[row["key"]] = row
            except (json.JSONDecodeError, KeyError, TypeError):
                print(f"{path}: a line that is no row is left out", flush=True)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows, in the order of their first measurement."""
        return list(self._rows.values())

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def failed(self, key: str) -> bool:
        """Whether the row of ``key`` is an error."""
        return "error" in self._rows.get(key, {})

    def append(self, row: dict[str, Any]) -> None:
        """Write ``row`` (with its ``key``) and wait until it is on the disk."""
        line = json.dumps(row, default=lambda number: number.item()).encode("utf-8") + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # another process may measure other rows
            file.truncate(len(self._complete()))
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._rows[row["key"]] = row

    def _complete(self) -> bytes:
        """The file up to its last line end."""
        text = self.path.read_bytes() if self.path.exists() else b""
        return text[: text.rfind(b"\n") + 1]


class Budget:
    """A time budget that learns how much slower or faster the machine is than the estimates.

    Args:
        minutes: wall-clock minutes; ``None`` is no limit.
    """

    def __init__(self, minutes: float | None) -> None:
        self.end = None if minutes is None else time.perf_counter() + 60.0 * minutes
        self.estimated = self.spent = 0.0

    def allows(self, estimate: float) -> bool:
        """Whether a row of ``estimate`` seconds fits."""
        scale = self.spent / self.estimated if self.estimated > 20.0 else 1.0
        return self.end is None or time.perf_counter() + scale * estimate < self.end

    def note(self, estimate: float, seconds: float) -> None:
        """Learn from a finished row."""
        self.estimated += estimate
        self.spent += seconds


def commit() -> str:
    """Short hash of the commit, with ``+`` where packages or benchmarks differ from it or have files that git does not know."""
    folder = Path(__file__).resolve().parents[1]
    status = ["git", "status", "--porcelain", "--", "scf_accel", "mlip", "benchmarks", ":(exclude)benchmarks/results"]
    try:
        name = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        changed = subprocess.run(status, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.stdout.strip() + ("+" if changed.stdout.strip() else "")


COMMIT = commit()  # of the code that is loaded: later commits do not change what runs
