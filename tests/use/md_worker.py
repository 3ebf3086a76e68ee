"""A slowed-down Langevin run for the test to kill: python md_worker.py START OUT STEPS."""

from __future__ import annotations

import sys
import time

import ase.io
from toy_potential import ToyPotential

from mlip import MLIPCalculator
from mlip.dynamics import MDSettings, run_md

START, OUT, STEPS = sys.argv[1:]
settings = MDSettings(
    steps=int(STEPS), ensemble="nvt", timestep=2.0, temperature=300, save_every=3, log_every=2, state_every=5, seed=7
)
run_md(ase.io.read(START), MLIPCalculator(ToyPotential()), settings, OUT, report=lambda *_: time.sleep(0.05))
