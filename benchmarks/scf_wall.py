"""Wall time of the multilevel solver against stock PySCF, everything included.

    python benchmarks/scf_wall.py --minutes 60       # measure (goes on where it stopped); then write table and plots
    python benchmarks/scf_wall.py --table            # only table and plots of what is measured
    python benchmarks/scf_wall.py --ablation         # start from minao, atom and the exact fitted density
    python benchmarks/scf_wall.py --control          # stock PySCF with our integral storage and grid kernels

Molecules: benchmarks/scf_molecules.smi, and a fixed draw from ../shared/data/molecules where that folder is; MMFF
geometries. Both solvers run with PySCF's defaults (grid level 3, conv_tol 1e-9) in one process, one after the other, each
from a new molecule and mean-field object, so that guess, grids and integrals are in the time; which goes first alternates
from row to row. A third, untimed run of stock PySCF to 1e-10 gives the energy to compare with. The cheapest rows of every
category come first, and every category gets the same share of the time.
"""

from __future__ import annotations

import argparse
import gc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _molecules import Molecule, all_molecules
from _scfruns import RESULTS, Job, Store, count_calls, in_arm, make_mean_field, make_mol, run_jobs, timed

from scf_accel.multilevel import accelerate

XCS = ("pbe", "b3lyp")
BASES = ("def2-svp", "def2-tzvp")
# Molecules that come early in spite of their size where J and K are density-fitted, so that a short run shows large ones too
EARLY = {"nitroaniline", "aspirin", "caffeine", "nicotine", "diazepam", "testosterone"}


@dataclass(frozen=True)
class Case:
    """One row: a molecule with its functional, basis, and whether J and K are density-fitted."""

    molecule: Molecule
    xc: str
    basis: str
    fit: bool

    @property
    def key(self) -> str:
        return f"{self.molecule.smiles}|{self.xc}|{self.basis}|{'df' if self.fit else 'exact'}"

    def about(self) -> dict[str, Any]:
        """What a row says of its case."""
        molecule = self.molecule
        return {
            **{"name": molecule.name, "smiles": molecule.smiles, "source": molecule.source, "atoms": len(molecule.symbols())},
            **{"nao": molecule.functions(self.basis), "xc": self.xc, "basis": self.basis, "df": self.fit},
        }

    @property
    def category(self) -> tuple[str, str, bool]:
        return self.xc, self.basis, self.fit

    def estimate(self) -> float:
        """Seconds of the whole row (stock, ours and the reference), roughly, on two cores of 2.5 GHz."""
        nao = self.molecule.functions(self.basis)
        grid = 0.02 * len(self.molecule.symbols()) * nao
        if self.fit:
            return 1.0 + grid
        if nao < 240:  # PySCF keeps the integrals in memory
            return 1.0 + grid + 80.0 * (nao / 240) ** 4
        return 1.0 + grid + (300.0 if self.xc == "b3lyp" else 150.0) * (nao / 300) ** 2.7

    def rank(self) -> float:
        """Place in the queue of its category: the estimate, for early ones a tenth of it."""
        return self.estimate() * (0.1 if self.fit and self.molecule.name in EARLY else 1.0)


def make_cases(molecules: Sequence[Molecule], max_nao_direct: int) -> list[tuple[Case, int]]:
    """Cases and their number within their category, in the order of measurement.

    The next case is the cheapest one left (but see ``EARLY``) of the category that has used the least estimated time: small
    molecules first, every category early, and the large molecules of a cheap category before those of a dear one.
    """
    queues: dict[tuple[str, str, bool], list[Case]] = {}
    for basis in BASES:
        for fit in (True, False):
            for xc in XCS:
                chosen = [m for m in molecules if (basis == "def2-svp" or m.tzvp)]
                chosen = [m for m in chosen if fit or m.functions(basis) <= max_nao_direct]
                cases = [Case(molecule, xc, basis, fit) for molecule in chosen]
                queues[xc, basis, fit] = sorted(cases, key=Case.rank)
    used = dict.fromkeys(queues, 0.0)
    position = dict.fromkeys(queues, 0)
    out = []
    while any(position[name] < len(queue) for name, queue in queues.items()):
        name = min((name for name, queue in queues.items() if position[name] < len(queue)), key=lambda name: used[name])
        case = queues[name][position[name]]
        out.append((case, position[name]))
        used[name] += case.estimate()
        position[name] += 1
    return out


