"""Relaxation and molecular dynamics with any ASE calculator: what stands behind ``mlip relax`` and ``mlip md``."""

from mlip.dynamics.hessian import hessian
from mlip.dynamics.md import MDSummary, run_md
from mlip.dynamics.output import SimulationError
from mlip.dynamics.relax import OPTIMIZERS, RelaxResult, relax
from mlip.dynamics.settings import MDSettings

__all__ = ["OPTIMIZERS", "MDSettings", "MDSummary", "RelaxResult", "SimulationError", "hessian", "relax", "run_md"]
