"""Tables and plots of benchmarks/scf_wall.py from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import header, table
from _scfruns import Store

Row = dict[str, Any]
# The targets of the solver: median and smallest wall ratio, energy error (Hartree), median of the fine builds
MEDIAN_RATIO, SMALLEST_RATIO, ENERGY, FINE = 3.0, 1.3, 1e-8, 3
BINS = ((1, 12), (13, 15), (16, 20), (21, 25), (26, 35), (36, 60))  # atoms
PARTS = ("start", "setup", "coarse", "fine")
TARGETS = (
    f"Targets: median wall ratio at least {MEDIAN_RATIO} with density fitting and without; no molecule below {SMALLEST_RATIO}; "
    f"energy within {ENERGY:.0e} Eh of stock PySCF converged to 1e-10; at most {FINE} fine builds in the median."
)


def ratio(row: Row) -> float:
    """Wall seconds of stock PySCF by ours."""
    return row["stock"]["seconds"] / row["ours"]["seconds"]


def cpu_ratio(row: Row) -> float:
    """Processor seconds of stock PySCF by ours: less disturbed by other work on the machine."""
    return row["stock"]["cpu"] / row["ours"]["cpu"]


def energy_error(row: Row, solver: str = "ours") -> float:
    """Energy minus that of the tight reference, Hartree."""
    return row[solver]["energy"] - row["reference"]["energy"]


def coarse_cost(row: Row) -> float:
    """Seconds of a coarse iteration by those of a fine build; NaN where there is none."""
    ours = row["ours"]
    if not ours["coarse"] or not ours["fine"] or not ours["split"]["fine"]:
        return float("nan")
    return (ours["split"]["coarse"] / ours["coarse"]) / (ours["split"]["fine"] / ours["fine"])


def integrals(row: Row) -> str:
    """How J and K were made: ``df``, ``in core`` or ``direct``."""
    return "df" if row["df"] else ("in core" if row["stock"]["incore"] else "direct")


def category(row: Row) -> str:
    """Functional, basis and density fitting, in words."""
    return f"{row['xc'].upper()}/{row['basis']}{', DF' if row['df'] else ''}"


def categories(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by category: first everything with density fitting, then everything without, then each alone."""
    order = {("pbe", "def2-svp"): 0, ("b3lyp", "def2-svp"): 1, ("pbe", "def2-tzvp"): 2, ("b3lyp", "def2-tzvp"): 3}
    single: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (not row["df"], order[row["xc"], row["basis"]])):
        single.setdefault(category(row), []).append(row)
    groups = {"**all with DF**": [row for row in rows if row["df"]], "**all without DF**": [row for row in rows if not row["df"]]}
    return {name: members for name, members in {**groups, **single}.items() if members}


def summary_line(name: str, rows: Sequence[Row]) -> list[str]:
    """One line of the summary table."""
    count = len(rows)
    ratios, errors = np.array([ratio(row) for row in rows]), np.array([energy_error(row) for row in rows])
    fine = np.array([row["ours"]["fine"] for row in rows])
    coarse = [row["ours"]["coarse"] for row in rows]

    def share(mask: np.ndarray) -> str:
        return f"{int(mask.sum())} ({mask.mean():.0%})"

    bad = np.array([not row["ours"]["converged"] or row["ours"]["fallback"] is not None for row in rows])
    return [
        *(name, str(count), f"{np.median(ratios):.2f}", f"{ratios.min():.2f}", f"{ratios.max():.2f}"),
        f"{np.median([cpu_ratio(row) for row in rows]):.2f}",
        *(f"{np.median([row['stock']['builds'] for row in rows]):.0f}", f"{np.median(fine):.1f}", f"{np.median(coarse):.0f}"),
        f"{np.nanmedian([coarse_cost(row) for row in rows]):.3f}",
        f"{np.abs(errors).max():.1e}",
        *(share(ratios < MEDIAN_RATIO), share(ratios < SMALLEST_RATIO), share(np.abs(errors) > ENERGY), share(fine > FINE)),
        share(bad),
    ]


SUMMARY = [
    *("category", "n", "median ratio", "smallest", "largest", "median CPU ratio", "stock builds", "fine builds", "coarse builds"),
    *("coarse / fine cost", "largest abs dE, Eh", f"ratio < {MEDIAN_RATIO}", f"ratio < {SMALLEST_RATIO}", f"abs dE > {ENERGY:.0e}"),
    *(f"fine > {FINE}", "not converged or fallback"),
]


