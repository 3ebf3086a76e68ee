"""Memory that an object may still take, and freed memory back to the system."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

from pyscf import lib


@functools.cache
def _trim() -> Callable[[int], Any]:
    """``malloc_trim`` of the GNU C library; elsewhere a function that does nothing."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return lambda _: 0
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim


def give_back() -> None:
    """Return freed memory to the system.

    The blocks of a few MB that the stores of orbital values are made of stay with the allocator otherwise, and count as in
    use: later objects of the same process would find nothing left of their ``max_memory``.
    """
    _trim()(0)


def available_bytes(mf: Any) -> float:
    """What ``mf.max_memory`` leaves, in bytes."""
    give_back()
    return max(0.0, (mf.max_memory - lib.current_memory()[0]) * 1e6)
