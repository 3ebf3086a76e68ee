"""The pair gate: a smooth step with exact ends, scores of each pair alone, a count that can be derived."""

import pytest
import torch

from mlip.nn import PairGate
from mlip.nn.pairgate import smooth_step, soft_count


def gate_and_inputs(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    gate = PairGate(channels=4, num_basis=5, hidden=6).to(dtype)
    return gate, (torch.randn(7, 4, dtype=dtype), torch.randn(7, 3, 5, dtype=dtype), torch.randint(7, (7, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_step_has_exact_ends(dtype):
    x = torch.tensor([-3.0, -1e-9, 0.0, 1.0, 1.5], dtype=dtype)
    assert smooth_step(x).tolist() == [0, 0, 0, 1, 1]
    inside = smooth_step(torch.linspace(0, 1, 101, dtype=dtype))
    assert (inside.diff() > 0).all() and float(inside[50]) == pytest.approx(0.5)


def test_the_step_has_two_continuous_derivatives():
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for side in (1e-6, -1e-6):
        x = (ends + side).requires_grad_()
        (slope,) = torch.autograd.grad(smooth_step(x).sum(), x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), x)
        assert slope.abs().max() < 1e-9 and curvature.abs().max() < 1e-4


@torch.no_grad()
def test_a_weight_is_that_of_its_pair_alone():
    """Other pairs, their number and padding change nothing: here each pair stands in a table of its own."""
    gate, (scalars, basis, neighbours) = gate_and_inputs()
    gate.bias.fill_(-0.5)
    degree = torch.tensor([3, 2, 0, 1, 3, 2, 3])
    together = gate(scalars, basis, neighbours, degree).weight
    assert ((together > 0) & (together < 1)).any()
    for i in range(7):
        for place in range(3):
            one = gate(scalars, basis[:, place : place + 1], neighbours[:, place : place + 1], torch.ones(7).long()).weight[i, 0]
            assert float(together[i, place]) == pytest.approx(float(one) if place < degree[i] else 0.0, abs=1e-14)


@torch.no_grad()
@pytest.mark.parametrize("size", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_new_gate_is_about_open_and_its_soft_count_near_the_true_one(seed, size):
    """However large the features are."""
    gate, (scalars, basis, neighbours) = gate_and_inputs(seed=seed)
    degree = torch.full((7,), 3)
    gated = gate(size * scalars, basis, neighbours, degree)
    assert (gated.weight > 0).all() and gated.weight.mean() > 0.7
    assert float(soft_count(gated, degree).sum()) == pytest.approx(21, rel=0.05)
    assert float(soft_count(gated, degree * 0).sum()) == 0.0


def test_a_shut_pair_can_open_again():
    """The weight has no slope there, the soft count has."""
    gate, (scalars, basis, neighbours) = gate_and_inputs()
    with torch.no_grad():
        gate.bias.fill_(-2.0)
    degree = torch.full((7,), 3)
    gated = gate(scalars, basis, neighbours, degree)
    assert (gated.weight == 0).all()
    (flat,) = torch.autograd.grad(gated.weight.sum(), gate.bias, retain_graph=True)
    (slope,) = torch.autograd.grad(soft_count(gated, degree).sum(), gate.bias)
    assert float(flat) == 0.0 and float(slope) > 0.0
