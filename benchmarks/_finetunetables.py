"""Tables and plot of benchmarks/fine_tune.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import header, table
from _store import Store

from mlip.files import atomic_path, atomic_write_text

Rows = Sequence[dict[str, Any]]


def write_report(store: Store, output: Path, explanation: str) -> None:
    """``fine_tune.md`` and ``fine_tune.png`` from the rows that are no errors."""
    good = [row for row in store.rows if "error" not in row]
    if not good:
        print(f"{store.path}: no finished row, so no table")
        return
    text = header("Fine-tuning on acetylacetone", packages=("torch", "lightning"))
    for name in ("commit", "machine"):
        text += f"- measured with {name}: {', '.join(sorted({row[name] for row in good}))}\n"
    loads = [row["load"] for row in good]
    text += f"- load before a row: {min(loads):.1f} to {max(loads):.1f}\n\n{explanation}\n"
    trainings = [row for row in good if row["kind"] == "training"]
    for model, steps in dict.fromkeys((row["source"], steps_asked_for(row)) for row in trainings):
        rows = [row for row in trainings if (row["source"], steps_asked_for(row)) == (model, steps)]
        text += f"\n### From {model}, {rows[0]['parameters']:,} parameters\n\n{errors_table(rows)}"
    energies = [row for row in good if row["kind"] == "energies"]
    if energies:
        text += f"\n### Energies before any training\n\n{energies_table(energies)}"
    text += "".join(f"\nFailed: `{row['key']}`: {row['error']}\n" for row in store.rows if "error" in row)
    if trainings:
        plot(trainings, output / "fine_tune.png")
        text += "\n![RMSE against the number of frames](fine_tune.png)\n"
    atomic_write_text(output / "fine_tune.md", text)
    print(text)
    print(f"written: {output / 'fine_tune.md'}")


def steps_asked_for(row: dict[str, Any]) -> str:
    """As its key says; those that were done are whole epochs."""
    return next((part for part in row["key"].split("-") if part.endswith("steps")), "")


def groups(rows: Rows) -> dict[tuple[int, str, float], list[dict[str, Any]]]:
    """Rows that differ in the seed only, by number of frames, arm and learning rate."""
    found: dict[tuple[int, str, float], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["size"], row["arm"], row["lr"]), []).append(row)
    return dict(sorted(found.items(), key=lambda item: item[0][0]))


def mean_error(rows: Rows, name: str) -> float:
    """Mean over the seeds."""
    return float(np.mean([row["errors"][name] for row in rows]))


def errors_table(rows: Rows) -> str:
    """Test errors by number of frames and start."""
    names = list(rows[0]["errors"])
    units = {name: f"{name} RMSE, {'meV' if name.endswith('energy') else 'meV/A'}" for name in names}
    lines = []
    for (size, arm, _), group in groups(rows).items():
        cells = [str(size), arm, *(f"{mean_error(group, name):.3g}" for name in names)]
        minutes = np.mean([row["training_seconds"] for row in group]) / 60
        lines.append([*cells, f"{group[0]['lr']:g}", str(group[0]["steps"]), f"{minutes:.1f}", str(len(group))])
    return table(["frames", "start", *units.values(), "learning rate", "steps", "minutes", "seeds"], lines)


def energies_table(rows: Rows) -> str:
    """Errors of energies before and after the correction of E0."""
    lines = []
    for row in sorted(rows, key=lambda row: (row["source"], row["name"], row["size"], not row["isolated"])):
        cells = [row["source"], row["name"], row["theory"], str(row["size"]), "isolated atoms" if row["isolated"] else "fitted"]
        for when in ("before", "after"):
            cells += [f"{1000 * row[when]['mean_per_atom']:+.1f}", f"{1000 * row[when]['rmse']:.4g}"]
        lines.append(cells)
    columns = ["model", "set", "theory", "frames", "E0", "as it is: mean error, meV/atom", "RMSE, meV"]
    return table([*columns, "corrected: mean error, meV/atom", "RMSE, meV"], lines)


def plot(rows: Rows, path: Path) -> None:
    """RMSE of energies and forces against the number of frames, one line an arm, learning rate and temperature."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    arms = list(dict.fromkeys((row["arm"], row["lr"]) for row in rows))
    for axes, quantity, unit in zip(figure.subplots(1, 2), ("energy", "forces"), ("meV", "meV/A"), strict=True):
        for name in (name for name in rows[0]["errors"] if name.endswith(quantity)):
            for index, arm in enumerate(arms):
                points = [(size, mean_error(group, name)) for (size, *other), group in groups(rows).items() if tuple(other) == arm]
                style = "-" if name == f"300K {quantity}" else "--"
                label = f"{arm[0]} ({arm[1]:g}), {name.split()[0]}"
                axes.plot(*zip(*points, strict=True), f"o{style}", color=f"C{index}", label=label)
        axes.set(xlabel="training frames", ylabel=f"{quantity} RMSE ({unit})", xscale="log", yscale="log")
        axes.grid(alpha=0.3, which="both")
    figure.axes[1].legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
