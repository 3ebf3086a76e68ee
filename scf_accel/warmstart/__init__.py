"""SCF warm start: an initial guess from a predicted electron density, as a PySCF-style object (see plugin.py)."""

from scf_accel.warmstart.functions import guess_density_matrix, predict_density
from scf_accel.warmstart.plugin import warm_start
from scf_accel.warmstart.report import Report, Settings

__all__ = ["Report", "Settings", "guess_density_matrix", "predict_density", "warm_start"]
