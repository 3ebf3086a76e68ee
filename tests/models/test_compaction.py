"""Gated models obey the laws in every phase; compaction leaves outputs as they are, and takes paths, work and bytes away."""

import copy

import numpy as np
import pytest
import torch
from densities import acetaldehyde, crystal, density_model, toy_reference
from test_laws import model_for

from mlip.checkpoint import load_model, read_header, save_model
from mlip.errors import CheckpointError, ConfigError
from mlip.models import build, compact
from mlip.models.compaction import choose_paths, choose_strongest, interaction_layers
from mlip.testing import check_all, count_work, evaluate, evaluate_density, graph_of, tolerance

STATES = ("open", "drawn", "sparse", "compact")


def in_state(model, state, seed=0):
    """Gate factors off 1, then as in the random phase's evaluation or training, the adaptive phase, or frozen."""
    generator = torch.Generator().manual_seed(seed)
    for layer in interaction_layers(model):
        with torch.no_grad():
            noise = torch.randn(len(layer.gate.scale), generator=generator, dtype=torch.float64)
            layer.gate.scale.copy_(1 + 0.3 * noise)
        if state == "drawn":
            layer.gate.draw(generator)
            layer.gate.train()
    if state in ("sparse", "compact"):
        choose_strongest(model)
    if state == "compact":
        compact(model)
    return model


def energy_model(atoms, state, dtype="float64", sparsity=0.5, **config):
    return in_state(model_for(atoms, dtype, gate={"sparsity": sparsity}, **config), state)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("make", "l_max"), [(acetaldehyde, 3), (crystal, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_laws_in_every_phase(state, make, l_max, dtype):
    atoms = make()
    assert check_all(energy_model(atoms, state, dtype, l_max=l_max), atoms)


@pytest.mark.parametrize("state", STATES)
def test_energies_stay_smooth(state):
    """Central differences miss the slope by h^2 / 6 times the third derivative: there is one, whatever the gate's phase."""
    atoms = crystal()
    model = energy_model(atoms, state, l_max=3)
    direction = np.random.default_rng(1).normal(size=atoms.positions.shape)
    slope = -float((evaluate(model, atoms)["forces"] * direction).sum())

    def error(step):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions += sign * step * direction
            energies.append(float(evaluate(model, moved)["energy"][0]))
        return abs((energies[0] - energies[1]) / (2 * step) - slope)

    errors = [error(4e-4), error(2e-4), error(1e-4)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1) and errors[1] / errors[2] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("state", STATES)
def test_laws_of_both_heads_in_every_phase(state):
    atoms = acetaldehyde()
    assert check_all(in_state(density_model(atoms, energy=True, gate={}), state), atoms)


def test_a_gate_that_leaves_nothing_out_is_the_dense_model():
    """Bit for bit, and from the same seed."""
    atoms = acetaldehyde()
    dense = model_for(atoms, "float64")
    for state in ("open", "sparse"):
        gated = model_for(atoms, "float64", gate={"sparsity": 0.0})
        if state == "sparse":
            choose_strongest(gated)
        for key, value in evaluate(dense, atoms).items():
            np.testing.assert_array_equal(evaluate(gated, atoms)[key], value)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, [0.0, 0.8]])
def test_compaction_leaves_energies_and_forces_as_they_are(sparsity, dtype):
    atoms = acetaldehyde()
    model = energy_model(atoms, "sparse", dtype, sparsity)
    before = evaluate(model, atoms)
    compact(model)
    after = evaluate(model, atoms)
    for key in ("energy", "forces"):
        assert np.abs(after[key] - before[key]).max() <= tolerance("rotation", dtype) * max(1.0, np.abs(before["forces"]).max())
    assert all(layer.gate is None for layer in interaction_layers(model)) and model.config.gate is None


