"""Tables and plots of benchmarks/scf_wall.py from its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import header, table
from _scfruns import Store

from mlip.files import atomic_path, atomic_write_text

Row = dict[str, Any]
# The targets of the solver: median and smallest wall ratio, energy error (Hartree), median of the fine builds
MEDIAN_RATIO, SMALLEST_RATIO, ENERGY, FINE = 3.0, 1.3, 1e-8, 3
BINS = ((1, 12), (13, 15), (16, 20), (21, 25), (26, 35), (36, 60), (61, 10**9))  # atoms
PARTS = ("start", "setup", "coarse", "fine")
TARGETS = (
    f"Targets: median wall ratio at least {MEDIAN_RATIO} with density fitting and without; no molecule below {SMALLEST_RATIO}; "
    f"energy within {ENERGY:.0e} Eh of stock PySCF converged to 1e-10; at most {FINE} fine builds in the median."
)


def excluded(row: Row) -> bool:
    """Whether stock PySCF gives nothing to compare with: it or the tight reference failed or did not converge."""
    if "error" in row:
        return row.get("arm") in ("stock", "reference")
    return not (row["stock"]["converged"] and row["reference"]["converged"])


def solved(row: Row) -> bool:
    """Whether our run converged."""
    return "error" not in row and row["ours"]["converged"]


def ratio(row: Row, name: str = "seconds") -> float:
    """Wall seconds of stock PySCF by ours; 0 where ours failed."""
    return row["stock"][name] / row["ours"][name] if solved(row) else 0.0


def cpu_ratio(row: Row) -> float:
    """Processor seconds of stock PySCF by ours: less disturbed by other work on the machine."""
    return ratio(row, "cpu")


def energy_error(row: Row, solver: str = "ours") -> float:
    """Energy minus that of the tight reference, Hartree; NaN where there is none."""
    return float("nan") if "error" in row else row[solver]["energy"] - row["reference"]["energy"]


def coarse_cost(row: Row, unit: str) -> float:
    """Seconds of a coarse iteration by those of a full build; NaN where there is none.

    Args:
        row: of the sweep.
        unit: ``later``: our own full builds from the second on (the first also fills the stores); ``stock``: the whole
            stock run by its number of builds.
    """
    if "error" in row or not row["ours"]["coarse"]:
        return float("nan")
    coarse = row["ours"]["split"]["coarse"] / row["ours"]["coarse"]
    if unit == "stock":
        return coarse / (row["stock"]["seconds"] / row["stock"]["builds"])
    later = [step[4] for step in row["ours"]["steps"][1:]]
    return coarse / float(np.mean(later)) if later else float("nan")


def busy(row: Row) -> bool:
    """Whether other work on the machine disturbed the row."""
    return row.get("load_after", 0.0) > row["threads"] + 1


def statistic(function: Callable[..., Any], values: Sequence[float], form: str) -> str:
    """``function`` of the finite ones of ``values`` as text, ``-`` where there is none."""
    finite = [value for value in values if np.isfinite(value)]
    return format(function(finite), form) if finite else "-"


def integrals(row: Row) -> str:
    """How J and K were made: ``df``, ``in core`` or ``direct``."""
    if row["df"] or "stock" not in row:
        return "df" if row["df"] else "-"
    return "in core" if row["stock"]["incore"] else "direct"


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


def planned_rows(name: str, planned: Mapping[str, int]) -> int:
    """How many rows a category of the summary has in the plan."""
    if name.startswith("**"):
        return sum(count for key, count in planned.items() if key.endswith(", DF") == (name == "**all with DF**"))
    return planned.get(name, 0)


def summary_line(name: str, rows: Sequence[Row], planned: Mapping[str, int] | None = None) -> list[str]:
    """One line of the summary table; rows without a stock result to compare with are left out and counted."""
    total = f"{len(rows)}/{planned_rows(name, planned) if planned else '?'}"
    rows, left_out = [row for row in rows if not excluded(row)], sum(map(excluded, rows))
    ran = [row for row in rows if "error" not in row]
    ratios = np.array([ratio(row) for row in rows])
    errors = [abs(energy_error(row)) for row in rows if solved(row)]
    fine = [row["ours"]["fine"] for row in ran]

    def share(mask: Sequence[bool]) -> str:
        return f"{sum(mask)} ({np.mean(mask):.0%})" if len(mask) else "-"

    return [
        *(name, total, str(left_out), *(statistic(f, ratios, ".2f") for f in (np.median, np.min, np.max))),
        *(statistic(np.median, [cpu_ratio(row) for row in rows], ".2f"), str(sum(map(busy, rows)))),
        statistic(np.median, [row["stock"]["builds"] for row in ran], ".0f"),
        *(statistic(np.median, fine, ".1f"), statistic(np.median, [row["ours"]["coarse"] for row in ran], ".0f")),
        *(statistic(np.median, [coarse_cost(row, unit) for row in ran], ".3f") for unit in ("later", "stock")),
        statistic(np.max, errors, ".1e"),
        *(share([bool(r < limit) for r in ratios]) for limit in (MEDIAN_RATIO, SMALLEST_RATIO)),
        *(share([not error <= ENERGY for error in errors]), share([number > FINE for number in fine])),
        share([not solved(row) or row["ours"]["fallback"] is not None for row in rows]),
        str(sum("error" in row for row in rows)),
    ]


SUMMARY = [
    *("category", "rows measured/planned", "left out", "median ratio", "smallest", "largest", "median CPU ratio", "busy"),
    *("stock builds", "fine builds", "coarse builds", "coarse / our later build", "coarse / stock mean build"),
    *("largest abs dE, Eh", f"ratio < {MEDIAN_RATIO}", f"ratio < {SMALLEST_RATIO}", f"abs dE > {ENERGY:.0e}"),
    *(f"fine > {FINE}", "not converged or fallback", "failed"),
]


def molecule_line(row: Row) -> list[str]:
    """One line of the table of molecules."""
    name = f"`{row['name']}`" if row["name"] == row["smiles"] else row["name"]
    marks = ["busy"] if busy(row) else []
    if "error" in row:
        blank = ["-"] * (len(MOLECULES) - 6)
        failed = f"**failed** ({row.get('arm') or 'row'}): {row['error']}"
        return [name, str(row["atoms"]), str(row["nao"]), integrals(row), *blank, f"{row['load']:.1f}", "; ".join([failed, *marks])]
    ours, stock = row["ours"], row["stock"]
    other = ours["seconds"] - sum(ours["split"].values())
    split = [f"{100 * seconds / ours['seconds']:.0f}" for seconds in (*(ours["split"][part] for part in PARTS), other)]
    notes = [] if ours["converged"] else ["**not converged**"]
    notes += [] if stock["converged"] else ["left out: stock not converged"]
    notes += [] if row["reference"]["converged"] else ["left out: reference not converged"]
    notes += marks
    notes += [f"report says {ours['reported_fine']} fine"] if ours["reported_fine"] != ours["fine"] else []
    notes += [f"fallback: {ours['fallback']}"] if ours["fallback"] else []
    return [
        *(name, str(row["atoms"]), str(row["nao"]), integrals(row)),
        *(str(stock["cycles"]), str(stock["builds"]), f"{stock['seconds']:.1f}", f"{ours['seconds']:.1f}", f"{ratio(row):.2f}"),
        *(str(ours["fine"]), str(ours["coarse"]), "/".join(split)),
        *(statistic(np.mean, [coarse_cost(row, unit)], ".3f") for unit in ("later", "stock")),
        *(f"{energy_error(row):+.1e}", f"{energy_error(row, 'stock'):+.1e}", row["first"], f"{row['load']:.1f}", "; ".join(notes)),
    ]


MOLECULES = [
    *("molecule", "atoms", "nao", "J, K", "stock cycles", "stock builds", "stock s", "ours s", "ratio", "fine", "coarse"),
    *("start/setup/coarse/fine/other, %", "coarse / our later build", "coarse / stock mean build"),
    *("dE ours, Eh", "dE stock, Eh", "first", "load", "note"),
]


def plot_ratio(rows: Sequence[Row], path: Path) -> None:
    """Wall ratio (0: failed) against the number of atoms, panels with and without density fitting; lines join medians of bins."""
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
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


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
        members = sorted((row for row in members if solved(row)), key=lambda row: (row["atoms"], row["nao"]))
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
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


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


def integral_lines(rows: Sequence[Row]) -> list[list[str]]:
    """Ratios by basis and by what stock PySCF does with its integrals: fitted, kept in memory, or computed anew each cycle."""
    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        groups.setdefault((row["basis"], integrals(row)), []).append(ratio(row))
    return [
        [*key, str(len(ratios)), *(statistic(f, ratios, ".2f") for f in (np.median, np.min, np.max))]
        for key, ratios in sorted(groups.items())
    ]


def part_of_stock(row: Row, part: str) -> float:
    """Seconds of a part of our run by stock PySCF's whole run."""
    split = row["ours"]["split"]
    seconds = split[part] if part in split else max(row["ours"]["seconds"] - sum(split.values()), 0.0)
    return seconds / row["stock"]["seconds"]


