"""Assembly, types and errors of models."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from mlip.errors import ConfigError, StructureError
from mlip.models import PRESETS, ModelConfig, build
from mlip.testing import evaluate, graph_of


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_and_run(name):
    model = build(name, ["H", "O"], seed=1)
    assert np.isfinite(evaluate(model, molecule("H2O"))["forces"]).all()
    assert model.elements == [1, 8]
    assert not model.training


def test_same_seed_same_weights_and_global_state_untouched():
    state = torch.random.get_rng_state()
    a, b, c = (build("small", [1], seed=s) for s in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(a.backbone.embedding, b.backbone.embedding)
    assert not torch.equal(a.backbone.embedding, c.backbone.embedding)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tiny", ["H"]), "tiny.*small"),
        (({"chanels": 3}, ["H"]), "chanels"),
        (({"cutoff": -1}, ["H"]), "cutoff"),
        (("small", ["Xx"]), "Xx"),
        (("small", []), "empty"),
    ],
)
def test_bad_input_is_named(arguments, words):
    with pytest.raises(ConfigError, match=words):
        build(*arguments)


def test_bad_dtype_is_named():
    with pytest.raises(ConfigError, match="float16"):
        build("small", ["H"], dtype="float16")


def test_unknown_element_is_an_error_that_lists_the_known():
    model = build("small", ["H", "O"])
    with pytest.raises(StructureError, match=r"C unknown.*H, O"):
        evaluate(model, molecule("CH4"))


def test_e0_is_kept_in_float64_by_a_float32_model():
    e0 = {1: -13.123456789, 8: -2041.987654321}
    model = build("small", ["H", "O"], e0=e0, dtype="float32")
    assert model.e0 == e0
    assert model.dtype == torch.float32
    assert model.to(torch.float64).e0 == e0


def test_empty_graph_has_no_edges_and_finite_energy():
    model = build(ModelConfig(channels=8), ["He"], e0={2: -1.0}, seed=0)
    out = evaluate(model, Atoms("He2", positions=[[0, 0, 0], [50, 0, 0]]))
    assert np.isfinite(out["energy"]).all()
    assert (out["forces"] == 0).all()


def test_forces_can_be_trained_on():
    """In training mode the forces carry a graph to the parameters; in evaluation mode nothing does."""
    model = build({"channels": 8}, ["H", "O"], seed=0)
    graph = graph_of(molecule("H2O"), model.cutoff)
    assert not model(graph)["forces"].requires_grad
    model.train()
    model(graph)["forces"].square().sum().backward()
    gradient = model.backbone.layers[0].conv.weight.grad
    assert gradient is not None and gradient.abs().max() > 0


def test_stress_of_a_batch_with_a_molecule_can_be_trained_on():
    """The molecule's stress is NaN; masked, it leaves finite gradients for everything else."""
    from ase.build import bulk

    model = build({"channels": 4, "l_max": 1}, ["H", "O", "Si"], seed=0).train()
    out = model(graph_of([bulk("Si"), molecule("H2O")], model.cutoff), compute_stress=True)
    assert torch.isnan(out["stress"][1]).all() and torch.isfinite(out["stress"][0]).all()
    out["stress"][torch.isfinite(out["stress"])].square().sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_zbl_matches_the_formula_at_short_range():
    """Two bare nuclei at 0.3 Angstrom: the universal potential, evaluated by hand."""
    from ase.units import Bohr, Hartree

    from mlip.models.zbl import ZBL
    from mlip.nn import PolynomialEnvelope

    r = torch.tensor([0.3], dtype=torch.float64)
    z = torch.tensor([14])
    a = 0.8854 * Bohr / (2 * 14**0.23)
    x = 0.3 / a
    terms = ((0.1818, 3.2), (0.5099, 0.9423), (0.2802, 0.4029), (0.02817, 0.2016))
    phi = sum(weight * np.exp(-exponent * x) for weight, exponent in terms)
    screened = Hartree * Bohr * 14 * 14 / 0.3 * phi
    envelope = float(PolynomialEnvelope(1.0)(r / (2 * 1.11)))
    assert float(ZBL()(r, z, z)) == pytest.approx(0.5 * screened * envelope, rel=1e-6)
