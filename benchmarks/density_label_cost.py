"""Density labels: error against cost of the labeller's settings. Prints the table of datasets/organics/README.md.

    python benchmarks/density_label_cost.py [SMILES ...]        # the README shows some of the rows

Each row labels a displaced geometry (0.05 Angstrom per coordinate) without forces and compares the fitted density with that of
grid level 4, conv_tol 1e-11, DIIS: the self-repulsion of the difference in millihartree per electron, the integral of
|difference| per electron. Beside it stands the distance of the fitted density itself from the density matrix's, which no model
can get below. Times are processor seconds of one thread.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from label_cost import REFERENCE, displaced
from pyscf import gto, lib
from rich.console import Console
from rich.table import Table

from scf_accel.densityerrors import density_errors
from scf_accel.fitting import fit_density, make_auxmol
from scf_accel.labels import LabelSettings, compute_labels, make_mean_field, make_molecule, run_scf

ROWS = [
    (f"level {level}, {tol:g}, {solver}", LabelSettings(grid_level=level, conv_tol=tol, solver=solver, forces=False))
    for level, tol, solver in (
        *((2, 1e-9, "multilevel"), (1, 1e-9, "multilevel"), (1, 1e-7, "multilevel"), (0, 1e-7, "multilevel")),
        *((1, 1e-7, "diis"), (0, 1e-7, "diis")),
    )
]


def reference_density(mol: gto.Mole) -> np.ndarray:
    """Density matrix of the reference settings."""
    mf = make_mean_field(mol, REFERENCE)
    run_scf(mf)
    return np.asarray(mf.make_rdm1())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("smiles", nargs="*", default=["CC=O", "FCCl", "CSO", "Cc1nc(CF)ns1"])
    arguments = parser.parse_args()
    lib.num_threads(1)
    console = Console(width=140)
    whole = ("with forces: level 2, 1e-09, multilevel", LabelSettings())
    for warm in (whole[1], ROWS[-1][1]):  # imports and warm-up are not counted
        water = displaced("O")
        compute_labels(water.numbers, water.positions, 0, 0, warm)
    for smiles in arguments.smiles:
        structure = displaced(smiles)
        mol = make_molecule(structure.numbers, structure.positions, structure.charge, structure.spin, REFERENCE)
        dm, auxmol = reference_density(mol), make_auxmol(mol, REFERENCE.auxbasis)
        exact = fit_density(mol, auxmol, dm)
        table = Table(title=f"{smiles}, {mol.natm} atoms, {mol.nelectron} electrons")
        for name in ("settings", "seconds", "error, mHa/electron", "int |error|, %"):
            table.add_column(name, justify="left" if name == "settings" else "right")
        for name, settings in [whole, *ROWS]:
            started = time.process_time()
            labels = compute_labels(structure.numbers, structure.positions, structure.charge, structure.spin, settings)
            seconds = time.process_time() - started
            error = density_errors(mol, auxmol, labels.density_coefficients, exact)
            table.add_row(name, f"{seconds:.1f}", f"{1e3 * error.coulomb / mol.nelectron:.1e}", f"{100 * error.absolute:.4f}")
        fit = density_errors(mol, auxmol, exact, dm)
        table.add_row("the fit itself", "", f"{1e3 * fit.coulomb / mol.nelectron:.1e}", f"{100 * fit.absolute:.4f}")
        console.print(table)


if __name__ == "__main__":
    main()
