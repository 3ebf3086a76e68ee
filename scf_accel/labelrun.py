"""A labelling run: what is left to do, do it with a progress bar, record every outcome, assemble the file."""

from __future__ import annotations

import math
import os
import random
import signal
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mlip.errors import UserError
from scf_accel.auxbasis import load_density_basis
from scf_accel.executors import DaskExecutor, LocalExecutor, Result
from scf_accel.labels import LabelSettings, check_theory
from scf_accel.labelstore import PartStore
from scf_accel.structures import Job, Perturbations, make_groups


class Executor(Protocol):
    """Anything that turns jobs into results."""

    def run(self, jobs: list[Job]) -> Generator[Result, None, None]: ...


@dataclass
class Plan:
    """Jobs of a run: all of them, those already labelled, those that failed earlier, those to compute now."""

    jobs: list[Job]
    done: int
    failed: int
    todo: list[Job]


def make_plan(groups: list[list[Job]], store: PartStore, seed: int, prefer_small: float = 0.0, retry_failed: bool = False) -> Plan:
    """Order and sort out the jobs.

    The groups (a molecule's copies) come in a random order seeded by ``seed``, so that any first part of a run is a
    diverse sample; the copies of one molecule stay together. With ``prefer_small`` > 0 it is a weighted random order
    (Efraimidis and Spirakis 2006) with weight ``n_atoms ** -prefer_small``: small molecules tend to come first, which
    gives more frames per hour. Isolated atoms come first of all: every set needs their energies. Jobs that failed
    earlier stay out unless ``retry_failed``, but those that the machine failed (``transient``) are always tried again.
    """
    rng = random.Random(seed)

    def position(group: list[Job]) -> tuple[bool, float]:
        size = len(group[0].structure.numbers)
        return size > 1, -math.log(1.0 - rng.random()) * size**prefer_small

    order = sorted(groups, key=position)
    unique: dict[str, Job] = {}
    for group in order:
        for job in group:
            unique.setdefault(job.id, job)
    jobs = list(unique.values())
    labelled = store.done() | store.kept.keys()
    failed = {identity for identity, entry in store.failures().items() if not entry["transient"]} - labelled
    skip = labelled if retry_failed else labelled | failed
    todo = [job for job in jobs if job.id not in skip]
    return Plan(jobs, sum(j.id in labelled for j in jobs), sum(j.id in failed for j in jobs), todo)


@dataclass
class Outcome:
    """What a run did."""

    labelled: int = 0
    failed: int = 0
    seconds: float = 0.0

    @property
    def per_hour(self) -> float:
        return 3600.0 * (self.labelled + self.failed) / self.seconds if self.seconds else 0.0


def run_plan(plan: Plan, store: PartStore, executor: Executor, console: Console) -> Outcome:
    """Compute ``plan.todo`` and store each result as it comes."""
    outcome = Outcome()
    started = time.perf_counter()
    interval = 0 if console.is_terminal else 25
    columns = [
        TextColumn("labelling"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
    ]
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(plan.todo), rate="")
        with closing(executor.run(plan.todo)) as results:
            for result in results:
                if result.labels is not None:
                    store.save(result.job, result.labels)
                    outcome.labelled += 1
                else:
                    store.record_failure(result.job, result.reason, result.transient)
                    outcome.failed += 1
                    console.print(f"no label: {result.job.structure.molecule}: {result.reason}", markup=False)
                outcome.seconds = time.perf_counter() - started
                finished = outcome.labelled + outcome.failed
                left = (len(plan.todo) - finished) * outcome.seconds / finished
                rate = f"{outcome.per_hour:.0f}/h, {_clock(left)} left"
                bar.update(task, advance=1, rate=rate)
                if interval and (finished % interval == 0 or finished == 1):
                    console.print(f"{finished}/{len(plan.todo)} done, {outcome.failed} failed, {rate}", markup=False)
    return outcome


