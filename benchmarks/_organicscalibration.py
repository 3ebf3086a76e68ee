"""Standard deviations of a model against its errors: frames of unseen molecules, with bonds pulled open, ions and radicals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _calibration import auroc, worst_bin
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from mlip import MLIPCalculator
from mlip.data.frame import Frame
from mlip.data.readers import to_atoms
from mlip.training.plots import COLOURS, calibration_bins, log_square, save


def standard_deviations(model: str, frames: Sequence[Frame]) -> dict[str, Any]:
    """Of energies (meV a frame) and force components (meV/A): root mean squares of errors and standard deviations, Spearman's
    correlation, both in bins; and the largest ``forces_std`` of each frame.
    """
    calculator = MLIPCalculator(model, uncertainty=True, check_electrons=False)
    energy: list[tuple[float, float]] = []
    force: list[np.ndarray] = []
    largest: list[float] = []
    for frame in frames:
        atoms = to_atoms(replace(frame, charge=0, spin=0))  # which the model has no input for
        atoms.calc = calculator
        assert frame.forces is not None and frame.energy is not None
        energy.append((atoms.get_potential_energy() - frame.energy, float(calculator.results["energy_std"])))
        errors = (atoms.get_forces() - frame.forces).ravel()
        std = np.repeat(np.asarray(calculator.results["forces_std"]), 3)  # one number an atom, of any of its components
        force.append(np.stack([errors, std]))
        largest.append(1000 * float(std.max()))
    parts = {"energy": np.array(energy).T, "force": np.concatenate(force, axis=1)}
    return {**{what: summary(1000 * np.abs(errors), 1000 * std) for what, (errors, std) in parts.items()}, "largest": largest}


def summary(errors: np.ndarray, deviations: np.ndarray) -> dict[str, Any]:
    """Root mean squares, rank correlation, bins."""
    return {
        "rmse": rms(errors),
        "std": rms(deviations),
        "rank": float(spearmanr(deviations, errors)[0]),
        "bins": calibration_bins(errors, deviations, most=10).tolist(),
    }


def calibration_table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Errors and standard deviations by set; how well the largest ``forces_std`` of a frame tells the set from the first one."""
    columns = [
        "set", "frames", "force RMSE, meV/A", "forces_std", "energy RMSE, meV", "energy_std", "rank", "bins", "AUROC", "above 95 %",
    ]  # fmt: skip
    known = np.array(rows[0]["largest"])
    limit = np.quantile(known, 0.95)
    cells = []
    for row in rows:
        force, energy, largest = row["force"], row["energy"], np.array(row["largest"])
        factor = worst_bin(np.array(force["bins"]))
        numbers = [force["rmse"], force["std"], energy["rmse"], energy["std"]]
        told = "" if row is rows[0] else f"{auroc(known, largest):.2f}"
        cells.append(
            [
                row["key"].split(" ", 1)[1], f"{len(largest)}", *(f"{number:.0f}" for number in numbers),
                f"{force['rank']:.2f}", f"{factor:.1f}", told, f"{100 * np.mean(largest > limit):.0f} %",
            ]
        )  # fmt: skip
    return columns, cells


def rms(values: Sequence[float] | np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def calibration_plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Root mean square error against standard deviation, in bins; a colour a set."""
    figure = Figure(figsize=(9.6, 4.8), layout="constrained")
    for axis, (what, unit) in zip(figure.subplots(1, 2), (("energy", "meV"), ("force", "meV/Å")), strict=True):
        shown = []
        for row, colour in zip(rows, COLOURS, strict=False):
            bins = np.array(row[what]["bins"])
            axis.plot(*bins, "o-", color=colour, ms=5, lw=1.2, label=row["key"].split(" ", 1)[1])
            shown.append(bins.ravel())
        log_square(axis, np.concatenate(shown))
        axis.set(xlabel=f"predicted standard deviation, {what} ({unit})", ylabel=f"RMSE of the bin ({unit})")
        axis.grid(alpha=0.3, lw=0.4)
        axis.legend(fontsize=8, frameon=False)
    save(figure, path)
