"""``scf-accel run``: one molecule, one SCF with the multilevel solver (or stock PySCF), a live table and a JSON result.

PySCF and NumPy are imported inside the functions, so that ``--threads`` also holds for their BLAS.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mlip.files import atomic_write_text
from scf_accel.runtable import Recorder, Row, StepTable

if TYPE_CHECKING:
    from scf_accel.runinput import Theory

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass
class RunRequest:
    """The options of ``scf-accel run`` besides the theory; see its help.

    Attributes:
        structure: file to read; ``index`` is the frame.
        charge, spin: total charge and unpaired electrons; None: as the file says, else 0 and the lowest possible.
        stock: run plain PySCF.
        forces: calculate them too.
        chkfile, json_out: outputs, or None. ``overwrite`` allows to replace them.
        threads: of PySCF and BLAS; None: their default.
    """

    structure: Path
    index: int = -1
    charge: int | None = None
    spin: int | None = None
    stock: bool = False
    forces: bool = False
    chkfile: Path | None = None
    json_out: Path | None = None
    overwrite: bool = False
    threads: int | None = None


@dataclass
class Seconds:
    """Wall time: all of the SCF, and disjoint parts of it.

    Attributes:
        total: of the SCF.
        start: guess, core Hamiltonian (stock PySCF: all before its first Fock matrix).
        coarse_setup, coarse: the coarse model, and its solutions.
        fine: full-cost Fock matrices of both solvers.
        forces: not in the total.
    """

    total: float = 0.0
    start: float = 0.0
    coarse_setup: float = 0.0
    coarse: float = 0.0
    fine: float = 0.0
    forces: float | None = None

    @property
    def other(self) -> float:
        return self.total - self.start - self.coarse_setup - self.coarse - self.fine

    def as_dict(self) -> dict[str, float | None]:
        return {**asdict(self), "other": self.other}


@dataclass
class Outcome:
    """What the calculation gave, beside what the PySCF object holds.

    Attributes:
        mf: the PySCF object.
        rows: the steps.
        fine_builds: full-cost Fock matrices, those of stock PySCF after a fallback included.
        fallback: why stock PySCF did (the rest of) the work, or None.
        seconds: wall times.
        forces: ``[n, 3]`` eV/Angstrom, or None with ``no_forces`` saying why they are missing.
    """

    mf: Any
    rows: list[Row]
    fine_builds: int
    fallback: str | None
    seconds: Seconds
    forces: Any = None
    no_forces: str | None = None
    warnings: list[str] = field(default_factory=list)


def limit_blas(threads: int | None) -> None:
    """Let the BLAS of a NumPy that is not loaded yet use this many threads."""
    if threads is not None and "numpy" not in sys.modules:
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))


def limit_pyscf(threads: int | None) -> int:
    """Let PySCF use this many threads; returns what it uses."""
    from pyscf import lib

    if threads is not None:
        lib.num_threads(threads)
    return int(lib.num_threads())


class Checkpoint(AbstractContextManager["Checkpoint"]):
    """PySCF's checkpoint; one that exists is replaced at the end, and only if there are orbitals to put in its place.

    Args:
        path: of the checkpoint, or None.

    Attributes:
        working: the file that PySCF shall write to: ``path``, or ``path`` with ``.partial`` where that exists.
        written: whether orbitals of this run are in ``path`` (after the context).
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.working, self.written = path, path, False
        if path is not None and path.exists():
            self.working = path.with_name(path.name + ".partial")
            self.working.unlink(missing_ok=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.path is None or self.working is None or not self.working.exists():
            return
        self.written = _has_orbitals(self.working)
        if self.working != self.path:
            if self.written:
                os.replace(self.working, self.path)
            else:
                self.working.unlink()


def _has_orbitals(path: Path) -> bool:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return "scf/mo_coeff" in file
    except OSError:
        return False


def run_command(request: RunRequest, theory_options: dict[str, Any], console: Console | None = None) -> int:
    """Check, calculate, show, write. Returns the exit code: 0, 1 (not converged, or no forces) or 130 (Ctrl-C).

    Args:
        request: what to do.
        theory_options: fields of :class:`scf_accel.runinput.Theory`.
        console: where to show it.

    Raises:
        UserError: bad input; nothing was calculated.
    """
    limit_blas(request.threads)
    from scf_accel import runinput, runresult

    console = console or Console()
    theory = runinput.Theory(**theory_options)
    structure = runinput.read_molecule(request.structure, request.index, request.charge, request.spin)
    threads = limit_pyscf(request.threads)
    runinput.check_theory(theory)
    notes = runinput.Notes()
    mf = runinput.make_mean_field(runinput.make_molecule(structure, theory, notes), theory)
    outputs = {"--chkfile": request.chkfile, "--json": request.json_out}
    runinput.check_outputs(outputs, request.structure, request.overwrite)
    checkpoint = Checkpoint(request.chkfile)
    if checkpoint.working is not None:
        mf.chkfile = str(checkpoint.working)
    _say(console, runresult.describe(mf, structure, theory, request, threads))
    recorder: Recorder | None = None
    try:
        with StepTable(console, coarse=not request.stock) as table, checkpoint:
            recorder = Recorder(table.add)
            outcome = converge(mf, request, recorder)
        if request.chkfile is not None:
            outcome.mf.chkfile = str(request.chkfile)
        if request.forces:
            add_forces(outcome)
    except KeyboardInterrupt:
        done = len(recorder.rows) if recorder else 0
        kept = f"; the orbitals so far are in {request.chkfile}" if checkpoint.written else ""
        print(f"scf-accel: interrupted after {done} steps; no result written{kept}", file=sys.stderr)
        return 130
    outcome.warnings = notes.warnings
    results = runresult.collect(outcome, structure, theory, request, threads)
    _say(console, ["", *runresult.summary(results)])
    if request.json_out is not None:
        atomic_write_text(request.json_out, json.dumps(results, indent=1, allow_nan=False) + "\n")
    written = [str(path) for path in outputs.values() if path is not None]
    if written:
        _say(console, [f"written           {', '.join(written)}"])
    return _verdict(outcome, theory, written)


def _say(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _verdict(outcome: Outcome, theory: Theory, written: list[str]) -> int:
    """The exit code; what went wrong in one line on stderr."""
    if not outcome.mf.converged:
        print(
            f"scf-accel: error: SCF not converged in {len(outcome.rows)} step(s) to --conv-tol {theory.conv_tol:g} Eh; "
            f"raise --max-cycle (now {theory.max_cycle})" + ("; what was reached is written" if written else ""),
            file=sys.stderr,
        )
        return 1
    if outcome.no_forces:
        print(f"scf-accel: error: no forces: {outcome.no_forces}", file=sys.stderr)
        return 1
    return 0


# ---------------------------------------------------------------------------------------------------- calculation


def converge(mf: Any, request: RunRequest, recorder: Recorder) -> Outcome:
    """Run the SCF with the multilevel solver, or as it is."""
    from scf_accel import accelerate

    seconds = Seconds()
    started = time.perf_counter()
    if not request.stock:
        mf = accelerate(mf)
    mf.callback = recorder
    with recorder.timed_builds(mf):
        mf.kernel()
    seconds.total = time.perf_counter() - started
    report = None if request.stock else mf.multilevel_report
    if report is None or not report.start_seconds:  # stock PySCF from the beginning
        seconds.start = (recorder.first_build or started) - started
    else:
        seconds.start, seconds.coarse_setup, seconds.coarse = report.start_seconds, report.setup_seconds, report.coarse_seconds
    seconds.fine = recorder.build_seconds
    return Outcome(mf, recorder.rows, recorder.builds, report and report.fallback, seconds)


def add_forces(outcome: Outcome) -> None:
    """Analytic forces of a converged energy, with the response of the integration grid: finite differences agree."""
    from scf_accel.labels import compute_forces

    if not outcome.mf.converged:
        outcome.no_forces = "the SCF is not converged"
        return
    started = time.perf_counter()
    try:
        outcome.forces = compute_forces(outcome.mf)
    except NotImplementedError as error:
        outcome.no_forces = f"PySCF has no gradient for this ({error})"
    outcome.seconds.forces = time.perf_counter() - started
