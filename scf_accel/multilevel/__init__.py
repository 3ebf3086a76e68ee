"""Multilevel SCF: converge the user's own Fock operator with a handful of full-cost builds (see solver.py)."""

from scf_accel.multilevel.plugin import accelerate
from scf_accel.multilevel.report import Report, Settings, Step

__all__ = ["Report", "Settings", "Step", "accelerate"]
