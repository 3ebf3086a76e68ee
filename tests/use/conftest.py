"""Small structures for the tests of the calculator, relaxation and MD."""

from __future__ import annotations

import pytest
from ase import Atoms
from ase.build import bulk
from toy_potential import ToyPotential

from mlip import MLIPCalculator


@pytest.fixture
def calculator():
    """A calculator of the toy potential in float64."""
    return MLIPCalculator(ToyPotential())


@pytest.fixture
def crystal():
    """32 copper atoms, rattled."""
    atoms = bulk("Cu", a=3.7, cubic=True) * (2, 2, 2)
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.fixture
def cluster():
    """A bent cluster of five copper atoms, not periodic."""
    return Atoms("Cu5", [[0, 0, 0], [2.5, 0, 0], [1.2, 2.2, 0], [1.3, 0.8, 2.1], [3.5, 2.1, 0.4]])
