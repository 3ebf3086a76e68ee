"""What ``scf-accel bench`` shows: a table of all runs, one of medians, a plot, and JSON."""

from __future__ import annotations

import math
import platform
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from scf_accel.benchmark import REFERENCE, Case, Run, as_json

if TYPE_CHECKING:
    from scf_accel.runinput import Theory

FORMAT_VERSION = 1
WIDE = 110  # characters
MEASURES = {"ric": "RIC", "eric": "ERIC", "wall_ratio": "wall ratio"}


def note(case: Case, run: Run) -> str:
    """What is to be said about a run besides its numbers."""
    if run.error is not None:
        return run.error
    notes = [] if run.converged else ["not converged"]
    notes += [f"started from {run.start}: {run.fallback}"] if run.fallback else []
    notes += ["another SCF solution, not in the medians"] if case.elsewhere(run) else []
    return "; ".join(notes)


def runs_table(cases: list[Case], width: int = 120) -> Table:
    """A row for each molecule and guess; with total energies where ``width`` characters allow."""
    wide = width >= WIDE
    table = Table(title="initial guesses, relative to minao")
    for heading in ("molecule", "guess"):
        table.add_column(heading, no_wrap=True, min_width=6)
    for heading in ("cycles", "RIC", "builds", "ERIC", "s", "wall\nratio", "dE, Eh", *(["energy, Eh"] if wide else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for case in cases:
        for count, run in enumerate(case.runs.values()):
            table.add_row(
                case.name if count == 0 else "", run.guess, *cells(case, run, wide), end_section=count + 1 == len(case.runs)
            )
    return table


def cells(case: Case, run: Run, wide: bool) -> list[str]:
    """The numbers of a run as text."""
    if run.error is not None:
        return ["failed"]
    ratios = case.ratios(run)
    ric = eric = wall = difference = "-"
    if ratios is not None:
        ric, eric, wall = f"{ratios['ric']:.0%}", f"{ratios['eric']:.0%}", f"{ratios['wall_ratio']:.2f}"
        difference = f"{ratios['energy_difference']:.0e}"
    shown = [str(run.cycles), ric, str(run.builds), eric, f"{run.wall:.2f}", wall, difference]
    return [*shown, f"{run.energy:.8f}"] if wide else shown


def notes(cases: list[Case]) -> list[str]:
    """A line for each run of which there is something to say."""
    found = [(case.name, run.guess, note(case, run)) for case in cases for run in case.runs.values()]
    return [f"{name}, {guess}: {text}" for name, guess, text in found if text]


def values(cases: list[Case], guess: str, measure: str) -> list[float]:
    """A measure of one guess for every molecule where it and the reference converged, to the same solution."""
    runs = [(case, case.runs[guess]) for case in cases if guess in case.runs]
    found = [case.ratios(run) for case, run in runs if not case.elsewhere(run)]
    return [ratios[measure] for ratios in found if ratios is not None]


def summary(cases: list[Case], guesses: list[str]) -> dict[str, dict[str, Any]]:
    """Of each guess the median, mean and largest of each measure over the ``molecules`` compared, and counts of all runs.

    The counts: ``converged``, ``failed`` (in any repeat), ``other_solution`` (another energy than the reference: not
    compared, like the failed ones) and ``used`` (a prediction was).
    """
    out: dict[str, dict[str, Any]] = {}
    for guess in guesses:
        runs = [case.runs[guess] for case in cases if guess in case.runs]
        entry: dict[str, Any] = {"molecules": len(values(cases, guess, "ric"))}
        entry["failed"] = sum(run.failed for run in runs)
        entry["converged"] = len(runs) - entry["failed"]
        entry["other_solution"] = sum(case.elsewhere(case.runs[guess]) for case in cases if guess in case.runs)
        entry["used"] = sum(run.start == "predicted" for run in runs)
        for measure in MEASURES:
            found = values(cases, guess, measure)
            if found:
                entry[measure] = {"median": statistics.median(found), "mean": statistics.fmean(found), "max": max(found)}
        out[guess] = entry
    return out


def summary_table(cases: list[Case], guesses: list[str]) -> Table:
    """Medians of each guess."""
    table = Table(title="medians")
    table.add_column("guess", no_wrap=True)
    for heading in ("molecules", "converged", "other\nsolution", "RIC", "ERIC", "wall ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for guess, entry in summary(cases, guesses).items():
        formats = {"ric": "{:.0%}", "eric": "{:.0%}", "wall_ratio": "{:.2f}"}
        cells = [text.format(entry[key]["median"]) if key in entry else "-" for key, text in formats.items()]
        table.add_row(guess, *(str(entry[key]) for key in ("molecules", "converged", "other_solution")), *cells)
    return table


def collect(
    cases: list[Case], guesses: list[str], theory: Theory, threads: int, loading_seconds: float, repeats: int
) -> dict[str, Any]:
    """Everything, as JSON types. Energies in Hartree, times in seconds."""
    import pyscf

    from mlip import __version__

    molecules = []
    for case in cases:
        runs = []
        for run in case.runs.values():
            ratios = case.ratios(run) or dict.fromkeys((*MEASURES, "energy_difference"))
            runs.append({**as_json(run), **ratios, "note": note(case, run)})
        structure = case.structure
        about = {"name": case.name, "formula": structure.molecule, "charge": structure.charge, "spin": structure.spin}
        molecules.append({**about, "atoms": len(structure.numbers), "runs": runs})
    return {
        "format_version": FORMAT_VERSION,
        "versions": {"mlip-scf-accel": __version__, "pyscf": pyscf.__version__, "python": platform.python_version()},
        "theory": asdict(theory),
        "threads": threads,
        "repeats": repeats,
        "reference": REFERENCE,
        "model_loading_seconds": loading_seconds,
        "molecules": molecules,
        "summary": summary(cases, guesses),
    }


def plot(cases: list[Case], guesses: list[str], path: Path) -> None:
    """RIC, ERIC and wall ratio of each guess: a point for each molecule, a bar for the median."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0 * len(MEASURES), 3.6), layout="constrained")
    for axes, (measure, label) in zip(figure.subplots(1, len(MEASURES)), MEASURES.items(), strict=True):
        for place, guess in enumerate(guesses):
            found = values(cases, guess, measure)
            if not found:
                continue
            axes.bar(place, statistics.median(found), color="0.85", zorder=1)
            shift = [0.0 if len(found) == 1 else 0.5 * (k / (len(found) - 1) - 0.5) for k in range(len(found))]
            axes.plot([place + s for s in shift], found, "o", markersize=4, color="tab:blue", zorder=2)
        axes.axhline(1.0, color="0.4", linewidth=0.8, linestyle="--")
        axes.set_xticks(range(len(guesses)), guesses, rotation=45)
        better = "higher is better" if measure == "wall_ratio" else "lower is better"
        axes.set_title(f"{label} ({better})", fontsize=10)
        top = max((value for guess in guesses for value in values(cases, guess, measure)), default=1.0)
        axes.set_ylim(0.0, 1.1 * max(1.0, top if math.isfinite(top) else 1.0))
    figure.supylabel("relative to minao", fontsize=10)
    figure.savefig(path, dpi=150)
