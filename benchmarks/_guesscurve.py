"""Learning curve of benchmarks/scf_guess.py: RIC of ten molecules against the number of training frames."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _common import header, table
from _guessmeasures import REFERENCE, RIC, Comparison, Row, by_guess, comparisons, percent, summarise
from _scfruns import Job, Store, run_jobs
from scf_guess import GuessCase, Model, chosen_molecules, find, label_of, measure, set_torch_threads, warm_up
from scf_guess_plots import COLORS, MOLECULES, molecule_line
from scf_wall_plots import measured_line

from mlip.checkpoint import find_model, read_header
from mlip.errors import CheckpointError
from mlip.files import atomic_path, atomic_write_text

GROUPS = {"small": "4 to 20 atoms", "large": "26 to 60 atoms"}
COLUMNS = [
    "model",
    "training frames",
    "RIC, 4 to 20 atoms",
    "RIC, 26 to 60 atoms",
    "RIC, all",
    "median",
    "n",
    "converged",
    "fallback",
]


@dataclass(frozen=True)
class Point:
    """A model of the curve: ``name`` for the table, ``path``, and the ``frames`` that it was trained on."""

    name: str
    path: Path
    frames: int


def points(words: Iterable[str]) -> list[Point]:
    """The models that the command line names, fewest frames first: ``NAME:PATH``, a model or run folder, or a folder of runs.

    Raises:
        CheckpointError: a path without a model, or a model that does not state its number of training frames.
    """
    found: list[Point] = []
    for word in words:
        name, _, rest = word.partition(":")
        path = Path(rest or word)
        inside = sorted(path.glob("*/model.safetensors")) if path.is_dir() and not (path / "model.safetensors").exists() else []
        if inside and not rest:
            found += [point(file.parent.name, file) for file in inside]
        else:
            found.append(point(name if rest else "", find_model(path)))
    return sorted(found, key=lambda item: (item.frames, item.name))


def point(name: str, path: Path) -> Point:
    """A model with the number of frames in its header."""
    stated = read_header(path)
    frames = (stated["metadata"].get("frames") or {}).get("train")
    if stated["density"] is None or not frames:
        lacks = "has no density head" if stated["density"] is None else "does not state its training frames"
        raise CheckpointError(f"{path} {lacks}; give a density model of 'mlip train'")
    return Point(name or (path.parent.name if path.stem == "model" else path.stem), path, int(frames))


class Models:
    """Models, each loaded at its first use and kept."""

    def __init__(self) -> None:
        self._loaded: dict[Path, Model] = {}

    def __getitem__(self, path: Path) -> Model:
        if path not in self._loaded:
            self._loaded[path] = find(str(path))
        return self._loaded[path]


def measure_point(case: GuessCase, number: int, item: Point | None, models: Models, store: Store) -> Row:
    """A model, or the oracle, for one molecule; ``minao`` with it unless a row of the molecule has it already."""
    guess = "oracle" if item is None else "ours"
    model = None if item is None else models[item.path]
    held = [row["arms"][REFERENCE] for row in store.rows if row["case"] == case.key and "error" not in row]
    if not held:
        return measure(case, number, (REFERENCE, guess), model, check=False)
    row = measure(case, number, (guess,), model, check=False)
    return {**row, "arms": {REFERENCE: held[0], **row["arms"]}}


def curve_jobs(cases: Sequence[GuessCase], items: Sequence[Point], store: Store) -> list[Job]:
    """The oracle and every model for each molecule, cheap molecules first."""
    models, jobs = Models(), []
    labels = {item: label_of(str(item.path)) for item in items}
    for count, case in enumerate(sorted(cases, key=GuessCase.estimate)):
        for item in (None, *items):
            label, about = ("oracle", {}) if item is None else (labels[item], {"model": item.name, "frames": item.frames})
            run = partial(measure_point, case, count, item, models, store)
            jobs.append(Job(f"{case.key}|{label}", case.seconds(2 if item is None else 1), run, {**case.about(), **about}))
    return jobs


def run_curve(arguments: argparse.Namespace) -> None:
    """Do what the command line says; see benchmarks/scf_guess.py."""
    store = Store(arguments.output / "scf_guess_curve.jsonl")
    try:
        items = points(arguments.learning_curve)
    except CheckpointError as error:
        sys.exit(f"--learning-curve: {error}")
    if not items and not arguments.table:
        sys.exit("--learning-curve: name models (NAME:PATH), run folders or a folder of runs; or --table for what is measured")
    cases = [GuessCase(m, "pbe", "def2-svp", True, m.group) for m in chosen_molecules(arguments) if m.curve]
    if not arguments.table:
        set_torch_threads(arguments.threads)
        if not run_jobs(curve_jobs(cases, items, store), store, arguments, partial(warm_up, (REFERENCE, "oracle"), None)):
            return
    write_curve(store, arguments.output, items)


# ------------------------------------------------------------------------------------------------------------- table


@dataclass(frozen=True)
class CurvePoint:
    """RIC of one model, or of the oracle (``frames`` None), over the molecules that all of them have."""

    name: str
    frames: int | None
    members: Sequence[Comparison]

    def mean(self, group: str | None = None) -> float:
        """Mean RIC of a group of molecules; of all where it is None."""
        return summarise([c for c in self.members if group in (None, c.about["group"])]).ric[0]


def curve_points(members: Sequence[Comparison]) -> list[CurvePoint]:
    """Points of the curve, oracle last: over the molecules that every guess has run, so that the points compare."""
    guesses = {guess: runs for guess, runs in by_guess(members).items() if guess != REFERENCE}
    common = set.intersection(*({c.about["case"] for c in runs} for runs in guesses.values())) if guesses else set()
    out = []
    for guess, runs in guesses.items():
        kept = [c for c in runs if c.about["case"] in common]
        about: Mapping[str, Any] = runs[0].about
        out.append(CurvePoint("oracle" if guess == "oracle" else f"{about['model']} ({guess})", about.get("frames"), kept))
    return sorted((item for item in out if item.members), key=lambda item: (item.frames is None, item.frames or 0, item.name))


def curve_line(item: CurvePoint) -> list[str]:
    """One line of the table."""
    whole = summarise(item.members)
    shares = [percent(item.mean(group)) for group in (*GROUPS, None)]
    frames = "-" if item.frames is None else str(item.frames)
    counts = [str(whole.count), f"{whole.converged} of {whole.count}", str(whole.fallbacks)]
    return [item.name, frames, *shares, percent(whole.ric[1]), *counts]


def of_models(members: Sequence[Comparison], items: Sequence[Point]) -> list[Comparison]:
    """Comparisons of ``minao``, the oracle and the models ``items``, with the weights that they have now; of all without items.

    A model that was measured earlier for few molecules would else leave only those to compare.
    """
    wanted = {REFERENCE, "oracle", *(label_of(str(item.path)) for item in items)}
    return [comparison for comparison in members if not items or comparison.guess in wanted]


def write_curve(store: Store, output: Path, models: Sequence[Point] = ()) -> None:
    """Write ``scf_guess_curve.md`` and the plot of ``models``, or of all that were measured; print the table."""
    members = of_models(comparisons(store.rows), models)
    items = curve_points(members)
    if not items:
        print(f"{store.path}: no molecule that every guess has run, so no table")
        return
    text = header("Learning curve of the predicted guess", packages=("pyscf", "torch", "numpy")) + measured_line(store.rows)
    text += (
        "\nPBE/def2-SVP with density fitting; mean RIC (SCF cycles / those from minao) over the "
        f"{len(items[0].members)} molecules that every guess has run, none of them trained on. The prediction is not compared "
        "with the stock guess, but used as it is; fallback: it cannot be used, as the model does not cover the molecule or its "
        f"number of electrons is off. Wall ratios are of runs at different times. Target for 26 to 60 atoms: at most {RIC:.0%}.\n\n"
    )
    text += table(COLUMNS, [curve_line(item) for item in items]) + "\n![RIC against training frames](scf_guess_curve.png)\n"
    short = text
    lines = [molecule_line(c) for c in sorted(members, key=lambda c: (c.about["atoms"], c.guess)) if c.guess != REFERENCE]
    text += "\n### Molecule by molecule\n\n" + table(MOLECULES, lines)
    plot_curve(items, output / "scf_guess_curve.png")
    atomic_write_text(output / "scf_guess_curve.md", text)
    print(short)
    print(f"written: {output / 'scf_guess_curve.md'}, scf_guess_curve.png")


def plot_curve(items: Sequence[CurvePoint], path: Path) -> None:
    """Mean RIC against training frames, a line a group of molecules, and the oracle's as dashed lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = Figure(figsize=(6.2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    trained = [item for item in items if item.frames is not None]
    for (group, words), color in zip(GROUPS.items(), ("tab:orange", "tab:blue"), strict=True):
        xs, ys = [float(item.frames or 0) for item in trained], [item.mean(group) for item in trained]
        axes.plot(xs, ys, "o", color=color, label=words)
        frames = sorted(set(xs))  # several models of one size: the line goes through their mean
        axes.plot(frames, [float(np.mean([y for x, y in zip(xs, ys, strict=True) if x == at])) for at in frames], color=color)
        for item in items:
            if item.frames is None and np.isfinite(item.mean(group)):
                axes.axhline(item.mean(group), color=color, linestyle="--", linewidth=1.0, label=f"oracle, {words}")
    axes.axhline(1.0, color=COLORS[REFERENCE], linewidth=1.0, label="minao")
    axes.axhline(RIC, color="black", linestyle=":", linewidth=1.0, label=f"target for 26 to 60 atoms, {RIC:.0%}")
    if trained:
        axes.set_xscale("log")
        axes.set_xticks(sorted({float(item.frames or 0) for item in trained}))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="training frames", ylabel="mean RIC")
    axes.set_ylim(
        0.0, 1.05 * max([1.0, *(item.mean(group) for item in items for group in GROUPS if np.isfinite(item.mean(group)))])
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
