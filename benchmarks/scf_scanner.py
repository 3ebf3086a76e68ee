"""Starts of the later geometries of a scanner: SCF cycles along a short MD-like path and along the path of an optimisation.

Arms: PySCF's own scanner (the last orbitals as they are), and ``scf_accel.warm_start`` with ``scanner="last"``, ``"predicted"``,
``"change"`` and ``"fock"``, the latter three also with ``check=False`` (no comparison with the last density). The first
geometry is not counted, and neither is the making of a start: 0.15 to 0.45 of a full Fock matrix for all but "last".

Predictors: ``exact``, the fitted converged density of every geometry, a perfect model; ``blurred``, it mixed with a share of
the superposition of atoms, a model with errors that vary smoothly with the geometry; any other word: a checkpoint.

    python benchmarks/scf_scanner.py --molecules CH3OH --predictors exact blurred --steps 6
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import header, table
from ase import Atoms
from ase.build import molecule
from pyscf import dft, gto

import scf_accel
from mlip.files import atomic_write_text
from scf_accel.fitting import fit_density
from scf_accel.predictor import ExactPredictor, as_predictor

RESULTS = Path(__file__).resolve().parent / "results"
BLUR = 0.3  # share of the superposition of atoms
FLOAT_FIELDS = ("inference_seconds", "guess_seconds", "check_seconds")
ARMS: dict[str, dict[str, Any] | None] = {
    "PySCF": None,
    "last": {"scanner": "last"},
    "predicted": {"scanner": "predicted"},
    "predicted, no check": {"scanner": "predicted", "check": False},
    "change": {"scanner": "change"},
    "change, no check": {"scanner": "change", "check": False},
    "fock": {"scanner": "fock"},
    "fock, no check": {"scanner": "fock", "check": False},
}


class Blurred(ExactPredictor):
    """The exact density with a share of the superposition of atoms."""

    name = "blurred"

    def coefficients(self, mol: gto.Mole) -> np.ndarray:
        exact = super().coefficients(mol)
        atoms = fit_density(mol, self.auxmol(mol), dft.RKS(mol).get_init_guess(key="minao"))
        return exact + BLUR * (atoms - exact)


def md_path(atoms: Atoms, steps: int, seed: int = 0) -> list[np.ndarray]:
    """``steps`` geometries (Angstrom) 1 fs apart: three sines for each coordinate, hydrogen up to 0.1 Angstrom."""
    generator = np.random.default_rng(seed)
    shape = (3, len(atoms), 3)
    amplitude = generator.normal(scale=0.03, size=shape) / np.sqrt(atoms.get_masses() / 1.0)[:, None] ** 0.5
    period, phase = generator.uniform(12.0, 40.0, size=(3, 1, 1)), generator.uniform(0.0, 2.0 * np.pi, size=shape)
    return [atoms.positions + (amplitude * np.sin(2.0 * np.pi * t / period + phase)).sum(axis=0) for t in range(steps)]


def optimisation_path(atoms: Atoms, steps: int, seed: int = 0) -> list[np.ndarray]:
    """``steps`` geometries (Angstrom) that near the last one, each 0.6 of the way that the one before was away."""
    start = np.random.default_rng(seed).normal(scale=0.06, size=atoms.positions.shape)
    return [atoms.positions + 0.6**step * start for step in range(steps)]


PATHS = {"md": md_path, "optimisation": optimisation_path}


def run(atoms: Atoms, path: list[np.ndarray], predictor: Any, options: argparse.Namespace, arm: str) -> list[dict[str, Any]]:
    """One row for each geometry of a path."""
    mf, settings = method(mol_at(atoms, path[0], options), options), ARMS[arm]
    scanner = (mf if settings is None else scf_accel.warm_start(mf, predictor, **settings)).as_scanner()
    rows = []
    for positions in path:
        started = time.perf_counter()
        energy = scanner(mol_at(atoms, positions, options))
        row = {"energy": energy, "cycles": scanner.cycles, "seconds": time.perf_counter() - started}
        report = getattr(scanner, "warm_start_report", None)
        if report is not None:
            row |= {"start": report.start, "fallback": report.fallback}
            row |= {name: getattr(report, name) for name in FLOAT_FIELDS}
        rows.append(row)
    return rows


def mol_at(atoms: Atoms, positions: np.ndarray, options: argparse.Namespace) -> gto.Mole:
    """The molecule at ``positions[n, 3]``, Angstrom."""
    return gto.M(atom=list(zip(atoms.symbols, positions.tolist(), strict=True)), basis=options.basis, verbose=0)


def method(mol: gto.Mole, options: argparse.Namespace) -> Any:
    """The stock mean-field object."""
    mf = dft.RKS(mol, xc=options.xc)
    mf.grids.level = options.grid_level
    return mf.density_fit() if options.density_fit else mf


def make_predictor(name: str, options: argparse.Namespace) -> Any:
    """A stand-in or a model."""
    kinds = {"exact": ExactPredictor, "blurred": Blurred}
    return kinds[name](lambda mol: method(mol, options)) if name in kinds else as_predictor(name)


def summary(rows: list[dict[str, Any]]) -> str:
    """Mean cycles of the later geometries for each predictor, path and arm."""
    columns = [
        "predictor",
        "molecule",
        "path",
        "start",
        "cycles after the first geometry",
        "of PySCF's",
        "from the last",
        "max dE, Eh",
    ]
    lines = []
    for row in rows:
        for arm, points in row["arms"].items():
            later, stock = points[1:], row["arms"]["PySCF"][1:]
            cycles, reference = (np.mean([point["cycles"] for point in part]) for part in (later, stock))
            last = sum(point.get("start") == "last" for point in later)
            worst = max(abs(a["energy"] - b["energy"]) for a, b in zip(points, row["arms"]["PySCF"], strict=True))
            cells = [f"{cycles:.2f}", f"{cycles / reference:.0%}", f"{last} of {len(later)}" if "start" in later[0] else "all"]
            lines.append([row["predictor"], row["molecule"], row["path"], arm, *cells, f"{worst:.0e}"])
    return table(columns, lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", nargs="+", default=["CH3OH", "CH3CONH2"], help="names of ase.build.molecule")
    parser.add_argument("--predictors", nargs="+", default=["exact", "blurred"])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--xc", default="pbe")
    parser.add_argument("--basis", default="def2-svp")
    parser.add_argument("--grid-level", type=int, default=1)
    parser.add_argument("--density-fit", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only write the table of the rows that are there")
    return parser.parse_args()


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each molecule, path and predictor."""
    rows = []
    for name in options.molecules:
        atoms = molecule(name)
        for path, make in PATHS.items():
            points = make(atoms, options.steps)
            for kind in options.predictors:
                predictor = make_predictor(kind, options)
                arms = {arm: run(atoms, points, predictor, options, arm) for arm in ARMS}
                settings = f"{options.xc}/{options.basis}, grid level {options.grid_level}, {options.steps} geometries a path"
                rows.append({"molecule": name, "path": path, "predictor": kind, "settings": settings, "arms": arms})
                print(summary(rows[-1:]), flush=True)
    return rows


def main() -> None:
    """Measure, print, write."""
    options = parse()
    stored = options.output / "scf_scanner.json"
    rows = json.loads(stored.read_text(encoding="utf-8")) if options.table else measured(options)
    text = header("Starts of later geometries", packages=("pyscf", "numpy")) + "\n" + __doc__.split("\n\n", 1)[1] + "\n"
    for settings in dict.fromkeys(row["settings"] for row in rows):
        text += f"{settings}:\n\n" + summary([row for row in rows if row["settings"] == settings]) + "\n"
    atomic_write_text(options.output / "scf_scanner.md", text)
    if not options.table:
        atomic_write_text(stored, json.dumps(rows, indent=1, default=float) + "\n")
    print(text)


if __name__ == "__main__":
    main()
