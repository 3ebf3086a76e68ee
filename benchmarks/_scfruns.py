"""What the SCF benchmarks share: a store of rows that survives a kill, counted and timed runs, the time budget."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from _common import processor
from pyscf import dft, gto, lib
from pyscf.data.elements import ELEMENTS

from scf_accel.structures import Structure

RESULTS = Path(__file__).resolve().parent / "results"
T = TypeVar("T")


class Store:
    """Rows in a JSONL file, each appended at once. A last line that a kill cut short is dropped.

    Args:
        path: of the file; made with its first row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        text = path.read_bytes() if path.exists() else b""
        complete = text[: text.rfind(b"\n") + 1]
        if complete != text:
            os.truncate(path, len(complete))
        for line in complete.decode("utf-8").splitlines():
            try:
                self.rows.append(json.loads(line))
            except json.JSONDecodeError:
                print(f"{path}: a line that is no JSON is left out", flush=True)

    def __contains__(self, key: str) -> bool:
        return any(row["key"] == key for row in self.rows)

    def append(self, row: dict[str, Any]) -> None:
        """Write ``row`` (with its ``key``) and wait until it is on the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(json.dumps(row, default=lambda number: number.item()).encode("utf-8") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)


class Budget:
    """A time budget that learns how much slower or faster the machine is than the estimates.

    Args:
        minutes: wall-clock minutes; ``None`` is no limit.
    """

    def __init__(self, minutes: float | None) -> None:
        self.end = None if minutes is None else time.perf_counter() + 60.0 * minutes
        self.estimated = self.spent = 0.0

    def allows(self, estimate: float) -> bool:
        """Whether a row of ``estimate`` seconds fits."""
        scale = self.spent / self.estimated if self.estimated > 20.0 else 1.0
        return self.end is None or time.perf_counter() + scale * estimate < self.end

    def note(self, estimate: float, seconds: float) -> None:
        """Learn from a finished row."""
        self.estimated += estimate
        self.spent += seconds


def commit() -> str:
    """Short hash of the working tree's commit, with ``+`` where the package is changed."""
    folder = Path(__file__).resolve().parents[1]
    try:
        name = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "scf_accel"], cwd=folder, check=False)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.stdout.strip() + ("+" if changed.returncode else "")


def provenance() -> dict[str, Any]:
    """When, where, with how many threads, under what load and with which code a row was measured."""
    return {
        "date": f"{datetime.now():%Y-%m-%d %H:%M}",
        "machine": processor(),
        "threads": lib.num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "commit": commit(),
    }


def make_mol(structure: Structure, basis: str) -> gto.Mole:
    """PySCF molecule, silent; with the basis' effective core potentials beyond krypton."""
    atoms = list(zip(map(int, structure.numbers), structure.positions.tolist(), strict=True))
    cores = {ELEMENTS[number]: basis for number in map(int, set(structure.numbers)) if number > 36}
    return gto.M(atom=atoms, unit="Angstrom", charge=structure.charge, spin=structure.spin, basis=basis, ecp=cores, verbose=0)


def make_mean_field(mol: gto.Mole, xc: str, fit: bool) -> Any:
    """Kohn-Sham object with PySCF's defaults (grid level 3, conv_tol 1e-9), UKS for open shells."""
    mf = dft.UKS(mol, xc=xc) if mol.spin else dft.RKS(mol, xc=xc)
    return mf.density_fit() if fit else mf


def count_calls(target: Any, name: str) -> list[int]:
    """Shadow the method ``name`` of one object with a counting one; the count is item 0 of what is returned."""
    counter = [0]
    method = getattr(target, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        counter[0] += 1
        return method(*args, **kwargs)

    setattr(target, name, counted)
    return counter


def timed(function: Callable[[], T]) -> tuple[T, float, float]:
    """Result, wall seconds and processor seconds (all threads)."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def error_text(error: BaseException) -> str:
    """One line for the table."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def work(
    jobs: Iterable[tuple[str, float, Callable[[], dict[str, Any]]]], store: Store, minutes: float | None, limit: int | None = None
) -> None:
    """Run the jobs ``(key, estimated seconds, function)`` that the store lacks, as far as the budget goes.

    A job that raises leaves a row with ``error``. One that does not fit the rest of the budget is passed over; cheaper
    ones that follow may still run.
    """
    jobs, budget, done, passed = list(jobs), Budget(minutes), 0, 0
    for number, (key, estimate, function) in enumerate(jobs, start=1):
        if key in store:
            continue
        if limit is not None and done >= limit:
            break
        if not budget.allows(estimate):
            passed += 1
            continue
        before = provenance()
        start = time.perf_counter()
        try:
            row = function()
        except Exception as error:
            row = {"error": error_text(error)}
        seconds = time.perf_counter() - start
        budget.note(estimate, seconds)
        store.append({"key": key, **before, **row, "load_after": round(os.getloadavg()[0], 2), "row_seconds": round(seconds, 2)})
        done += 1
        said = row.get("error") or row.get("say", "")
        print(f"[{number}/{len(jobs)}] {key}: {seconds:.0f} s (estimate {estimate:.0f}) {said}", flush=True)
    print(f"{done} rows measured, {passed} left for lack of time, {len(store.rows)} in {store.path}", flush=True)
