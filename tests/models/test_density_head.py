"""A model with a density head: assembly, calls, gradients, both heads in one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from densities import acetaldehyde, density_model, toy_basis, toy_reference

from mlip.checkpoint import load_model, save_model
from mlip.data.density import DensityBasis, Shell
from mlip.errors import ConfigError
from mlip.models import DensityReference, ModelConfig, build
from mlip.models.density import electron_correction
from mlip.testing import check_all, evaluate, evaluate_density, graph_of

ELEMENTS = [1, 6, 8]


def test_a_model_says_which_heads_it_has():
    reference = toy_reference(ELEMENTS)
    energy = build({"channels": 4}, ELEMENTS)
    density = build({"channels": 4, "energy": False, "density": {}}, ELEMENTS, density=reference)
    both = build({"channels": 4, "density": {}}, ELEMENTS, density=reference)
    assert [m.has_energy for m in (energy, density, both)] == [True, False, True]
    assert [m.density_basis for m in (energy, density, both)] == [None, reference.basis, reference.basis]
    assert density.density_reference == reference and density.e0 == {} and energy.density_reference is None


def test_what_a_call_returns():
    atoms = acetaldehyde()
    energy, density = {"energy", "energies"}, {"density_coefficients", "density_ptr", "density_electrons"}
    both, alone = density_model(atoms, energy=True), density_model(atoms)
    graph = graph_of(atoms, both.cutoff)
    assert set(both(graph)) == {*energy, "forces"}
    assert set(both(graph, compute_density=True)) == {*energy, "forces", *density}
    assert set(both(graph, compute_forces=False, compute_density=True)) == {*energy, *density}
    assert set(both(graph, compute_energy=False, compute_density=True)) == density
    assert set(alone(graph)) == set(alone(graph, compute_forces=False, compute_density=True)) == density


def test_two_heads_do_not_disturb_each_other():
    """Energies and forces are the same with and without the density in the same call, and the density too."""
    atoms = acetaldehyde()
    model = density_model(atoms, energy=True)
    graph = graph_of(atoms, model.cutoff)
    both, energy, density = (
        model(graph, compute_density=True),
        model(graph),
        model(graph, compute_energy=False, compute_density=True),
    )
    for part in (energy, density):
        for key, value in part.items():
            torch.testing.assert_close(both[key], value, rtol=1e-11, atol=1e-12)
    assert not any(value.requires_grad for value in both.values())


def test_coefficients_are_ordered_by_atom_and_basis():
    """Batch offsets are those of the basis, whatever the elements."""
    basis = toy_basis(ELEMENTS)
    structures = [molecule("H2O"), molecule("CH3CHO"), Atoms("O")]
    model = density_model(structures[1])
    parts = evaluate_density(model, structures)
    assert [len(part) for part in parts] == [basis.offsets(a.numbers)[-1] for a in structures]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_has_the_networks_type_and_counts_are_float64(dtype):
    atoms = acetaldehyde()
    out = density_model(atoms, dtype)(graph_of(atoms, 4.0))
    assert out["density_coefficients"].dtype == dtype and out["density_electrons"].dtype == torch.float64


def test_tables_survive_a_passage_through_float32():
    """Baseline and charges are not network: rounding them once would stay."""
    atoms = acetaldehyde()
    model = density_model(atoms)
    before = {name: value.clone() for name, value in model.density_head.tables.named_buffers()}
    model.to(torch.float32).to(torch.float64)
    assert all(torch.equal(before[name], value) for name, value in model.density_head.tables.named_buffers())


def test_modes_combine_the_shells_of_a_degree():
    """What the network says to a mode k adds V[s, k] to the shells s of its degree, for elements with few shells and many."""
    reference, atoms = toy_reference(ELEMENTS), acetaldehyde()
    units = {z: tuple(tuple(map(tuple, np.eye(len(m)).tolist())) for m in reference.modes_of(z)) for z in ELEMENTS}
    fields = {"channels": 4, "energy": False, "density": {"projection": "none"}}
    plain = replace(reference, baseline={})
    mixed, alone = (
        evaluate_density(build(fields, ELEMENTS, density=r, avg_num_neighbors=6.0, dtype="float64", seed=3), atoms)[0]
        for r in (plain, replace(plain, modes=units))
    )
    offsets = reference.basis.offsets(atoms.numbers)
    for atom, z in enumerate(atoms.numbers.tolist()):
        degrees = np.array(reference.basis.degrees(z))
        starts = offsets[atom] + np.cumsum([0, *(2 * degrees + 1)])[:-1]
        for l, modes in enumerate(reference.modes_of(z)):
            rows = starts[degrees == l][:, None] + np.arange(2 * l + 1)
            np.testing.assert_allclose(mixed[rows], modes @ alone[rows], atol=1e-12)
            assert not len(rows) or np.abs(alone[rows]).max() > 1e-6


@pytest.mark.parametrize("metric", ["overlap", "coulomb"])
def test_projection_is_the_smallest_change(metric):
    """Any other vector that holds the electrons lies further away in the metric's diagonal."""
    atoms = acetaldehyde()
    model = density_model(atoms, density={"projection": metric})
    numbers = atoms.numbers
    (raw,), (held,) = (evaluate_density(model, atoms, project=p) for p in (False, True))
    charges = np.concatenate([model.density_basis.charges(int(z)) for z in numbers])
    weights = np.concatenate([model.density_basis.metric_diagonal(int(z), metric) for z in numbers])
    assert charges @ held == pytest.approx(numbers.sum(), abs=1e-10)
    change, rng = held - raw, np.random.default_rng(0)
    for _ in range(5):
        within = rng.normal(size=len(raw))
        within -= charges * (charges @ within) / (charges @ charges)  # keeps the count
        assert abs((weights * change) @ within) < 1e-10 * np.linalg.norm(weights * change)
    with torch.no_grad():
        before = model(graph_of(atoms, model.cutoff), project_density=False)["density_electrons"]
    assert float(before) == pytest.approx(charges @ raw)


