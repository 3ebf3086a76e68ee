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
_NAMES = {"energy_per_atom": "energy/atom", "energy": "energy", "forces": "forces", "stress": "stress"}


def results_table(reports: dict[str, Report], frames: dict[str, int]) -> Table:
    """Rows: quantities; columns: MAE and RMSE of each set."""
    table = Table(title="Errors (number of frames in brackets)", title_justify="left")
    table.add_column("quantity", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    for name in reports:
        table.add_column(f"{name}\nMAE", justify="right", no_wrap=True)
        table.add_column(f"({frames[name]})\nRMSE", justify="right", no_wrap=True)
    quantities = list(dict.fromkeys(quantity for report in reports.values() for quantity in report))
    order = ["energy_per_atom", "energy", "forces"]
    quantities.sort(key=lambda q: (order.index(q) if q in order else 4 if q.startswith("stress") else 3))
    for quantity in quantities:
        base, _, element = quantity.partition("/")
        label = f"  {base} on {element}" if element else _NAMES.get(base, "stress")
        cells = []
        for report in reports.values():
            found = report.get(quantity)
            cells += [number(found["mae"]), number(found["rmse"])] if found else ["-", "-"]
        table.add_row(label, unit_of(quantity), *cells)
    return table


def clock(seconds: float) -> str:
    """``h:mm:ss`` or ``m:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def short(report: Report, kind: str) -> str:
    """Energy and force error of a report as ``E 1.2 meV/atom F 34 meV/A``."""
    parts = []
    for quantity, letter, unit in (("energy_per_atom", "E", "meV/atom"), ("forces", "F", "meV/A")):
        if quantity in report:
            parts.append(f"{letter} {number(report[quantity][kind], 3)} {unit}")
    return " ".join(parts)


def number(value: float, digits: int = 4) -> str:
    """A number in so many digits, never in powers of ten where it is large."""
    return f"{value:.{digits}g}" if value < 10**digits else f"{value:.0f}"


def write_results(folder: Path, reports: dict[str, Report], frames: dict[str, int], about: dict[str, Any]) -> None:
    """``results.txt`` (the table) and ``results.json`` (``{errors: {set: ...}, frames, units, ...about}``)."""
    text = io.StringIO()
    Console(file=text, width=60 + 24 * len(reports), no_color=True).print(results_table(reports, frames))
    lines = [f"{key}: {value}" for key, value in about.items() if not isinstance(value, dict)]
    atomic_write_text(folder / "results.txt", text.getvalue() + "\n" + "\n".join(lines) + "\n")
    units = {quantity: unit_of(quantity) for report in reports.values() for quantity in report}
    content = {"errors": reports, "frames": frames, "units": units, **about}
    atomic_write_text(folder / "results.json", json.dumps(content, indent=2) + "\n")
