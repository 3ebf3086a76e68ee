"""Ablation of benchmarks/scf_wall.py: what the start is worth, up to the exact fitted density, a perfect prediction.

The oracle: the density of stock PySCF's converged density matrix, fitted in the Coulomb metric with def2-universal-jfit. Its
Coulomb potential and its semilocal (PBE) potential give a Fock matrix, one diagonalisation a density matrix. Making it is
not in the times.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import header, table
from _scfruns import Job, Store, in_arm, make_mol
from pyscf import dft, gto
from scf_wall import Case, named_jobs, run_ours, run_stock
from scf_wall_plots import category, measured_line

from mlip.files import atomic_write_text
from scf_accel.fitting import fit_density, make_auxmol
from scf_accel.guess import density_matrix

NAMES = ("uracil", "nitroaniline", "aspirin", "caffeine", "nicotine")
STARTS = ("minao", "atom", "fitted")
SURROGATE = "pbe"  # semilocal potential of the fitted density, whatever the functional


def fitted_density_matrix(mol: gto.Mole, dm: np.ndarray, xc: str = SURROGATE) -> np.ndarray:
    """Closed-shell density matrix from the Fock matrix of the fitted density of ``dm``, tagged with its orbitals."""
    auxmol = make_auxmol(mol)
    return density_matrix(dft.RKS(mol, xc=xc), auxmol, fit_density(mol, auxmol, dm))


def measure_starts(case: Case, number: int) -> dict[str, Any]:
    """Both solvers from each start; which solver goes first alternates."""
    _, dm = in_arm("stock", lambda: run_stock(case))
    fitted = fitted_density_matrix(make_mol(case.molecule.structure(), case.basis), dm)
    runs: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(STARTS):
        start: Any = fitted if name == "fitted" else name
        solvers: list[tuple[str, Callable[[], Any]]] = [
            ("stock", lambda start=start: run_stock(case, start)[0]),
            ("ours", lambda start=start: run_ours(case, start)),
        ]
        runs[name] = {}
        for solver, run in solvers if (number + index) % 2 == 0 else solvers[::-1]:
            runs[name][solver] = in_arm(solver, run)
            gc.collect()
    say = ", ".join(f"{name} {run['stock']['builds']}/{run['ours']['fine']}" for name, run in runs.items())
    return {"nao": runs["minao"]["stock"]["nao"], "starts": runs, "say": f"builds stock/ours: {say}"}


def ablation_jobs(arguments: argparse.Namespace) -> list[Job]:
    """One job a molecule and functional."""
    return named_jobs(arguments, "starts", NAMES, 2.5, measure_starts)


def starts_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a molecule, method and start; medians by method and start, of the lines where both solvers converged."""
    columns = ["molecule", "atoms", "method", "start", "stock builds", "stock s", "fine", "coarse", "ours s", "ratio"]
    columns += ["ratio to stock minao", "dE to stock minao, Eh", "note"]
    lines: list[list[str]] = []
    kept: dict[tuple[str, str], list[list[float]]] = {}
    for row in sorted(rows, key=lambda row: (row["atoms"], row["name"], category(row))):
        base = row["starts"]["minao"]["stock"]
        for name in STARTS:
            stock, ours = row["starts"][name]["stock"], row["starts"][name]["ours"]
            values = [stock["builds"], stock["seconds"], ours["fine"], ours["coarse"], ours["seconds"]]
            values += [stock["seconds"] / ours["seconds"], base["seconds"] / ours["seconds"], ours["energy"] - base["energy"]]
            if stock["converged"] and ours["converged"] and base["converged"]:
                kept.setdefault((category(row), name), []).append(values)
            note = starts_note(base, stock, ours)
            lines.append([row["name"], str(row["atoms"]), category(row), name, *starts_cells(values), note])
    for (method, name), group in sorted(kept.items(), key=lambda item: item[0][0]):
        medians = starts_cells(np.median(group, axis=0).tolist())
        lines.append([f"**median of {len(group)}**", "", method, name, *medians, ""])
    return table(columns, lines)


def starts_note(base: dict[str, Any], stock: dict[str, Any], ours: dict[str, Any]) -> str:
    """What did not converge, and why stock PySCF took over."""
    notes = [] if base["converged"] else ["stock minao not converged"]
    notes += [] if stock["converged"] else ["stock not converged"]
    notes += [] if ours["converged"] else ["**ours not converged**"]
    notes += [f"fallback: {ours['fallback']}"] if ours["fallback"] else []
    return "; ".join(notes) or "converged"


def starts_cells(values: Sequence[float]) -> list[str]:
    """Builds, seconds, ratios and energy difference as text."""
    formats = ("{:.0f}", "{:.1f}", "{:.0f}", "{:.0f}", "{:.1f}", "{:.2f}", "{:.2f}", "{:+.1e}")
    return [text.format(value) for text, value in zip(formats, values, strict=True)]


def write_ablation(store: Store, output: Path) -> None:
    """Write and print ``scf_ablation.md``."""
    rows = [row for row in store.rows if "error" not in row]
    if not rows:
        print(f"{store.path}: no finished row, so no table")
        return
    text = header("What the start is worth: minao, atom, exact fitted density", packages=("pyscf", "numpy"))
    text += measured_line(rows)
    text += "\n"
    text += __doc__.split("\n\n", 1)[1] + "\n"
    text += starts_table(rows)
    failed = [row for row in store.rows if "error" in row]
    text += "".join(f"\nfailed: `{row['key']}`: {row['error']}\n" for row in failed)
    atomic_write_text(output / "scf_ablation.md", text)
    print(text)
    print(f"written: {output / 'scf_ablation.md'}")
