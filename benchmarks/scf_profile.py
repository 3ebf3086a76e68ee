"""Where the time of one coarse iteration goes, and what it costs relative to one full-cost Fock matrix.

    python benchmarks/scf_profile.py [--smiles SMILES] [--threads 2]

For aspirin (default), PBE and B3LYP in def2-SVP, with density fitting and without: the stock full-cost Fock matrix
(median of the cycles of a stock run, its first one left out), one iteration of the coarse model, its ratio to that matrix
and to our own full-cost ones from the second on (mean), and the parts of it.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _common import header, table
from _scfruns import COMMIT, set_threads
from pyscf import dft, scf
from rdkit import Chem
from rich.console import Console

from mlip.files import atomic_write_text
from scf_accel.gridorbitals import GridOrbitals
from scf_accel.labels import LabelSettings, make_molecule
from scf_accel.multilevel import accelerate, coarse, fittedjk, inner
from scf_accel.structures import structure_from_smiles

RESULT = Path(__file__).parent / "results" / "scf_profile.md"
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
PARTS: list[tuple[str, Any, str]] = [
    ("density on the grid", GridOrbitals, "density"),
    ("functional", coarse.CoarseModel, "_potential"),
    ("potential matrix", GridOrbitals, "matrix"),
    ("Coulomb", fittedjk.PackedFit, "coulomb"),
    ("exchange", fittedjk.PackedFit, "exchange"),
    ("exchange", fittedjk.FullFit, "exchange"),
    ("diagonalisation", scf.hf.SCF, "_eigh"),
    ("DIIS", scf.diis.CDIIS, "update"),
    ("gradient", inner.Problem, "gradient"),
]
COLUMNS = ["density on the grid", "functional", "potential matrix", "Coulomb", "exchange", "diagonalisation", "DIIS", "gradient"]
HEADINGS = [
    *("method", "stock full build", "coarse iteration", "by stock full build", "by our later full build"),
    *(*COLUMNS, "rest", "our full builds (s)", "note"),
]


class Clock:
    """Adds up the wall time of patched methods, only inside inner solves."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.inside = False

    def patch(self, name: str, owner: Any, attribute: str) -> None:
        original = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self.inside:
                return original(*args, **kwargs)
            started = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - started

        setattr(owner, attribute, timed)

    def patch_solve(self) -> None:
        original = inner.solve

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.inside = True
            try:
                return original(*args, **kwargs)
            finally:
                self.inside = False

        inner.solve = timed


def make(mol: Any, xc: str, fitted: bool) -> Any:
    mf = dft.RKS(mol, xc=xc)
    return mf.density_fit() if fitted else mf


def full_build(mol: Any, xc: str, fitted: bool, cycles: int = 5) -> float:
    """Median seconds of a stock cycle's effective potential."""
    mf = make(mol, xc, fitted)
    original, seconds = mf.get_veff, []

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = original(*args, **kwargs)
        seconds.append(time.perf_counter() - started)
        return result

    mf.get_veff, mf.max_cycle, mf.conv_check = timed, cycles, False
    mf.kernel()
    return float(np.median(seconds[1:]))


def profile(mol: Any, xc: str, fitted: bool, clock: Clock) -> list[str]:
    """One line of the table; what a run without coarse iterations or later full builds lacks is ``-``."""
    stock = full_build(mol, xc, fitted)
    clock.seconds.clear()
    mf = accelerate(make(mol, xc, fitted))
    mf.kernel()
    return line(f"{xc}, {'density fitting' if fitted else 'no fitting'}", stock, mf.multilevel_report, clock.seconds)


def line(label: str, stock: float, report: Any, seconds: Mapping[str, float]) -> list[str]:
    """Cells of one method; ``seconds`` of each part of all coarse iterations together, ``stock`` of a stock full build."""
    note = f"stock PySCF: {report.fallback}" if report.fallback else ""
    builds = " / ".join(f"{step.fine_seconds:.1f}" for step in report.steps) or "-"
    if not report.coarse_builds:
        return [label, f"{1e3 * stock:.0f}", *["-"] * (len(HEADINGS) - 4), builds, note]
    one = report.coarse_seconds / report.coarse_builds
    later = [step.fine_seconds for step in report.steps[1:]]
    ratios = [f"{one / stock:.3f}", f"{one / float(np.mean(later)):.3f}" if later else "-"]
    shares = [1e3 * seconds.get(name, 0.0) / report.coarse_builds for name in COLUMNS]
    parts = [f"{share:.0f}" for share in [*shares, 1e3 * one - sum(shares)]]
    return [label, f"{1e3 * stock:.0f}", f"{1e3 * one:.0f}", *ratios, *parts, builds, note]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smiles", default=ASPIRIN)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--xc", nargs="+", default=["pbe", "b3lyp"])
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    structure = structure_from_smiles(arguments.smiles, Chem.AddHs(Chem.MolFromSmiles(arguments.smiles)), 0)
    mol = make_molecule(structure.numbers, structure.positions, structure.charge, structure.spin, LabelSettings())
    clock = Clock()
    for part in PARTS:
        clock.patch(*part)
    clock.patch_solve()
    rows = [profile(mol, xc, fitted, clock) for xc in arguments.xc for fitted in (True, False)]
    title = f"One coarse iteration, {arguments.smiles}, {mol.natm} atoms, {mol.nao} orbitals (ms unless said)"
    text = header(title, ("pyscf", "numpy")) + f"- {arguments.threads} threads, commit {COMMIT}\n\n" + table(HEADINGS, rows)
    atomic_write_text(arguments.out, text)
    Console(width=200).print(text, markup=False)


if __name__ == "__main__":
    main()
