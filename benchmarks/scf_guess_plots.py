"""Table and plot of benchmarks/scf_guess.py from its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import header, table
from _guessmeasures import (
    ERIC,
    EXTRA_CYCLES,
    REFERENCE,
    RIC,
    Comparison,
    Row,
    Summary,
    by_guess,
    comparisons,
    percent,
    summarise,
    targets,
    without_reference,
)
from _scfruns import Store
from scf_wall_plots import measured_line

from mlip.files import atomic_path, atomic_write_text

# ../shared/reference-numbers.md, PBE/def2-SVP: method, measure, in distribution, larger molecules
PUBLISHED = (
    ("SCFbench, density, NequIP-L 50 M, 44 k molecules", "RIC", "63.8 %", "66.7 % (26 to 60 atoms)"),
    ("SCFbench, density, QHNet 5.9 M", "RIC", "66.9 %", "73.3 %"),
    ("SCFbench, Hamiltonian / density matrix, QHNet 20.5 M", "RIC", "63.2 / 70.5 %", "179 / 92 %"),
    ("SCFbench, oracle (exact fitted density)", "RIC", "about 60 % jfit, 40 % even-tempered 1.5", ""),
    ("SAIL (trained through the SCF)", "ERIC", "", "63 % PBE, 67 % SCAN, 72 % B3LYP; wall 1.35x (hybrid)"),
    ("QHFlow", "time", "46 % (QH9)", ""),
    ("lab-cosmo density recipe (PET)", "wall", "-9 %", "its guess costs 1.4 SCF cycles"),
    ("SCFbench 50 M, transfer", "RIC", "BLYP 71, SCAN 86, B3LYP 84, PBE/def2-TZVP 75 %", ""),
)
# RIC of SCFbench's 50 M model: molecules as in its training set, larger ones; for other methods its one number
PUBLISHED_RIC = {
    ("pbe", "def2-svp"): (0.638, 0.667),
    ("scan", "def2-svp"): (0.86, 0.86),
    ("b3lyp", "def2-svp"): (0.84, 0.84),
    ("pbe", "def2-tzvp"): (0.75, 0.75),
}
SPANS = ((3, 21), (25, 61))  # atoms: where the means of the small and of the larger molecules are drawn
TITLES = {
    "large": "26 to 60 atoms, PBE/def2-SVP",
    "small": "4 to 20 atoms, PBE/def2-SVP",
    "b3lyp": "transfer: B3LYP/def2-SVP",
    "scan": "transfer: SCAN/def2-SVP",
    "tzvp": "transfer: PBE/def2-TZVP",
}
MARKERS = {"atom": "s", "oracle": "^"}
COLORS = {REFERENCE: "0.4", "atom": "tab:orange", "oracle": "tab:green"}
OURS = ("tab:blue", "tab:purple", "tab:red", "tab:cyan")
SUMMARY = [
    *("guess", "n", "converged", "mean cycles", "RIC mean", "median", "ERIC mean", "median", "wall ratio mean", "median"),
    *("most extra cycles", f"slower by > {EXTRA_CYCLES}", "largest abs dE, Eh", "other solution", "fallback", "failed"),
]
MOLECULES = ["molecule", "atoms", "orbitals", "guess", "cycles", "RIC", "ERIC", "wall ratio", "s", "dE, Eh", "note"]
EXPLAINED = (
    "Means and medians are over molecules, each with its own run from minao. Converged: within PySCF's 50 cycles. Other solution: "
    "an energy more than 1e-6 Eh from that of minao; largest abs dE is over the others. Fallback: the prediction was not used.\n"
)


def category(about: Row) -> str:
    """What a row was run for, in words."""
    return f"{TITLES[about['category']]}, {'DF' if about['df'] else 'no DF'}"


def grouped(members: Iterable[Comparison]) -> dict[str, list[Comparison]]:
    """Comparisons by category: larger molecules first, then the small ones, then the transfers; DF first."""
    order = list(TITLES)
    out: dict[str, list[Comparison]] = {}
    for comparison in sorted(members, key=lambda c: (order.index(c.about["category"]), not c.about["df"], c.about["atoms"])):
        out.setdefault(category(comparison.about), []).append(comparison)
    return out


def number(value: float, form: str) -> str:
    """``-`` for what is not a number."""
    return format(value, form) if np.isfinite(value) else "-"


def summary_line(guess: str, summary: Summary) -> list[str]:
    """One line of a summary table."""
    shares = [percent(value) for pair in (summary.ric, summary.eric) for value in pair]
    return [
        *(guess, str(summary.count), f"{summary.converged} ({summary.converged / max(summary.count, 1):.0%})"),
        *(number(summary.cycles, ".1f"), *shares, *(number(value, ".2f") for value in summary.wall)),
        *(number(summary.most_extra, "+.0f"), str(summary.slow), number(summary.energy, ".1e"), str(summary.other_solutions)),
        *(str(summary.fallbacks), str(summary.errors)),
    ]


def guess_order(guess: str) -> tuple[int, str]:
    """PySCF's guesses, ours, the oracle."""
    return {REFERENCE: 0, "atom": 1, "oracle": 3}.get(guess, 2), guess


