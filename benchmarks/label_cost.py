"""Label error against cost: what the labeller's settings buy. Prints the table of datasets/organics/README.md.

    python benchmarks/label_cost.py [SMILES ...]
    python benchmarks/label_cost.py --sample datasets/organics/organics.h5 --count 12

Each row labels a displaced geometry (0.05 Angstrom per coordinate) and compares energy and forces with grid level 4,
conv_tol 1e-11 and DIIS. Times are processor seconds of one thread, so that other work on the machine disturbs them little. With
``--sample`` random stored labels of a file are compared with that reference instead.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from pyscf import lib
from pyscf.dft import numint
from rdkit import Chem
from rich.console import Console
from rich.table import Table

from mlip.data.hdf5 import HDF5Frames
from scf_accel.labels import (
    BOHR_TO_ANGSTROM,
    HARTREE_TO_EV,
    LabelSettings,
    compute_forces,
    make_mean_field,
    make_molecule,
    run_scf,
)
from scf_accel.structures import Structure, rng_for, structure_from_smiles

ROWS: list[tuple[str, LabelSettings, dict[str, Any]]] = [
    ("level 2, 1e-9, multilevel (chosen)", LabelSettings(), {}),
    ("level 2, 1e-9, DIIS", LabelSettings(solver="diis"), {}),
    ("the same, stock integrator and gradient, integrals anew each cycle", LabelSettings(solver="diis"), {"stock": True}),
    ("level 2, 1e-9, no grid response", LabelSettings(), {"grid_response": False}),
    ("level 2, 1e-9, DIIS, extra last cycle", LabelSettings(solver="diis"), {"conv_check": True}),
    ("level 2, 1e-7", LabelSettings(conv_tol=1e-7), {}),
    ("level 1, 1e-9", LabelSettings(grid_level=1), {}),
    ("level 0, 1e-9", LabelSettings(grid_level=0), {}),
    ("level 3, 1e-9", LabelSettings(grid_level=3), {}),
]

# Stock PySCF's solver, so that the multilevel solver is compared with something else
REFERENCE = LabelSettings(solver="diis", grid_level=4, conv_tol=1e-11)


def displaced(smiles: str) -> Structure:
    """MMFF geometry with Gaussian displacements of 0.05 Angstrom."""
    structure = structure_from_smiles(smiles, Chem.AddHs(Chem.MolFromSmiles(smiles)), 0)
    structure.positions = structure.positions + rng_for(0, smiles).normal(scale=0.05, size=structure.positions.shape)
    return structure


def label(
    structure: Structure,
    settings: LabelSettings,
    stock: bool = False,
    grid_response: bool = True,
    conv_check: bool = False,
) -> tuple[float, np.ndarray, float, float, int]:
    """Energy (eV), forces (eV/Angstrom), SCF and gradient seconds, cycles."""
    mol = make_molecule(structure.numbers, structure.positions, structure.charge, structure.spin, settings)
    mf = make_mean_field(mol, settings)
    mf.conv_check = conv_check
    start = time.process_time()
    if stock:
        mf._numint = numint.NumInt()
        mf.kernel()
    else:
        run_scf(mf)
        mf._numint.clear()
    middle = time.process_time()
    forces = stock_forces(mf) if stock else compute_forces(mf, grid_response)
    return mf.e_tot * HARTREE_TO_EV, forces, middle - start, time.process_time() - middle, mf.cycles


def stock_forces(mf: Any) -> np.ndarray:
    """PySCF's own gradient with the grid's response, eV/Angstrom."""
    gradient = mf.nuc_grad_method()
    gradient.grid_response = True
    return -np.asarray(gradient.kernel()) * (HARTREE_TO_EV / BOHR_TO_ANGSTROM)


def check_sample(path: str, count: int, largest: int, console: Console) -> None:
    """Compare ``count`` random stored labels (frames of 3 to ``largest`` atoms) with the reference settings."""
    frames = HDF5Frames(path)
    sizes = frames.num_atoms
    candidates = np.flatnonzero((sizes > 2) & (sizes <= largest))
    chosen = np.random.default_rng(0).permutation(candidates)[:count]
    table = Table(title=f"{path}: stored labels against grid level 4, conv_tol 1e-11")
    for name in ("molecule", "origin", "dE meV", "dF mean meV/A", "dF max"):
        table.add_column(name)
    errors, energies = [], []
    for index in chosen:
        frame = frames[int(index)]
        structure = Structure(frame.atomic_numbers, frame.positions, frame.charge, frame.spin)
        energy, forces, *_ = label(structure, REFERENCE)
        errors.append(1e3 * np.abs(frame.forces - forces))
        energies.append(1e3 * (frame.energy - energy))
        numbers = f"{energies[-1]:.3f}", f"{errors[-1].mean():.3f}", f"{errors[-1].max():.3f}"
        table.add_row(frame.extras["molecule"], frame.extras["origin"], *numbers)
    everything = np.concatenate([error.ravel() for error in errors])
    mean_energy = np.mean(np.abs(energies))
    table.add_row("all", "", f"{mean_energy:.3f} (MAE)", f"{everything.mean():.3f}", f"{everything.max():.3f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("smiles", nargs="*", default=["CC=O", "FCCl", "CSO"])
    parser.add_argument("--rows", type=int, default=len(ROWS), help="only the first rows")
    parser.add_argument("--sample", help="HDF5 file whose stored labels are checked instead")
    parser.add_argument("--count", type=int, default=12, help="labels to check")
    parser.add_argument("--largest", type=int, default=10, help="atoms of the largest frame to check")
    arguments = parser.parse_args()
    lib.num_threads(1)
    console = Console(width=140)
    if arguments.sample:
        check_sample(arguments.sample, arguments.count, arguments.largest, console)
        return
    label(displaced("O"), LabelSettings())  # imports and warm-up are not counted
    for smiles in arguments.smiles:
        structure = displaced(smiles)
        energy, forces, *_ = label(structure, REFERENCE)
        table = Table(title=f"{smiles}, {len(forces)} atoms, mean |F| {np.abs(forces).mean():.2f} eV/A")
        for name in ("settings", "cycles", "SCF s", "gradient s", "dE meV", "dF mean meV/A", "dF max", "net F"):
            table.add_column(name, justify="left" if name == "settings" else "right")
        for name, settings, options in ROWS[: arguments.rows]:
            e, f, scf_seconds, gradient_seconds, cycles = label(structure, settings, **options)
            error, net = 1e3 * np.abs(f - forces), 1e3 * np.abs(f.sum(axis=0)).max()
            table.add_row(
                name,
                str(cycles),
                f"{scf_seconds:.1f}",
                f"{gradient_seconds:.1f}",
                f"{1e3 * (e - energy):.3f}",
                f"{error.mean():.3f}",
                f"{error.max():.3f}",
                f"{net:.3f}",
            )
        console.print(table)


if __name__ == "__main__":
    main()
