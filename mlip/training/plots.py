"""Learning curves and parity plots, as PNG files; no display and no global state of matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from ase.data.colors import jmol_colors
from ase.units import GPa
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, LogLocator, NullFormatter

from mlip.files import atomic_path
from mlip.training.evaluate import Parity
from mlip.training.results import number

ELEMENT_COLOURS = {1: (0.6, 0.6, 0.6), 6: (0.1, 0.1, 0.1), 9: (0.1, 0.75, 0.8), 17: (0.1, 0.6, 0.1)}
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e")


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, atomically."""
    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
    return path


def learning_curve(rows: Sequence[dict[str, float]], path: Path) -> Path:
    """Errors of what is learned on training and validation set against wall time, with the learning rate."""
    panels = [
        ("energy_per_atom", "energy MAE (meV/atom)"), ("forces", "force MAE (meV/Å)"), ("stress", "stress MAE (meV/Å³)"),
        ("density_coulomb", "density: Coulomb error (mHa per electron)"), ("density", "coefficients: MAE (sd)"),
    ]  # fmt: skip
    panels = [panel for panel in panels if any(f"valid_{panel[0]}_mae" in row for row in rows)]
    figure = Figure(figsize=(4.6 * (len(panels) + 1), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels) + 1, squeeze=False)[0]
    minutes = max((row["seconds"] for row in rows), default=0.0) > 300
    for axis, (quantity, label) in zip(axes, panels, strict=False):
        for part, colour in (("train", COLOURS[0]), ("valid", COLOURS[1])):
            known = [row for row in rows if f"{part}_{quantity}_mae" in row]
            times = [row["seconds"] / (60 if minutes else 1) for row in known]
            values = [row[f"{part}_{quantity}_mae"] for row in known]
            style = "." if len(known) < 40 else ""
            name = "validation (averaged weights)" if part == "valid" else "training (running)"
            axis.plot(times, values, style + "-", color=colour, lw=1.2, ms=4, label=name)
        axis.set_ylabel(label)
        axis.legend(fontsize=8)
    times = [row["seconds"] / (60 if minutes else 1) for row in rows]
    axes[-1].plot(times[1:], [row["lr"] for row in rows[1:]], color="0.3", lw=1.2)
    axes[-1].set_ylabel("learning rate")
    for axis in axes:
        axis.set_yscale("log")
        if axis is not axes[-1]:
            axis.yaxis.set_major_formatter(LogFormatter(minor_thresholds=(2, 1)))
            axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 1)))
        axis.set_xlabel(f"wall time ({'min' if minutes else 's'})")
        axis.grid(alpha=0.3, which="both", lw=0.4)
    return save(figure, path)


def parity_plots(parities: dict[str, Parity], folder: Path) -> list[Path]:
    """``parity_energy.png``, ``..._forces.png``, ``..._stress.png``, ``..._density.png`` and ``calibration.png`` of standard
    deviations; kinds without labels are left out.
    """
    written = []
    if any(parity.energy for parity in parities.values()):
        written.append(_parity_energy(parities, folder / "parity_energy.png"))
    if any(parity.forces for parity in parities.values()):
        written.append(_parity_forces(parities, folder / "parity_forces.png"))
    if any(parity.stress for parity in parities.values()):
        sets = {name: _joined(parity.stress) / GPa for name, parity in parities.items() if parity.stress}
        written.append(_by_set(sets, "stress component", "GPa", "GPa", 1.0, folder / "parity_stress.png"))
    if any(parity.density for parity in parities.values()):
        written.append(_parity_density(parities, folder / "parity_density.png"))
    if any(parity.forces_std for parity in parities.values()):
        written.append(calibration_plot(parities, folder / "calibration.png"))
    return written


