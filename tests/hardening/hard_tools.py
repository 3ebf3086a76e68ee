"""What the hardening tests share: a command run in this process as the shell would run it, the laws of its ending, and
decorators that generate bad inputs and faults and count them."""

from __future__ import annotations

import functools
import inspect
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import in_process
import pytest
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis.strategies import SearchStrategy

LONGEST_LINE = 1200  # characters of an error, path of the log included
INPUTS: dict[str, tuple[int, int]] = {}
"""Bad inputs by test: in the default run, and with ``-m slow``. Filled in when the test's module is imported."""
FAULTS: dict[str, tuple[int, int]] = {}
"""The same for faults: full disks, forbidden folders, interruptions."""

Test = Callable[..., None]


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
        assert "error: unexpected" not in lines[0], lines[0] + "\n" + self.trace()
        assert "Traceback" in self.trace() and "Traceback" not in self.err + self.out
        return lines[0]

    def trace(self) -> str:
        """Content of the log file that the error line names."""
        named = re.search(r"\(full trace: (.+)\)$", self.err.strip())
        assert named, self.err
        return (self.folder / named.group(1)).read_text(encoding="utf-8")

    def refused_or_done(self, program: str = "mlip") -> bool:
        """As :meth:`refused`, or success; whether it was refused. Usage errors (code 2) name the option."""
        assert "Traceback" not in self.err + self.out
        if self.code == 2:
            assert "Error" in self.err or "Usage" in self.err, self.err
        elif self.code != 0:
            self.refused(program)
        return self.code != 0


def command(program: str, *arguments: object, folder: Path) -> Ended:
    """Run ``mlip`` or ``scf-accel`` in this process, in ``folder``, through the entry point that the shell calls.

    A warning of a library, which the shell would show as further lines, is an error here.
    """
    with warnings.catch_warnings():
        for kind in (RuntimeWarning, UserWarning):
            warnings.simplefilter("error", kind)
        done = in_process.command(program, *arguments, cwd=folder)
    return Ended(done.returncode, done.stdout, done.stderr, folder)


def bad_inputs(some: int, many: int, **strategies: SearchStrategy[Any]) -> Callable[[Test], Test]:
    """A test of generated inputs: ``some`` in the default run, ``many`` with ``-m slow``, the same ones in every run.

    The test gets ``folder``, new and empty for each input, the generated values and its fixtures. No input comes twice,
    and a run that finds fewer than it should fails.
    """
    return functools.partial(_generated, INPUTS, some, many, strategies)


def faults(some: int, many: int, **strategies: SearchStrategy[Any]) -> Callable[[Test], Test]:
    """The same for faults: where the disk is full, or when the program is stopped."""
    return functools.partial(_generated, FAULTS, some, many, strategies)


def _generated(counts: dict[str, tuple[int, int]], some: int, many: int, strategies: dict[str, Any], test: Test) -> Test:
    counts[f"{test.__module__}.{test.__name__}"] = some, many

    @functools.wraps(test)
    def run(how_many: int, **fixtures: Any) -> None:
        seen: set[str] = set()

        def example(**values: Any) -> None:
            assume(repr(values) not in seen)
            with scratch() as folder:
                test(**fixtures, **values, folder=folder)
            seen.add(repr(values))

        options = settings(
            max_examples=how_many, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
        )
        seed(20261127 + how_many)(options(given(**strategies)(example)))()
        assert len(seen) >= how_many, f"only {len(seen)} of {how_many} were made"

    signature = inspect.signature(test)
    kept = [each for name, each in signature.parameters.items() if name not in {*strategies, "folder"}]
    number = inspect.Parameter("how_many", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = signature.replace(parameters=[*kept, number])  # type: ignore[attr-defined]
    cases = [some] * (some > 0) + [pytest.param(many, marks=pytest.mark.slow)] * (many > 0)
    return pytest.mark.parametrize("how_many", cases)(run)


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
