"""The network arranged for inference gives the model's own numbers, whatever the model and however it is cut into pieces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from densities import acetaldehyde, crystal
from test_laws import model_for

from mlip import MLIPCalculator
from mlip.models.compaction import choose_strongest, compact
from mlip.models.inference import FastPotential, FrozenNetwork
from mlip.nn import frozenconv
from mlip.testing import graph_of, tolerance

MODELS = {
    "default": {},
    "l_max 3": {"l_max": 3},
    "scalars": {"l_max": 0},
    "one layer": {"num_layers": 1},
    "three layers": {"num_layers": 3},
    "no grid": {"grid": {"enabled": False}},
    "silu": {"grid": {"activation": "silu", "hidden": 5}},
    "mlp, zbl": {"radial": {"kind": "mlp"}, "zbl": True},
    "gated": {"gate": {"sparsity": 0.5}},
}


def fast(model, fused=False):
    return FastPotential(model.cutoff, model.species_of_z, FrozenNetwork(model).set_fused(fused))


def largest_difference(model, graph, fused=False):
    """Of energies, forces and stress, relative to the largest entry of each."""
    ours, plain = fast(model, fused)(graph, True), model(graph, compute_stress=True)
    assert set(ours) == set(plain)
    pairs = [(ours[key].nan_to_num(), plain[key].nan_to_num()) for key in plain]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-3)) for a, b in pairs)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_same_numbers_as_the_model(config, fused):
    for atoms in (acetaldehyde(), crystal()):
        model = model_for(atoms, "float64", **config)
        assert largest_difference(model, graph_of(atoms, model.cutoff), fused) < 1e-11


def test_same_numbers_where_paths_were_pruned():
    atoms = acetaldehyde()
    model = model_for(atoms, "float64", gate={"sparsity": 0.6})
    torch.manual_seed(0)
    with torch.no_grad():
        model.backbone.layers[1].gate.scale.uniform_(0.3, 2)
    choose_strongest(model)
    graph = graph_of(atoms, model.cutoff)
    assert largest_difference(model, graph) < 1e-11
    compact(model)
    assert largest_difference(model, graph) < 1e-11


def test_cut_into_pieces_it_is_the_same(monkeypatch):
    model = model_for(crystal(), "float64")
    graph = graph_of(crystal(), model.cutoff)
    whole = fast(model)(graph, True)
    monkeypatch.setitem(frozenconv.CHUNK, "cpu", 1)
    for key, value in fast(model)(graph, True).items():
        torch.testing.assert_close(value, whole[key], rtol=1e-12, atol=1e-12)


def test_an_atom_without_neighbours_and_a_float32_model():
    atoms = acetaldehyde() + Atoms("C", [[30.0, 0, 0]])
    model = model_for(atoms, "float64", zbl=True)
    graph = graph_of(atoms, model.cutoff)
    assert largest_difference(model, graph) < 1e-11
    lone = graph_of(Atoms("O"), model.cutoff)
    assert float(fast(model)(lone)["energy"]) == pytest.approx(model.e0[8], abs=1e-12)
    assert largest_difference(model.float(), graph) < 5 * tolerance("rotation", "float32")


def test_the_calculator_gives_the_models_numbers_with_and_without_a_skin():
    atoms = crystal()
    model = model_for(atoms, "float64")
    calculators = [MLIPCalculator(model, skin=skin) for skin in (0.0, 0.8)]
    rng = np.random.default_rng(0)
    for _ in range(4):
        atoms.positions += 0.05 * rng.standard_normal(atoms.positions.shape)
        plain = model(graph_of(atoms, model.cutoff), compute_stress=True)
        for calculator in calculators:
            calculator.calculate(atoms, ["stress"])
            assert calculator.results["energy"] == pytest.approx(float(plain["energy"]), abs=1e-10)
            np.testing.assert_allclose(calculator.results["forces"], plain["forces"].numpy(), atol=1e-10)
            np.testing.assert_allclose(calculator.results["stress"], plain["stress"][0].numpy(), atol=1e-10)
    assert calculators[1]._neighbors.builds < calculators[0]._neighbors.builds
    assert all(p.requires_grad for p in model.parameters())
