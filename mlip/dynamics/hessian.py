"""A potential's curvature, for an optimiser of dear forces to begin with."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms

from mlip.errors import ConfigError


def hessian(atoms: Atoms, calculator: Any = None, *, step: float = 0.01, least: float = 0.1) -> np.ndarray:
    """Second derivatives of the energy, made positive: what a quasi-Newton optimiser takes as its first guess.

    From central differences of forces, ``6 n`` evaluations. With that of a potential ASE's ``BFGS`` needs a fraction of the steps
    that it takes by itself where the forces are of DFT (docs/how-to/geometry-optimisation.md)::

        optimizer = BFGS(atoms)                           # atoms.calc: DFT
        optimizer.H0 = hessian(atoms, MLIPCalculator(dtype="float64"))
        optimizer.run(fmax=0.01)

    Args:
        atoms: where; neither changed nor evaluated with its own calculator, unless that is the one.
        calculator: any ASE calculator; ``None`` takes the one attached. Use a float64 one.
        step: displacement of a coordinate, Angstrom.
        least: smallest curvature, eV/Angstrom^2. Negative ones count by their size; flatter directions, those in which the molecule
            moves as a whole among them, as this much.

    Returns:
        ``[3 n, 3 n]``, eV/Angstrom^2, symmetric and positive definite, in the order of ``atoms.positions.ravel()``.

    Raises:
        ConfigError: no calculator, or ``step`` or ``least`` that is not positive.
        StructureError: of the calculator, for a structure that it cannot evaluate.
    """
    calculator = atoms.calc if calculator is None else calculator
    if calculator is None:
        raise ConfigError("the atoms have no calculator; attach one, or give it as the second argument")
    if not (step > 0 and least > 0):
        raise ConfigError(f"step is {step} and least {least}; both must be positive")
    rows = []
    for place in np.ndindex(len(atoms), 3):
        forces = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.set_constraint()  # a fixed atom has a curvature too
            moved.positions[place] += sign * step
            forces.append(np.array(calculator.get_property("forces", moved)).ravel())
        rows.append((forces[1] - forces[0]) / (2 * step))
    matrix = np.array(rows)
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.maximum(np.abs(values), least)) @ vectors.T
