"""Relaxation of positions, and of the cell where asked."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE, FIRE2, LBFGS

from mlip.dynamics.output import CsvLog, FrameWriter, SimulationError, snapshot
from mlip.errors import ConfigError, StructureError

OPTIMIZERS: dict[str, Any] = {"BFGS": BFGS, "LBFGS": LBFGS, "FIRE": FIRE, "FIRE2": FIRE2}


@dataclass(frozen=True)
class RelaxResult:
    """How a relaxation ended.

    Attributes:
        atoms: the relaxed structure, results attached.
        converged: whether ``fmax`` was met.
        steps: optimiser steps.
        energy_before, energy_after: eV.
        fmax: largest force on an atom at the end, eV/Angstrom.
        stress_max: largest component of stress plus pressure at the end, GPa; ``None`` unless the cell was relaxed.
        seconds: wall time.
    """

    atoms: Atoms
    converged: bool
    steps: int
    energy_before: float
    energy_after: float
    fmax: float
    stress_max: float | None
    seconds: float


def relax(
    atoms: Atoms,
    calculator: Any = None,
    *,
    fmax: float = 0.01,
    cell: bool = False,
    pressure: float = 0.0,
    optimizer: str = "auto",
    max_steps: int = 500,
    trajectory: str | Path | None = None,
    log: str | Path | None = None,
    report: Callable[[int, float, float], None] | None = None,
) -> RelaxResult:
    """Relax ``atoms`` in place.

    With ``cell`` the forces are joined by the gradient with respect to the logarithm of the deformation (ASE's
    ``FrechetCellFilter``), both measured against ``fmax``. Use a float64 calculator: the rounding of float32 forces can
    be above a tight ``fmax``.

    Args:
        calculator: any ASE calculator; ``None`` takes the one attached.
        fmax: largest force component norm to stop at, eV/Angstrom.
        cell: relax the cell too.
        pressure: GPa, with ``cell``.
        optimizer: ``BFGS``, ``LBFGS``, ``FIRE``, ``FIRE2``, or ``auto``: BFGS up to 100 atoms, FIRE2 beyond. (ASE's
            LBFGS is fast near a minimum but can walk away where the curvature is negative: it has no line search.)
        max_steps: steps after which it gives up, not converged.
        trajectory: frames as it goes, ``.traj`` or extended XYZ.
        log: CSV table as it goes.
        report: called at every step with (step, energy in eV, largest force in eV/Angstrom).

    Raises:
        ConfigError: unknown optimiser, impossible ``fmax`` or ``max_steps``.
        StructureError: ``cell`` for a structure that is not periodic in three directions; a structure that cannot be
            evaluated.
        SimulationError: a structure on the way cannot be evaluated.
    """
    names = {name.lower(): name for name in OPTIMIZERS} | {"auto": "BFGS" if len(atoms) <= 100 else "FIRE2"}
    if optimizer.lower() not in names:
        raise ConfigError(f"optimizer is {optimizer!r}; choose auto, {', '.join(OPTIMIZERS)}")
    if not fmax > 0 or max_steps < 0:
        raise ConfigError(f"fmax is {fmax} and max_steps {max_steps}; fmax must be positive and max_steps not negative")
    if cell and not atoms.pbc.all():
        raise StructureError(f"relaxing the cell needs pbc in three directions; found pbc = {atoms.pbc.tolist()}")
    if pressure and not cell:
        raise ConfigError("a pressure needs the cell to be relaxed too; add --cell (cell=True), or leave it out")
    if calculator is not None:
        atoms.calc = calculator
    started = time.perf_counter()
    before = float(atoms.get_potential_energy())  # a structure that is wrong from the start says so here
    target = FrechetCellFilter(atoms, scalar_pressure=pressure * units.GPa) if cell else atoms
    dynamics = OPTIMIZERS[names[optimizer.lower()]](target, logfile=None)
    observer = _Observer(atoms, dynamics, cell, pressure, trajectory, log, report)
    dynamics.attach(observer)
    try:
        with warnings.catch_warnings():
            # Of the filter's matrix logarithm: the errors that SciPy estimates are some 1e-12.
            warnings.filterwarnings("ignore", message="logm result may be inaccurate", category=RuntimeWarning)
            converged = bool(dynamics.run(fmax=fmax, steps=max_steps))
    except StructureError as error:
        raise SimulationError(
            f"the relaxation went astray after step {dynamics.nsteps}: {error}; start closer to a minimum, try "
            "--optimizer FIRE, or use a model trained on such structures"
        ) from error
    finally:
        observer.close()
    largest, stress = observer.measure()
    after = float(atoms.get_potential_energy())
    if not np.isfinite([after, largest]).all():
        raise SimulationError("the relaxation ended at an energy or force that is not finite; check the structure")
    return RelaxResult(
        atoms, converged, int(dynamics.nsteps), before, after, largest, stress, time.perf_counter() - started
    )


class _Observer:
    """Writes and reports every step."""

    def __init__(
        self,
        atoms: Atoms,
        dynamics: Any,
        cell: bool,
        pressure: float,
        trajectory: str | Path | None,
        log: str | Path | None,
        report: Callable[[int, float, float], None] | None,
    ) -> None:
        self.atoms, self.dynamics, self.cell, self.pressure, self.report = atoms, dynamics, cell, pressure, report
        self.frames = None if trajectory is None else FrameWriter(Path(trajectory))
        columns = ["step", "energy_eV", "fmax_eV_A", *(["stress_max_GPa", "volume_A3"] if cell else [])]
        self.log = None if log is None else CsvLog(Path(log), columns)

    def __call__(self) -> None:
        largest, stress = self.measure()
        step, energy = int(self.dynamics.nsteps), float(self.atoms.get_potential_energy())
        if self.frames is not None:
            self.frames.write(snapshot(self.atoms, step=step))
        if self.log is not None:
            row = {"step": str(step), "energy_eV": f"{energy:.8f}", "fmax_eV_A": f"{largest:.8f}"}
            if stress is not None:
                row |= {"stress_max_GPa": f"{stress:.6f}", "volume_A3": f"{self.atoms.get_volume():.4f}"}
            self.log.write(row)
        if self.report is not None:
            self.report(step, energy, largest)

    def measure(self) -> tuple[float, float | None]:
        """Largest force (eV/Angstrom) and, with a cell, largest stress component off the target pressure (GPa)."""
        largest = float(np.linalg.norm(self.atoms.get_forces(), axis=1).max())
        if not self.cell:
            return largest, None
        stress = self.atoms.get_stress() / units.GPa
        stress[:3] += self.pressure
        return largest, float(np.abs(stress).max())

    def close(self) -> None:
        """Close the files."""
        if self.frames is not None:
            self.frames.close()
        if self.log is not None:
            self.log.close()
