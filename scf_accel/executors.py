"""Where jobs run: worker processes on this machine, or a Dask cluster. Both yield results as they finish.

Results go back to the one process that called; only that process writes files, so a killed run loses at most the jobs
that were being computed.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from mlip.errors import UserError
from scf_accel.labels import Labels, LabelSettings, compute_labels
from scf_accel.structures import Job

LOSSES_TO_STOP = 3
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass
class Result:
    """A finished job: labels, or the reason why there are none; ``transient`` where the machine was the reason."""

    job: Job
    labels: Labels | None = None
    reason: str = ""
    transient: bool = False


class _Losses:
    """The law for jobs whose worker went away: each is tried twice, and three losses in a row end the run."""

    def __init__(self) -> None:
        self.tried: set[str] = set()
        self.in_a_row = 0

    def clear(self) -> None:
        """A worker gave a result."""
        self.in_a_row = 0

    def lost(self, job: Job, reason: str) -> Result | None:
        """What to report of a lost job: ``None`` for one to queue again. Raises :class:`UserError`."""
        self.in_a_row += 1
        if self.in_a_row >= LOSSES_TO_STOP:
            raise UserError(
                f"{LOSSES_TO_STOP} times in a row {reason}; what is finished is kept. Is there memory enough for the "
                "workers (fewer of them, smaller structures)? Then run the same command again"
            )
        if job.id in self.tried:
            return Result(job, reason=reason, transient=True)
        self.tried.add(job.id)
        return None


def run_job(job: Job, settings: LabelSettings, threads: int = 1, workers: int | None = None) -> Result:
    """Label one job in this process; every exception becomes a reason.

    ``workers`` processes share this machine's memory; ``None``: as many as its cores allow.
    """
    from pyscf import lib

    workers = workers or max(1, (os.cpu_count() or 1) // threads)

    lib.num_threads(threads)
    s = job.structure
    try:
        return Result(job, compute_labels(s.numbers, s.positions, s.charge, s.spin, settings, workers))
    except UserError as error:
        return Result(job, reason=str(error))
    except MemoryError:
        return Result(job, reason="out of memory", transient=True)
    except Exception as error:  # one strange molecule must not end a run of thousands
        return Result(job, reason=f"{type(error).__name__}: {error}")


# ---------------------------------------------------------------------------------------------------- local


def _worker(pipe: Connection, settings: LabelSettings, threads: int, nice: int, workers: int | None = None) -> None:
    """Loop of a worker process: a job in, a result out, until ``None`` or the parent is gone."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if nice:
        os.nice(nice)
    try:
        while (job := pipe.recv()) is not None:
            pipe.send(run_job(job, settings, threads, workers))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


@contextmanager
def _child_threads(threads: int) -> Iterator[None]:
    """Let processes started inside read ``threads`` as their BLAS and OpenMP thread count; then restore."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _Worker:
    """A worker process with its pipe and the job it has in hand."""

    def __init__(self, settings: LabelSettings, threads: int, nice: int, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, child = context.Pipe()
        self.process = context.Process(target=_worker, args=(child, settings, threads, nice, workers), daemon=True)
        with _child_threads(threads):
            self.process.start()
        child.close()
        self.job: Job | None = None

    def give(self, job: Job) -> None:
        self.job = job
        self.pipe.send(job)

    def collect(self) -> tuple[Job, Result | None]:
        """The job in hand and its result, ``None`` where the process has died."""
        assert self.job is not None
        job, self.job = self.job, None
        try:
            return job, self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(timeout=5)
            return job, None

    @property
    def exitcode(self) -> int | None:
        return self.process.exitcode

    def stop(self) -> None:
        if self.process.is_alive():
            self.process.terminate()
        self.process.join(timeout=5)
        self.pipe.close()


class LocalExecutor:
    """``workers`` processes of ``threads`` threads each. A worker that dies is replaced and its job tried once more.

    Three deaths in a row without a result between them raise :class:`UserError`: then the machine is at fault.

    Args:
        settings: theory.
        workers: processes.
        threads: BLAS/OpenMP threads per process.
        nice: added to the processes' niceness.
    """

    def __init__(self, settings: LabelSettings, workers: int = 1, threads: int = 1, nice: int = 0) -> None:
        self.settings, self.workers, self.threads, self.nice = settings, workers, threads, nice

    def run(self, jobs: list[Job]) -> Generator[Result, None, None]:
        """Yield a result per job, as they finish; the workers stop when the generator is closed."""
        queue = deque(jobs)
        pool: list[_Worker] = []
        losses = _Losses()
        try:
            while queue or any(worker.job for worker in pool):
                while queue and len(pool) < self.workers:
                    pool.append(_Worker(self.settings, self.threads, self.nice, self.workers))
                for worker in pool:
                    if worker.job is None and queue:
                        with suppress(OSError):  # died while idle: collect() reports the job it was given
                            worker.give(queue.popleft())
                ready: Any = wait([worker.pipe for worker in pool if worker.job is not None])
                for worker in [w for w in pool if w.pipe in ready]:
                    job, result = worker.collect()
                    if result is not None:
                        losses.clear()
                    else:
                        worker.stop()
                        pool.remove(worker)
                        result = losses.lost(job, f"the worker process died (exit code {worker.exitcode})")
                    if result is None:
                        queue.append(job)
                    else:
                        yield result
        finally:
            for worker in pool:
                worker.stop()


# ---------------------------------------------------------------------------------------------------- dask


class DaskExecutor:
    """Jobs on a running Dask cluster; at most ``ahead`` jobs per worker thread are submitted at a time.

    Args:
        settings: theory.
        scheduler: address such as ``tcp://host:8786``.
        threads: BLAS/OpenMP threads per job; start the Dask workers with one thread each.
        ahead: jobs queued per worker thread, so that none waits for the network.
    """

    def __init__(self, settings: LabelSettings, scheduler: str, threads: int = 1, ahead: int = 3) -> None:
        self.settings, self.scheduler, self.threads, self.ahead = settings, scheduler, threads, ahead

    def run(self, jobs: list[Job]) -> Generator[Result, None, None]:
        """Yield a result per job, as they finish; what is not finished is cancelled when the generator is closed."""
        from dask.distributed import Client, as_completed

        try:
            client = Client(self.scheduler, timeout="20s", set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise UserError(f"no Dask scheduler at {self.scheduler} ({error}); start one: `dask scheduler`") from error
        queue = deque(jobs)
        losses = _Losses()
        running: dict[Any, tuple[Job, Any]] = {}
        try:
            stream = as_completed(loop=client.loop)

            def top_up() -> None:
                room = self.ahead * max(1, sum(client.nthreads().values()))
                while queue and len(running) < room:
                    job = queue.popleft()
                    name = f"label-{job.id}" + ("-again" if job.id in losses.tried else "")
                    future = client.submit(run_job, job, self.settings, self.threads, key=name, pure=False, retries=0)
                    running[future.key] = (job, future)
                    stream.add(future)

            top_up()
            while running:
                future = next(stream)
                job, _ = running.pop(future.key)
                if future.status == "finished":
                    losses.clear()
                    yield future.result()
                else:  # run_job catches what a molecule can do wrong: cancelled, killed, unreachable
                    why = "cancelled" if future.status == "cancelled" else repr(future.exception())
                    result = losses.lost(job, f"the Dask worker gave no result ({why})")
                    if result is None:
                        queue.append(job)
                    else:
                        yield result
                top_up()
        finally:
            client.cancel([future for _, future in running.values()])
            client.close()
