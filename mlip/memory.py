"""Memory that is free on this machine, and what the process does with its own."""

from __future__ import annotations

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_LARGEST = 32 * 2**20  # the largest mmap threshold that glibc takes on 64-bit systems
_USER_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def available_memory() -> int | None:
    """Bytes that can be had without swapping; ``None`` where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for the next allocation; whether it does so now.

    By default glibc gives large blocks back to the system at every ``free``: then each evaluation of a network pays for the same
    pages anew (half of the time of a compiled step of 64 silicon atoms). From now on the process holds what it needed at most, but
    for blocks above 32 MB. Nothing is changed where the user has set glibc's own environment variables for this
    (``MALLOC_TRIM_THRESHOLD_`` and its like), or where the C library is another.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _USER_SETTINGS):
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(_TRIM_THRESHOLD, -1) and library.mallopt(_MMAP_THRESHOLD, _LARGEST))