def measured_line(rows: Sequence[Row]) -> str:
    """When, where and how the rows were measured; a warning where the code was not one committed state."""

    def words(name: str) -> str:
        return ", ".join(sorted({str(row[name]) for row in rows}))

    dates, commits = sorted(row["date"] for row in rows), {row["commit"] for row in rows}
    text = (
        f"- rows measured {dates[0]} to {dates[-1]} on {words('machine')} with {words('threads')} threads (BLAS "
        f"{words('blas_threads')}), median load before a row {np.median([row['load'] for row in rows]):.1f}; "
        f"{sum(map(busy, rows))} of {len(rows)} rows on a busy machine (load after the row above threads + 1)\n"
        f"- commit {words('commit')} (`+`: package or benchmarks changed)\n"
    )
    if len(commits) > 1:
        text += f"- **warning: rows of {len(commits)} states of the code are pooled here**\n"
    return text


INTRODUCTION = (
    "Ratio: wall seconds of stock PySCF by ours, from making the mean-field object to the energy, everything included; 0 where "
    "ours failed or did not converge. Rows where stock PySCF or the reference did not converge are left out. CPU ratio: the same "
    "with processor seconds. Builds: evaluations of the user's own Fock operator. Coarse / our later build: seconds of a coarse "
    "iteration by those of our own full builds from the second on (the first also fills the stores; rows with one build have "
    "none). Coarse / stock mean build: by the seconds of the whole stock run divided by its builds.\n\n"
)


