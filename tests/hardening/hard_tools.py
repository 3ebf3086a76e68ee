"""What the hardening tests share: a command run in this process as the shell would run it, the laws of its ending, and a
decorator that generates bad inputs and counts them."""

from __future__ import annotations

import functools
import inspect
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import in_process
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

LONGEST_LINE = 1200  # characters of an error, path of the log included
PLANNED: dict[str, int] = {}
"""Examples by test, filled in by :func:`bad_inputs` when its module is imported."""


@dataclass
class Ended:
    """How a command ended: exit code, both outputs, and the folder it ran in."""

    code: int
    out: str
    err: str
    folder: Path

    def refused(self, program: str = "mlip") -> str:
        """Check that it ended in one clear line, exit code 1 and a log file with the full trace; return the line."""
        assert self.code == 1, (self.code, self.out[-2000:], self.err[-2000:])
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith(f"{program}: error: ") and len(lines[0]) < LONGEST_LINE, self.err
        assert "unexpected" not in lines[0], lines[0] + "\n" + self.trace()
        assert "Traceback" in self.trace() and "Traceback" not in self.err + self.out
        return lines[0]

    def trace(self) -> str:
        """Content of the log file that the error line names."""
        named = re.search(r"\(full trace: (.+)\)$", self.err.strip())
        assert named, self.err
        return (self.folder / named.group(1)).read_text(encoding="utf-8")

    def refused_or_done(self, program: str = "mlip") -> bool:
        """As :meth:`refused`, or success; whether it was refused. Usage errors (code 2) name the option."""
        assert "Traceback" not in self.err + self.out, self.err
        if self.code == 2:
            assert "Error" in self.err or "Usage" in self.err, self.err
        elif self.code != 0:
            self.refused(program)
        return self.code != 0


def command(program: str, *arguments: object, folder: Path) -> Ended:
    """Run ``mlip`` or ``scf-accel`` in this process, in ``folder``, through the entry point that the shell calls."""
    done = in_process.command(program, *arguments, cwd=folder)
    return Ended(done.returncode, done.stdout, done.stderr, folder)


def bad_inputs(examples: int, **strategies: SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """``examples`` generated calls of a test, the same ones in every run; the test fails if fewer were made.

    The test gets ``folder``, new and empty for each example, the generated values and its fixtures.
    """

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        PLANNED[f"{test.__module__}.{test.__name__}"] = examples
        fixtures: dict[str, Any] = {}
        made = 0

        def example(**values: Any) -> None:
            nonlocal made
            made += 1
            with scratch() as folder:
                test(**fixtures, **values, folder=folder)

        options = settings(
            max_examples=examples, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
        )
        generated = seed(20261127)(options(given(**strategies)(example)))

        @functools.wraps(test)
        def run(**found: Any) -> None:
            fixtures.update(found)
            generated()
            assert made >= examples, f"only {made} of {examples} bad inputs were made"

        signature = inspect.signature(test)
        kept = [p for name, p in signature.parameters.items() if name not in {*strategies, "folder"}]
        run.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        return run

    return decorate


@contextmanager
def scratch() -> Iterator[Path]:
    """A new folder that goes afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="hardening-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` but error logs, by relative path."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".log"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
