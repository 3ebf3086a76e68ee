"""``scf-accel bench``: SCF cycles, full-cost Fock matrices and wall time from several initial guesses, molecule by molecule.

Measures, each relative to PySCF's guess ``minao`` with the same settings of the same object:

- RIC: SCF cycles with the guess / cycles with ``minao``.
- ERIC: the same in full-cost Fock matrices, where the one that makes a guess from a density counts as one.
- wall ratio: kernel time with ``minao`` / kernel time with the guess, everything included (prediction, guess, check); median
  over the repeats, in which the order of the guesses alternates. Loading the model is reported apart.

``ours`` is :func:`scf_accel.warm_start`, ``oracle`` the same with the fitted density of the converged calculation (which is not
in its time): what a perfect model would reach. PySCF and NumPy are imported inside the functions, so that ``--threads`` also
holds for their BLAS.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mlip.errors import UserError
from mlip.files import atomic_write_text
from scf_accel.runscf import limit_blas, limit_pyscf
from scf_accel.runtable import Recorder

if TYPE_CHECKING:
    from scf_accel.runinput import Theory
    from scf_accel.structures import Structure

REFERENCE = "minao"
STOCK = ("minao", "atom", "huckel", "mod_huckel", "vsap", "sap", "1e")
GUESSES = (*STOCK, "ours", "oracle")
DEFAULT_GUESSES = "minao,atom,huckel,vsap,ours,oracle"
SAME_ENERGY = 1e-6  # Hartree: SCF solutions further apart are different ones


@dataclass
class BenchRequest:
    """The options of ``scf-accel bench`` besides the theory; see its help.

    Attributes:
        structures: files to read; ``index`` is the frame.
        guesses: comma-separated names of :data:`GUESSES`.
        model: path or name of a density model; None: the one in the package.
        repeats: of every calculation.
        charge, spin: of all molecules; None: as the files say, else 0 and the lowest possible.
        json_out, plot: outputs, or None. ``overwrite`` allows to replace them.
        threads: of PySCF and BLAS; None: their default.
    """

    structures: list[Path]
    guesses: str = DEFAULT_GUESSES
    model: str | None = None
    repeats: int = 1
    index: int = -1
    charge: int | None = None
    spin: int | None = None
    json_out: Path | None = None
    plot: Path | None = None
    overwrite: bool = False
    threads: int | None = None


@dataclass
class Run:
    """One guess for one molecule.

    Attributes:
        guess: its name.
        converged: whether the SCF of every repeat did.
        energy (Hartree), cycles: of the SCF.
        builds: full-cost Fock matrices, that of a guess from a density counted as one.
        seconds: wall time of the kernel in each repeat.
        start: what the SCF did start from.
        prediction_seconds, guess_seconds, check_seconds: parts of the last repeat, for guesses from a density.
        fallback: why the prediction was not used, or None.
        error: why there is no result, or None; the other fields then mean nothing.
    """

    guess: str
    converged: bool = False
    energy: float = float("nan")
    cycles: int = 0
    builds: int = 0
    seconds: list[float] = field(default_factory=list)
    start: str = ""
    prediction_seconds: float = 0.0
    guess_seconds: float = 0.0
    check_seconds: float = 0.0
    fallback: str | None = None
    error: str | None = None

    @property
    def failed(self) -> bool:
        """Whether any repeat ended in an error or without convergence."""
        return self.error is not None or not self.converged

    @property
    def wall(self) -> float:
        """Median wall time, seconds."""
        return statistics.median(self.seconds) if self.seconds else float("nan")


@dataclass
class Case:
    """A molecule and its runs; ``runs`` has the reference first."""

    name: str
    structure: Structure
    make: Callable[[], Any] = field(repr=False)
    runs: dict[str, Run] = field(default_factory=dict)

    def ratios(self, run: Run) -> dict[str, float] | None:
        """``ric``, ``eric``, ``wall_ratio`` and ``energy_difference`` (Hartree); None where one of the two has no result."""
        reference = self.runs.get(REFERENCE)
        if reference is None or run.failed or reference.failed:
            return None
        return {
            "ric": run.cycles / reference.cycles,
            "eric": run.builds / reference.builds,
            "wall_ratio": reference.wall / run.wall,
            "energy_difference": run.energy - reference.energy,
        }

    def elsewhere(self, run: Run) -> bool:
        """Whether ``run`` has reached another SCF solution than the reference: its cycles do not compare."""
        ratios = self.ratios(run)
        return ratios is not None and abs(ratios["energy_difference"]) > SAME_ENERGY


def parse_guesses(text: str, hartree_fock: bool = False) -> list[str]:
    """Names, the reference first; :class:`UserError` for a name that is none, or none of this method."""
    if hartree_fock and text == DEFAULT_GUESSES:
        text = text.replace("vsap,", "")
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in GUESSES:
            raise UserError(f"--guesses {text}: no guess is called {name!r}; choose from {', '.join(GUESSES)}")
        if name == "vsap" and hartree_fock:
            raise UserError(f"--guesses {text}: PySCF has vsap for Kohn-Sham methods only; leave it away with --xc hf")
    return list(dict.fromkeys([REFERENCE, *names]))


def bench_command(request: BenchRequest, theory_options: dict[str, Any], console: Console | None = None) -> int:
    """Check, calculate, show, write. Returns the exit code: 0, 1 (a calculation did not converge or failed) or 130 (Ctrl-C).

    Args:
        request: what to do.
        theory_options: fields of :class:`scf_accel.runinput.Theory`.
        console: where to show it.

    Raises:
        UserError: bad input; nothing was calculated.
    """
    limit_blas(request.threads)
    from scf_accel import benchreport, runinput

    console = console or Console()
    theory = runinput.Theory(**theory_options)
    guesses = parse_guesses(request.guesses, theory.hartree_fock)
    runinput.check_theory(theory)
    cases = make_cases(request, theory)
    threads = limit_pyscf(request.threads)
    outputs = {"--json": request.json_out, "--plot": request.plot}
    for path in request.structures:
        runinput.check_outputs(outputs, path, request.overwrite)
    predictor, loading = load_predictor(request.model, cases) if "ours" in guesses else (None, 0.0)
    try:
        warm_up()
        for case in cases:
            measure(case, guesses, predictor, request.repeats, lambda line: _say(console, line))
    except KeyboardInterrupt:
        done = sum(bool(case.runs) for case in cases)
        print(f"scf-accel: interrupted in molecule {done} of {len(cases)}; nothing written", file=sys.stderr)
        return 130
    console.print()
    console.print(benchreport.runs_table(cases, console.width))
    for line in benchreport.notes(cases):
        _say(console, line)
    console.print(benchreport.summary_table(cases, guesses))
    if predictor is not None and loading:
        _say(console, f"model {getattr(predictor, 'name', '')}: loaded in {loading:.1f} s (not in the times above)")
    if request.json_out is not None:
        results = benchreport.collect(cases, guesses, theory, threads, loading, request.repeats)
        atomic_write_text(request.json_out, json.dumps(results, indent=1, allow_nan=False) + "\n")
    if request.plot is not None:
        benchreport.plot(cases, guesses, request.plot)
    written = [str(path) for path in outputs.values() if path is not None]
    if written:
        _say(console, f"written: {', '.join(written)}")
    return _verdict(cases)


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _verdict(cases: Iterable[Case]) -> int:
    bad = [f"{case.name} from {run.guess}" for case in cases for run in case.runs.values() if run.failed]
    if bad:
        print(f"scf-accel: error: not converged: {', '.join(bad)}; raise --max-cycle or see the table", file=sys.stderr)
    return 1 if bad else 0


def make_cases(request: BenchRequest, theory: Theory) -> list[Case]:
    """The molecules of the files, all of them checked before the first calculation."""
    from scf_accel import runinput

    cases: list[Case] = []
    for path in request.structures:
        structure = runinput.read_molecule(path, request.index, request.charge, request.spin)
        mol = runinput.make_molecule(structure, theory, runinput.Notes())
        runinput.make_mean_field(mol, theory)
        name = path.stem if all(path.stem != case.name for case in cases) else str(path)
        cases.append(Case(name, structure, lambda mol=mol: runinput.make_mean_field(mol.copy(), theory)))  # type: ignore[misc]
    return cases


def load_predictor(model: str | None, cases: list[Case]) -> tuple[Any, float]:
    """The predictor of ``ours``, after its first prediction, and the seconds that this took."""
    from scf_accel.predictor import as_predictor

    started = time.perf_counter()
    predictor = as_predictor(model)
    for case in cases:
        mol = case.make().mol
        if predictor.refusal(mol) is None:
            predictor.coefficients(mol)
            return predictor, time.perf_counter() - started
    return predictor, 0.0


def warm_up() -> None:
    """Load what PySCF and the warm start load at first use."""
    from pyscf import dft, gto

    from scf_accel import warm_start
    from scf_accel.predictor import ExactPredictor

    mol = gto.M(atom="H 0 0 0; H 0 0 0.74", basis="sto-3g", verbose=0)
    warm_start(dft.RKS(mol, xc="pbe").density_fit(), ExactPredictor(lambda mol: dft.RKS(mol, xc="pbe"))).kernel()


def measure(case: Case, guesses: list[str], predictor: Any, repeats: int, say: Callable[[str], None]) -> None:
    """Fill in ``case.runs``: all guesses, ``repeats`` times, every second time in reverse order."""
    oracle = None
    case.runs = {}
    for repeat in range(repeats):
        for name in guesses if repeat % 2 == 0 else guesses[::-1]:
            run = case.runs.setdefault(name, Run(name))
            if run.error is not None:
                continue
            if name == "oracle" and oracle is None:
                run.error = "the reference is not converged"
                continue
            mf = _converge(case.make(), run, oracle if name == "oracle" else predictor)
            if name == REFERENCE and repeat == 0 and mf is not None and mf.converged:
                oracle = _oracle(mf)
            if repeat == 0:
                say(f"{case.name}: {name}: {run.error or f'{run.cycles} cycles, {run.seconds[-1]:.2f} s'}")


def _oracle(mf: Any) -> Any:
    from scf_accel.predictor import ExactPredictor

    predictor = ExactPredictor(lambda mol: mf.copy().reset(mol))
    predictor.remember(mf.mol, mf.make_rdm1())
    return predictor


def _converge(mf: Any, run: Run, predictor: Any) -> Any:
    """Run the SCF once; notes the result in ``run``, an error too. Returns the object, or None."""
    from scf_accel import warm_start

    density = run.guess not in STOCK
    try:
        if density:
            mf = warm_start(mf, predictor, check=run.guess == "ours")
        else:
            mf.init_guess = run.guess
        mf.verbose = 0
        recorder = Recorder(lambda row: None)
        with recorder.timed_builds(mf):
            started = time.perf_counter()
            mf.kernel()
            run.seconds.append(time.perf_counter() - started)
    except Exception as error:  # a guess that fails for this molecule is a result
        run.error = " ".join(f"{'' if isinstance(error, UserError) else type(error).__name__ + ': '}{error}".split())
        return None
    first, converged, energy = len(run.seconds) == 1, bool(mf.converged), float(mf.e_tot)
    if not first and converged and run.converged and abs(energy - run.energy) > SAME_ENERGY:
        run.error = f"its repeats reach different SCF solutions, {run.energy:.8f} and {energy:.8f} Eh"
        return None
    run.converged = converged and (first or run.converged)
    run.energy, run.cycles, run.builds = energy, int(mf.cycles), recorder.builds
    run.start = run.guess
    if density:
        report = mf.warm_start_report
        run.start, run.fallback = report.start, report.fallback
        run.prediction_seconds, run.guess_seconds = report.inference_seconds, report.guess_seconds
        run.check_seconds = report.check_seconds
        run.builds += report.guess_seconds > 0
    return mf


def as_json(run: Run) -> dict[str, Any]:
    """The fields of a run; None for what is not finite."""
    fields = asdict(run)
    return {**fields, "energy": None if run.energy != run.energy else run.energy}
