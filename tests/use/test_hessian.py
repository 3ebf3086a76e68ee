"""A potential's Hessian: second derivatives of its energy, positive, and of use to an optimiser of other forces."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.constraints import FixAtoms
from ase.optimize import BFGS

from mlip import MLIPCalculator
from mlip.dynamics import hessian
from mlip.errors import ConfigError


@pytest.fixture(scope="module")
def calculator():
    return MLIPCalculator(dtype="float64")


@pytest.fixture
def ethanol(calculator):
    atoms = molecule("CH3CH2OH")
    atoms.calc = calculator
    BFGS(atoms, logfile=None).run(fmax=0.01)
    return atoms


def test_it_is_the_curvature_of_the_energy(ethanol, calculator):
    matrix, rng = hessian(ethanol, step=1e-3), np.random.default_rng(0)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-10)
    assert np.linalg.eigvalsh(matrix).min() == pytest.approx(0.1)
    direction = rng.normal(size=(9, 3))
    moved = [ethanol.copy() for _ in range(3)]
    for atoms, sign in zip(moved, (-1, 0, 1), strict=True):
        atoms.positions += sign * 1e-3 * direction
    minus, here, plus = (calculator.get_potential_energy(atoms) for atoms in moved)
    flat = direction.ravel()
    values, vectors = np.linalg.eigh(matrix)
    soft = values < 0.11  # raised to the least curvature: the molecule as a whole, at a minimum
    assert soft.sum() == 6
    lifted = 0.1 * np.square(vectors[:, soft].T @ flat).sum()
    assert (plus - 2 * here + minus) / 1e-6 == pytest.approx(flat @ matrix @ flat - lifted, rel=1e-3, abs=0.05)


def test_atoms_and_constraints_are_left_alone(ethanol):
    before = hessian(ethanol)
    ethanol.set_constraint(FixAtoms([0, 1]))
    positions = ethanol.positions.copy()
    np.testing.assert_array_equal(hessian(ethanol), before)
    np.testing.assert_array_equal(ethanol.positions, positions)
    assert len(ethanol.constraints) == 1


class OtherTheory(Calculator):
    """The same forces 10 % stiffer, and springs that make every bond 3 % longer than at ``start``."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, calculator, start):
        super().__init__()
        self.calculator = calculator
        distances = start.get_all_distances()
        self.bonds = np.argwhere(np.triu((distances > 0) & (distances < 1.7)))
        self.lengths = 1.03 * distances[tuple(self.bonds.T)]

    def calculate(self, atoms=None, properties=("forces",), system_changes=("positions",)):
        super().calculate(atoms, properties, system_changes)
        energy, forces = (1.1 * self.calculator.get_property(name, atoms) for name in ("energy", "forces"))
        for (i, j), length in zip(self.bonds, self.lengths, strict=True):
            vector = atoms.positions[j] - atoms.positions[i]
            distance = np.linalg.norm(vector)
            energy += 10.0 * (distance - length) ** 2
            pull = 20.0 * (distance - length) * vector / distance
            forces[i] += pull
            forces[j] -= pull
        self.results = {"energy": energy, "forces": forces}


def test_an_optimiser_of_other_forces_takes_fewer_steps(ethanol, calculator):
    steps, ends = [], []
    for first in (None, hessian(ethanol)):
        atoms = ethanol.copy()
        atoms.calc = OtherTheory(calculator, ethanol)
        assert np.abs(atoms.get_forces()).max() > 0.3
        optimizer = BFGS(atoms, logfile=None)
        if first is not None:
            optimizer.H0 = first
        assert optimizer.run(fmax=0.01, steps=300)
        steps.append(optimizer.nsteps)
        ends.append(atoms.get_potential_energy())
    assert steps[1] < 0.6 * steps[0] and ends[1] == pytest.approx(ends[0], abs=0.005)


def test_what_it_needs(ethanol):
    with pytest.raises(ConfigError, match="no calculator"):
        hessian(ethanol.copy())
    with pytest.raises(ConfigError, match="must be positive"):
        hessian(ethanol, step=0.0)
