"""The tensor product against e3nn's own, and its path list."""

import pytest
import torch
from e3nn import o3

from mlip.nn import Path, SphericalHarmonics, TensorProductConv, natural_parity_paths
from mlip.nn.irreps import block, num_components
from mlip.testing import tolerance


def e3nn_reference(layer, l_in, l_max, channels, h, harmonics, basis, neighbours):
    """The same sum with e3nn.o3.TensorProduct ('uvu', its own normalisation), edge by edge."""
    parity = [1, -1]
    features = o3.Irreps([(channels, (l, parity[l % 2])) for l in range(l_in + 1)])
    edges = o3.Irreps([(1, (l, parity[l % 2])) for l in range(l_max + 1)])
    out = o3.Irreps([(channels, (l, parity[l % 2])) for l in range(l_max + 1)])
    instructions = [(p.l1, p.l2, p.l3, "uvu", True) for p in layer.paths]
    default = torch.get_default_dtype()
    torch.set_default_dtype(h.dtype)  # e3nn rounds its constants to the default type for good
    try:
        product = o3.TensorProduct(features, edges, out, instructions, shared_weights=False, internal_weights=False)
    finally:
        torch.set_default_dtype(default)

    def to_e3nn(x, l_max):  # [.., m, c] -> [.., (l, c, m)]
        return torch.cat([x[..., block(l), :].transpose(-1, -2).flatten(-2) for l in range(l_max + 1)], -1)

    nodes, degree = neighbours.shape
    senders = to_e3nn(h, l_in)[neighbours.reshape(-1)]
    weights = torch.einsum("ek,kpc->epc", basis.reshape(nodes * degree, -1), layer.weight / layer.num_basis**0.5).flatten(1)
    messages = product(senders, harmonics.reshape(nodes * degree, -1), weights)
    summed = messages.view(nodes, degree, -1).sum(1)
    parts, start = [], 0
    for l in range(l_max + 1):
        size = channels * (2 * l + 1)
        parts.append(summed[:, start : start + size].view(nodes, channels, 2 * l + 1).transpose(1, 2))
        start += size
    return torch.cat(parts, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("l_in", "l_max"), [(0, 1), (0, 3), (1, 1), (2, 2), (3, 3)])
def test_matches_e3nn(l_in, l_max, dtype):
    torch.manual_seed(0)
    channels, num_basis, nodes, degree = 4, 6, 5, 7
    layer = TensorProductConv(natural_parity_paths(l_in, l_max, l_max), l_max, l_max, num_basis, channels).to(dtype)
    h = torch.randn(nodes, num_components(l_in), channels, dtype=dtype)
    unit = torch.nn.functional.normalize(torch.randn(nodes, degree, 3, dtype=dtype), dim=-1)
    harmonics = SphericalHarmonics(l_max).to(dtype)(unit)
    basis = torch.randn(nodes, degree, num_basis, dtype=dtype)
    neighbours = torch.randint(nodes, (nodes, degree))
    ours = layer(h, harmonics, basis, neighbours)
    theirs = e3nn_reference(layer, l_in, l_max, channels, h, harmonics, basis, neighbours)
    assert (ours - theirs).abs().max() <= tolerance("fast_path", str(dtype)) * theirs.abs().max()


def test_paths_keep_parity_and_triangle():
    paths = natural_parity_paths(2, 2, 2)
    assert len(paths) == 11
    assert all((p.l1 + p.l2 + p.l3) % 2 == 0 and abs(p.l1 - p.l2) <= p.l3 <= p.l1 + p.l2 for p in paths)


def test_a_pruned_path_list_gives_a_smaller_layer_with_the_same_remaining_terms():
    torch.manual_seed(1)
    full = natural_parity_paths(1, 1, 1)
    kept = [p for p in full if p != Path(1, 1, 0)]
    dense, sparse = (TensorProductConv(p, 1, 1, 5, 3).double() for p in (full, kept))
    assert sparse.weight.numel() == dense.weight.numel() * len(kept) // len(full)
    with torch.no_grad():
        dense.weight[:, dense.paths.index(Path(1, 1, 0))] = 0
        into = {l: (sum(p.l3 == l for p in full) / sum(p.l3 == l for p in kept)) ** 0.5 for l in (0, 1)}
        for k, path in enumerate(sparse.paths):
            sparse.weight[:, k] = dense.weight[:, dense.paths.index(path)] / into[path.l3]
    h, harmonics = torch.randn(4, 4, 3, dtype=torch.float64), torch.randn(4, 2, 4, dtype=torch.float64)
    basis, neighbours = torch.randn(4, 2, 5, dtype=torch.float64), torch.randint(4, (4, 2))
    torch.testing.assert_close(dense(h, harmonics, basis, neighbours), sparse(h, harmonics, basis, neighbours))


def test_padding_adds_nothing():
    """A neighbour whose basis is zero leaves the sum as it is."""
    torch.manual_seed(2)
    layer = TensorProductConv(natural_parity_paths(1, 1, 1), 1, 1, 5, 3).double()
    h, harmonics = torch.randn(4, 4, 3, dtype=torch.float64), torch.randn(4, 3, 4, dtype=torch.float64)
    basis, neighbours = torch.randn(4, 3, 5, dtype=torch.float64), torch.randint(4, (4, 3))
    basis[:, 2] = 0
    torch.testing.assert_close(
        layer(h, harmonics, basis, neighbours), layer(h, harmonics[:, :2], basis[:, :2], neighbours[:, :2])
    )


def test_no_neighbours_give_zero():
    layer = TensorProductConv(natural_parity_paths(0, 1, 1), 1, 1, 5, 3)
    out = layer(torch.randn(2, 1, 3), torch.randn(2, 0, 4), torch.randn(2, 0, 5), torch.zeros(2, 0, dtype=torch.long))
    assert out.shape == (2, 4, 3) and (out == 0).all()