def summary_table(members: Sequence[Comparison]) -> str:
    """A line a guess."""
    guesses = by_guess(members)
    return table(SUMMARY, [summary_line(guess, summarise(guesses[guess])) for guess in sorted(guesses, key=guess_order)])


def molecule_line(comparison: Comparison) -> list[str]:
    """One line of the table of molecules."""
    about, run = comparison.about, comparison.run
    start = [about["name"], str(about["atoms"]), str(about["nao"]), comparison.guess]
    if "error" in run:
        return [*start, *["-"] * 6, run["error"]]
    notes = [] if run["converged"] else ["**not converged**"]
    notes += [f"fallback: {run['fallback']}"] if run.get("fallback") else []
    return [
        *(*start, str(run["cycles"]), percent(comparison.ric, 0), percent(comparison.eric, 0)),
        *(number(comparison.wall_ratio, ".2f"), f"{run['seconds']:.1f}", number(comparison.energy_difference, ".1e")),
        "; ".join(notes),
    ]


def target_text(members: Sequence[Comparison]) -> str:
    """The targets of every model, with density fitting and without, and the oracle's RIC beside them."""
    ours = [c for c in members if c.guess not in (REFERENCE, "atom", "oracle")]
    oracle = [c for c in members if c.guess == "oracle" and c.about["category"] == "large"]
    lines = []
    for guess, runs in sorted(by_guess(ours).items()):
        for fit in sorted({c.about["df"] for c in runs}, reverse=True):
            part = [c for c in runs if c.about["df"] == fit]
            beside = percent(summarise([c for c in oracle if c.about["df"] == fit]).ric[0])
            for target in targets([c for c in part if c.about["category"] == "large"], part):
                verdict = {True: "**met**", False: "**not met**", None: "not measured"}[target.met]
                theirs = beside if "RIC of" in target.claim and "ERIC" not in target.claim else ""
                lines.append([guess, "yes" if fit else "no", target.claim, target.value, verdict, theirs])
    if not lines:
        return (
            f"Targets: mean RIC at most {RIC:.0%} and mean ERIC below {ERIC:.0%} for 26 to 60 atoms, all converged, none slower "
            "than minao by more than one cycle. No model was measured; the oracle's mean RIC for 26 to 60 atoms is "
            f"{percent(summarise(oracle).ric[0])} (n = {len(oracle)}).\n"
        )
    return table(["guess", "DF", "target", "measured", "verdict", "oracle's RIC"], lines)


def report(store: Store, members: Sequence[Comparison], planned: Mapping[str, int]) -> str:
    """The Markdown."""
    rows = store.rows
    failed, lost = [row for row in rows if "error" in row], without_reference(rows)
    molecules = {c.about["smiles"] for c in members}
    text = header("SCF initial guesses on molecules that were not trained on", packages=("pyscf", "torch", "numpy"))
    text += measured_line(rows)
    text += (
        f"- {len(rows)} rows ({len(failed)} with a failure, {len(lost)} without a converged minao) of {len(molecules)} molecules\n"
    )
    loading = sorted({row["load_seconds"] for row in rows if "load_seconds" in row})
    text += f"- loading the model and a first prediction: {', '.join(map(str, loading))} s, in no other time\n" if loading else ""
    text += f"\n### Targets\n\n{target_text(members)}\n{EXPLAINED}"
    groups = grouped(members)
    for name, part in groups.items():
        count = len({c.about["case"] for c in part})
        text += f"\n### {name} ({count} of {max(planned.get(name, 0), count)} molecules)\n\n{summary_table(part)}"
    text += "\n### Published (../shared/reference-numbers.md)\n\n"
    text += table(["method", "measure", "in distribution", "larger molecules, other methods"], PUBLISHED)
    if members:
        text += "\n![RIC against size](scf_guess_size.png)\n\nLines through the points of a guess: their mean.\n"
    for name, part in groups.items():
        part = sorted(part, key=lambda c: (c.about["atoms"], c.about["case"], guess_order(c.guess)))
        text += f"\n### {name}, molecule by molecule\n\n" + table(MOLECULES, [molecule_line(c) for c in part])
    if failed:
        text += "\n### Failures\n\n" + table(["row", "error"], [[row["key"], row["error"]] for row in failed])
    return text


