"""A model that learns of more elements predicts for the old ones what it did."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import molecule
from densities import acetaldehyde, toy_reference
from test_compaction import in_state

from mlip.models import build
from mlip.models.compaction import interaction_layers
from mlip.models.growth import grow, per_element
from mlip.testing import check_all, evaluate, evaluate_density
from mlip.testing.check import laws_of
from mlip.training.gating import paths_of

OLD, ADDED = [6, 8, 1], [7, 9, 3]
FIELDS = {"channels": 8, "cutoff": 4.0, "readout_hidden": 8}
KINDS = {"energy": {}, "density": {"energy": False, "density": {}}, "joint": {"density": {"pair_gate": {}}, "zbl": True}}


def made(kind: str, **fields):
    """A model of C, H, O and the reference for more elements (their functions reach further)."""
    reference = toy_reference([*OLD, *ADDED]) if kind != "energy" else None
    fields = {**FIELDS, **KINDS[kind], **fields}
    old = None if reference is None else reference.subset(OLD)
    model = build(fields, OLD, e0={1: -13.6, 8: -2041.0}, density=old, avg_num_neighbors=9.0, dtype="float64", seed=1)
    return model, reference


def outputs(model, atoms):
    found = evaluate(model, atoms) if model.has_energy else {}
    return found | ({"density": evaluate_density(model, atoms)[0]} if model.density_basis is not None else {})


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_for_the_old_elements_stay(kind):
    model, reference = made(kind)
    config = model.config
    if reference is not None:
        config = config.model_copy(update={"density": config.density.model_copy(update={"l_max": model.density_head.l_max})})
    atoms = acetaldehyde()
    before = outputs(model, atoms)
    grown = grow(model, ADDED, config, reference)
    assert grown.elements == [1, 3, 6, 7, 8, 9] and model.elements == [1, 6, 8]
    for key, value in outputs(grown, atoms).items():
        np.testing.assert_allclose(value, before[key], rtol=1e-12, atol=1e-12, err_msg=key)
    new = molecule("NF3")
    new.rattle(0.1, seed=0)
    assert check_all(grown, new, laws=laws_of(grown)[:1])  # the new ones' rows follow the laws too


@pytest.mark.parametrize("kind", ["energy", "joint"])
def test_everything_with_a_row_an_element_is_known(kind):
    """Of two sizes of the table exactly the named ones differ."""
    model, reference = made(kind)
    grown = grow(model, ADDED, model.config, reference)
    sizes = {name: (value.shape, grown.state_dict()[name].shape) for name, value in model.state_dict().items()}
    assert {name for name, (one, two) in sizes.items() if one != two} == per_element(model)


def test_the_order_of_elements_is_of_no_matter():
    model, _ = made("energy")
    one, two = (grow(model, added, model.config, seed=3).state_dict() for added in (ADDED, ADDED[::-1]))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize("dropped", ["energy", "density"])
def test_a_head_can_be_left_out(dropped):
    model, reference = made("joint")
    change = {"density": None} if dropped == "density" else {"energy": False, "zbl": False}
    grown = grow(model, [], model.config.model_copy(update=change), None if dropped == "density" else reference.subset(OLD))
    before = outputs(model, acetaldehyde())
    for key, value in outputs(grown, acetaldehyde()).items():
        np.testing.assert_allclose(value, before[key], rtol=1e-12, atol=1e-12, err_msg=key)
    assert grown.has_energy == (dropped == "density") and (grown.density_basis is None) == (dropped == "density")


@pytest.mark.parametrize("state", ["open", "sparse", "compact"])
def test_path_gates_stay_and_a_choice_not_yet_frozen_is_made_anew(state):
    model = in_state(made("energy", gate={"sparsity": 0.5})[0], state)
    grown = grow(model, ADDED, model.config)
    assert paths_of(grown) == paths_of(model)
    assert all(layer.gate is None or layer.gate.selected is None for layer in interaction_layers(grown))
    if state != "sparse":
        np.testing.assert_allclose(evaluate(grown, acetaldehyde())["forces"], evaluate(model, acetaldehyde())["forces"], atol=1e-12)
