"""The sparse tensor-product gate: what pruning a share k of the paths costs in accuracy and saves in time, for both heads.

    python benchmarks/gate_ablation.py --minutes 20 --total 600 --threads 1   # trains and measures what is missing, then the table
    python benchmarks/gate_ablation.py --table                                # the table of what is there
    python benchmarks/gate_ablation.py --sets acac --l-max 2 3 --k 0 0.5

k is `model.gate.sparsity`, for every layer with a tensor product; k = 0 is a network without gates. Each row: a training of the
same wall time (small preset, the set's config, validation included), then the network that it ships on the same batches and the
same structure: median time of a training step (loss, gradients, optimiser, on the pruned network) and of an inference step (the
largest validation structure alone; energy and forces, or the density), parameters, paths evaluated and multiply-adds of all matrix
products, counted while it runs (`mlip.testing.count_work`). Numbers in brackets: relative to the network without gates, which
is timed in turns with it. The gated trainings spend their first part (`training.gate`, column `open`: the share of random
subsets, then of the strongest paths) on more than the final paths.

`acac` and `mlearn-si` (../shared/data, energy head): errors on test sets. `density-organics` (datasets/organics, density head):
errors on the molecules held out; there also k = 0 with a pair gate (`model.density.pair_gate`) of sparsity 0.5.

A row is kept in gate_ablation.jsonl as soon as it is measured, a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from _common import header, processor, table
from _store import COMMIT, Budget, Store

from mlip.checkpoint import load_model
from mlip.config import RunConfig
from mlip.configfile import load_config
from mlip.data.graph import collate, frame_to_graph, graph_dict
from mlip.errors import ConfigError
from mlip.files import atomic_write_text
from mlip.models import Potential
from mlip.testing import count_work
from mlip.training.dryrun import step_seconds
from mlip.training.gating import paths_of
from mlip.training.loader import load_batches
from mlip.training.prepare import Prepared, new_model, prepare, training_batches, training_graphs

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
SPARSITIES, DEGREES = (0.0, 0.3, 0.5, 0.7), (2, 3, 4)
PAIR_SPARSITY = 0.5
SCHEDULES = {"half": (0.2, 0.3), "fifth": (0.05, 0.15)}
"""Shares of a gated run: random subsets, then the strongest paths; the rest is frozen."""
TIMED_STEPS, TURN = 30, 5
INFERENCE_SECONDS, LEAST_CALLS = 10.0, 10
MEASURING = 60.0
"""Seconds that reading the data, evaluation and timing take beside the training, roughly."""


@dataclass(frozen=True)
class Set:
    """A data set with the head that learns it.

    Attributes:
        config: of its training. head: ``energy`` or ``density``.
        errors: what is shown: heading, set of the results, quantity, ``mae`` or ``rmse``.
    """

    config: Path
    head: str
    errors: tuple[tuple[str, str, str, str], ...]

    def missing(self) -> str:
        """Why it cannot be trained here; empty where it can."""
        try:
            load_config(self.config)
        except ConfigError as error:
            return str(error)
        return "needs PySCF" if self.head == "density" and importlib.util.find_spec("pyscf") is None else ""


SETS = {
    "acac": Set(
        ROOT / "configs" / "acac.yaml",
        "energy",
        tuple(
            (f"{place[:-1]} K {name}", place, quantity, "rmse")
            for place in ("300K", "600K")
            for name, quantity in (("E RMSE meV", "energy"), ("F RMSE meV/A", "forces"))
        ),
    ),
    "mlearn-si": Set(
        ROOT / "configs" / "mlearn-si.yaml",
        "energy",
        (("E MAE meV/atom", "test", "energy_per_atom", "mae"), ("F MAE meV/A", "test", "forces", "mae")),
    ),
    "density-organics": Set(
        ROOT / "configs" / "density-organics.yaml",
        "density",
        (("Coulomb mHa/e", "valid", "density_coulomb", "mae"), ("overlap %", "valid", "density_overlap", "mae")),
    ),
}


@dataclass(frozen=True)
class Row:
    """One network of the table; ``pairs`` is the sparsity of its pair gate."""

    name: str
    l_max: int
    k: float
    pairs: float
    minutes: float
    threads: int
    schedule: str = "fifth"
    seed: int = 0

    @property
    def key(self) -> str:
        """Of its row in the store and its run folder."""
        gate = f"-pairs{self.pairs:g}" if self.pairs else ""
        gate += "-fifth" if self.k and self.schedule == "fifth" else ""
        seed = f"-seed{self.seed}" if self.seed else ""
        return f"{self.name}-l{self.l_max}-k{self.k:g}{gate}-{self.minutes:g}min-{self.threads}threads{seed}"

    def settings(self, folder: Path) -> list[str]:
        """What it changes in the set's config."""
        settings = ["model.preset=small", f"model.l_max={self.l_max}", "run.plots=false", f"run.dir={folder}"]
        settings += [f"training.max_minutes={self.minutes:g}", f"training.threads={self.threads}"]
        settings += [f"training.seed={self.seed}"] if self.seed else []
        random, adaptive = SCHEDULES[self.schedule]
        phases = f"training.gate={{random: {random}, adaptive: {adaptive}}}"
        settings += [f"model.gate.sparsity={self.k:g}", phases] if self.k else ["model.gate=null"]
        return settings + ([f"model.density.pair_gate.sparsity={self.pairs:g}"] if self.pairs else [])


