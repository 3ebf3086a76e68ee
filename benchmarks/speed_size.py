"""Time and memory of an MD step against the number of atoms, silicon crystals up to about 20,000 atoms.

    python benchmarks/speed_size.py                     # measures what is missing (our presets, eager), then table and plot
    python benchmarks/speed_size.py --forms exported --threads 2
    python benchmarks/speed_size.py --table

A step is that of speed.py, energy, forces and stress with the neighbour list, in a process of its own for each size and preset.
Memory is what the process gained from before its first step to its end. The line of the plot is proportional to the atoms.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from _common import header, processor, table
from _store import COMMIT, Budget, Store
from speed import SIZES, Worker

from mlip.files import atomic_path, atomic_write_text

RESULTS = Path(__file__).resolve().parent / "results"
ATOMS = tuple(8 * n**3 for n in (2, 3, 4, 5, 7, 10, 14))


def measure(contestant: str, atoms: int, threads: int, seconds: float) -> dict[str, Any]:
    """A row: at least three steps, then as many as fit into ``seconds``."""
    worker = Worker(contestant, f"si{atoms}", sys.executable, threads)
    try:
        times: list[float] = []
        while len(times) < 3 or sum(times) < seconds:
            times += worker.ask(steps=1)["seconds"]
        memory = worker.ask(memory=True)["peak_mb"] - worker.ready["idle_mb"]
    finally:
        worker.close()
    return {
        "atoms": worker.ready["atoms"],
        "edges": worker.ready["edges"],
        "median_ms": 1000 * statistics.median(times),
        "least_ms": 1000 * min(times),
        "steps": len(times),
        "step_mb": memory,
    }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Least milliseconds against atoms."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    for name in sorted({(row["contestant"], row["threads"]) for row in rows}):
        mine = sorted((row["atoms"], row["least_ms"]) for row in rows if (row["contestant"], row["threads"]) == name)
        atoms, least = zip(*mine, strict=True)
        (line,) = axes.plot(atoms, least, "o", label=f"{name[0]}, {name[1]} thread" + "s" * (name[1] > 1))
        last = least[-1] / atoms[-1]
        axes.plot(atoms, [last * count for count in atoms], "-", color=line.get_color(), linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="atoms (silicon crystal)", ylabel="least ms per MD step")
    axes.legend(frameon=False, title="lines: proportional to the atoms", title_fontsize="small", fontsize="small")
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def text_of(rows: list[dict[str, Any]]) -> str:
    """The table."""
    columns = [
        "threads",
        "ours",
        "atoms",
        "edges",
        "ms/step, median",
        "least",
        "microseconds/atom",
        "MB",
        "kB/edge",
        "date, load, commit",
    ]
    lines = []
    for row in sorted(rows, key=lambda row: (row["threads"], row["contestant"], row["atoms"])):
        line = [str(row["threads"]), row["contestant"], str(row["atoms"]), str(row["edges"])]
        line += [f"{row['median_ms']:.1f}", f"{row['least_ms']:.1f}", f"{1000 * row['least_ms'] / row['atoms']:.0f}"]
        line += [f"{row['step_mb']:.0f}", f"{1000 * row['step_mb'] / row['edges']:.1f}"]
        lines.append([*line, f"{row['date']}, {row['load']:.1f}, {row['commit']}"])
    return header("Time and memory against size") + "\n" + table(columns, lines)


def main() -> None:
    """Measure what is missing, write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=SIZES, default=["small", "medium"])
    parser.add_argument("--forms", nargs="+", choices=("eager", "compiled", "exported"), default=["eager"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="of steps for every size")
    parser.add_argument("--minutes", type=float, help="start nothing further after so many")
    parser.add_argument("--table", action="store_true", help="only table and plot of what is there")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    store, budget = Store(arguments.output / "speed_size.jsonl"), Budget(arguments.minutes)
    for atoms in () if arguments.table else ATOMS:
        for name in (f"{preset} {form}" for form in arguments.forms for preset in arguments.presets):
            key, estimate = f"{name} {atoms} {arguments.threads}", 10.0 + arguments.seconds + 0.01 * atoms
            if key in store or not budget.allows(estimate):
                continue
            start = time.perf_counter()
            row = measure(name, atoms, arguments.threads, arguments.seconds)
            budget.note(estimate, time.perf_counter() - start)
            row |= {"key": key, "contestant": name, "threads": arguments.threads, "machine": processor()}
            store.append(row | {"date": f"{datetime.now():%Y-%m-%d %H:%M}", "load": os.getloadavg()[0], "commit": COMMIT})
            print(f"{key} threads: {row['least_ms']:.1f} ms", flush=True)
    text = text_of(store.rows)
    atomic_write_text(arguments.output / "speed_size.md", text)
    if store.rows:
        plot(store.rows, arguments.output / "speed_size.png")
    print(text)


if __name__ == "__main__":
    main()