def _clock(seconds: float) -> str:
    """``h:mm:ss``."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def describe_plan(plan: Plan, left_out: list[str], store: PartStore, settings: LabelSettings) -> list[str]:
    """What a run would do, one line each."""
    sizes = [len(job.structure.numbers) for job in plan.jobs]
    molecules = {job.structure.molecule for job in plan.jobs}
    lines = [
        f"theory      {settings.xc}/{settings.basis}, {settings.fitting} in {settings.auxbasis}, grid level {settings.grid_level}, "
        f"conv_tol {settings.conv_tol:g} Eh{'' if settings.forces else '; no forces'}",
        f"structures  {len(plan.jobs)} of {len(molecules)} molecules, {min(sizes, default=0)} to "
        f"{max(sizes, default=0)} atoms (mean {sum(sizes) / max(1, len(sizes)):.1f})",
        f"state       {plan.done} labelled, {plan.failed} failed earlier, {len(plan.todo)} to do",
        f"output      {store.out} (finished jobs in {store.folder})",
    ]
    if left_out:
        lines.append(f"left out    {len(left_out)}: {'; '.join(left_out[:3])}{' ...' if len(left_out) > 3 else ''}")
    return lines


# ---------------------------------------------------------------------------------------------------- the command


@dataclass
class LabelRequest:
    """The options of ``scf-accel label``; see its help."""

    structures: Path
    out: Path
    settings: LabelSettings
    perturbations: Perturbations
    max_atoms: int | None = None
    prefer_small: float = 0.0
    workers: int | None = None
    threads: int = 1
    nice: int = 0
    executor: str = "local"
    scheduler: str | None = None
    retry_failed: bool = False
    force: bool = False
    assemble_only: bool = False
    compress: bool = False
    licence: str = "unstated"
    dry_run: bool = False


def make_executor(request: LabelRequest) -> Executor:
    """The executor that the request names."""
    if request.executor == "dask":
        if not request.scheduler:
            raise UserError("--executor dask needs --scheduler ADDRESS (what `dask scheduler` prints when it starts)")
        return DaskExecutor(request.settings, request.scheduler, request.threads)
    if request.executor != "local":
        raise UserError(f"--executor {request.executor}: allowed are local and dask")
    if request.scheduler:
        raise UserError("--scheduler needs --executor dask")
    workers = request.workers or len(os.sched_getaffinity(0))
    return LocalExecutor(request.settings, workers, request.threads, request.nice)


def run_label(request: LabelRequest) -> None:
    """Plan, compute, assemble; on Ctrl-C, SIGTERM or lost workers assemble what is there and stop."""
    console = Console(soft_wrap=True)
    store = PartStore(request.out)
    if request.out.suffix.lower() not in {".h5", ".hdf5"}:
        raise UserError(f"{request.out}: the output is an HDF5 file; name it .h5")
    settings = request.settings.as_dict()
    store.check_settings(settings)
    _adopt(request, store)
    if request.assemble_only:
        _assemble(request, store, console)
        return
    executor = make_executor(request)
    check_theory(request.settings)
    groups, left_out = make_groups(request.structures, request.perturbations, settings, request.max_atoms)
    plan = make_plan(groups, store, request.perturbations.seed, request.prefer_small, request.retry_failed)
    for line in describe_plan(plan, left_out, store, request.settings):
        console.print(line, markup=False, highlight=False)
    if request.dry_run:
        console.print("dry run: nothing computed, nothing written", highlight=False)
        return
    with store.lock(), _termination_interrupts():
        store.open(settings)
        store.write_left_out(left_out)
        try:
            run_plan(plan, store, executor, console)
        except (KeyboardInterrupt, UserError):
            if store.done():
                _assemble(request, store, console)
            raise
        _assemble(request, store, console)


@contextmanager
def _termination_interrupts() -> Iterator[None]:
    """Let SIGTERM (a batch system's time limit, `kill`) act as Ctrl-C inside."""
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _adopt(request: LabelRequest, store: PartStore) -> None:
    """Keep what an existing output holds, unless it is to be replaced."""
    if not request.force:
        store.adopt(request.settings.as_dict())


def _assemble(request: LabelRequest, store: PartStore, console: Console) -> None:
    _adopt(request, store)  # another process may have written OUT since
    attributes = {
        "level_of_theory": request.settings.level_of_theory(),
        "density_basis": load_density_basis(request.settings.auxbasis, store.elements()).to_dict(),
        "licence": request.licence,
    }
    count = store.assemble(attributes, "gzip" if request.compress else None)
    failed = store.failures()
    size = request.out.stat().st_size / 1e6
    console.print(f"{count} labelled frames in {request.out} ({size:.1f} MB); {len(failed)} failed", highlight=False)
    for entry in list(failed.values())[:5]:
        again = "; the next run tries again" if entry["transient"] else ""
        line = f"failed: {entry['molecule']} ({entry['origin']}): {entry['reason']}{again}"
        console.print(line, markup=False, highlight=False)
