"""The calculator: forces and stress are the gradients of its energy; it works in ASE's tools; bad input is one line."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.constraints import FixAtoms
from ase.mep import NEB
from ase.optimize import BFGS
from ase.phonons import Phonons
from toy_potential import ToyPotential

from mlip import MLIPCalculator
from mlip.errors import CheckpointError, ConfigError, StructureError
from mlip.models import build


def test_forces_and_stress_are_gradients_of_the_energy(crystal, calculator):
    crystal.calc = calculator
    np.testing.assert_allclose(crystal.get_forces(), calculate_numerical_forces(crystal, eps=1e-4), atol=1e-6)
    np.testing.assert_allclose(crystal.get_stress(), calculate_numerical_stress(crystal, eps=1e-5), atol=1e-8)
    assert crystal.get_potential_energies().sum() == pytest.approx(crystal.get_potential_energy(), abs=1e-10)
    assert crystal.get_potential_energy(force_consistent=True) == crystal.get_potential_energy()


def test_results_do_not_depend_on_the_skin_or_on_history(crystal):
    reused, fresh = (MLIPCalculator(ToyPotential(), skin=skin) for skin in (0.5, 0.0))
    rng = np.random.default_rng(0)
    for _ in range(30):
        crystal.positions += 0.02 * rng.standard_normal(crystal.positions.shape)
        for calculator in (reused, fresh):
            calculator.calculate(crystal, ["forces", "stress"])
        np.testing.assert_array_equal(reused.results["forces"], fresh.results["forces"])
        np.testing.assert_array_equal(reused.results["stress"], fresh.results["stress"])
    assert reused._neighbors.builds < fresh._neighbors.builds


def test_one_network_evaluation_a_configuration(crystal, calculator):
    crystal.calc = calculator
    crystal.get_stress()
    for _ in range(3):
        crystal.rattle(0.01, rng=np.random.default_rng(0))
        before = calculator.model.calls
        crystal.get_potential_energy()
        crystal.get_forces()
        crystal.get_stress()
        assert calculator.model.calls == before + 1


def test_different_structures_one_calculator(crystal, cluster, calculator):
    separate = [MLIPCalculator(ToyPotential()).get_potential_energy(atoms) for atoms in (crystal, cluster)]
    shared = [calculator.get_potential_energy(atoms) for atoms in (crystal, cluster, crystal, cluster)]
    assert shared == separate * 2


def test_the_model_is_copied_frozen_and_left_alone(cluster):
    model = ToyPotential().train()
    calculator = MLIPCalculator(model)
    before = calculator.get_potential_energy(cluster)
    with torch.no_grad():
        model.shape.mul_(2)
    cluster.positions[0] += 1e-9
    assert calculator.get_potential_energy(cluster) == pytest.approx(before, abs=1e-6)
    assert model.training and model.shape.requires_grad


def test_dtype_is_one_word(cluster):
    single, double = (MLIPCalculator(ToyPotential(), dtype=dtype) for dtype in ("float32", "float64"))
    assert single.model.shape.dtype == torch.float32
    difference = np.abs(single.get_forces(cluster) - double.get_forces(cluster)).max()
    assert 0 < difference < 1e-5
    assert single.get_forces(cluster).dtype == np.float64
    with pytest.raises(ConfigError, match="float32 or float64"):
        MLIPCalculator(ToyPotential(), dtype="half")
    with pytest.raises(ConfigError, match="available here"):
        MLIPCalculator(ToyPotential(), device="cuda:99")


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_give_the_same_numbers(crystal, clone, calculator):
    forces = calculator.get_forces(crystal)
    twin = clone(calculator)
    moved = crystal.copy()
    moved.rattle(0.03, seed=4)
    np.testing.assert_array_equal(twin.get_forces(crystal), forces)
    np.testing.assert_array_equal(twin.get_forces(moved), calculator.get_forces(moved))
    assert twin.fingerprint() == calculator.fingerprint()


# -- bad input -------------------------------------------------------------------------------------------------------


def wrong(atoms, calculator=None):
    with pytest.raises(StructureError) as caught:
        (calculator or MLIPCalculator(ToyPotential())).get_potential_energy(atoms)
    return str(caught.value)


def test_unknown_element_is_named_with_the_allowed_ones(cluster):
    cluster.numbers[1] = 78
    assert "Pt" in wrong(cluster) and "Cu" in wrong(cluster)


def test_overlap_is_named(cluster):
    cluster.positions[3] = cluster.positions[1] + 0.01
    assert "atoms 3 and 1" in wrong(cluster) or "atoms 1 and 3" in wrong(cluster)
    tiny = Atoms("Cu", cell=[0.1, 5, 5], pbc=True)
    assert "periodic image" in wrong(tiny)


def test_a_caught_overlap_leaves_no_stale_neighbours():
    """Going on after the error gives what a fresh calculator gives."""
    calculator = MLIPCalculator(ToyPotential())

    def energy(distance, with_calculator):
        return with_calculator.get_potential_energy(Atoms("Cu2", [[0, 0, 0], [distance, 0, 0]]))

    energy(4.2, calculator)
    with pytest.raises(StructureError):
        energy(0.01, calculator)
    for distance in (0.5, 2.0):
        assert energy(distance, calculator) == energy(distance, MLIPCalculator(ToyPotential()))


def test_not_finite_positions(cluster):
    cluster.positions[2, 1] = np.nan
    assert "atom 2" in wrong(cluster)


def test_no_atoms_and_no_cell(cluster):
    assert "no atoms" in wrong(Atoms())
    cluster.pbc = True
    assert "lattice vectors" in wrong(cluster)


def test_unknown_charge(cluster):
    cluster.info["charge"] = 1
    assert "charge 1" in wrong(cluster)
    assert np.isfinite(MLIPCalculator(ToyPotential(charges=[0, 1])).get_potential_energy(cluster))
    cluster.info["charge"] = 0.5
    assert "whole number" in wrong(cluster)
    del cluster.info["charge"]
    cluster.set_initial_charges([1, -0.5, -0.5, 0, -1])
    assert "charge -1" in wrong(cluster)
    cluster.set_initial_charges([1, -0.5, -0.5, 0, 0])
    assert np.isfinite(MLIPCalculator(ToyPotential()).get_potential_energy(cluster))


def test_a_new_charge_is_noticed_by_the_cache(cluster, calculator):
    cluster.calc = calculator
    cluster.get_potential_energy()
    cluster.info["charge"] = 2
    with pytest.raises(StructureError, match="charge 2"):
        cluster.get_potential_energy()


def test_unknown_spin(cluster):
    cluster.info["spin"] = 1
    assert "spin 1" in wrong(cluster)


def test_a_radical_where_electrons_were_counted_in_training(cluster):
    """An odd number of electrons without an unpaired one is refused, but for atoms, metals, cells and models that cannot tell."""

    def energy(atoms, **options):
        return MLIPCalculator(potential, **options).get_potential_energy(atoms)

    potential = build({"channels": 4, "l_max": 1, "num_layers": 1}, ["H", "O", "Cu"])
    radical = Atoms("OH", [[0, 0, 0], [0.97, 0, 0]])
    assert np.isfinite(energy(radical))
    potential.metadata = {"spins_fit": True}
    assert "9 electrons, and 0 of them unpaired cannot be" in wrong(radical, MLIPCalculator(potential))
    assert "closed shells alone (check_electrons=False" in wrong(radical, MLIPCalculator(potential))
    assert np.isfinite(energy(radical, check_electrons=False))
    potential.metadata["charges"] = [-1, 0]
    assert 'set atoms.info["charge"]' in wrong(radical, MLIPCalculator(potential))
    for good in (radical[:1], radical[1:], cluster[:3], bulk("Cu"), Atoms("OHH", [[0, 0, 0], [0.97, 0, 0], [-0.3, 0.9, 0]])):
        assert np.isfinite(energy(good))
    radical.info["charge"] = -1
    assert np.isfinite(energy(radical))


def test_stress_needs_a_full_cell(cluster, calculator):
    with pytest.raises(PropertyNotImplementedError, match="three directions"):
        calculator.get_stress(cluster)
    assert np.isfinite(calculator.get_forces(cluster)).all()


def test_not_a_potential():
    with pytest.raises(CheckpointError, match="cutoff"):
        MLIPCalculator(torch.nn.Linear(2, 2))


# -- ASE's tools -----------------------------------------------------------------------------------------------------


def test_neb_with_a_shared_calculator_and_with_one_each(calculator):
    first = Atoms("Cu4", [[0, 0, 0], [2.6, 0, 0], [1.3, 2.25, 0], [1.3, 0.75, 2.12]], constraint=FixAtoms([0, 1, 2]))
    last = first.copy()
    last.positions[3, 2] *= -1
    barriers = []
    for shared in (True, False):
        images = [first.copy() for _ in range(4)] + [last.copy()]
        neb = NEB(images, k=0.5, method="improvedtangent", allow_shared_calculator=shared)
        neb.interpolate(apply_constraint=True)
        for image in images[1:-1]:
            image.positions[3] += [1.6, 0.9, 0]  # around the triangle, not through it
        for image in images:
            image.calc = calculator if shared else copy.deepcopy(calculator)
        BFGS(neb, logfile=None).run(fmax=0.05, steps=60)
        barriers.append(max(image.get_potential_energy() for image in images))
    assert barriers[0] == pytest.approx(barriers[1], abs=1e-8)


def test_phonons_obey_the_acoustic_sum_rule(tmp_path, calculator):
    atoms = bulk("Cu", a=3.7)
    phonons = Phonons(atoms, calculator, supercell=(3, 3, 3), delta=0.01, name=str(tmp_path / "phonon"))
    phonons.run()
    phonons.read(acoustic=False)
    force_constants = phonons.get_force_constant()
    assert np.abs(force_constants.sum(axis=0)).max() < 1e-6 * np.abs(force_constants).max()
    gamma = phonons.band_structure([[0, 0, 0]])[0]
    zone_edge = phonons.band_structure([[0.5, 0.5, 0.5]])[0]
    assert np.abs(gamma).max() < 1e-2 * zone_edge.max()
