"""A density head with a pair gate obeys the laws whatever the gate lets through; what it shuts costs nothing and is not missed."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from densities import acetaldehyde, crystal, density_model

from mlip.checkpoint import load_model, read_header, save_model
from mlip.errors import ConfigError
from mlip.models import build, compact
from mlip.models import density as density_module
from mlip.models import pairs as pairs_module
from mlip.models.pairs import PairTable, groups_of
from mlip.nn import PairGate
from mlip.nn import pairgate as pairgate_module
from mlip.nn.pairgate import GatedPairs
from mlip.testing import LawError, check_all, count_work, evaluate_density, graph_of, tolerance

CONV = "density_head.interaction.conv"


def gated_model(atoms, state="partial", dtype="float64", density=None, **config):
    """Scores spread over more than the step's width; ``open``, ``partial`` or ``shut``."""
    model = density_model(atoms, dtype, density={"pair_gate": {}, **(density or {})}, **config)
    gate = model.density_head.pair_gate
    with torch.no_grad():
        gate.weight.mul_(8.0)
        gate.bias.fill_({"open": 50.0, "partial": -0.5, "shut": -50.0}[state])
    return model


def share_let_through(model, atoms):
    out = model(graph_of(atoms, model.cutoff), compute_forces=False, compute_density=True)
    return float(out["density_pairs_kept"].sum() / out["density_pairs"].sum())


