"""Milliseconds per MD step (energy + forces) of our presets, eager, compiled and exported, and of peers in their own environments.

    python benchmarks/speed.py                                     # measures what is missing, then writes the table
    python benchmarks/speed.py --peer-venv mace=/path/to/venv      # with MACE, installed there (pip install mace-torch)
    python benchmarks/speed.py --table                             # the table of what is there
    python benchmarks/speed.py --systems si64 ethanol --forms eager --threads 1

Random weights, float32, cutoff 5 Angstrom. A step moves every atom by a random 0.003 Angstrom and asks the ASE calculator for
energy and forces: neighbour lists included, stress where the cell is periodic. All contestants of a system run in one sitting, each
in a process of its own that computes only when it is its turn; a round gives each a few steps, rounds repeat until every contestant
has had its seconds. Before, each is warmed up until its step time no longer falls; warm-up, the time from the start of its process
to the first energy, and memory are reported apart (kB/edge: what the steps added to the peak of loading; `-`: nothing, or not
known, as where the first `compiled` rows counted the compiler in).
`exported` is loaded from a file of `mlip export`, `compiled` is MLIPCalculator(compile=True); their compilation (one to two minutes
each) comes first and is not counted.

Peers: `mace` (64x0e and 128x0e+128x1o, 2 layers), `nequip` (4 layers, l_max 2, 32 features), `sevennet` (sizes of SevenNet-0); left
out with the reason where no environment has them. All run eagerly, as their calculators do by default. A row is kept in speed.jsonl
as soon as a system is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from _common import header, processor, table
from _speedworker import SYSTEMS
from _store import COMMIT, Budget, Store

from mlip.files import atomic_write_text

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SIZES = ("small", "medium", "large")
OURS = tuple(f"{size} {form}" for size in SIZES for form in ("eager", "compiled", "exported"))
PEERS = {
    "mace": ("mace 64x0e", "mace 128x0e+128x1o"),
    "nequip": ("nequip 4layers l2 32features",),
    "sevennet": ("sevennet 0",),
}
WORKER_SECONDS = 600.0


class Worker:
    """A process that computes steps of one contestant on one system when it is told to."""

    def __init__(self, contestant: str, system: str, python: str, threads: int) -> None:
        environment = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
        if python != sys.executable:
            environment.pop("PYTHONPATH", None)
        command = [python, str(HERE / "_speedworker.py"), contestant, system]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the worker)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment
        )
        self.ready = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        self.log.seek(0)
        lines = self.log.read().strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"the worker ended with code {self.process.wait()}")

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request, wait for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()


def key_of(contestant: str, system: str, threads: int) -> str:
    """Of a row in the store."""
    return f"{contestant} {system} {threads} threads"


def contestants(arguments: argparse.Namespace) -> dict[str, str]:
    """Names and the Python that runs them."""
    ours = {name: sys.executable for name in OURS if name.split()[1] in arguments.forms and name.split()[0] in arguments.presets}
    peers = {}
    for text in arguments.peer_venv:
        name, _, folder = text.partition("=")
        if name not in PEERS:
            raise SystemExit(f"--peer-venv {text}: the peer {name!r} is unknown; allowed: {', '.join(PEERS)}")
        python = Path(folder) / "bin" / "python"
        if not python.is_file():
            print(f"{name} is left out: {python} does not exist", flush=True)
            continue
        peers.update(dict.fromkeys(PEERS[name], str(python)))
    for name in PEERS:
        if not any(text.startswith(f"{name}=") for text in arguments.peer_venv):
            print(f"{name} is left out: no --peer-venv {name}=PATH", flush=True)
    return ours | peers


def measure(system: str, names: dict[str, str], arguments: argparse.Namespace, store: Store) -> None:
    """All contestants on one system, in turns; rows of those that fail say why."""
    workers: dict[str, Worker] = {}
    try:
        for name, python in names.items():
            try:
                workers[name] = Worker(name, system, python, arguments.threads)
            except (RuntimeError, OSError) as error:
                store.append({"key": key_of(name, system, arguments.threads), "error": str(error)[:300]})
                print(f"{name}, {system}: {error}", flush=True)
        times: dict[str, list[float]] = {name: [] for name in workers}
        while short := [name for name, steps in times.items() if sum(steps) < arguments.seconds]:
            for name in short:  # those that are done wait
                times[name] += workers[name].ask(steps=max(1, min(20, int(1.0 / workers[name].ready["step_s"]))))["seconds"]
        for name, steps in times.items():
            store.append(row_of(name, system, steps, workers[name], sorted(workers), arguments.threads))
            print(f"{name}, {system}: {1000 * statistics.median(steps):.2f} ms", flush=True)
    finally:
        for worker in workers.values():
            worker.close()


def row_of(name: str, system: str, steps: list[float], worker: Worker, beside: list[str], threads: int) -> dict[str, Any]:
    """What is kept of a contestant."""
    ready, last = worker.ready, worker.ask(memory=True)
    return {
        "key": key_of(name, system, threads),
        "contestant": name,
        "system": system,
        "threads": threads,
        "median_ms": 1000 * statistics.median(steps),
        "least_ms": 1000 * min(steps),
        "steps": len(steps),
        "warm_up_s": ready["warm_up_s"],
        "first_energy_s": ready["first_s"],
        "atoms": ready["atoms"],
        "edges": ready["edges"],
        "peak_mb": last["peak_mb"],
        "step_mb": last["peak_mb"] - ready["idle_mb"],
        "versions": ready["versions"],
        "in_turns_with": beside,
        "date": f"{datetime.now():%Y-%m-%d %H:%M}",
        "machine": processor(),
        "load": os.getloadavg()[0],
        "commit": COMMIT,
    }


def tables(rows: Iterable[dict[str, Any]]) -> str:
    """One table a number of threads: a line for each contestant and system."""
    columns = ["system", "atoms", "edges", "contestant", "ms/step, median", "least", "first energy, s", "warm-up, s"]
    columns += ["peak MB", "kB/edge", "date, load, commit", "versions"]
    parts = []
    good = [row for row in rows if "error" not in row]
    for threads in sorted({row["threads"] for row in good}):
        lines = [
            [
                row["system"], str(row["atoms"]), str(row["edges"]), row["contestant"], f"{row['median_ms']:.2f}",
                f"{row['least_ms']:.2f}", f"{row['first_energy_s']:.1f}", f"{row['warm_up_s']:.1f}",
                "-" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}",
                f"{1000 * row['step_mb'] / row['edges']:.1f}" if row["step_mb"] else "-",
                f"{row['date']}, {row['load']:.1f}, {row['commit']}",
                row["versions"],
            ]
            for row in sorted(good, key=lambda row: (list(SYSTEMS).index(row["system"]), row["contestant"]))
            if row["threads"] == threads
        ]  # fmt: skip
        parts.append(f"{threads} threads each, {', '.join(sorted({row['machine'] for row in good}))}\n\n" + table(columns, lines))
    bad = [f"- {row['key']}: {row['error']}" for row in rows if "error" in row]
    return "\n".join(parts + (["Not measured:\n", *bad, ""] if bad else []))


def ratios(rows: Iterable[dict[str, Any]]) -> str:
    """How many times longer a peer's median step takes than ours, of one sitting each."""
    good = {row["key"]: row for row in rows if "error" not in row}
    peers = [name for names in PEERS.values() for name in names]
    lines = []
    for row in sorted(good.values(), key=lambda row: (row["threads"], list(SYSTEMS).index(row["system"]), row["contestant"])):
        if row["contestant"] in peers:
            continue
        line = [str(row["threads"]), row["system"], str(row["atoms"]), row["contestant"], f"{row['median_ms']:.2f}"]
        for name in peers:
            other = good.get(key_of(name, row["system"], row["threads"]))
            together = other is not None and name in row["in_turns_with"]
            line.append(f"{other['median_ms'] / row['median_ms']:.1f}" if other and together else "-")
        lines.append(line)
    columns = ["threads", "system", "atoms", "ours", "ms/step", *(f"{name} takes times" for name in peers)]
    return table(columns, lines)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--presets", nargs="+", choices=SIZES, default=["small", "medium"])
    parser.add_argument("--forms", nargs="*", choices=("eager", "compiled", "exported"), default=["eager", "compiled", "exported"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="of steps for every contestant and system")
    parser.add_argument("--minutes", type=float, help="start no further system after so many")
    parser.add_argument("--peer-venv", action="append", default=[], metavar="NAME=PATH", help="environment that has a peer")
    parser.add_argument("--again", action="store_true", help="measure again what failed")
    parser.add_argument("--table", action="store_true", help="only write the table of what is there")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args(words)


def main(arguments: argparse.Namespace) -> None:
    """Measure what is missing, write the table."""
    store = Store(arguments.output / "speed.jsonl")
    if not arguments.table:
        names, budget = contestants(arguments), Budget(arguments.minutes)
        for system in arguments.systems:
            keys = {name: key_of(name, system, arguments.threads) for name in names}
            missing = [name for name, key in keys.items() if key not in store or (arguments.again and store.failed(key))]
            if missing and budget.allows(2 * arguments.seconds * len(names)):
                start = time.perf_counter()
                measure(system, names, arguments, store)  # all of them: ratios need one sitting
                budget.note(2 * arguments.seconds * len(names), time.perf_counter() - start)
    text = header("Time per MD step") + "\n" + ratios(store.rows) + "\n" + tables(store.rows)
    atomic_write_text(arguments.output / "speed.md", text)
    print(text)


if __name__ == "__main__":
    main(parse())