def report(store: Store, output: Path, max_nao_direct: int, planned: Mapping[str, int] | None) -> str:
    """The Markdown, and the plots beside it."""
    rows = store.rows
    failed = sum("error" in row for row in rows)
    molecules = {row["smiles"]: row["atoms"] for row in rows}
    text = header("Wall time of the multilevel solver against stock PySCF", packages=("pyscf", "numpy"))
    text += measured_line(rows)
    text += (
        f"- {len(rows)} rows ({failed} failed), {len(molecules)} molecules of {min(molecules.values())} to "
        f"{max(molecules.values())} atoms; without density fitting only up to {max_nao_direct} basis functions "
        f"(`--max-nao-direct`)\n\n{TARGETS}\n\n{INTRODUCTION}"
    )
    groups = categories(rows)
    text += table(SUMMARY, [summary_line(name, members, planned) for name, members in groups.items()])
    compared = [row for row in rows if not excluded(row)]
    text += "\n" + table(
        ["atoms", "median ratio with DF (rows)", "without DF (rows)"], [size_line(group) for group in by_size(compared)]
    )
    text += "\n" + table(["basis", "J, K of stock PySCF", "rows", "median ratio", "smallest", "largest"], integral_lines(compared))
    if any(solved(row) for row in compared):
        text += "\n![ratio against size](scf_wall_ratio.png)\n\n![where the time goes](scf_wall_split.png)\n"
        plot_ratio(compared, output / "scf_wall_ratio.png")
        plot_split(compared, output / "scf_wall_split.png")
    for name, members in groups.items():
        if not name.startswith("**"):
            members = sorted(members, key=lambda row: (row["atoms"], row["nao"]))
            text += f"\n### {name}\n\n" + table(MOLECULES, [molecule_line(row) for row in members])
    return text


def write_results(store: Store, output: Path, max_nao_direct: int, planned: Mapping[str, int] | None = None) -> None:
    """Write ``scf_wall.md`` and the plots; print the summary. ``planned``: rows of each category in the whole plan."""
    if not store.rows:
        print(f"{store.path}: no row, so no table")
        return
    text = report(store, output, max_nao_direct, planned)
    atomic_write_text(output / "scf_wall.md", text)
    print(text.split("\n### ")[0])
    print(f"written: {output / 'scf_wall.md'}, scf_wall_ratio.png, scf_wall_split.png")
