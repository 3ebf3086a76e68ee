"""The table of errors: on the screen, as text and as JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mlip.files import atomic_write_text
from mlip.training.metrics import unit_of

Report = dict[str, dict[str, float]]
_NAMES = {
    "energy_per_atom": "energy/atom", "energy": "energy", "forces": "forces", "stress": "stress",
    "density_coulomb": "density, Coulomb", "density_overlap": "density, overlap",
    "energy_std": "energy_std (predicted)", "forces_std": "forces_std (predicted)",
    "density_electrons": "electrons, unprojected", "density": "coefficients", "density_pairs": "pairs let through (mean)",
}  # fmt: skip
_ORDER: tuple[str, ...] = ("energy_per_atom", "energy", "energy_std", "forces", "forces/", "forces_std", "stress", "stress_GPa")
_ORDER += (*tuple(name for name in _NAMES if name.startswith("density")), "density/")


def results_table(reports: dict[str, Report], frames: dict[str, int]) -> Table:
    """Rows: quantities; columns: MAE and RMSE of each set."""
    table = Table(title="Errors (number of frames in brackets)", title_justify="left")
    table.add_column("quantity", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    for name in reports:
        table.add_column(f"{name}\nMAE", justify="right", no_wrap=True)
        table.add_column(f"({frames[name]})\nRMSE", justify="right", no_wrap=True)
    quantities = list(dict.fromkeys(quantity for report in reports.values() for quantity in report))
    quantities.sort(key=_place)
    for quantity in quantities:
        base, _, part = quantity.partition("/")
        name = _NAMES.get(base, "stress")
        label = f"  {name} {'of' if part.startswith('l=') else 'on'} {part}" if part else name
        cells = []
        for report in reports.values():
            found = report.get(quantity)
            cells += _cells(found) if found else ["-", "-"]
        table.add_row(label, unit_of(quantity), *cells)
    return table


def _cells(found: dict[str, float]) -> list[str]:
    """MAE and RMSE; of what is no error, its mean or its root mean square."""
    if "rms" in found:
        return ["", number(found["rms"])]
    return [number(found["mean"]), ""] if "mean" in found else [number(found["mae"]), number(found["rmse"])]


def _place(quantity: str) -> int:
    base, slash, _ = quantity.partition("/")
    return _ORDER.index(base + slash)


def clock(seconds: float) -> str:
    """``h:mm:ss`` or ``m:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def short(report: Report, kind: str) -> str:
    """Energy, force and density error of a report as ``E 1.2 meV/atom F 34 meV/A D 0.1 mHa/e``; pairs let through, if gated."""
    parts = []
    shown = (("energy_per_atom", "E"), ("forces", "F"), ("density_coulomb" if "density_coulomb" in report else "density", "D"))
    for quantity, letter in shown:
        if quantity in report:
            parts.append(f"{letter} {number(report[quantity][kind], 3)} {unit_of(quantity)}")
    if "density_pairs" in report:
        parts.append(f"pairs {number(report['density_pairs']['mean'], 3)} %")
    return " ".join(parts)


def number(value: float, digits: int = 4) -> str:
    """A number in so many digits, never in powers of ten where it is large."""
    return f"{value:.{digits}g}" if value < 10**digits else f"{value:.0f}"


def write_results(folder: Path, reports: dict[str, Report], frames: dict[str, int], about: dict[str, Any]) -> None:
    """``results.txt`` (the table) and ``results.json`` (``{errors: {set: ...}, frames, units, ...about}``)."""
    text = io.StringIO()
    Console(file=text, width=60 + 24 * len(reports), no_color=True, markup=False).print(results_table(reports, frames))
    lines = [f"{key}: {value}" for key, value in about.items() if not isinstance(value, dict)]
    atomic_write_text(folder / "results.txt", text.getvalue() + "\n" + "\n".join(lines) + "\n")
    units = {quantity: unit_of(quantity) for report in reports.values() for quantity in report}
    content = {"errors": reports, "frames": frames, "units": units, **about}
    atomic_write_text(folder / "results.json", json.dumps(content, indent=2) + "\n")