def molecule_line(row: Row) -> list[str]:
    """One line of the table of molecules."""
    ours, stock = row["ours"], row["stock"]
    other = ours["seconds"] - sum(ours["split"].values())
    split = [f"{100 * seconds / ours['seconds']:.0f}" for seconds in (*(ours["split"][part] for part in PARTS), other)]
    notes = [] if ours["converged"] else ["not converged"]
    notes += [] if stock["converged"] else ["stock not converged"]
    notes += [] if row["reference"]["converged"] else ["reference not converged"]
    notes += [f"report says {ours['reported_fine']} fine"] if ours["reported_fine"] != ours["fine"] else []
    notes += [f"fallback: {ours['fallback']}"] if ours["fallback"] else []
    return [
        *(f"`{row['name']}`" if row["name"] == row["smiles"] else row["name"], str(row["atoms"]), str(row["nao"]), integrals(row)),
        *(str(stock["cycles"]), str(stock["builds"]), f"{stock['seconds']:.1f}", f"{ours['seconds']:.1f}", f"{ratio(row):.2f}"),
        *(str(ours["fine"]), str(ours["coarse"]), "/".join(split), f"{coarse_cost(row):.3f}"),
        *(f"{energy_error(row):+.1e}", f"{energy_error(row, 'stock'):+.1e}", row["first"], f"{row['load']:.1f}", "; ".join(notes)),
    ]


MOLECULES = [
    *("molecule", "atoms", "nao", "J, K", "stock cycles", "stock builds", "stock s", "ours s", "ratio", "fine", "coarse"),
    *("start/setup/coarse/fine/other, %", "coarse / fine cost", "dE ours, Eh", "dE stock, Eh", "first", "load", "note"),
]


def plot_ratio(rows: Sequence[Row], path: Path) -> None:
    """Wall ratio against the number of atoms, a panel each with and without density fitting; lines join medians of bins."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, fit in zip(panels, (True, False), strict=True):
        for name, members in categories(rows).items():
            if name.startswith("**") or members[0]["df"] != fit:
                continue
            members = sorted(members, key=lambda row: row["atoms"])
            atoms, ratios = [row["atoms"] for row in members], [ratio(row) for row in members]
            dots = axes.plot(atoms, ratios, "o", markersize=4, alpha=0.6, label=name.removesuffix(", DF"))
            medians = [
                (np.mean([row["atoms"] for row in group]), np.median([ratio(row) for row in group])) for group in by_size(members)
            ]
            axes.plot(*zip(*medians, strict=True), "-", color=dots[0].get_color(), linewidth=1.2)
        for level in (1.0, SMALLEST_RATIO, MEDIAN_RATIO):
            axes.axhline(level, color="0.4", linewidth=0.8, linestyle="-" if level == 1.0 else "--")
        axes.set(xlabel="atoms", title="with density fitting" if fit else "without density fitting")
        axes.set_ylim(0, 1.15 * max(MEDIAN_RATIO, *(ratio(row) for row in rows)))
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    panels[0].set_ylabel("stock PySCF seconds / ours")
    figure.savefig(path, dpi=130)


def plot_split(rows: Sequence[Row], path: Path) -> None:
    """Where our time goes, relative to stock PySCF's, a panel a category and a bar a molecule (smallest first)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = {name: members for name, members in categories(rows).items() if not name.startswith("**")}
    lines = (len(groups) + 1) // 2
    figure = Figure(figsize=(12, 2.6 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, 2, squeeze=False).ravel()
    for axes, (name, members) in zip(panels, groups.items(), strict=False):
        members = sorted(members, key=lambda row: (row["atoms"], row["nao"]))
        bottom = np.zeros(len(members))
        for part in (*PARTS, "other"):
            height = np.array([part_of_stock(row, part) for row in members])
            axes.bar(np.arange(len(members)), height, bottom=bottom, width=0.85, label=part)
            bottom += height
        axes.axhline(1 / MEDIAN_RATIO, color="0.3", linewidth=0.8, linestyle="--")
        axes.set_xticks(np.arange(len(members)), [str(row["atoms"]) for row in members], fontsize=6)
        axes.set_title(name, fontsize=9)
    for axes in panels[len(groups) :]:
        axes.remove()
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, ncols=5, loc="outside upper center")
    figure.supxlabel("molecules, by number of atoms", fontsize=9)
    figure.supylabel("our seconds / stock PySCF seconds", fontsize=9)
    figure.savefig(path, dpi=130)