@pytest.mark.parametrize("make", [acetaldehyde, crystal])
@pytest.mark.parametrize("state", ["open", "partial", "shut"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_laws_whatever_it_lets_through(make, state, dtype, monkeypatch):
    """The kit's batch-mates have other numbers of neighbours, so padding and tables differ too."""
    monkeypatch.setattr(pairs_module, "WORTH", 1)
    atoms = make()
    model = gated_model(atoms, state, dtype)
    share = share_let_through(model, atoms)
    assert {"open": share == 1, "partial": 0.1 < share < 0.9, "shut": share == 0}[state], share
    assert check_all(model, atoms)


def test_laws_of_both_heads_with_both_kinds_of_gates():
    atoms = acetaldehyde()
    model = gated_model(atoms, energy=True, gate={"sparsity": 0.5})
    assert check_all(model, atoms)
    before = evaluate_density(model, atoms)[0]
    compact(model)
    assert model.density_head.pair_gate is not None
    graph = graph_of(atoms, model.cutoff)
    assert len(evaluate_density(model, atoms)[0]) == len(before) and check_all(model, atoms)
    assert "density_pairs" not in model(graph) and "density_pairs" in model(graph, compute_density=True)


def test_open_it_is_the_model_without_a_gate():
    """From the same seed, to rounding; with as many multiply-adds in the convolution where all atoms see each other."""
    atoms = acetaldehyde()
    plain, gated = density_model(atoms), gated_model(atoms, "open")
    before = evaluate_density(plain, atoms)[0]
    allowed = tolerance("fast_path", "float64") * np.abs(before).max()
    np.testing.assert_allclose(evaluate_density(gated, atoms)[0], before, rtol=0, atol=allowed)
    graph = graph_of(atoms, plain.cutoff)
    assert count_work(gated, graph).convolutions == count_work(plain, graph).convolutions


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_leaving_out_shut_pairs_changes_nothing(dtype, monkeypatch):
    """Coefficients and gradients are those of a head that evaluates every pair, most of them times 0."""
    atoms = acetaldehyde()
    model = gated_model(atoms, dtype=dtype).train()
    monkeypatch.setattr(pairs_module, "WORTH", 1)

    def outcome():
        model.zero_grad()
        coefficients = model(graph_of(atoms, model.cutoff))["density_coefficients"]
        coefficients.square().sum().backward()
        return [coefficients.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    narrow = outcome()
    def everything(node, weight):
        return [PairTable(torch.arange(len(weight)), node.unit, node.basis, node.neighbours, weight)]

    monkeypatch.setattr(density_module, "tables_of", everything)
    for one, other in zip(narrow, outcome(), strict=True):
        allowed = tolerance("density_batch_equals_single", dtype) * max(1.0, float(other.abs().max()))
        assert (one - other).abs().max() <= allowed


def ether():
    atoms = molecule("CH3CH2OCH3")
    atoms.rattle(0.05, seed=0)
    return atoms


def test_work_is_that_of_the_pairs_let_through(monkeypatch):
    """Counted while the head runs: so much for each place of the tables, so much for each atom with any pair, nothing else."""
    monkeypatch.setattr(pairs_module, "WORTH", 1)
    plain, model = density_model(ether()), gated_model(ether())
    graphs = [graph_of(atoms, plain.cutoff) for atoms in (ether(), molecule("H2O"))]
    places = [[len(g["batch"]) * int(torch.bincount(g["edge_index"][1]).max()), len(g["batch"])] for g in graphs]
    of_place, of_atom = np.linalg.solve(places, [count_work(plain, g).convolutions[CONV] for g in graphs]).round()
    gate, tables, shares = model.density_head.pair_gate, [], []

    def spied(node, weight):
        tables.append(pairs_module.tables_of(node, weight))
        return tables[-1]

    monkeypatch.setattr(density_module, "tables_of", spied)
    for bias in (50.0, *np.linspace(-0.6, -2.4, 7), -50.0):
        with torch.no_grad():
            gate.bias.fill_(bias)
        work = count_work(model, graphs[0])
        pairs = sum(table.neighbours.numel() for table in tables[-1])
        atoms = sum(len(table.atoms) for table in tables[-1] if table.neighbours.shape[1])
        assert work.convolutions[CONV] == of_place * pairs + of_atom * atoms
        kept = share_let_through(model, ether()) * graphs[0]["edge_index"].shape[1]
        assert kept <= pairs <= places[0][0]
        shares.append((pairs, kept, len(tables[-1])))
    assert shares[-1][0] == 0 and count_work(model, graphs[0]).convolutions[CONV] == 0
    partial = [share for share in shares if 0 < share[1] < shares[0][1]]
    assert len(partial) > 2 and all(pairs < 1.35 * kept and number > 1 for pairs, kept, number in partial)


def test_atoms_with_about_as_many_pairs_stand_together():
    counts = torch.tensor([100, 0, 3, 50, 0, 100, 51, 2])
    groups = groups_of(counts)
    assert sorted(torch.cat([atoms for atoms, _ in groups]).tolist()) == list(range(8))
    assert [(sorted(atoms.tolist()), width) for atoms, width in groups] == [([0, 5], 100), ([3, 6], 51), ([1, 2, 4, 7], 3)]
    assert [width for _, width in groups_of(torch.tensor([5, 5, 0, 1]))] == [5]  # nothing to win by a second table
    assert [(len(atoms), width) for atoms, width in groups_of(torch.tensor([4, 2, 4]))] == [(3, 4)]
    assert [(len(atoms), width) for atoms, width in groups_of(torch.tensor([], dtype=torch.long))] == [(0, 0)]


def test_the_gate_costs_little_beside_the_convolution():
    atoms = acetaldehyde()
    plain, gated = density_model(atoms, channels=32), gated_model(atoms, "open", channels=32)
    graph = graph_of(atoms, plain.cutoff)
    full = count_work(plain, graph)
    assert count_work(gated, graph).multiply_adds - full.multiply_adds < 0.05 * full.convolutions[CONV]


def second_differences(model):
    """Largest distance of second differences from the left and from the right, at a place where a pair is shut, by step."""

    def density(r):
        return evaluate_density(model, Atoms("OH", positions=[[0, 0, 0], [0, 0, r]]))[0]

    def kept(r):
        return share_let_through(model, Atoms("OH", positions=[[0, 0, 0], [0, 0, r]]))

    with torch.no_grad():  # a bias at which the number of pairs let through changes between two distances
        biases = [b for b in np.linspace(-3, 1, 21) if set_bias(model, b) and kept(1.0) != kept(1.6)]
        set_bias(model, biases[len(biases) // 2])
    left, right, near = 1.0, 1.6, kept(1.0)
    for _ in range(40):
        middle = (left + right) / 2
        left, right = (middle, right) if kept(middle) == near else (left, middle)

    def jump(h):
        one, two = ((density(left + s * 2 * h) - 2 * density(left + s * h) + density(left)) / h**2 for s in (1, -1))
        return np.abs(one - two).max()

    return [jump(h) for h in (4e-3, 2e-3, 1e-3)]


def test_the_density_stays_smooth_where_a_pair_is_shut(monkeypatch):
    """Left and right meet as the step goes to 0; with a hard threshold they part."""
    model = gated_model(Atoms("OH"), density={"projection": "none"})
    jumps = second_differences(model)
    assert jumps[0] > 1e-6  # the gate is felt
    assert jumps[0] / jumps[1] == pytest.approx(2, rel=0.3) and jumps[1] / jumps[2] == pytest.approx(2, rel=0.3)
    monkeypatch.setattr(pairgate_module, "smooth_step", lambda x: (x > 0).to(x.dtype))
    jumps = second_differences(model)
    assert jumps[1] > 3 * jumps[0] and jumps[2] > 3 * jumps[1]


def test_the_kit_catches_a_quantile_over_the_batch(monkeypatch):
    """As SPHNet's gate is."""
    plain = PairGate.forward

    def quantile(gate, scalars, basis, neighbours, degree):
        weight, score = plain(gate, scalars, basis, neighbours, degree)
        if score.numel() == 0:
            return GatedPairs(weight, score)
        real = torch.arange(score.shape[1]) < degree.unsqueeze(1)
        return GatedPairs((real & (score >= score[real].median())).to(score.dtype), score)

    monkeypatch.setattr(PairGate, "forward", quantile)
    with pytest.raises(LawError, match="density_batch_equals_single"):
        check_all(gated_model(acetaldehyde()), acetaldehyde(), laws=["density_batch_equals_single"])


def set_bias(model, value):
    model.density_head.pair_gate.bias.fill_(value)
    return True


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip_is_exact(dtype, tmp_path):
    atoms = acetaldehyde()
    model = gated_model(atoms, dtype=dtype)
    loaded = load_model(save_model(model, tmp_path / "m.safetensors"))
    assert loaded.config == model.config and share_let_through(loaded, atoms) == share_let_through(model, atoms) < 1
    np.testing.assert_array_equal(evaluate_density(loaded, atoms)[0], evaluate_density(model, atoms)[0])
    assert read_header(tmp_path / "m.safetensors")["model"]["density"]["pair_gate"]["sparsity"] == 0.5


def test_counts_are_those_of_each_structure():
    model = gated_model(acetaldehyde())
    structures = [acetaldehyde(), molecule("H2O"), Atoms("O")]
    out = model(graph_of(structures, model.cutoff))
    for index, atoms in enumerate(structures):
        alone = model(graph_of(atoms, model.cutoff))
        for name in ("density_pairs", "density_pairs_kept"):
            assert out[name][index] == alone[name][0]
        assert alone["density_pairs"][0] == graph_of(atoms, model.cutoff)["edge_index"].shape[1]
    assert "density_pairs_soft" not in out and "density_pairs_soft" in model.train()(graph_of(structures, model.cutoff))


def test_every_parameter_learns():
    atoms = acetaldehyde()
    model = gated_model(atoms).train()
    out = model(graph_of(atoms, model.cutoff))
    (out["density_coefficients"].square().sum() + out["density_pairs_soft"].sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(
    ("gate", "words"),
    [({"sparsity": 1.0}, r"pair_gate\.sparsity.*less than 1"), ({"sparsty": 0.5}, r"pair_gate\.sparsty")],
)
def test_impossible_settings_are_named(gate, words):
    with pytest.raises(ConfigError, match=words):
        build({"channels": 4, "density": {"pair_gate": gate}}, ["H"])
