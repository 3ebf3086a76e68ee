"""What the shipped potential organics-energy shows on molecules that it was not trained on; DFT by our own PySCF.

    python benchmarks/organics_energy.py                        # all parts; an hour or two on two cores
    python benchmarks/organics_energy.py --parts relax --count 5
    python benchmarks/organics_energy.py --share 1/2 & python benchmarks/organics_energy.py --share 2/2; wait
    python benchmarks/organics_energy.py --table

The molecules are those of the test split of configs/organics-energy.yaml (by molecule), drawn with a fixed seed among those of
at least eight atoms.

errors: energies and forces of the whole test split. relax: each molecule from its force-field geometry to ``fmax`` 0.01 eV/A
with the model, then from there to the same ``fmax`` with DFT (the level of theory of the training data), which BFGS begins
with the model's Hessian; root mean square distance of the two minima after superposition. plain: five of these DFT relaxations
without that Hessian. nve: relaxed, given twice 300 K, 10 ps of velocity Verlet at 0.5 fs; the drift is the slope of a line
through the total energy; whole means that every bond stays below 1.5 times its first length and no atoms that were apart come
within a bond length. torsion: three fragments that are in no list of the data, relaxed with the model at fixed dihedrals every
30 degrees; DFT energies at the same geometries. calibration: `energy_std` and `forces_std` against errors, on the test split,
on its copies with a bond pulled open (which `errors` counts apart), and on the ions and radicals of datasets/organics/ions.h5,
of which the model knows neither charge nor spin; rank, of forces: Spearman's correlation of std and error; bins, of forces: of
ten by std, the largest factor between root mean squares of std and error; AUROC: how well the largest `forces_std` of a frame
tells the set from the first; above 95 %: frames whose largest `forces_std` is above that of 95 % of the first set.
Rows that are there are not measured again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from _common import header, processor, table
from _dftcalculator import DFTCalculator
from _organicscalibration import calibration_plot, calibration_table, standard_deviations
from _store import COMMIT, Store
from ase import Atoms
from ase.build import minimize_rotation_and_translation
from ase.constraints import FixInternals
from ase.io import iread
from ase.neighborlist import natural_cutoffs, neighbor_list
from ase.optimize import BFGS
from rdkit import Chem

from mlip import MLIPCalculator
from mlip.checkpoint import load_model, read_header
from mlip.configfile import load_config
from mlip.data.hdf5 import HDF5Frames
from mlip.dynamics import MDSettings, hessian, relax, run_md
from mlip.dynamics.output import read_csv
from mlip.files import atomic_path, atomic_write_text
from mlip.training.prepare import prepare
from mlip.training.report import evaluate_frames
from scf_accel.labels import LabelSettings, compute_labels
from scf_accel.stretching import two_sides
from scf_accel.structures import structure_from_smiles

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "configs" / "organics-energy.yaml"
LEAST = 8
"""Atoms of the smallest molecule that is relaxed; smaller ones are species of their own, of which nobody can tell from others."""
IONS = HERE.parent / "datasets" / "organics" / "ions.h5"
DATA_ALONE = ["model.init_from=null"]
"""Of the config only the data are asked for: what the training began with may be gone."""
STRETCHED = "its stretched copies"
PARTS = ["errors", "calibration", "relax", "plain", "nve", "torsion"]
PLAIN = 5
"""Molecules that DFT also relaxes without the model's Hessian."""
FMAX = 0.01
TEMPERATURE, PICOSECONDS, TIMESTEP = 300.0, 10.0, 0.5
FRAGMENTS = {"CCNC(C)=O": "[CH3]CN[CX3]", "COc1ccncc1": "[CH3]Occ", "NCCc1ccsc1": "NCCc"}
"""SMILES, and SMARTS of the dihedral that is turned."""
ENERGY_ALONE = LabelSettings(forces=False)
ANGLES = np.arange(0.0, 360.0, 30.0)


def main() -> None:
    """Measure what is missing, then write the tables."""
    options = parse()
    store = Store(options.output / "organics_energy.jsonl")
    weights = MLIPCalculator(options.model).fingerprint()
    if not options.table:
        measured = {row["key"] for row in store.rows if row["weights"] == weights}
        mine, processes = map(int, options.share.split("/"))
        for number, (key, work) in enumerate(jobs(options)):
            if key in measured or number % processes != mine - 1:
                continue
            started = time.perf_counter()
            row = {"key": key, "model": options.model, "weights": weights, **work()}
            about = {"commit": COMMIT, "date": f"{datetime.now():%Y-%m-%d %H:%M}", "processor": processor()}
            store.append({**row, "seconds": time.perf_counter() - started, **about})
            print(f"{key}: " + ", ".join(f"{name} {value}" for name, value in row.items() if np.isscalar(value)), flush=True)
    write([row for row in store.rows if row["weights"] == weights], options.output)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="organics-energy", help="checkpoint or shipped model")
    parser.add_argument("--config", type=Path, default=CONFIG, help="of its training: whose test split is taken")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--count", type=int, default=20, help="molecules to relax; half as many for nve")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--share", default="1/1", help="1/2 and 2/2: every second row each, in two processes; then --table")
    parser.add_argument("--table", action="store_true", help="only write the tables of the model's rows")
    return parser.parse_args()


