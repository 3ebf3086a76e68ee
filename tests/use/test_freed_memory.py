"""What is freed stays with the process, so that every evaluation does not pay for its pages anew."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library: nothing is changed there")

# Minor page faults of allocating and filling 16 blocks of 4 MB fifty times, after a first time.
FAULTS = """
import resource, sys
import numpy as np
from mlip.memory import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else None
def fill():
    blocks = [np.ones(2**19) for _ in range(16)]
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    fill()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(mode, **settings):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS, mode]
    result = subprocess.run(command, env=environment | settings, capture_output=True, text=True, check=True)
    kept, faults = result.stdout.split()
    return kept, int(faults)


def test_pages_are_kept():
    _, without = run("plain")
    kept, faults = run("keep")
    assert kept == "True" and faults < 0.05 * without


def test_a_user_who_has_set_it_is_left_alone():
    kept, faults = run("keep", MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072")
    assert kept == "False" and faults > 10_000


def test_a_calculator_asks_for_it(monkeypatch):
    from mlip import MLIPCalculator, build

    asked = []
    monkeypatch.setattr("mlip.calculator.keep_freed_memory", lambda: asked.append(1))
    MLIPCalculator(build({"channels": 2, "l_max": 1}, ["H"], seed=0))
    assert asked == [1]