def calibration_bins(errors: np.ndarray, deviations: np.ndarray, least: int = 20, most: int = 12) -> np.ndarray:
    """Root mean squares of standard deviations and of errors ``[2, bins]``, in bins of equal numbers by standard deviation.

    Args:
        errors, deviations: ``[n]``. least: in each bin, unless there are fewer in all. most: bins.
    """
    order = np.argsort(deviations, kind="stable")
    parts = np.array_split(order, max(1, min(most, len(order) // least)))
    return np.array([[np.sqrt(np.square(values[part]).mean()) for part in parts] for values in (deviations, errors)])


def log_square(axis: Any, values: np.ndarray) -> None:
    """Logarithmic axes alike for both, around ``values``, with a diagonal."""
    low, high = 0.5 * max(float(values.min()), 1e-6), 2.0 * float(values.max())
    axis.plot([low, high], [low, high], color="0.4", lw=0.8, zorder=0)
    axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        each.set_major_formatter(lambda value, _: f"{value:g}")
        each.set_minor_formatter(NullFormatter())


def calibration_plot(parities: dict[str, Parity], path: Path) -> Path:
    """Errors against the standard deviations that were predicted for them: on the diagonal they are as large as they should be."""
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    for axis, what, unit in zip(figure.subplots(1, 2), ("energy", "forces"), ("meV", "meV/Å"), strict=True):
        shown = []
        for (name, parity), colour in zip(parities.items(), COLOURS * 9, strict=False):
            found = getattr(parity, f"{what}_std")
            if not found:
                continue
            errors, deviations = 1000.0 * _joined(found)
            bins = calibration_bins(errors, deviations)
            few = slice(None, None, max(1, len(errors) // 2000))
            axis.plot(deviations[few], errors[few], ".", color=colour, ms=2, alpha=0.2, rasterized=True)
            axis.plot(*bins, "o-", color=colour, ms=5, lw=1.2, label=name)
            shown.append(bins)
        log_square(axis, np.concatenate([bins.ravel() for bins in shown]))
        axis.set_xlabel(f"{what}_std ({unit})")
        axis.set_ylabel(f"error ({unit}); circles: root mean square of a bin")
        axis.grid(alpha=0.3, lw=0.4)
        axis.legend(fontsize=8, loc="upper left")
    return save(figure, path)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts, axis=1)


def _parity_energy(parities: dict[str, Parity], path: Path) -> Path:
    sets = {name: _joined(parity.energy) for name, parity in parities.items() if parity.energy}
    what = "energy above E0" if any(parity.e0 is not None for parity in parities.values()) else "energy"
    return _by_set(sets, what, "eV/atom", "meV/atom", 1000.0, path)


def _by_set(sets: dict[str, np.ndarray], what: str, unit: str, error_unit: str, scale: float, path: Path) -> Path:
    figure, axis, errors = _axes(what, unit, error_unit)
    for (name, (label, predicted)), colour in zip(sets.items(), COLOURS * 9, strict=False):
        difference = (predicted - label) * scale
        text = f"{name}: {_errors(difference)} {error_unit}"
        _scatter(axis, label, predicted, colour, text)
        errors.plot(label, difference, ".", color=colour, ms=3, alpha=0.5, rasterized=True)
    _diagonal(axis, np.concatenate([values.ravel() for values in sets.values()]))
    return save(figure, path)


def _parity_forces(parities: dict[str, Parity], path: Path) -> Path:
    """Force components of the last set (the test set where there is one), coloured by element."""
    name, parity = [(name, parity) for name, parity in parities.items() if parity.forces][-1]
    label, predicted = _joined(parity.forces)
    elements = np.repeat(np.concatenate(parity.forces_elements), 3)
    figure, axis, errors = _axes(f"force component ({name})", "eV/Å", "meV/Å")
    for z in sorted(set(elements.tolist())):
        chosen = elements == z
        difference = 1000.0 * (predicted - label)[chosen]
        colour = _element_colour(z)
        text = f"{chemical_symbols[z]}: {_errors(difference)} meV/Å"
        _scatter(axis, label[chosen], predicted[chosen], colour, text)
        errors.plot(label[chosen], difference, ".", color=colour, ms=2, alpha=0.4, rasterized=True)
    _diagonal(axis, np.concatenate([label, predicted]))
    return save(figure, path)


def _parity_density(parities: dict[str, Parity], path: Path) -> Path:
    """Coefficients of the last set that has them, a panel for each l, coloured by element."""
    name, parity = [(name, parity) for name, parity in parities.items() if parity.density][-1]
    degrees = sorted(parity.density)
    columns = min(3, len(degrees))
    rows = -(-len(degrees) // columns)
    figure = Figure(figsize=(4.4 * columns, 4.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    figure.suptitle(f"density coefficients less their element's mean, in standard deviations of the training set ({name})")
    for axis, degree in zip(axes, degrees, strict=False):
        label, predicted = _joined(parity.density[degree])
        elements = np.concatenate(parity.density_elements[degree])
        for z in sorted(set(elements.tolist())):
            chosen = elements == z
            error = float(np.sqrt(np.square(predicted - label)[chosen].mean()))
            _scatter(axis, label[chosen], predicted[chosen], _element_colour(z), f"{chemical_symbols[z]}: RMSE {number(error, 3)}")
        _diagonal(axis, np.concatenate([label, predicted]))
        axis.set_title(f"l = {degree}")
        axis.set_xlabel("reference")
        axis.set_ylabel("predicted")
        axis.grid(alpha=0.3, lw=0.4)
    for axis in axes[len(degrees) :]:
        axis.set_axis_off()
    return save(figure, path)


def _errors(difference: np.ndarray) -> str:
    return f"MAE {number(np.abs(difference).mean())}, RMSE {number(np.sqrt(np.square(difference).mean()))}"


def _element_colour(z: int) -> tuple[float, float, float]:
    """Jmol's colour of an element, darkened where it would vanish on white; a few set apart from their neighbours."""
    if z in ELEMENT_COLOURS:
        return ELEMENT_COLOURS[z]
    red, green, blue = (float(value) for value in jmol_colors[z])
    factor = min(1.0, 0.6 / max(0.299 * red + 0.587 * green + 0.114 * blue, 1e-6))
    return red * factor, green * factor, blue * factor


def _axes(what: str, unit: str, error_unit: str) -> tuple[Figure, Any, Any]:
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    axis, errors = figure.subplots(1, 2)
    axis.set_xlabel(f"reference {what} ({unit})")
    axis.set_ylabel(f"predicted ({unit})")
    errors.set_xlabel(f"reference {what} ({unit})")
    errors.set_ylabel(f"predicted − reference ({error_unit})")
    errors.axhline(0.0, color="0.4", lw=0.8)
    for each in (axis, errors):
        each.grid(alpha=0.3, lw=0.4)
    return figure, axis, errors


def _scatter(axis: Any, label: np.ndarray, predicted: np.ndarray, colour: Any, text: str) -> None:
    axis.plot(label, predicted, ".", color=colour, ms=3, alpha=0.5, rasterized=True)
    axis.plot([], [], "o", color=colour, ms=5, label=text)


def _diagonal(axis: Any, values: np.ndarray) -> None:
    low, high = float(values.min()), float(values.max())
    axis.plot([low, high], [low, high], color="0.4", lw=0.8, zorder=0)
    axis.set_aspect("equal", adjustable="box")
    axis.legend(fontsize=7, loc="upper left", framealpha=0.6)