def test_compaction_leaves_densities_as_they_are_and_reaches_the_head():
    atoms = acetaldehyde()
    model = in_state(density_model(atoms, gate={}), "sparse")
    before, paths = evaluate_density(model, atoms)[0], [len(layer.conv.paths) for layer in interaction_layers(model)]
    compact(model)
    np.testing.assert_allclose(evaluate_density(model, atoms)[0], before, atol=1e-10)
    assert [len(of_layer) for of_layer in model.config.paths] == [3, 6, -(-paths[2] // 2)]


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_paths_and_work_fall_by_the_sparsity_asked_for(sparsity):
    """Counted while the model runs. Mean over choices: paths of high degree cost more than others."""
    atoms = acetaldehyde()
    name = "backbone.layers.1.conv"
    dense = model_for(atoms, "float32", l_max=3)
    graph = graph_of(atoms, dense.cutoff)
    full = count_work(dense, graph)
    shares = []
    for seed in range(8):
        model = in_state(model_for(atoms, "float32", seed, l_max=3, gate={"sparsity": sparsity}), "compact", seed)
        work = count_work(model, graph)
        assert full.paths[name] == 23 and work.paths[name] == np.ceil((1 - sparsity) * 23)
        assert work.multiply_adds < full.multiply_adds
        assert model.num_parameters() == dense.num_parameters() - (23 - work.paths[name]) * 8 * 8  # num_basis x channels
        rows = sum((2 * p.l1 + 1) * (2 * p.l3 + 1) for p in model.backbone.layers[1].conv.paths)
        all_rows = sum((2 * p.l1 + 1) * (2 * p.l3 + 1) for p in dense.backbone.layers[1].conv.paths)
        shares.append(work.convolutions[name] / full.convolutions[name])
        assert shares[-1] == pytest.approx(rows / all_rows, abs=0.1)
    assert np.mean(shares) == pytest.approx(1 - sparsity, abs=0.1)


@pytest.mark.parametrize("state", ["drawn", "sparse"])
def test_training_does_the_work_of_the_subset_only(state):
    atoms = acetaldehyde()
    model = energy_model(atoms, state)
    graph = graph_of(atoms, model.cutoff)
    subset, everything = count_work(model, graph), count_work(model_for(atoms, "float64"), graph)
    assert list(subset.paths.values()) == [3, 6] and list(everything.paths.values()) == [3, 11]
    assert subset.multiply_adds < everything.multiply_adds
    if state == "sparse":
        compact(model)
        assert count_work(model, graph) == subset


def test_the_counter_counts_what_can_be_counted_by_hand():
    from mlip.nn import TensorProductConv, natural_parity_paths

    class One(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = TensorProductConv(natural_parity_paths(0, 0, 0), 0, 0, 5, 3)

        def forward(self, graph):
            nodes, degree = 4, 2
            return self.conv(
                torch.randn(nodes, 1, 3), torch.ones(nodes, degree, 1), torch.ones(nodes, degree, 5), torch.zeros(4, 2).long()
            )

    work = count_work(One(), {})
    # edge operator [8, 1] x [1, 1]; sum over neighbours 4 x [5, 2] x [2, 3]; sum over paths [1, 1] x [1, 3] of 4 nodes
    assert work.paths == {"conv": 1} and work.convolutions == {"conv": 8 + 4 * 5 * 2 * 3 + 12} and work.multiply_adds == 140


@pytest.mark.parametrize("state", STATES)
def test_files_keep_the_phase_and_shrink_with_the_paths(state, tmp_path):
    atoms = acetaldehyde()
    model = energy_model(atoms, state).eval()
    path = save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(path)
    for key, value in evaluate(model, atoms).items():
        np.testing.assert_array_equal(evaluate(loaded, atoms)[key], value)
    assert loaded.config == model.config and loaded.num_parameters() == model.num_parameters()
    if state == "compact":
        dense = save_model(model_for(atoms, "float64"), tmp_path / "dense.safetensors")
        weights = 5 * 8 * 8  # paths, functions, channels; the header grows
        assert path.stat().st_size <= dense.stat().st_size - 8 * weights + 500
        header = read_header(path)
        assert [len(paths) for paths in header["model"]["paths"]] == [3, 6] and header["model"]["gate"] is None


def test_a_compact_model_can_be_gated_again():
    atoms = acetaldehyde()
    model = energy_model(atoms, "compact")
    again = build({**model.config.model_dump(), "gate": {"sparsity": 0.5}}, model.elements, seed=0)
    compact(again)
    assert [len(paths) for paths in again.config.paths] == [3, 3]
    assert {*map(tuple, again.config.paths[1])} < {*map(tuple, model.config.paths[1])}


def test_paths_can_be_chosen_by_hand():
    atoms = acetaldehyde()
    model, twin = energy_model(atoms, "open"), energy_model(atoms, "open")
    paths = [[(0, 0, 0), (0, 1, 1)], [(0, 0, 0), (1, 1, 0), (1, 0, 1)]]
    choose_paths(model, paths)
    before = evaluate(model, atoms)
    assert [len(each.kept) for each in compact(model)] == [2, 3]
    assert [[tuple(p) for p in of_layer] for of_layer in model.config.paths] == [sorted(of_layer) for of_layer in paths]
    np.testing.assert_allclose(evaluate(model, atoms)["forces"], before["forces"], atol=1e-9)
    assert compact(model) == []  # nothing left to do
    assert len(compact(copy.deepcopy(twin))) == 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"gate": {"sparsity": 1.0}}, r"gate\.sparsity.*at least 0 and below 1"),
        ({"gate": {"sparsity": [0.5, -0.1]}}, r"gate\.sparsity.*at least 0 and below 1"),
        ({"gate": {"sparsity": [0.5]}}, "sparsity has 1 entries; one is needed for each of 2 layers"),
        ({"gate": {"sparsety": 0.5}}, "sparsety"),
        ({"paths": [[(0, 0, 0)]]}, "paths has 1 entries; one is needed for each of 2 layers"),
        ({"paths": [[(0, 0, 0)], []]}, r"model\.paths of layer 2: empty"),
        ({"paths": [[(1, 1, 0)], [(0, 0, 0)]]}, r"model\.paths of layer 1: \(1, 1, 0\).*l1 <= 0"),
        ({"paths": [[(0, 0, 0)], [(1, 1, 1)]]}, r"model\.paths of layer 2: \(1, 1, 1\).*even sum"),
        ({"paths": [[(0, 0, 0)], [(0, 0, 0), (0, 0, 0)]]}, r"layer 2: \(0, 0, 0\) is given twice"),
    ],
)
def test_impossible_choices_are_named(fields, words):
    with pytest.raises(ConfigError, match=words):
        build({"channels": 4, **fields}, ["H"])


def test_the_density_head_has_an_entry_of_its_own():
    fields = {"channels": 4, "num_layers": 1, "density": {}, "gate": {"sparsity": [0.1, 0.9]}}
    model = build(fields, [1, 6, 8], density=toy_reference([1, 6, 8]), seed=0)
    assert [layer.gate.size for layer in interaction_layers(model)] == [3, 5]
    with pytest.raises(ConfigError, match="each of 1 layers and 1 for the density head's"):
        build({**fields, "gate": {"sparsity": [0.1]}}, [1, 6, 8], density=toy_reference([1, 6, 8]))


def test_a_file_with_paths_that_cannot_be_is_a_checkpoint_error(tmp_path):
    import json

    from safetensors.torch import save_file

    model = energy_model(acetaldehyde(), "compact")
    header = read_header(save_model(model, tmp_path / "m.safetensors"))
    header["model"]["paths"][1][0] = [9, 9, 9]
    save_file(model.state_dict(), tmp_path / "bad.safetensors", metadata={"mlip": json.dumps(header)})
    with pytest.raises(CheckpointError, match="do not fit together"):
        load_model(tmp_path / "bad.safetensors")