def by_size(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows by bins of the number of atoms, without empty ones."""
    groups = [[row for row in rows if low <= row["atoms"] <= high] for low, high in BINS]
    return [group for group in groups if group]


def size_line(rows: Sequence[Row]) -> list[str]:
    """One line of the table of sizes: the median ratio (and the number of rows) with and without density fitting."""
    sizes = [row["atoms"] for row in rows]
    groups = [[row for row in rows if row["df"] == fit] for fit in (True, False)]
    cells = [f"{np.median([ratio(row) for row in group]):.2f} ({len(group)})" if group else "-" for group in groups]
    return [f"{min(sizes)} to {max(sizes)}", *cells]


def part_of_stock(row: Row, part: str) -> float:
    """Seconds of a part of our run by stock PySCF's whole run."""
    split = row["ours"]["split"]
    seconds = split[part] if part in split else max(row["ours"]["seconds"] - sum(split.values()), 0.0)
    return seconds / row["stock"]["seconds"]


def measured_line(rows: Sequence[Row]) -> str:
    """When, where and how the rows were measured."""

    def words(name: str) -> str:
        return ", ".join(sorted({str(row[name]) for row in rows}))

    dates = sorted(row["date"] for row in rows)
    loads = np.median([row["load"] for row in rows])
    return (
        f"- rows measured {dates[0]} to {dates[-1]} on {words('machine')} with {words('threads')} threads, "
        f"median load before a row {loads:.1f}, at commit {words('commit')} (`+`: package changed)\n"
    )


def report(store: Store, output: Path, max_nao_direct: int) -> str:
    """The Markdown, and the plots beside it."""
    rows = [row for row in store.rows if "error" not in row]
    failed = [row for row in store.rows if "error" in row]
    molecules = {row["smiles"]: row["atoms"] for row in rows}
    text = header("Wall time of the multilevel solver against stock PySCF", packages=("pyscf", "numpy"))
    text += measured_line(rows)
    text += (
        f"- {len(rows)} rows, {len(molecules)} molecules of {min(molecules.values())} to {max(molecules.values())} atoms; without "
        f"density fitting only up to {max_nao_direct} basis functions (`--max-nao-direct`)\n\n{TARGETS}\n\n"
        "Ratio: wall seconds of stock PySCF by ours, from making the mean-field object to the energy, everything included. CPU "
        "ratio: the same with processor seconds. Builds: evaluations of the user's own Fock operator. Coarse / fine cost: seconds "
        "of a coarse iteration by those of a fine build.\n\n"
    )
    groups = categories(rows)
    text += table(SUMMARY, [summary_line(name, members) for name, members in groups.items()])
    text += "\n" + table(
        ["atoms", "median ratio with DF (rows)", "without DF (rows)"], [size_line(group) for group in by_size(rows)]
    )
    text += "\n![ratio against size](scf_wall_ratio.png)\n\n![where the time goes](scf_wall_split.png)\n"
    plot_ratio(rows, output / "scf_wall_ratio.png")
    plot_split(rows, output / "scf_wall_split.png")
    for name, members in groups.items():
        if not name.startswith("**"):
            members = sorted(members, key=lambda row: (row["atoms"], row["nao"]))
            text += f"\n### {name}\n\n" + table(MOLECULES, [molecule_line(row) for row in members])
    if failed:
        text += "\n### Rows that failed\n\n" + table(["row", "error"], [[f"`{r['key']}`", r["error"]] for r in failed])
    return text


def write_results(store: Store, output: Path, max_nao_direct: int) -> None:
    """Write ``scf_wall.md`` and the plots; print the summary."""
    if not any("error" not in row for row in store.rows):
        print(f"{store.path}: no finished row, so no table")
        return
    text = report(store, output, max_nao_direct)
    (output / "scf_wall.md").write_text(text, encoding="utf-8")
    print(text.split("\n### ")[0])
    print(f"written: {output / 'scf_wall.md'}, scf_wall_ratio.png, scf_wall_split.png")
