"""The path gate: open it is the plain tensor product; what it leaves out is neither evaluated nor missed by the smaller layer."""

import itertools

import pytest
import torch

from mlip.nn import Path, PathGate, TensorProductConv, natural_parity_paths
from mlip.testing import tolerance


def layer_and_inputs(l_max=2, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    layer = TensorProductConv(natural_parity_paths(l_max, l_max, l_max), l_max, l_max, 5, 3).to(dtype)
    size = (l_max + 1) ** 2
    h, harmonics = torch.randn(4, size, 3, dtype=dtype), torch.randn(4, 2, size, dtype=dtype)
    return layer, (h, harmonics, torch.randn(4, 2, 5, dtype=dtype), torch.randint(4, (4, 2)))


def scrambled(gate):
    with torch.no_grad():
        gate.scale.copy_(torch.randn(len(gate.scale)))
    return gate


@pytest.mark.parametrize("training", [False, True])
def test_fully_open_it_is_the_dense_layer(training):
    """Bit for bit, in every phase."""
    layer, inputs = layer_and_inputs()
    gate = PathGate(layer.paths, 0.0).double().train(training)
    dense = layer(*inputs)
    assert torch.equal(layer(*inputs, *gate()), dense)
    gate.draw(torch.Generator().manual_seed(0))
    assert torch.equal(layer(*inputs, *gate()), dense)
    gate.select(layer.weight)
    assert torch.equal(layer(*inputs, *gate()), dense)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("l_max", [1, 2, 3])
def test_a_subset_is_the_sum_over_its_paths_alone_and_the_smaller_layer_gives_the_same(l_max, sparsity, dtype):
    layer, inputs = layer_and_inputs(l_max, dtype)
    gate = scrambled(PathGate(layer.paths, sparsity)).to(dtype)
    gate.select(layer.weight)
    sparse = layer(*inputs, *gate())
    small = layer.restricted(gate.selected, gate.scale)
    mask = torch.zeros(len(layer.paths), dtype=dtype)
    mask[gate.selected] = 1
    masked = layer(*inputs, gate.scale * mask)  # all paths evaluated, most of them times 0
    allowed = tolerance("fast_path", str(dtype)) * masked.abs().max()
    assert (sparse - masked).abs().max() <= allowed
    assert (small(*inputs) - masked).abs().max() <= allowed
    assert small.weight.numel() * len(layer.paths) == layer.weight.numel() * gate.size


def test_a_restricted_layer_leaves_the_random_state_alone():
    layer, _ = layer_and_inputs()
    state = torch.random.get_rng_state()
    layer.restricted([0, 1, 2], torch.ones(len(layer.paths)).double())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(("l_in", "l_max"), [(0, 2), (1, 2), (2, 2), (3, 3)])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.95])
def test_every_subset_has_the_size_asked_for_and_reaches_every_degree(l_in, l_max, sparsity):
    paths = natural_parity_paths(l_in, l_max, l_max)
    gate = scrambled(PathGate(paths, sparsity))
    degrees = {path.l3 for path in paths}
    assert gate.size == max(len(degrees), -int(-(1 - sparsity) * len(paths) // 1))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        gate.draw(generator)
        assert len(gate.drawn) == gate.size and {paths[p].l3 for p in gate.drawn} == degrees
    gate.select(torch.randn(5, len(paths), 3))
    assert len(gate.selected) == gate.size and {paths[p].l3 for p in gate.selected} == degrees


def test_outside_training_an_open_gate_is_the_mean_over_the_draws():
    layer, _ = layer_and_inputs(1)
    gate = scrambled(PathGate(layer.paths, 0.4)).double()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.zeros(len(layer.paths), dtype=torch.float64)
    for _ in range(4000):
        gate.draw(generator)
        drawn[gate.drawn] += 1 / 4000
    factor, active = gate.eval()()
    assert active is None
    torch.testing.assert_close(drawn * gate.scale, factor, rtol=0.1, atol=0.0)


def test_the_strongest_paths_stay_wherever_their_strength_is_kept():
    """Moving a factor from the gate into the weights changes neither the layer nor the choice."""
    layer, inputs = layer_and_inputs()
    gate = scrambled(PathGate(layer.paths, 0.5)).double()
    gate.select(layer.weight)
    strength = (gate.scale.abs() * layer.weight.square().sum(dim=(0, 2)).sqrt()).detach()
    forced = {max((p for p in range(len(layer.paths)) if layer.paths[p].l3 == l), key=lambda p: strength[p]) for l in range(3)}
    out = set(range(len(layer.paths))) - set(gate.selected)
    assert all(strength[a] >= strength[b] for a, b in itertools.product(set(gate.selected) - forced, out))
    before, chosen = layer(*inputs, *gate()), gate.selected
    with torch.no_grad():
        layer.weight *= gate.scale.unsqueeze(1)
        gate.scale.fill_(1.0)
    gate.select(layer.weight)
    assert gate.selected == chosen
    torch.testing.assert_close(layer(*inputs, *gate()), before)


def test_only_evaluated_paths_get_a_gradient():
    layer, inputs = layer_and_inputs()
    gate = PathGate(layer.paths, 0.5).double().train()
    gate.draw(torch.Generator().manual_seed(1))
    layer(*inputs, *gate()).square().sum().backward()
    for gradient in (gate.scale.grad, layer.weight.grad.abs().sum(dim=(0, 2))):
        assert torch.nonzero(gradient).flatten().tolist() == gate.drawn


def test_draws_repeat_with_the_generator_and_a_state_dict_keeps_the_choice():
    gates = [PathGate(natural_parity_paths(2, 2, 2), 0.5) for _ in range(2)]
    generators = [torch.Generator().manual_seed(3) for _ in gates]
    for _ in range(5):
        for gate, generator in zip(gates, generators, strict=True):
            gate.draw(generator)
        assert gates[0].drawn == gates[1].drawn
    assert gates[1].selected is None
    gates[1].load_state_dict(gates[0].state_dict())
    assert gates[1].selected is None  # open stays open
    gates[0].select(torch.randn(5, 11, 3))
    gates[1].load_state_dict(gates[0].state_dict())
    assert gates[1].selected == gates[0].selected


def test_a_share_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match=r"sparsity 1 is not in \[0, 1\)"):
        PathGate([Path(0, 0, 0)], 1.0)
