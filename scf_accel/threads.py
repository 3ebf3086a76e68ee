"""Python threads over blocks of a large array, each with single-threaded BLAS and OpenMP.

Matrix products of a few hundred rows gain nothing from threads inside the product, and threads that wait for each other
there lose much on a busy machine; blocks that are worked on independently scale with the cores.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from pyscf import lib
from threadpoolctl import ThreadpoolController


@functools.cache
def _libraries() -> ThreadpoolController:
    """The loaded BLAS libraries; finding them takes milliseconds."""
    return ThreadpoolController()


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """One pool a process: a forked child does not inherit the threads."""
    return ThreadPoolExecutor(threads, initializer=lib.num_threads, initargs=(1,))


class _SerialBlas:
    """The limit of one BLAS thread belongs to the whole process: first in sets it, last out restores what was."""

    def __init__(self) -> None:
        self._lock, self._inside, self._limit = threading.Lock(), 0, None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._limit = _libraries().limit(limits=1, user_api="blas")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._limit.restore_original_limits()  # type: ignore[attr-defined]


serial_blas = _SerialBlas()


@contextmanager
def serial(active: bool = True) -> Iterator[None]:
    """Within, BLAS and PySCF's own OpenMP loops use one thread (if ``active``)."""
    if not active:
        yield
        return
    with serial_blas, lib.with_omp_threads(1):
        yield


def each(work: Callable[[Any], Any], items: Iterable[Any], threads: int) -> Generator[Any, None, None]:
    """``work(item)`` of every item, in order, spread over ``threads`` threads; few results wait at any time.

    BLAS stays limited until the generator ends: a caller that may stop before does so within ``contextlib.closing``. (A limit
    around each item would have to be set by the threads of the pool, from which OpenBLAS does not take it.)
    """
    with serial_blas:
        if threads == 1:
            yield from map(work, items)
            return
        pool = _pool(os.getpid(), threads)
        waiting: deque[Any] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def blocks(total: int, step: int) -> list[slice]:
    """Slices of ``step`` (at least 1) that cover ``range(total)``."""
    step = max(1, step)
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]
