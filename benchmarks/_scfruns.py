"""What the SCF benchmarks share: jobs that fill a store of rows, counted and timed runs."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from _common import processor
from _store import COMMIT, Budget, Store
from pyscf import dft, gto, lib
from pyscf.data.elements import ELEMENTS
from threadpoolctl import threadpool_info, threadpool_limits

from scf_accel.structures import Structure

RESULTS = Path(__file__).resolve().parent / "results"
T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """A row to measure.

    Attributes:
        key: identifies the row in its store.
        estimate: seconds, roughly.
        run: measures; returns the numbers.
        about: what the row is about (molecule, functional ...); kept in the row even if ``run`` raises.
    """

    key: str
    estimate: float
    run: Callable[[], dict[str, Any]]
    about: dict[str, Any]


class ArmError(Exception):
    """An error in one of the runs that a row compares: ``arm`` says in which, the text what."""

    def __init__(self, arm: str, error: BaseException) -> None:
        super().__init__(error_text(error))
        self.arm = arm


def set_threads(threads: int) -> None:
    """Let PySCF and every BLAS library that is loaded use ``threads`` threads, whatever the environment says; else exit."""
    lib.num_threads(threads)
    threadpool_limits(limits=threads, user_api="blas")
    if (lib.num_threads(), *blas_threads()) != (threads, *[threads] * len(blas_threads())):
        sys.exit(f"--threads {threads}: PySCF uses {lib.num_threads()} and BLAS {blas_threads()} threads")


def blas_threads() -> list[int]:
    """Threads of each BLAS library that is loaded and can use several (NumPy's and SciPy's; not the one in PySCF's wheel)."""
    libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    return [library["num_threads"] for library in libraries if library.get("threading_layer") != "disabled"]


def provenance() -> dict[str, Any]:
    """When, where, with how many threads, under what load and with which code a row was measured."""
    return {
        "date": f"{datetime.now():%Y-%m-%d %H:%M}",
        "machine": processor(),
        "threads": lib.num_threads(),
        "blas_threads": max(blas_threads(), default=0),
        "load": round(os.getloadavg()[0], 2),
        "commit": COMMIT,
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


def timed(function: Callable[[], T]) -> tuple[T, dict[str, Any]]:
    """Result; wall ``seconds``, processor seconds of all threads (``cpu``), growth of the memory at its peak (``peak_mb``)."""
    before = memory("VmRSS") if forget_peak() else None
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    numbers: dict[str, Any] = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    peak = memory("VmHWM")
    return result, {**numbers, "peak_mb": None if before is None or peak is None else round(peak - before)}


def forget_peak() -> bool:
    """Let the peak of the memory in use start anew (Linux); whether that worked."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def memory(name: str) -> float | None:
    """A line of ``/proc/self/status``, MB; None where there is none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), None)


def in_arm(arm: str, function: Callable[[], T]) -> T:
    """Result of ``function``; an error becomes one that names the ``arm``."""
    try:
        return function()
    except Exception as error:
        raise ArmError(arm, error) from error


def error_text(error: BaseException) -> str:
    """One line for the table."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def work(jobs: Iterable[Job], store: Store, minutes: float | None, limit: int | None = None, retry_failed: bool = False) -> None:
    """Run the jobs that the store lacks (or has as errors, with ``retry_failed``), as far as the budget goes.

    A job that raises leaves a row with ``error``. One that does not fit the rest of the budget is passed over; cheaper
    ones that follow may still run.
    """
    jobs, budget, done, passed = list(jobs), Budget(minutes), 0, 0
    for number, job in enumerate(jobs, start=1):
        if job.key in store and not (retry_failed and store.failed(job.key)):
            continue
        if limit is not None and done >= limit:
            break
        if not budget.allows(job.estimate):
            passed += 1
            continue
        before = provenance()
        start = time.perf_counter()
        row = attempt(job)
        seconds = time.perf_counter() - start
        budget.note(job.estimate, seconds)
        after = {"load_after": round(os.getloadavg()[0], 2), "row_seconds": round(seconds, 2)}
        store.append({"key": job.key, **before, **job.about, **row, **after})
        done += 1
        said = row.get("error") or row.get("say", "")
        print(f"[{number}/{len(jobs)}] {job.key}: {seconds:.0f} s (estimate {job.estimate:.0f}) {said}", flush=True)
    failed = sum("error" in row for row in store.rows)
    print(f"{done} rows measured, {passed} left for lack of time, {len(store.rows)} in {store.path}, {failed} failed", flush=True)


def attempt(job: Job) -> dict[str, Any]:
    """The numbers of a job, or its error."""
    try:
        return job.run()
    except ArmError as error:
        return {"error": str(error), "arm": error.arm}
    except Exception as error:
        return {"error": error_text(error), "arm": None}


def run_jobs(jobs: Sequence[Job], store: Store, arguments: argparse.Namespace, warm_up: Callable[[], None]) -> bool:
    """Do what the command line of a benchmark says: list the jobs, or run them; whether a table is to follow."""
    if arguments.list:
        show(jobs, store)
        return False
    set_threads(arguments.threads)
    if any(job.key not in store or (arguments.retry_failed and store.failed(job.key)) for job in jobs):
        warm_up()
    work(jobs, store, arguments.minutes, arguments.rows, arguments.retry_failed)
    return True


def show(jobs: Iterable[Job], store: Store) -> None:
    """Print the jobs in their order with estimates."""
    jobs = list(jobs)
    for job in jobs:
        print(f"{job.estimate:8.1f} s  {'done ' if job.key in store else ''}{job.key}")
    left = sum(job.estimate for job in jobs if job.key not in store) / 60
    print(f"{len(jobs)} rows, {left:.0f} minutes left (estimate)")