def rows_of(arguments: argparse.Namespace) -> Iterator[Row]:
    """All rows that are asked for: low degrees first, those that are compared next to each other."""
    for l_max in arguments.l_max:
        for name in arguments.sets:
            for k in arguments.k:
                yield Row(name, l_max, k, 0.0, arguments.minutes, arguments.threads, arguments.schedule, arguments.seed)
            if SETS[name].head == "density":
                yield Row(name, l_max, 0.0, PAIR_SPARSITY, arguments.minutes, arguments.threads, seed=arguments.seed)


def train(row: Row, folder: Path) -> None:
    """Train unless that is done; go on with a run that was stopped."""
    if (folder / "results.json").exists():
        return
    subprocess.run([sys.executable, "-m", "mlip.cli", *train_words(row, folder)], check=True, cwd=ROOT)


def train_words(row: Row, folder: Path) -> list[str]:
    """The arguments of ``mlip`` that train a row."""
    return ["train", str(SETS[row.name].config), *(part for s in row.settings(folder) for part in ("--set", s))]


def measure(row: Row, folder: Path) -> dict[str, Any]:
    """Errors of a finished run; time and work of the network that it ships, and of the dense one (``dense``)."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    with (folder / "log.csv").open(encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    config, model = load_config(folder / "config.yaml"), load_model(folder)
    data = prepare(config)
    dense = new_model(load_config(folder / "config.yaml", ["training.gate=null", *ungated(model)]), data)
    graphs = training_graphs(config, data, model.cutoff)
    batches = list(load_batches(graphs, list(training_batches(config, graphs))[:TIMED_STEPS]))
    graph = largest_structure(data, model)
    steps = step_times([model, dense], config, batches)
    calls = inference_times([model.eval(), dense.eval()], graph)
    works = [count_work(network, graph) for network in (model, dense)]
    costs = [
        {"step_ms": 1000 * step, "inference_ms": 1000 * call, "multiply_adds": work.multiply_adds}
        for step, call, work in zip(steps, calls, works, strict=True)
    ]
    gate = results["errors"]["valid"].get("density_pairs")
    return {
        "errors": {head: results["errors"][place][quantity][kind] for head, place, quantity, kind in SETS[row.name].errors},
        **costs[0],
        "dense": costs[1],
        "parameters": model.num_parameters(),
        "paths": paths_of(model),
        "executed_paths": sum(works[0].paths.values()),
        "convolutions": works[0].convolutions,
        "atoms": len(graph["batch"]),
        "pairs_let_through": None if gate is None else gate["mean"],
        "epochs": int(float(last["epoch"])),
        "steps": int(float(last["step"])),
    }


def ungated(model: Potential) -> list[str]:
    """Overrides that leave a config without gates."""
    return ["model.gate=null", *(["model.density.pair_gate=null"] if model.config.density is not None else [])]


def largest_structure(data: Prepared, model: Potential) -> dict[str, Any]:
    """The model's input for the validation frame with most atoms."""
    frame = max(data.valid, key=lambda frame: len(frame.atomic_numbers))
    return graph_dict(collate([frame_to_graph(frame, model.cutoff)]))


