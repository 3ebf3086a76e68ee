"""Python threads over blocks of a large array, each with single-threaded BLAS and OpenMP.

Matrix products of a few hundred rows gain nothing from threads inside the product, and threads that wait for each other
there lose much on a busy machine; blocks that are worked on independently scale with the cores.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
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


def serial_blas() -> AbstractContextManager[Any]:
    """Within, BLAS calls use one thread."""
    return _libraries().limit(limits=1, user_api="blas")


@contextmanager
def serial(active: bool = True) -> Iterator[None]:
    """Within, BLAS and PySCF's own OpenMP loops use one thread (if ``active``)."""
    if not active:
        yield
        return
    with serial_blas(), lib.with_omp_threads(1):
        yield


def each(work: Callable[[Any], Any], items: Iterable[Any], threads: int) -> Iterator[Any]:
    """``work(item)`` of every item, in order, spread over ``threads`` threads."""
    with serial_blas():
        if threads == 1:
            yield from map(work, items)
        else:
            yield from _pool(os.getpid(), threads).map(work, items)


def blocks(total: int, step: int) -> list[slice]:
    """Slices of ``step`` (at least 1) that cover ``range(total)``."""
    step = max(1, step)
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]