def run_stock(
    case: Case, start: Any = None, conv_tol: float | None = None, prepare: Callable[[Any], Any] | None = None
) -> tuple[dict[str, Any], np.ndarray]:
    """Numbers of a run of stock PySCF, and its density matrix.

    Args:
        case: what to run.
        start: ``None``, a guess's name or a density matrix.
        conv_tol: energy threshold, Hartree; None: PySCF's.
        prepare: changes the mean-field object first; in the time.
    """
    mol = make_mol(case.molecule.structure(), case.basis)
    calls: list[int] = []

    def solve() -> Any:
        nonlocal calls
        mf = make_mean_field(mol, case.xc, case.fit)
        calls = count_calls(mf, "get_veff")
        if conv_tol is not None:
            mf.conv_tol = conv_tol
        if isinstance(start, str):
            mf.init_guess = start
        if prepare is not None:
            prepare(mf)
        mf.kernel(start if isinstance(start, np.ndarray) else None)
        return mf

    mf, spent = timed(solve)
    numbers = {"cycles": mf.cycles, "builds": calls[0], "energy": mf.e_tot, "converged": bool(mf.converged)}
    return {**spent, **numbers, "nao": mol.nao, "incore": mf._eri is not None}, np.asarray(mf.make_rdm1())


def run_ours(case: Case, start: Any = None) -> dict[str, Any]:
    """Numbers of a run of the multilevel solver; ``fine`` counts a stock continuation's Fock matrices too."""
    mol = make_mol(case.molecule.structure(), case.basis)
    calls: list[int] = []

    def solve() -> Any:
        nonlocal calls
        mf = make_mean_field(mol, case.xc, case.fit)
        if isinstance(start, str):
            mf.init_guess = start
        mf = accelerate(mf, start=start) if isinstance(start, np.ndarray) else accelerate(mf)
        calls = count_calls(mf, "get_veff")
        mf.kernel()
        return mf

    mf, spent = timed(solve)
    report = mf.multilevel_report
    split = {name: getattr(report, f"{name}_seconds") for name in ("start", "setup", "coarse", "fine")}
    steps = [(step.energy, step.gradient, step.coarse_builds, step.coarse_seconds, step.fine_seconds) for step in report.steps]
    return {
        **{**spent, "fine": calls[0], "reported_fine": report.fine_builds, "coarse": report.coarse_builds, "cycles": mf.cycles},
        **{"split": split, "steps": steps, "energy": mf.e_tot, "converged": bool(mf.converged), "fallback": report.fallback},
        "incore": mf._eri is not None,
    }


def measure(case: Case, number: int) -> dict[str, Any]:
    """Both solvers on one case; which goes first depends on ``number``. Each frees its memory before the next starts."""
    stock_first = number % 2 == 0
    if not stock_first:
        ours = in_arm("ours", lambda: run_ours(case))
        gc.collect()
    stock, dm = in_arm("stock", lambda: run_stock(case))
    gc.collect()
    if stock_first:
        ours = in_arm("ours", lambda: run_ours(case))
        gc.collect()
    reference, _ = in_arm("reference", lambda: run_stock(case, start=dm, conv_tol=1e-10))
    gc.collect()
    say = f"{stock['seconds'] / ours['seconds']:.2f}x, {ours['fine']} fine, dE {ours['energy'] - reference['energy']:.1e}"
    return {
        **{"nao": stock["nao"], "first": "stock" if stock_first else "ours", "stock": stock, "ours": ours, "say": say},
        **{"reference": {"energy": reference["energy"], "converged": reference["converged"]}},
    }


def warm_up() -> None:
    """Imports, shared libraries and their first use, on water; not counted."""
    water = Molecule("O", "water", True, "")
    for xc in XCS:
        for fit in (True, False):
            measure(Case(water, xc, BASES[0], fit), 0)


