"""The live table of ``scf-accel run``: one row for each full-cost Fock matrix; plain lines where there is no terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

COLUMNS = ("step", "energy, Eh", "dE, Eh", "|g|", "coarse builds", "coarse, s", "fine, s")
WIDTHS = (4, 18, 10, 9, 13, 9, 9)
COARSE = (4, 5)
TABLE_WIDTH = 80  # narrower terminals get plain lines


@dataclass(frozen=True)
class Row:
    """One step: a full-cost Fock matrix, and the coarse solution before it.

    Attributes:
        step: counted from 1.
        energy: Hartree.
        change: of the energy since the step before, Hartree; None in the first step of a start without an energy.
        gradient: norm of the orbital gradient, PySCF's measure.
        coarse_builds: coarse Fock matrices; 0 in stock PySCF.
        coarse_seconds, fine_seconds: wall time of the coarse solution, and of the full-cost matrices since the row before.
        solver: ``multilevel`` or ``stock``.
        error_estimate: of the energy above the minimum, Hartree; None where the solver has none.
    """

    step: int
    energy: float
    change: float | None
    gradient: float
    coarse_builds: int
    coarse_seconds: float
    fine_seconds: float
    solver: str
    error_estimate: float | None = None

    def cells(self) -> list[str]:
        stock = self.solver == "stock"
        return [
            str(self.step),
            f"{self.energy:.10f}",
            "" if self.change is None else f"{self.change:.2e}",
            f"{self.gradient:.2e}",
            "-" if stock else str(self.coarse_builds),
            "-" if stock else f"{self.coarse_seconds:.2f}",
            f"{self.fine_seconds:.2f}",
        ]


class Recorder:
    """PySCF callback that makes a :class:`Row` of each cycle and hands it to ``show``.

    Attributes:
        rows: so far.
        builds, build_seconds: full-cost Fock matrices within :meth:`timed_builds` and their wall time.
        first_build: when the first of them began (``time.perf_counter``), or None.
    """

    def __init__(self, show: Callable[[Row], None]) -> None:
        self.show = show
        self.rows: list[Row] = []
        self.builds = 0
        self.build_seconds = 0.0
        self.first_build: float | None = None
        self._taken = 0.0

    @contextmanager
    def timed_builds(self, mf: Any) -> Iterator[None]:
        """Within, count and time the full-cost Fock matrices of ``mf``, whichever solver asks for them."""
        plain = mf.__class__

        def get_veff(obj: Any, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            if self.first_build is None:
                self.first_build = started
            try:
                return plain.get_veff(obj, *args, **kwargs)
            finally:
                self.builds += 1
                self.build_seconds += time.perf_counter() - started

        mf.__class__ = type(plain.__name__, (plain,), {"get_veff": get_veff})
        try:
            yield
        finally:
            mf.__class__ = plain

    def __call__(self, envs: dict[str, Any]) -> None:
        step = envs.get("step")
        builds, seconds = (0, 0.0) if step is None else (step.coarse_builds, step.coarse_seconds)
        fine, self._taken = self.build_seconds - self._taken, self.build_seconds
        energy, last = float(envs["e_tot"]), float(envs["last_hf_e"])
        first = step is not None and envs["cycle"] == 0  # no energy of the guess
        change = None if first or not math.isfinite(last) else energy - last
        solver = "stock" if step is None else "multilevel"
        estimate = float(getattr(step, "error_estimate", float("nan")))
        left = estimate if math.isfinite(estimate) else None
        row = Row(len(self.rows) + 1, energy, change, float(envs["norm_gorb"]), builds, seconds, fine, solver, left)
        self.rows.append(row)
        self.show(row)


class StepTable(AbstractContextManager["StepTable"]):
    """Shows rows as they come; use it as a context.

    Args:
        console: where to.
        coarse: with the columns of the coarse model.
    """

    def __init__(self, console: Console, coarse: bool = True) -> None:
        self.console = console
        self.chosen = [k for k in range(len(COLUMNS)) if coarse or k not in COARSE]
        self.rows: list[Row] = []
        self._running = True
        self._since = time.perf_counter()
        self._live: Live | None = None

    def __enter__(self) -> StepTable:
        self._since = time.perf_counter()
        if self.console.is_terminal and self.console.width >= TABLE_WIDTH:
            self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=4)
            self._live.start()
        else:
            self._line(COLUMNS)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._running = False
        if self._live is not None:
            self._live.stop()

    def add(self, row: Row) -> None:
        """Show one more row."""
        self.rows.append(row)
        self._since = time.perf_counter()
        if self._live is None:
            self._line(row.cells())
        else:
            self._live.refresh()

    def _line(self, cells: Any) -> None:
        text = "  ".join(f"{cells[k]:>{WIDTHS[k]}}" for k in self.chosen)
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self.console.file.flush()

    def _render(self) -> Any:
        table = Table()
        for k in self.chosen:
            heading = COLUMNS[k].replace(" ", "\n") if k > 3 else COLUMNS[k]
            table.add_column(heading, justify="right", no_wrap=True, min_width=(4, 16, 9, 8, 6, 7, 7)[k])
        for row in self.rows:
            cells = row.cells()
            table.add_row(*(cells[k] for k in self.chosen))
        if not self._running:
            return table
        return Group(table, Text(f"step {len(self.rows) + 1} running, {time.perf_counter() - self._since:.0f} s"))