def test_projection_leaves_an_empty_graph_alone():
    missing = torch.tensor([1.0, 2.0], dtype=torch.float64)
    ones = torch.ones(3, dtype=torch.float64)
    change = electron_correction(missing, ones, ones, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(change, torch.full((3,), 1 / 3, dtype=torch.float64))


@pytest.mark.parametrize("energy", [False, True])
def test_every_parameter_learns(energy):
    atoms = acetaldehyde()
    model = density_model(atoms, energy=energy).train()
    out = model(graph_of(atoms, model.cutoff), compute_forces=energy, compute_density=True)
    loss = out["density_coefficients"].square().sum() + (out["forces"].square().sum() if energy else 0.0)
    loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_gradient_is_that_of_finite_differences():
    atoms = molecule("H2O")
    model = density_model(atoms).train()
    graph = graph_of(atoms, model.cutoff)
    weight = model.density_head.reduce.weight
    target = torch.linspace(-1, 1, len(model(graph)["density_coefficients"]), dtype=torch.float64)

    def loss():
        return (model(graph)["density_coefficients"] - target).square().sum()

    (gradient,) = torch.autograd.grad(loss(), weight)
    direction = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            weight += step * direction
            values.append(float(loss()))
            weight -= step * direction
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(float((gradient * direction).sum()), rel=1e-6)


def test_l_max_caps_what_is_predicted():
    atoms = acetaldehyde()
    model = density_model(atoms, density={"l_max": 1, "projection": "none"})
    (coefficients,) = evaluate_density(model, atoms)
    basis = model.density_basis
    degrees = np.concatenate([np.repeat(basis.degrees(z), [s.size for s in basis.of(z)]) for z in atoms.numbers.tolist()])
    assert (coefficients[degrees > 1] == 0).all() and (coefficients[degrees == 1] != 0).all()


def test_a_basis_may_skip_a_degree(tmp_path):
    """No element has p functions: nothing of the kind in the readout, all else as ever."""
    shells = {1: (Shell(0, (1.0,), (1.0,)), Shell(2, (0.8,), (1.0,)))}
    fields = {"channels": 4, "energy": False, "density": {}}
    model = build(fields, [1], density=DensityReference(DensityBasis("no-p", shells)), dtype="float64", seed=0)
    atoms = molecule("H2")
    check_all(model, atoms)
    loaded = load_model(save_model(model, tmp_path / "m.safetensors"))
    np.testing.assert_array_equal(evaluate_density(loaded, atoms)[0], evaluate_density(model, atoms)[0])


def test_a_model_of_some_of_the_elements_takes_a_reference_of_more():
    model = build({"channels": 4, "energy": False, "density": {}}, [1, 8], density=toy_reference(ELEMENTS))
    assert model.density_basis.elements == (1, 8)


@pytest.mark.parametrize(
    ("fields", "density", "words"),
    [
        ({"energy": False}, None, "needs a head"),
        ({"energy": False, "zbl": True, "density": {}}, toy_reference(ELEMENTS), "zbl"),
        ({"density": {"chanels": 3}}, toy_reference(ELEMENTS), r"density\.chanels"),
        ({"density": {}}, None, "density is None"),
        ({}, toy_reference(ELEMENTS), "config lacks"),
        ({"density": {}}, toy_reference([1, 6]), "no density functions .*for O"),
        ({"density": {}}, DensityReference(toy_basis(ELEMENTS), scales=toy_reference([1, 6]).scales), "no scales for O"),
        ({"density": {}}, DensityReference(toy_basis(ELEMENTS), baseline=dict.fromkeys(ELEMENTS, (1.0,))), "baseline of H"),
    ],
)
def test_bad_density_input_is_named(fields, density, words):
    with pytest.raises(ConfigError, match=words):
        build({"channels": 4, **fields}, ELEMENTS, density=density)


def test_asking_for_a_head_that_is_not_there_is_an_error():
    atoms = acetaldehyde()
    with pytest.raises(ConfigError, match="without an energy head"):
        evaluate(density_model(atoms), atoms)
    model = build(ModelConfig(channels=4), ELEMENTS)
    with pytest.raises(ConfigError, match="without a density head"):
        model(graph_of(atoms, model.cutoff), compute_density=True)


def test_a_calculator_needs_energies(tmp_path):
    from mlip import MLIPCalculator

    atoms = acetaldehyde()
    with pytest.raises(ConfigError, match="no energy head"):
        MLIPCalculator(density_model(atoms))
    path = save_model(density_model(atoms), tmp_path / "density.safetensors")
    with pytest.raises(ConfigError, match=r"density\.safetensors has no energy head"):
        MLIPCalculator(path)
    atoms.calc = MLIPCalculator(density_model(atoms, energy=True))
    assert np.isfinite(atoms.get_forces()).all()