def jobs(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Keys and measurements, in the order of the parts."""
    data = prepare(load_config(options.config, DATA_ALONE))
    trained_on = read_header(options.model)["metadata"]["training_data"]
    if trained_on["sha256"] != data.fingerprint or trained_on.get("split", data.split) != data.split:
        raise SystemExit(f"{options.model} was trained on another state of the data of {options.config}: its test split is gone")
    sets = calibration_sets(data.tests["test"])
    test = sets["test split"]
    names = [frame.extras["molecule"] for frame in test]
    large = sorted({name for name, frame in zip(names, test, strict=True) if len(frame) >= LEAST})
    drawn = np.random.default_rng(0).permutation(large)[: options.count].tolist()
    if "errors" in options.parts:
        yield "errors", lambda: errors(options.model, test)
        if STRETCHED in sets:
            yield "errors stretched", lambda: errors(options.model, sets[STRETCHED])
    for name in sets if "calibration" in options.parts else []:
        yield f"calibration {name}", lambda name=name: standard_deviations(options.model, sets[name])
    for smiles in drawn if "relax" in options.parts else []:
        yield f"relax {smiles}", lambda smiles=smiles: relaxation(options.model, smiles)
    for smiles in drawn[:PLAIN] if "plain" in options.parts else []:
        yield f"plain {smiles}", lambda smiles=smiles: plain(options.model, smiles)
    for smiles in drawn[: len(drawn) // 2] if "nve" in options.parts else []:
        yield f"nve {smiles}", lambda smiles=smiles: dynamics(options.model, smiles)
    for smiles in FRAGMENTS if "torsion" in options.parts else []:
        yield f"torsion {smiles}", lambda smiles=smiles: torsion(options.model, smiles)


def errors(model: str, test: Any) -> dict[str, Any]:
    """Errors of the test split; ``by_molecule``: energy and force MAE (meV/atom, meV/A) and atoms of each frame."""
    potential = load_model(model)
    report = evaluate_frames(potential, test).errors.report()
    kept = {name: report[name] for name in ("energy_per_atom", "forces")}
    each: dict[str, list[list[float]]] = {}
    for frame in test:
        one = evaluate_frames(potential, [frame], collect=False).errors.report()
        each.setdefault(frame.extras["molecule"], []).append([one["energy_per_atom"]["mae"], one["forces"]["mae"], len(frame)])
    return {"frames": len(test), "molecules": len(each), "errors": kept, "by_molecule": each}


def calibration_sets(test: Any) -> dict[str, list[Any]]:
    """Frames of unseen molecules, those with a bond pulled open, ions and radicals."""
    pulled = [frame.extras["origin"].startswith("stretched") for frame in test]
    sets = {
        "test split": [frame for frame, one in zip(test, pulled, strict=True) if not one],
        STRETCHED: [frame for frame, one in zip(test, pulled, strict=True) if one],
        "ions and radicals": [frame for frame in HDF5Frames(IONS, load_density=False) if len(frame) > 1],
    }
    return {name: frames for name, frames in sets.items() if frames}


def geometry(smiles: str) -> Atoms:
    """The force field's minimum."""
    structure = structure_from_smiles(smiles, Chem.AddHs(Chem.MolFromSmiles(smiles)), 0)
    return Atoms(structure.numbers, structure.positions)


def relaxed(model: str, smiles: str) -> tuple[Atoms, Any]:
    """The model's minimum from there, and how it was found."""
    atoms = geometry(smiles)
    return atoms, relax(atoms, MLIPCalculator(model, dtype="float64"), fmax=FMAX, max_steps=500)


def relaxation(model: str, smiles: str) -> dict[str, Any]:
    """Steps of the model, and how far DFT moves the atoms from its minimum to its own."""
    atoms, found = relaxed(model, smiles)
    reference = atoms.copy()
    reached = by_dft(reference, hessian(atoms))
    moved = atoms.copy()
    minimize_rotation_and_translation(reference, moved)
    distance = np.linalg.norm(moved.positions - reference.positions, axis=1)
    return {
        "atoms": len(atoms),
        "converged": bool(found.converged),
        "steps": int(found.steps),
        **reached,
        "rmsd": float(np.sqrt(np.mean(distance**2))),
        "largest": float(distance.max()),
    }


def by_dft(atoms: Atoms, first: np.ndarray | None = None) -> dict[str, Any]:
    """Relax with DFT, in place; ``first`` is the Hessian that BFGS begins with."""
    atoms.calc = DFTCalculator()
    optimizer = BFGS(atoms, logfile=None)
    if first is not None:
        optimizer.H0 = first
    return {"dft_converged": bool(optimizer.run(fmax=FMAX, steps=100)), "dft_steps": int(optimizer.nsteps)}


def plain(model: str, smiles: str) -> dict[str, Any]:
    """Steps of DFT from the model's minimum with ASE's own first Hessian."""
    atoms, _ = relaxed(model, smiles)
    return {"atoms": len(atoms), **by_dft(atoms)}


def dynamics(model: str, smiles: str) -> dict[str, Any]:
    """Drift, mean temperature, and whether the molecule stays whole."""
    atoms, _ = relaxed(model, smiles)
    first = atoms.copy()
    settings = MDSettings(
        steps=round(1000 * PICOSECONDS / TIMESTEP),
        ensemble="nve",
        timestep=TIMESTEP,
        temperature=2 * TEMPERATURE,
        log_every=10,
        save_every=50,
        state_every=10**6,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.traj"
        summary = run_md(atoms, MLIPCalculator(model), settings, path)
        log = read_csv(summary.log)
        whole = all(is_whole(first, frame) for frame in iread(str(path)))
    slope = np.polyfit(log["time_ps"], log["etot_eV"], 1)[0]
    return {
        "atoms": len(atoms),
        "drift": float(1000 * slope / len(atoms)),
        "temperature": float(summary.mean_temperature),
        "whole": whole,
    }


def is_whole(first: Atoms, frame: Atoms) -> bool:
    """Whether all bonds of ``first`` are there, and no others."""
    bonds = set(zip(*(part.tolist() for part in neighbor_list("ij", first, natural_cutoffs(first, 1.15))), strict=True))
    now = set(zip(*(part.tolist() for part in neighbor_list("ij", frame, natural_cutoffs(frame, 0.9))), strict=True))
    kept = all(frame.get_distance(i, j) < 1.5 * first.get_distance(i, j) for i, j in bonds)
    return kept and now <= bonds


def torsion(model: str, smiles: str) -> dict[str, Any]:
    """Energies (meV) of model and DFT along a relaxed scan, from the lowest of each."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    dihedral = list(mol.GetSubstructMatch(Chem.MolFromSmarts(FRAGMENTS[smiles])))
    atoms, _ = relaxed(model, smiles)
    side = next(part for part in two_sides(mol, mol.GetBondBetweenAtoms(*dihedral[1:3])) if dihedral[2] in part)
    ours, theirs, unfinished = [], [], 0
    for angle in ANGLES:
        turned = atoms.copy()
        turned.set_dihedral(*dihedral, angle, indices=side)
        turned.set_constraint(FixInternals(dihedrals_deg=[[angle, dihedral]]))
        unfinished += not relax(turned, MLIPCalculator(model, dtype="float64"), fmax=0.02, max_steps=300).converged
        turned.set_constraint()
        ours.append(MLIPCalculator(model, dtype="float64").get_potential_energy(turned))
        theirs.append(compute_labels(turned.numbers, turned.positions, 0, 0, ENERGY_ALONE).energy)
    curves = [1000 * (np.array(energies) - min(energies)) for energies in (ours, theirs)]
    return {
        "angles": ANGLES.tolist(),
        "model_meV": curves[0].tolist(),
        "dft_meV": curves[1].tolist(),
        "unfinished": unfinished,
    }


def write(measured: list[dict[str, Any]], folder: Path) -> None:
    """``organics_energy.md`` and the plots, of one model's rows."""
    if not measured:
        raise SystemExit("no row of this model yet; leave out --table")
    rows = {key: [row for row in measured if row["key"].split()[0] == key] for key in PARTS}
    models = ", ".join(sorted({f"{row['model']} ({row['weights']})" for row in measured}))
    parts = [header(f"{models} on molecules that it was not trained on", ("torch", "numpy", "ase", "pyscf"))]
    commits = sorted({row["commit"] for row in measured})
    parts.append(f"- measured with commit: {', '.join(commits)}\n")
    for row in rows["errors"]:
        energy, forces = row["errors"]["energy_per_atom"], row["errors"]["forces"]
        stretched = row["key"] != "errors"
        name = "Its copies with a bond pulled open" if stretched else "Test split"
        parts.append(
            f"{name}, {row['frames']} frames of {row['molecules']} molecules: energy MAE {energy['mae']:.1f}, RMSE "
            f"{energy['rmse']:.1f} meV/atom; force MAE {forces['mae']:.0f}, RMSE {forces['rmse']:.0f} meV/A.\n"
        )
        if not stretched:
            parts.append(by_molecule(row["by_molecule"]))
    if rows["calibration"]:
        parts += ["### Standard deviations\n", table(*calibration_table(rows["calibration"]))]
        parts.append("![calibration](organics_energy_calibration.png)\n")
        calibration_plot(rows["calibration"], folder / "organics_energy_calibration.png")
    if rows["relax"]:
        parts += ["### Relaxations\n", table(*relaxation_table(rows["relax"], rows["plain"]))]
    if rows["nve"]:
        columns = ["molecule", "atoms", "drift, meV/atom/ps", "mean T, K", "whole"]
        cells = [
            [f"`{row['key'][4:]}`", f"{row['atoms']}", f"{row['drift']:+.4f}", f"{row['temperature']:.0f}", yes(row["whole"])]
            for row in rows["nve"]
        ]
        parts += [f"### NVE, {PICOSECONDS:g} ps\n", table(columns, cells)]
    if rows["torsion"]:
        parts += ["### Torsions\n", table(*torsion_table(rows["torsion"])), "![torsions](organics_energy_torsion.png)\n"]
        plot(rows["torsion"], folder / "organics_energy_torsion.png")
    text = "\n".join(parts)
    atomic_write_text(folder / "organics_energy.md", text)
    print(text)


def by_molecule(each: dict[str, list[list[float]]]) -> str:
    """Medians of the larger frames, and the molecules from the worst forces to the best."""
    large = np.array([frame for frames in each.values() for frame in frames if frame[2] >= LEAST])
    energy, force = np.median(large[:, 0]), np.median(large[:, 1])
    means = {name: np.mean(frames, axis=0) for name, frames in each.items()}
    names = sorted(means, key=lambda name: -means[name][1])
    cells = [[f"`{name}`", *(f"{number:.0f}" for number in means[name])] for name in names]
    text = f"Medians over the {len(large)} frames of {LEAST} atoms and more: {energy:.1f} meV/atom, {force:.0f} meV/A.\n\n"
    return text + table(["molecule", "energy MAE, meV/atom", "force MAE, meV/A", "atoms"], cells)


def relaxation_table(rows: list[dict[str, Any]], plain_rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """One line a molecule, then how many are fine."""
    columns = ["molecule", "atoms", "steps", "converged", "DFT steps from there", "without the Hessian", "RMSD, A", "largest, A"]
    without = {row["key"][6:]: dft_steps(row) for row in plain_rows}
    cells = [
        [
            f"`{row['key'][6:]}`",
            f"{row['atoms']}",
            f"{row['steps']}",
            yes(row["converged"]),
            dft_steps(row),
            without.get(row["key"][6:], ""),
            f"{row['rmsd']:.3f}",
            f"{row['largest']:.3f}",
        ]
        for row in rows
    ]
    fine = sum(row["converged"] and row["dft_converged"] and row["rmsd"] < 0.05 for row in rows)
    median = float(np.median([row["rmsd"] for row in rows]))
    total = ["**all**", "", "", f"{sum(row['converged'] for row in rows)} of {len(rows)}", "", "", f"median {median:.3f}"]
    return columns, [*cells, [*total, f"{fine} of {len(rows)} converged and within 0.05 A"]]


def dft_steps(row: dict[str, Any]) -> str:
    """Their number, and whether they were enough."""
    return f"{row['dft_steps']}" + ("" if row["dft_converged"] else " (not converged)")


def yes(condition: bool) -> str:
    """A word for a table."""
    return "yes" if condition else "no"


def torsion_table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Barriers and differences."""
    columns = ["fragment", "DFT barrier, meV", "model's", "mean difference, meV", "largest", "geometries not converged"]
    cells = []
    for row in rows:
        ours, theirs = np.array(row["model_meV"]), np.array(row["dft_meV"])
        off = np.abs(ours - theirs)
        numbers = (theirs.max(), ours.max(), off.mean(), off.max(), row["unfinished"])
        cells.append([f"`{row['key'][8:]}`", *(f"{number:.0f}" for number in numbers)])
    return columns, cells


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Model and DFT, one panel a fragment."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(rows), figsize=(4 * len(rows), 3.2), squeeze=False, layout="constrained")
    for axis, row in zip(axes[0], rows, strict=True):
        axis.plot(row["angles"], row["dft_meV"], "o-", label="PBE/def2-SVP", color="black")
        axis.plot(row["angles"], row["model_meV"], "s--", label=row["model"], color="tab:blue")
        axis.set(title=row["key"][8:], xlabel="dihedral, degrees", xticks=range(0, 361, 90))
    axes[0][0].set_ylabel("energy, meV")
    axes[0][0].legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)


if __name__ == "__main__":
    main()
