"""Which standard deviations tell large errors and unknown structures best: the last layer's, a committee's, others.

    python benchmarks/uncertainty.py

Trains committees of three (small preset, one thread; AcAc at 300 K from ../shared/data, datasets/organics by molecule) in
runs/uncertainty, evaluates them on frames like those of the training and unlike them, and writes a table and a calibration plot
into benchmarks/results. Finished trainings, labels and evaluations are only read.

RMSE: of the first model; the committee's of its mean. std: root mean square, calibrated on the validation frames (the last layer's
by `mlip train`; the others by one factor). rank: Spearman's correlation of std and absolute error. bins: of ten by std, the
largest factor between root mean squares of std and error. AUROC: how well the std (of forces: the largest of the frame) tells a
frame of this set from one of the first with no more atoms than the largest here; 0.5 is chance, 1 is perfect.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _calibration import auroc, worst_bin
from _common import header, table
from _store import COMMIT, Store
from _uncertaintydata import ACAC, ROOT, SEEDS, organics_sets, stretched, stretched_file, torsions, train
from _uncertaintymethods import METHODS, batches, by_method, fit_distance, force_posterior
from ase import Atoms
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from mlip import MLIPCalculator
from mlip.checkpoint import load_model
from mlip.data.frame import Frame, FrameSubset
from mlip.data.readers import open_frames, to_atoms
from mlip.data.split import split_frames
from mlip.files import atomic_write_text
from mlip.models import Potential
from mlip.training.plots import COLOURS, calibration_bins, log_square, save
from mlip.training.prepare import without_isolated_atoms
from mlip.training.uncertainty import fit_uncertainty

OUTPUT = ROOT / "benchmarks" / "results"
SETS = {"acac": ("valid", "300 K", "600 K", "torsion", "stretched"), "organics": ("valid", "test", "sulfur", "stretched")}
EVERY = 10  # of the AcAc test frames


def frame_sets(folder: Path, name: str) -> dict[str, Sequence[Frame]]:
    """Frames by set; those of ``torsion`` and of AcAc's ``stretched`` have no labels."""
    if name == "acac":
        training, by = open_frames(ACAC / "train_300K.xyz"), "frame"
        tests = {t: open_frames(ACAC / f"test_MD_{t.replace(' ', '')}.xyz") for t in ("300 K", "600 K")}
        sets: dict[str, Sequence[Frame]] = {t: FrameSubset(f, np.arange(0, len(f), EVERY)) for t, f in tests.items()}
        some = [to_atoms(frame) for frame in tests["300 K"][::100]]
        sets["torsion"] = [frame_of(atoms) for start in some for atoms in torsions(start)]
        sets["stretched"] = [frame_of(atoms) for start in some for atoms in stretched(start)]
    else:
        files = organics_sets(folder)
        training, by = without_isolated_atoms(open_frames(files["train"])), "molecule"
        sets = {"test": open_frames(files["test"]), "sulfur": open_frames(files["sulfur"])}
        sets["stretched"] = open_frames(stretched_file(folder, files["test"]))
    kept, valid = split_frames(training, 0.1, 0, by)
    return {"train": kept, "valid": valid, **sets}


def frame_of(atoms: Atoms) -> Frame:
    """Without labels."""
    return Frame(atoms.numbers, atoms.positions)


def measure(folder: Path, name: str, store: Store) -> None:
    """Rows of one data set that are missing."""
    wanted = [f"{name}/{part}" for part in (*SETS[name], "cost")]
    if all(key in store for key in wanted):
        return
    members = [load_model(train(folder, name, seed)) for seed in SEEDS]
    sets = frame_sets(folder, name)
    start = time.process_time()
    print(fit_uncertainty(members[0], sets["train"], sets["valid"]), flush=True)
    seconds = time.process_time() - start
    distance = fit_distance(members[0], sets["train"])
    for part in SETS[name]:
        if f"{name}/{part}" not in store:
            store.append({"key": f"{name}/{part}", "commit": COMMIT, **by_method(members, distance, sets[part])})
            print(name, part, flush=True)
    if f"{name}/cost" not in store:
        store.append({"key": f"{name}/cost", "commit": COMMIT, "fit": seconds, **costs(members[0], sets[SETS[name][1]])})


