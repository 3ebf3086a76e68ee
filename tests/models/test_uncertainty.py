"""Laws of energy_std and forces_std: symmetry, size, smoothness, calibration, files; and that nothing else changes by them."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from densities import acetaldehyde
from scipy.spatial.transform import Rotation
from test_laws import model_for

from mlip import MLIPCalculator
from mlip.checkpoint import load_model, read_header, save_model
from mlip.data.frame import Frame
from mlip.errors import CheckpointError, ConfigError
from mlip.models.compaction import choose_strongest, compact
from mlip.models.inference import FrozenNetwork
from mlip.models.uncertainty import uncertainty_of
from mlip.testing import evaluate, graph_of
from mlip.training.uncertainty import MIN_FRAMES, fit_uncertainty, last_features

STD = ("energy_std", "forces_std")


def displaced(atoms, count, seed):
    """Copies with displacements of 0.05 Angstrom; of training frames, only that they have an energy counts."""
    noise, frames = np.random.default_rng(seed).normal(scale=0.05, size=(count, len(atoms), 3)), []
    for shift in noise:
        frames.append(Frame(atoms.numbers, atoms.positions + shift, np.asarray(atoms.cell), np.asarray(atoms.pbc), energy=0.0))
    return frames


def labelled(model, atoms, count, seed):
    """The same with labels that the model misses by noise of 0.01 eV and 0.1 eV/Angstrom."""
    rng, frames = np.random.default_rng(seed), displaced(atoms, count, seed)
    out = evaluate(model, [structure(frame) for frame in frames])
    forces = out["forces"] + rng.normal(scale=0.1, size=out["forces"].shape)
    energies = out["energy"] + rng.normal(scale=0.01, size=count)
    parts = zip(frames, energies, forces.reshape(count, len(atoms), 3), strict=True)
    return [replace(frame, energy=float(energy), forces=force) for frame, energy, force in parts]


def structure(frame):
    return Atoms(frame.atomic_numbers, frame.positions, cell=frame.cell, pbc=frame.pbc)


def fitted(atoms, dtype="float64", **config):
    model = model_for(atoms, dtype, **config)
    fit_uncertainty(model, displaced(atoms, 40, 0), labelled(model, atoms, 6, 1))
    assert model.uncertainty is not None
    return model


@pytest.fixture(scope="module")
def model():
    return fitted(acetaldehyde())


def deviations(model, *structures):
    out = model(graph_of(list(structures), model.cutoff), compute_forces=False, compute_uncertainty=True)
    return tuple(out[key].numpy() for key in STD)


def same(found, wanted, order=slice(None)):
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-8)
    np.testing.assert_allclose(found[1], wanted[1][order], rtol=1e-8)


@pytest.mark.parametrize("improper", [1.0, -1.0])
def test_invariant(model, improper):
    atoms, moved = acetaldehyde(), acetaldehyde()
    order = np.random.default_rng(0).permutation(len(atoms))
    moved.positions = improper * moved.positions @ Rotation.random(random_state=2).as_matrix().T + [3.0, -20.0, 5.0]
    same(deviations(model, moved[order]), deviations(model, atoms), order)


def test_batch_equals_single(model):
    atoms, other = acetaldehyde(), acetaldehyde()[:4]
    energy, forces = deviations(model, other, atoms)
    same((energy[1:], forces[4:]), deviations(model, atoms))


def far_apart(first, second):
    moved = second.copy()
    moved.positions += [30.0, 0.0, 0.0]
    return first + moved


def test_size(model):
    """Equal errors of equal environments: twice the std of one for two far copies; at most the sum for different parts."""
    atoms, other = acetaldehyde(), acetaldehyde()[:4]
    (one, local), (part, _) = deviations(model, atoms), deviations(model, other)
    same(deviations(model, far_apart(atoms, atoms)), (2 * one, np.tile(local, 2)))
    both, _ = deviations(model, far_apart(atoms, other))
    assert abs(one - part) <= both <= one + part


def test_isolated_atoms_are_certain(model):
    assert [value.tolist() for value in deviations(model, Atoms("C"))] == [[0.0], [0.0]]


def test_smooth_at_the_cutoff(model):
    """An atom that comes into reach changes nothing at once, nor the slope."""
    atoms = acetaldehyde()
    last = atoms.positions[:, 0].argmax()
    reach = atoms.positions[last, 0] + model.cutoff
    values = []
    for shift in (-2e-3, -1e-3, 0.0, 1e-3):
        energy, forces = deviations(model, atoms + Atoms("H", [[reach + shift, *atoms.positions[last, 1:]]]))
        values.append(np.concatenate([energy, forces]))
    steps = np.diff(np.array(values), axis=0)
    assert np.abs(np.diff(steps, axis=0)).max() < 1e-6 * np.abs(values[0]).max()


def test_larger_where_it_was_not_trained(model):
    atoms = acetaldehyde()
    energy, forces = deviations(model, *map(structure, displaced(atoms, 40, 0)))
    for factor in (0.8, 1.3):
        strained = atoms.copy()
        strained.positions *= factor
        far_energy, far_forces = deviations(model, strained)
        assert far_energy > energy.max() and far_forces.max() > forces.max(), factor


def test_calibrated_on_the_validation_frames():
    """Energy errors have mean square 1 in units of the std; squared force stds have the mean of squared errors, by element."""
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.symbols[::4] = "Au"
    model = model_for(atoms, "float64")
    valid = labelled(model, atoms, 20, 1)
    fit_uncertainty(model, displaced(atoms, 30, 0), valid)
    graph = graph_of(map(structure, valid), model.cutoff)
    out = {key: value.detach().numpy() for key, value in model(graph, compute_uncertainty=True).items()}
    energy = (out["energy"] - [f.energy for f in valid]) / out["energy_std"]
    assert np.square(energy).mean() == pytest.approx(1)
    errors = np.square(out["forces"] - np.concatenate([f.forces for f in valid])).mean(1)
    for z in (29, 79):
        mine = graph["atomic_numbers"].numpy() == z
        assert np.square(out["forces_std"][mine]).mean() == pytest.approx(errors[mine].mean())


def test_fit_is_reproducible_and_changes_no_energy():
    atoms = acetaldehyde()
    first, second = fitted(atoms, "float32"), fitted(atoms, "float32")
    plain = model_for(atoms, "float32")
    graph = graph_of(atoms, plain.cutoff)
    for name, value in first.uncertainty.named_buffers():
        assert torch.equal(value, getattr(second.uncertainty, name)) and value.dtype == torch.float64
    assert first.uncertainty.about == second.uncertainty.about and first.uncertainty.about["valid_frames"] == 6
    for key, value in plain(graph).items():
        assert torch.equal(value, first(graph, compute_uncertainty=True)[key])
    assert first.state_dict().keys() == plain.state_dict().keys()


def test_features_are_what_the_energy_is_linear_in(model):
    graph = graph_of(acetaldehyde(), model.cutoff)
    features, total = last_features(model, graph)
    weights = torch.cat([model.head.network[2].weight[0], model.head.bias]).detach().double()
    assert len(weights) == model.head.num_linear < features.shape[1]
    found = total @ weights + model.head.e0[model.species(graph["atomic_numbers"])].sum()
    assert float(found) == pytest.approx(float(model(graph)["energy"]), rel=1e-12)


def test_without_labels_to_calibrate_there_is_none():
    atoms = acetaldehyde()
    model = model_for(atoms, "float64")
    for valid in (labelled(model, atoms, MIN_FRAMES - 1, 1), displaced(atoms, MIN_FRAMES, 1), []):
        assert "no energy_std" in fit_uncertainty(model, displaced(atoms, 4, 0), valid)
        assert model.uncertainty is None


def test_compacted_gates_leave_it_as_it_is():
    atoms = acetaldehyde()
    model = fitted(atoms, gate={"sparsity": 0.5})
    choose_strongest(model)
    before = deviations(model, atoms)
    compact(model)
    same(deviations(model, atoms), before)


def test_checkpoint_keeps_it(model, tmp_path):
    path = save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(path)
    same(deviations(loaded, acetaldehyde()), deviations(model, acetaldehyde()))
    assert loaded.uncertainty.about == model.uncertainty.about == read_header(path)["uncertainty"]
    single = load_model(path, dtype="float32")
    np.testing.assert_allclose(deviations(single, acetaldehyde())[1], deviations(model, acetaldehyde())[1], rtol=1e-3)
    assert single.uncertainty.local_factor.dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "value"),
    [("energy_factor", torch.ones(3, 3)), ("local_factor", torch.ones(2)), ("force_scale", torch.ones(7, dtype=torch.long))],
)
def test_a_checkpoint_with_tensors_of_another_size_is_refused(model, tmp_path, name, value):
    other = copy.deepcopy(model)
    other.uncertainty.register_buffer(name, value, persistent=False)
    with pytest.raises(CheckpointError, match=f"uncertainty.{name} holds"):
        load_model(save_model(other, tmp_path / "m.safetensors"))


# -- calculator ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_calculator_with_and_without_asking(dtype):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=1)
    model = fitted(atoms).to(getattr(torch, dtype))
    plain, every = MLIPCalculator(model), MLIPCalculator(model, uncertainty=True)
    for calculator in (plain, every):
        calculator.calculate(atoms, ["energy", "stress"])
    assert not set(STD) & plain.results.keys() and set(STD) <= every.results.keys()
    for key, value in plain.results.items():
        np.testing.assert_array_equal(value, every.results[key])
    wanted = deviations(model, atoms)
    tolerance = {"float32": 2e-3, "float64": 1e-8}[dtype]
    for calculator in (plain, every, pickle.loads(pickle.dumps(every))):
        assert calculator.get_property("energy_std", atoms) == pytest.approx(float(wanted[0][0]), rel=tolerance)
        np.testing.assert_allclose(calculator.get_property("forces_std", atoms), wanted[1], rtol=tolerance)
    moved = atoms.copy()
    moved.rattle(0.1, seed=2)
    assert plain.get_property("energy_std", moved) != plain.get_property("energy_std", atoms)
    assert plain.get_potential_energy(atoms) == every.get_potential_energy(atoms)


def test_asking_later_evaluates_no_energy_again(model):
    calculator, atoms = MLIPCalculator(model), acetaldehyde()
    calculator.calculate(atoms, ["energy"])
    calculator._evaluate = None
    assert calculator.get_property("forces_std", atoms).shape == (len(atoms),)
    assert calculator.get_property("energy", atoms) == calculator.results["energy"]


def test_a_model_without_it_says_so_in_one_line():
    atoms = acetaldehyde()
    model = model_for(atoms, "float64")
    with pytest.raises(ConfigError, match=r"energy_std and forces_std: this model has none; `mlip train`"):
        MLIPCalculator(model, uncertainty=True)
    calculator = MLIPCalculator(model)
    with pytest.raises(PropertyNotImplementedError, match="this model has none"):
        calculator.get_property("energy_std", atoms)
    assert np.isfinite(calculator.get_potential_energy(atoms))


def test_beside_a_compiled_network_it_takes_a_pass_of_its_own(model, monkeypatch):
    class Compiled:
        network = staticmethod(FrozenNetwork(model))

    monkeypatch.setattr("mlip.exported.cached_export", lambda _: Compiled())
    calculator, atoms = MLIPCalculator(model, compile=True, uncertainty=True), acetaldehyde()
    calculator.calculate(atoms, ["forces"])
    same((calculator.results["energy_std"], calculator.results["forces_std"]), deviations(model, atoms))
    with pytest.raises(ConfigError, match="an exported model has none"):
        uncertainty_of(Compiled())
