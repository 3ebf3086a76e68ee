"""What the guess from a fitted density costs, relative to one full Fock build, and what its settings buy.

    python benchmarks/guess_cost.py [--threads 2] [--repeats 3] [--names acetone ...]
    python benchmarks/guess_cost.py --choices [--names glycine]

Without ``--choices``: PBE/def2-SVP with density fitting and without, grid level 3, nothing converged: the density is that of
minao, fitted, and the cost of a guess does not depend on the density. "Full build" is ``mf.get_veff`` of stock PySCF, from its
second call on (the first one also makes grids and, where they fit, integrals); the guess is all of
``scf_accel.guess.density_matrix``, inference excluded. Processor seconds of all threads, so that other work on the machine
disturbs them little; medians; guess and build take turns.

With ``--choices``: SCF cycles from the exact fitted density of the converged SCF ("oracle"), for grids, surrogate
functionals and auxiliary bases; also the energy of the guess above the converged one, and the guess' processor seconds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import header, table
from _molecules import all_molecules
from _scfruns import COMMIT, make_mean_field, make_mol, set_threads
from pyscf import dft, gto, scf

from mlip.files import atomic_write_text
from scf_accel.fitting import DEFAULT_AUXBASIS, fit_density, make_auxmol
from scf_accel.guess import density_matrix
from scf_accel.guess.coulomb import coulomb_matrix
from scf_accel.guess.gridpotential import GRID, GuessPotential
from scf_accel.guess.surrogate import DEFAULT, functional_of

RESULTS = Path(__file__).parent / "results"
NAMES = ("acetone", "pyridine", "nitroaniline", "aspirin", "caffeine", "diazepam", "penicillin-G")
BASIS = "def2-svp"
GRIDS: tuple[Any, ...] = (GRID, (35, 110), 1, 3)
SURROGATES = ("pbe", "blyp", "lda,vwn", "pbe,", "revpbe")
METHODS = ("hf", "pbe", "b3lyp", "r2scan", "wb97x")


def seconds(function: Callable[[], Any]) -> float:
    """Processor seconds of one call, all threads."""
    start = time.process_time()
    function()
    return time.process_time() - start


def chosen(names: Sequence[str]) -> list[Any]:
    """The molecules of these names, smallest first."""
    molecules = [molecule for molecule in all_molecules() if molecule.name in names]
    missing = set(names) - {molecule.name for molecule in molecules}
    if missing:
        raise SystemExit(f"no molecule named {', '.join(sorted(missing))} in benchmarks/scf_molecules.smi")
    return molecules


def cost(molecule: Any, fit: bool, repeats: int) -> list[str]:
    """A line of the table of costs."""
    mol = make_mol(molecule.structure(), BASIS)
    mf = make_mean_field(mol, "pbe", fit)
    dm = mf.get_init_guess(mol, "minao")
    auxmol = make_auxmol(mol)
    coefficients = fit_density(mol, auxmol, dm)
    functional = functional_of(mf)
    mf.get_veff(mol, dm)
    parts: list[list[float]] = []
    for _ in range(repeats):
        guess = seconds(lambda: density_matrix(mf, auxmol, coefficients))
        build = seconds(lambda: mf.get_veff(mol, dm))
        coulomb = seconds(lambda: coulomb_matrix(mf, auxmol, coefficients))
        potential = seconds(lambda: GuessPotential(mol, auxmol, coefficients, functional).matrix())
        parts.append([build, guess, guess / build, coulomb, potential])
    build, guess, ratio, coulomb, potential = np.median(parts, axis=0)
    times = [f"{value:.2f}" for value in (build, guess, ratio, coulomb, potential, guess - coulomb - potential)]
    in_core = "in core" if mf._eri is not None else "on the fly"
    return [molecule.name, str(mol.natm), str(mol.nao), "fitted J" if fit else f"exact J, {in_core}", *times]


def warm_up() -> None:
    """A guess of water: libraries are loaded and threads started once, not for each molecule."""
    mf = make_mean_field(gto.M(atom="O 0 0 0.12; H 0 0.76 -0.47; H 0 -0.76 -0.47", basis=BASIS, verbose=0), "pbe", False)
    auxmol = make_auxmol(mf.mol)
    density_matrix(mf, auxmol, fit_density(mf.mol, auxmol, mf.get_init_guess(mf.mol, "minao")))


def costs(arguments: argparse.Namespace) -> Iterator[str]:
    """The table of costs, anew after each of its lines."""
    warm_up()
    columns = ["molecule", "atoms", "orbitals", "PBE/def2-SVP", "full build s", "guess s", "ratio", "J s", "Vxc s", "rest s"]
    rows = []
    for molecule in chosen(arguments.names or NAMES):
        for fit in (True, False):
            rows.append(cost(molecule, fit, arguments.repeats))
            yield table(columns, rows) + "".join(summary(rows, kind) for kind in (True, False))


def summary(rows: Sequence[Sequence[str]], fit: bool) -> str:
    """Median and largest ratio of the lines with density fitting, or without."""
    ratios = [float(row[6]) for row in rows if (row[3] == "fitted J") == fit]
    name = "with density fitting" if fit else "without density fitting"
    return f"\nratio {name}: median {np.median(ratios):.2f}, largest {max(ratios):.2f}\n" if ratios else ""


def method_object(mol: Any, method: str) -> Any:
    """A mean-field object with density fitting, so that many SCFs are affordable; grid level 2."""
    mf = scf.RHF(mol) if method == "hf" else dft.RKS(mol, xc=method)
    if method != "hf":
        mf.grids.level = 2
    return mf.density_fit()


def quality(mf: Any, energy: float, dm: np.ndarray) -> tuple[str, str]:
    """Cycles of the SCF from ``dm``; energy of ``dm`` above ``energy``, Hartree."""
    above = mf.energy_tot(dm, mf.get_hcore(), mf.get_veff(mf.mol, dm)) - energy
    run = mf.copy()
    run.kernel(dm0=dm)
    cycles = str(run.cycles) if run.converged and abs(run.e_tot - energy) < 1e-6 else f"{run.cycles} (differs)"
    return cycles, f"{above:.1e}"


def choices_of(molecule: Any, method: str) -> list[list[str]]:
    """The lines of one molecule and method."""
    mol = make_mol(molecule.structure(), BASIS)
    mf = method_object(mol, method)
    mf.kernel()
    settings: list[tuple[str, Any, str]] = [(DEFAULT_AUXBASIS, GRID, name) for name in SURROGATES]
    if functional_of(mf, "blyp").xc != "blyp":  # its own functional whatever the surrogate
        settings = settings[:1]
    settings += [(DEFAULT_AUXBASIS, grid, DEFAULT) for grid in GRIDS[1:]]
    settings += [("def2-universal-jkfit", GRID, DEFAULT)]
    rows = [["minao", "", "", "", *quality(mf, mf.e_tot, mf.get_init_guess(mol, "minao"))]]
    for auxbasis, grid, surrogate in settings:
        auxmol = make_auxmol(mol, auxbasis)
        coefficients = fit_density(mol, auxmol, mf.make_rdm1())
        start = time.process_time()
        dm = density_matrix(mf, auxmol, coefficients, surrogate=surrogate, grid=grid)
        spent = f"{time.process_time() - start:.2f}"
        rows.append([auxbasis, str(grid), functional_of(mf, surrogate).xc, spent, *quality(mf, mf.e_tot, dm)])
    return [[molecule.name, method, *row] for row in rows]


def choices(arguments: argparse.Namespace) -> Iterator[str]:
    """The table of settings, anew after each molecule and method."""
    columns = ["molecule", "method", "density in", "grid", "functional", "guess s", "cycles", "E above converged, Eh"]
    rows = []
    for molecule in chosen(arguments.names or ("acetone",)):
        for method in METHODS:
            rows += choices_of(molecule, method)
            yield table(columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="*", help="molecules of benchmarks/scf_molecules.smi")
    parser.add_argument("--choices", action="store_true", help="what grids, surrogates and auxiliary bases buy")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    name = "guess_choices" if arguments.choices else "guess_cost"
    title = "What the settings of the guess buy" if arguments.choices else "Cost of the guess, relative to one full Fock build"
    text = ""
    for body in choices(arguments) if arguments.choices else costs(arguments):
        text = f"{header(title, packages=('pyscf', 'numpy'))}- commit: {COMMIT}; threads: {arguments.threads}\n\n{body}"
        atomic_write_text(RESULTS / f"{name}.md", text)
        print([line for line in body.splitlines() if line.startswith("|")][-1], flush=True)
    print(text)


if __name__ == "__main__":
    main()