def plot_size(members: Sequence[Comparison], path: Path) -> None:
    """RIC against the number of atoms, a panel a method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: dict[str, list[Comparison]] = {}
    for comparison in members:
        about = comparison.about
        name = f"{about['xc'].upper()}/{about['basis'].upper().replace('DEF', 'def')}, {'DF' if about['df'] else 'no DF'}"
        if about["category"] in ("small", "large") or comparison.guess != REFERENCE:
            panels.setdefault(name, []).append(comparison)
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(1.0 + 5.0 * columns, 0.8 + 3.3 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    styles = guess_colors(members)
    for panel, (name, part) in zip(axes, panels.items(), strict=False):
        draw_panel(panel, part, styles)
        panel.set_title(name, fontsize=10)
    for panel in axes[len(panels) :]:
        panel.remove()
    handles = {
        label: handle for panel in axes[: len(panels)] for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), fontsize=8, ncols=3, loc="outside upper center")
    figure.supxlabel("atoms", fontsize=10)
    figure.supylabel("RIC: SCF cycles / those from minao", fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def guess_colors(members: Iterable[Comparison]) -> dict[str, str]:
    """A colour a guess."""
    ours = sorted({c.guess for c in members} - set(COLORS))
    return {**COLORS, **{guess: OURS[index % len(OURS)] for index, guess in enumerate(ours)}}


def draw_panel(axes: Any, members: Sequence[Comparison], colors: Mapping[str, str]) -> None:
    """Points and their means below and above 23 atoms; runs that did not converge are crosses at the upper edge."""
    top = max([1.25, *(1.05 * c.ric for c in members if c.compares)])
    for guess, part in sorted(by_guess(members).items(), key=lambda item: guess_order(item[0])):
        if guess == REFERENCE:
            continue
        done, lost = [c for c in part if c.compares], [c for c in part if not c.compares]
        color = colors[guess]
        points = [c.about["atoms"] for c in done], [c.ric for c in done]
        axes.plot(*points, MARKERS.get(guess, "o"), color=color, markersize=4, alpha=0.7, linestyle="", label=guess)
        axes.plot(
            [c.about["atoms"] for c in lost],
            [0.98 * top] * len(lost),
            "x",
            color=color,
            label=f"{guess}: not converged" if lost else None,
        )
        for low, high in SPANS:
            inside = [c.ric for c in done if low <= c.about["atoms"] <= high]
            if len(inside) > 2:
                axes.plot([low, high], [float(np.mean(inside))] * 2, color=color, linewidth=1.2, alpha=0.7)
    axes.axhline(1.0, color="0.4", linewidth=1.0, label="minao")
    method = members[0].about["xc"], members[0].about["basis"]
    if method == ("pbe", "def2-svp"):
        axes.plot(SPANS[1], [RIC, RIC], color="black", linestyle="--", linewidth=1.0, label=f"target {RIC:.0%}")
    for span, value in zip(SPANS, PUBLISHED_RIC[method], strict=True):
        axes.plot(span, [value, value], color="black", linestyle=":", linewidth=1.0, label="SCFbench 50 M")
    axes.set_ylim(0.0, top)
    axes.set_xlim(0, 63)
    axes.grid(alpha=0.3)


def shown(members: Sequence[Comparison], label: str | None) -> list[Comparison]:
    """Without models other than ``label``; all of them where it has no row."""
    if label is None or all(c.guess != label for c in members):
        return list(members)
    return [c for c in members if c.guess == label or c.guess in COLORS]


def write_results(store: Store, output: Path, planned: Mapping[str, int], label: str | None = None) -> None:
    """Write ``scf_guess.md`` and the plot; print the summary.

    Args:
        store: the rows.
        output: folder to write to.
        planned: molecules of each category in the whole plan.
        label: the model to show; None: all.
    """
    members = shown(comparisons(store.rows), label)
    if not members:
        print(f"{store.path}: no row with a converged minao, so no table")
        return
    text = report(store, members, planned)
    plot_size(members, output / "scf_guess_size.png")
    atomic_write_text(output / "scf_guess.md", text)
    print(text.split("molecule by molecule")[0].rsplit("\n### ", 1)[0])
    print(f"written: {output / 'scf_guess.md'}, scf_guess_size.png")