def step_times(models: Sequence[Potential], config: RunConfig, batches: Sequence[dict[str, Any]]) -> list[float]:
    """Median seconds of a training step of each model; they take turns, a few batches each, the first of which is a warm-up."""
    seconds: list[list[float]] = [[] for _ in models]
    for start in range(0, len(batches), TURN):
        for own, model in zip(seconds, models, strict=True):
            turn = step_seconds(model, config, batches[start : start + TURN])
            own += turn[1:] or turn
    return [statistics.median(own) for own in seconds]


@torch.no_grad()
def inference_times(models: Sequence[Potential], graph: dict[str, Any]) -> list[float]:
    """Median seconds of a call of each model; they take turns, the first of which is a warm-up."""
    seconds: list[list[float]] = [[] for _ in models]
    while len(seconds[0]) <= LEAST_CALLS or sum(map(sum, seconds)) < INFERENCE_SECONDS:
        for own, model in zip(seconds, models, strict=True):
            start = time.perf_counter()
            model(graph)
            own.append(time.perf_counter() - start)
    return [statistics.median(own[1:]) for own in seconds]


def run(rows: Iterable[Row], store: Store, folder: Path, total: float | None) -> None:
    """Measure the rows that the store lacks or has as errors, as far as ``total`` minutes go."""
    budget = Budget(total)
    for row in rows:
        if row.key in store and not store.failed(row.key):
            continue
        estimate = 60 * row.minutes + MEASURING
        if not budget.allows(estimate):
            print(f"{row.key}: left for lack of time", flush=True)
            continue
        start, load = time.perf_counter(), os.getloadavg()[0]
        try:
            train(row, folder / row.key)
            outcome = measure(row, folder / row.key)
        except Exception as error:  # the other rows shall still be measured
            outcome = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        budget.note(estimate, time.perf_counter() - start)
        where = {"date": f"{datetime.now():%Y-%m-%d %H:%M}", "machine": processor(), "load": round(load, 2), "commit": COMMIT}
        store.append({"key": row.key, **vars(row), **where, **outcome})
        print(f"{row.key}: {outcome.get('error') or outcome['errors']}", flush=True)


def comparison(rows: Sequence[dict[str, Any]]) -> str:
    """The table of one set, from rows with the same time and threads."""
    errors = list(rows[0]["errors"])
    columns = ["l_max", "k", "open", "seed", *errors, "training ms", "inference ms", "parameters", "paths"]
    columns += ["multiply-adds, M", "epochs"]
    gated = any(row["pairs"] for row in rows)
    lines = []
    for row in sorted(rows, key=lambda row: (row["l_max"], row.get("seed", 0), row["pairs"], row["k"])):
        phases = " + ".join(f"{share:g}" for share in SCHEDULES[row.get("schedule", "half")]) if row["k"] else "-"
        cells = [str(row["l_max"]), f"{row['k']:g}", phases, str(row.get("seed", 0))]
        cells += [f"{row['errors'][name]:.3g}" for name in errors]
        cells += [with_ratio(row, name, text) for name, text in (("step_ms", "{:.1f}"), ("inference_ms", "{:.2f}"))]
        cells += [f"{row['parameters']:,}", f"{row['executed_paths']} ({'+'.join(map(str, row['paths']))})"]
        cells += [with_ratio(row, "multiply_adds", "{:.2f}", 1e6), str(row["epochs"])]
        share = row["pairs_let_through"]
        lines.append(cells + ([("-" if share is None else f"{share:.0f}")] if gated else []))
    return table([*columns, *(["pairs let through, %"] if gated else [])], lines)