def selected(case: Case, arguments: argparse.Namespace) -> bool:
    """Whether the command line's filters let a case pass."""
    if arguments.names and case.molecule.name not in arguments.names and case.molecule.smiles not in arguments.names:
        return False
    return case.fit in fits(arguments, (True, False)) and case.xc in arguments.xc and case.basis in (arguments.basis or BASES)


def fits(arguments: argparse.Namespace, default: Sequence[bool]) -> tuple[bool, ...]:
    """With and without density fitting, as the command line says."""
    return {None: tuple(default), "yes": (True,), "no": (False,), "both": (True, False)}[arguments.fit]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="time budget; rows that are left over are measured by the next call")
    parser.add_argument("--rows", type=int, help="measure at most this many rows")
    parser.add_argument("--table", action="store_true", help="measure nothing, write table and plots")
    parser.add_argument("--retry-failed", action="store_true", help="measure rows again that ended in an error")
    parser.add_argument("--ablation", action="store_true", help="the starts instead of the sweep")
    parser.add_argument("--control", action="store_true", help="stock PySCF with our storage and kernels instead of the sweep")
    parser.add_argument("--list", action="store_true", help="print the rows in their order with estimates, and stop")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-nao-direct", type=int, default=450, help="no rows without density fitting above this size")
    parser.add_argument("--names", nargs="+", help="only these molecules (name or SMILES)")
    parser.add_argument("--xc", nargs="+", default=list(XCS), choices=XCS)
    parser.add_argument("--basis", nargs="+", choices=BASES, help="default: both; ablation and control: def2-svp")
    parser.add_argument("--fit", choices=("yes", "no", "both"), help="density fitting; default: both; ablation and control: yes")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the rows, table and plots")
    return parser.parse_args()


def named_jobs(
    arguments: argparse.Namespace, prefix: str, names: Sequence[str], cost: float, run: Callable[[Case, int], dict[str, Any]]
) -> list[Job]:
    """``run(case, number)`` of each molecule and functional; def2-SVP with density fitting unless the command line says otherwise.

    ``cost``: estimate of a job as a multiple of the sweep's row; ``names``: molecules where the command line names none.
    """
    names = arguments.names or names
    molecules = [m for m in all_molecules() if m.name in names or m.smiles in names]
    bases, fitted = arguments.basis or BASES[:1], fits(arguments, (True,))
    cases = [Case(m, xc, basis, fit) for m in molecules for basis in bases for fit in fitted for xc in arguments.xc]
    return [
        Job(f"{prefix}|{case.key}", cost * case.estimate(), partial(run, case, number), case.about())
        for number, case in enumerate(cases)
    ]


def sweep_jobs(arguments: argparse.Namespace) -> list[Job]:
    """One job a case."""
    cases = make_cases(all_molecules(), arguments.max_nao_direct)
    return [
        Job(case.key, case.estimate(), partial(measure, case, number), case.about())
        for case, number in cases
        if selected(case, arguments)
    ]


def main() -> None:
    arguments = parse()
    name, make_jobs = "scf_wall", sweep_jobs
    if arguments.ablation:
        from _ablation import ablation_jobs

        name, make_jobs = "scf_ablation", ablation_jobs
    elif arguments.control:
        from _control import control_jobs

        name, make_jobs = "scf_control", control_jobs
    store = Store(arguments.output / f"{name}.jsonl")
    if arguments.table or run_jobs(make_jobs(arguments), store, arguments, warm_up):
        write(arguments, store)


def write(arguments: argparse.Namespace, store: Store) -> None:
    """The table of what is measured."""
    if arguments.ablation:
        from _ablation import write_ablation

        write_ablation(store, arguments.output)
    elif arguments.control:
        from _control import write_control

        write_control(store, arguments.output)
    else:
        from scf_wall_plots import category, write_results

        cases = make_cases(all_molecules(), arguments.max_nao_direct)
        planned = Counter(category(case.about()) for case, _ in cases if selected(case, arguments))
        write_results(store, arguments.output, arguments.max_nao_direct, planned)


if __name__ == "__main__":
    main()