def costs(model: Potential, frames: Sequence[Frame]) -> dict[str, Any]:
    """Processor milliseconds of a step of the calculator, the least of many, in turns: small and 8 times as many atoms."""
    result: dict[str, Any] = {}
    for copies in (1, 8):
        atoms = to_atoms(frames[len(frames) // 2])
        for axis in range(3 if copies == 8 else 0):
            second = atoms.copy()
            second.positions[:, axis] += 8.0
            atoms = atoms + second
        plain, asked = MLIPCalculator(model), MLIPCalculator(model, uncertainty=True)
        graph = next(batches([frame_of(atoms)], model.cutoff))
        runs: dict[str, Callable[[], Any]] = {
            "plain": lambda plain=plain, atoms=atoms: plain.calculate(atoms, ["forces"]),
            "last layer": lambda asked=asked, atoms=atoms: asked.calculate(atoms, ["forces"]),
            "posterior": lambda graph=graph: force_posterior(model, graph),
        }
        least = dict.fromkeys(runs, float("inf"))
        for turn in range(60):
            for name, run in runs.items():
                if turn < 8 or name != "posterior":
                    start = time.process_time()
                    run()
                    least[name] = min(least[name], time.process_time() - start)
        result[str(len(atoms))] = {name: 1000 * value for name, value in least.items()}
    return result


# -- from rows to numbers -----------------------------------------------------------------------------------------------


def errors_of(row: dict[str, Any], method: str, what: str) -> np.ndarray:
    """Absolute errors that a method's std is about."""
    return np.abs(row["error"]["committee" if method == "committee" else "single"][what])


def calibrated(rows: dict[str, Any], part: str, method: str, what: str) -> np.ndarray | None:
    """A method's std on a set; ``None`` where it has none."""
    found = rows[part]["std"][method].get(what)
    if found is None:
        return None
    if method == "last layer":
        return np.asarray(found)
    error, std = errors_of(rows["valid"], method, what), np.asarray(rows["valid"]["std"][method][what])
    return np.asarray(found) * np.sqrt(np.square(error).mean() / np.square(std).mean())


def by_frame(row: dict[str, Any], std: np.ndarray, what: str) -> np.ndarray:
    """The std of a frame: of its energy, or the largest of its forces."""
    if what == "energy":
        return std
    largest = np.zeros(max(row["frame"]) + 1)
    np.maximum.at(largest, np.asarray(row["frame"]), std)
    return largest


def cells(rows: dict[str, Any], name: str, part: str, method: str, what: str) -> list[str]:
    """RMSE, std, rank, bins and AUROC of one method on one set."""
    std = calibrated(rows, part, method, what)
    if std is None:
        return []
    base = SETS[name][1]
    known = calibrated(rows, base, method, what)
    assert known is not None
    atoms = np.bincount(rows[base]["frame"]) <= np.bincount(rows[part]["frame"]).max()
    flag = "" if part == base else f"{auroc(by_frame(rows[base], known, what)[atoms], by_frame(rows[part], std, what)):.2f}"
    error = errors_of(rows[part], method, what)
    rms = f"{1000 * np.sqrt(np.square(std).mean()):.3g}"
    if not np.isfinite(error).all():
        return ["-", rms, "-", "-", flag]
    worst = worst_bin(calibration_bins(error, std, most=10))
    rank = spearmanr(std, error)[0]
    return [f"{1000 * np.sqrt(np.square(error).mean()):.3g}", rms, f"{rank:.2f}", f"{worst:.1f}", flag]


def results_text(store: Store, names: Sequence[str]) -> str:
    """Tables of what is there."""
    text = ""
    columns = ["set", "frames", "method", "RMSE", "std", "rank", "bins", "AUROC"]
    for name in names:
        rows = rows_of(store, name)
        for what, unit in (("energy", "meV a frame"), ("forces", "meV/A, of a component")):
            lines = []
            for part in SETS[name][1:]:
                for method in METHODS:
                    if found := cells(rows, name, part, method, what):
                        lines.append([part, str(max(rows[part]["frame"]) + 1), method, *found])
            text += f"\n**{name}, {what}** ({unit})\n\n{table(columns, lines)}"
        text += cost_text(name, rows["cost"])
    return text


def cost_text(name: str, row: dict[str, Any]) -> str:
    """Processor times of a step, by number of atoms."""
    lines = []
    for atoms, times in ((key, value) for key, value in row.items() if key.isdigit()):
        plain = times["plain"]
        extra = [f"{times[key] / plain:.2f}" for key in ("last layer", "posterior")]
        lines.append([atoms, f"{plain:.2f}", extra[0], str(float(len(SEEDS))), extra[1]])
    columns = ["atoms", "energy and forces, ms", "with std, last layer", f"committee of {len(SEEDS)} (by definition)", "posterior"]
    text = f"\n{name}: processor time of a calculator's step, least of 60, and in its units\n\n{table(columns, lines)}"
    return text + f"\nfit of the last layer's at the end of the training: {row['fit']:.1f} s of one processor\n"


def rows_of(store: Store, name: str) -> dict[str, Any]:
    """Rows of one data set by their set."""
    return {row["key"].split("/")[1]: row for row in store.rows if row["key"].startswith(name + "/")}


def plot(store: Store, names: Sequence[str], path: Path) -> None:
    """Errors against std in bins; a panel a data set and quantity, a colour a set, a line a method."""
    figure = Figure(figsize=(9.6, 4.8 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 2, squeeze=False)
    for line, name in zip(axes, names, strict=True):
        rows = rows_of(store, name)
        for axis, (what, unit) in zip(line, (("energy", "meV"), ("forces", "meV/Å")), strict=True):
            values = []
            for part, colour in zip(SETS[name][1:], COLOURS, strict=False):
                for method, style in (("last layer", "o-"), ("committee", "x:")):
                    error, std = errors_of(rows[part], method, what), calibrated(rows, part, method, what)
                    if std is not None and np.isfinite(error).all():
                        bins = 1000 * calibration_bins(error, std, most=8)
                        axis.plot(*bins, style, color=colour, ms=5, lw=1.2, label=f"{part}, {method}")
                        values.append(bins.ravel())
            log_square(axis, np.concatenate(values))
            axis.set_title(f"{name}: {what}")
            axis.set_xlabel(f"predicted standard deviation ({unit})")
            axis.set_ylabel(f"RMSE of the bin ({unit})")
            axis.grid(alpha=0.3, lw=0.4)
            axis.legend(fontsize=7)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=list(SETS), help="data sets")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "uncertainty", help="trainings, labels and rows")
    arguments = parser.parse_args()
    if "acac" in arguments.sets and not ACAC.is_dir():
        sys.exit("benchmarks/uncertainty.py: ../shared/data is absent (it is not part of the project); give --sets organics")
    torch.set_num_threads(1)
    store = Store(arguments.folder / "rows.jsonl")
    for name in arguments.sets:
        measure(arguments.folder, name, store)
    plot(store, arguments.sets, OUTPUT / "uncertainty.png")
    about = __doc__.split("\n\n", 2)[2]
    text = header("Standard deviations of energies and forces") + f"\n{about}" + results_text(store, arguments.sets)
    atomic_write_text(OUTPUT / "uncertainty.md", text)
    print(text)


if __name__ == "__main__":
    main()