def with_ratio(row: dict[str, Any], name: str, text: str, unit: float = 1.0) -> str:
    """A number, in brackets its ratio to that of the dense network."""
    return f"{text.format(row[name] / unit)} ({row[name] / row['dense'][name]:.2f})"


def report(store: Store) -> str:
    """Head line, provenance, a table for each set and time; what is missing and why."""
    good = [row for row in store.rows if "error" not in row]
    parts = [header("Sparse tensor-product gate: errors, time and work", packages=("torch", "lightning"))]
    for name in ("commit", "machine"):
        parts[0] += f"- measured with {name}: {', '.join(sorted({row[name] for row in good}))}\n"
    parts[0] += f"- load before a row: {min(row['load'] for row in good):.1f} to {max(row['load'] for row in good):.1f}\n"
    parts.append((__doc__ or "").split("\n\n", 2)[2].split("\n\nA row is kept")[0] + "\n")
    groups: dict[tuple[str, float, int], list[dict[str, Any]]] = {}
    for row in good:
        groups.setdefault((row["name"], row["minutes"], row["threads"]), []).append(row)
    for (name, minutes, threads), rows in groups.items():
        dates = sorted(row["date"] for row in rows)
        title = f"### {name}: {minutes:g} minutes each, {threads} threads; inference on {rows[0]['atoms']} atoms"
        parts.append(f"{title}\n\nMeasured {dates[0]} to {dates[-1]}.\n\n{comparison(rows)}")
    parts += [f"Skipped: `{name}`: {reason}\n" for name, known in SETS.items() if (reason := known.missing())]
    parts += [f"Failed: `{row['key']}`: {row['error']}\n" for row in store.rows if "error" in row]
    return "\n".join(parts)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--l-max", nargs="+", type=int, default=list(DEGREES), help="highest degree of the features")
    parser.add_argument("--k", nargs="+", type=float, default=list(SPARSITIES), help="shares of paths that go")
    parser.add_argument("--schedule", choices=list(SCHEDULES), default="fifth", help="share of a gated run with open gates")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings")
    parser.add_argument("--minutes", type=float, default=20.0, help="wall time of each training")
    parser.add_argument("--total", type=float, help="minutes for all rows; what does not fit is left for the next call")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of training and timing")
    parser.add_argument("--table", action="store_true", help="only write the table of the rows that are there")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of gate_ablation.jsonl and gate_ablation.md")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "gate_ablation", help="folder of the run folders")
    return parser.parse_args(arguments)


def main(arguments: argparse.Namespace) -> None:
    """Run what the command line asks for, and write the table."""
    store = Store(arguments.output / "gate_ablation.jsonl")
    if not arguments.table:
        torch.set_num_threads(arguments.threads)
        reasons = {name: SETS[name].missing() for name in arguments.sets}
        for name, reason in reasons.items():
            if reason:
                print(f"{name}: skipped: {reason}", flush=True)
        run((row for row in rows_of(arguments) if not reasons[row.name]), store, arguments.runs.resolve(), arguments.total)
    if all("error" in row for row in store.rows):
        print(f"{store.path}: no finished row, so no table")
        return
    text = report(store)
    atomic_write_text(arguments.output / "gate_ablation.md", text)
    print(text)
    print(f"written: {arguments.output / 'gate_ablation.md'}")


if __name__ == "__main__":
    main(parse())
