"""The neighbour sums of :class:`mlip.nn.TensorProductConv` for fixed weights: the same numbers, arranged for energy and forces.

Training needs derivatives with respect to weights and of forces, where summing over neighbours first pays. With fixed weights
only the derivative with respect to geometry is left, and two other orders are faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mlip.nn.coupling import wigner_3j
from mlip.nn.irreps import block, num_components
from mlip.nn.tensor_product import TensorProductConv

# Entries of the largest intermediate of one pass, on a CPU for each thread: more do not stay in its caches. Medium preset, 512
# silicon atoms, float32, ms: one thread 2^16 295, 2^17 194, 2^18 163, 2^19 168, 2^20 188; two threads 321, 175, 124, 102, 99.
CHUNK = {"cpu": 2**18, "cuda": 2**27}


class SpeciesConv(nn.Module):
    """The first layer's sum, whose senders are scalars that know nothing but their element z:

        S[i, (z, k), m] = sum_(j of z) B_k(r_ij) Y_m(ij),     A[i, m, c] = sum_(z, k) S[i, (z, k), m] V[m, (z, k), c]

    with V = embedding x weight. Nothing of the size edges x channels is formed.

    Args:
        conv: a tensor product with l_in = 0. embedding: ``[Z, channels]``. scale: factor of the result.
    """

    weight: Tensor

    def __init__(self, conv: TensorProductConv, embedding: Tensor, scale: float) -> None:
        super().__init__()
        self.num_elements = len(embedding)
        into = [sum(path.l3 == l for path in conv.paths) for l in range(conv.l_out + 1)]
        weight = conv.weight.detach().double() * (scale * conv.num_basis**-0.5)
        product = embedding.detach().double().unsqueeze(1).unsqueeze(2) * weight  # [Z, k, path, c]
        table = weight.new_zeros(num_components(conv.l_out), self.num_elements * conv.num_basis, conv.channels)
        for place, path in enumerate(conv.paths):  # C(0, l, l) is a multiple of the identity
            factor = float(wigner_3j(*path)[0, 0, 0]) * ((2 * path.l3 + 1) / into[path.l3]) ** 0.5
            table[block(path.l3)] = factor * product[:, :, place].flatten(0, 1)
        self.register_buffer("weight", table.to(conv.weight.dtype), persistent=False)

    def forward(self, harmonics: Tensor, basis: Tensor, senders: Tensor) -> Tensor:
        """``harmonics`` ``[N, D, (l+1)^2]``, ``basis`` ``[N, D, k]``, elements of the senders ``[N, D]`` -> ``[(l+1)^2, N, C]``."""
        if self.num_elements > 1:
            chosen = nn.functional.one_hot(senders, self.num_elements).to(basis.dtype)
            basis = (chosen.unsqueeze(3) * basis.unsqueeze(2)).flatten(2)
        return torch.bmm(torch.bmm(basis.transpose(1, 2), harmonics).permute(2, 0, 1), self.weight)


def _sum_products(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """sum_k left[k] * right[k], without their products in memory."""
    total = left[0] * right[0]
    for a, b in zip(left[1:], right[1:], strict=True):
        total.addcmul_(a, b)
    return total


class _ChunkedSum(torch.autograd.Function):
    """:class:`FrozenConv` a few atoms at a time; intermediates are computed again for the derivative, none outlives its chunk."""

    @staticmethod
    def forward(ctx: Any, conv: FrozenConv, h: Tensor, harmonics: Tensor, basis: Tensor, neighbours: Tensor) -> Tensor:
        ctx.conv = conv
        ctx.save_for_backward(h, harmonics, basis, neighbours)
        out = h.new_zeros(len(neighbours), conv.num_out, conv.channels)
        size = conv.chunk_size(neighbours.shape[1])
        for part in zip(*(tensor.split(size) for tensor in (out, harmonics, basis, neighbours)), strict=True):
            conv.add_chunk(part[0], h, *part[1:])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, ...]:
        h, harmonics, basis, neighbours = ctx.saved_tensors
        size = ctx.conv.chunk_size(neighbours.shape[1])
        of_h, of_harmonics, of_basis = torch.zeros_like(h), torch.empty_like(harmonics), torch.empty_like(basis)
        inputs = (of_out.contiguous(), harmonics, basis, neighbours, of_harmonics, of_basis)
        for out, edges, radial, senders, to_edges, to_radial in zip(*(t.split(size) for t in inputs), strict=True):
            of_senders, of_edges, of_radial = ctx.conv.chunk_derivatives(out, h, edges, radial, senders)
            of_h.index_add_(0, senders.reshape(-1), of_senders)
            to_edges.copy_(of_edges)
            to_radial.copy_(of_radial)
        return None, of_h, of_harmonics, of_basis, None


class _Senders(torch.autograd.Function):
    """Features of every edge's sender; the derivative gathers by a table of each atom's outgoing edges, autograd would scatter."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, neighbours: Tensor, outgoing: Tensor, counts: Tensor) -> Tensor:
        ctx.save_for_backward(outgoing, counts)
        return h.index_select(0, neighbours.reshape(-1))

    @staticmethod
    def backward(ctx: Any, of_senders: Tensor) -> tuple[Tensor | None, ...]:
        outgoing, counts = ctx.saved_tensors
        nodes, width = outgoing.shape
        there = torch.arange(width, device=counts.device) < counts.unsqueeze(1)
        found = of_senders.index_select(0, outgoing.reshape(-1)).view(nodes, width, *of_senders.shape[1:])
        return torch.where(there[:, :, None, None], found, 0.0).sum(1), None, None, None


class FrozenConv(nn.Module):
    """A later layer's sum, with the path weights applied to the senders before the sum:

        X[(j, p, m1), c] = w_p,c(r_ij) h_j[m1, c],     A[i, m3, c] = sum_(j, p, m1) K[(j, p, m1), m3] X[(j, p, m1), c]

    where K = C_p Y. Eight (num_basis) times fewer multiply-adds than summing first. ``fused`` writes the same sum without matrix
    products, for a compiler that makes one loop of it and never stores X.

    Args:
        conv: the tensor product. scale: factor of the result.
    """

    weight: Tensor

    def __init__(self, conv: TensorProductConv, scale: float) -> None:
        super().__init__()
        self.channels, self.l_out, self.num_out = conv.channels, conv.l_out, num_components(conv.l_out)
        self.fused = False
        into = [sum(path.l3 == l for path in conv.paths) for l in range(conv.l_out + 1)]
        self.groups: list[tuple[int, int]] = []  # l1 and number of its paths, for every l1 that has one
        order: list[int] = []
        for l1 in range(conv.l_in + 1):
            places = [place for place, path in enumerate(conv.paths) if path.l1 == l1]
            if not places:
                continue
            shape = (num_components(conv.l_edge), len(places), 2 * l1 + 1, self.num_out)
            coupling = torch.zeros(shape, dtype=torch.float64, device=conv.weight.device)
            for row, place in enumerate(places):
                path = conv.paths[place]
                value = wigner_3j(*path) * ((2 * path.l3 + 1) / into[path.l3]) ** 0.5
                coupling[block(path.l2), row, :, block(path.l3)] = value.permute(1, 0, 2).to(coupling.device)
            self.register_buffer(f"coupling_{l1}", coupling.flatten(1).to(conv.weight.dtype), persistent=False)
            self.groups.append((l1, len(places)))
            order += places
        self.rows = max(count * (2 * l1 + 1) for l1, count in self.groups)
        self.outputs = [[conv.paths[place].l3 for place in order if conv.paths[place].l1 == l1] for l1, _ in self.groups]
        weight = conv.weight.detach().double()[:, order].flatten(1) * (scale * conv.num_basis**-0.5)
        self.register_buffer("weight", weight.to(conv.weight.dtype), persistent=False)

    def forward(
        self, h: Tensor, harmonics: Tensor, basis: Tensor, neighbours: Tensor, outgoing: Tensor, counts: Tensor
    ) -> Tensor:
        """``h`` ``[N, (l_in+1)^2, C]``, ``harmonics`` ``[N, D, (l+1)^2]``, ``basis`` ``[N, D, k]`` -> ``[N, (l_out+1)^2, C]``.

        ``neighbours``: senders ``[N, D]``. ``outgoing``: places ``[N, K]`` in it where an atom stands, ``counts`` of them.
        """
        if self.fused:
            senders = _Senders.apply(h, neighbours, outgoing, counts)
            return self._one_loop(senders, harmonics, basis, neighbours)
        return _ChunkedSum.apply(self, h, harmonics, basis, neighbours)

    def chunk_size(self, degree: int) -> int:
        """Receiving atoms in one pass."""
        device = self.weight.device.type
        threads = torch.get_num_threads() if device == "cpu" else 1
        return max(1, threads * CHUNK.get(device, 2**27) // (degree * self.rows * self.channels))

    def _split(self, senders: Tensor, basis: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each l1 the path weights ``[E, P, 1, C]`` and the senders ``[E, 1, 2 l1 + 1, C]``."""
        # Not len(): a tracer would take its value for a constant.
        weights = (basis.reshape(-1, basis.shape[2]) @ self.weight).view(senders.shape[0], -1, 1, self.channels)
        by_l1 = weights.split([count for _, count in self.groups], 1)
        blocks = senders.unsqueeze(1).split([2 * l + 1 for l in range(isqrt(senders.shape[1]))], 2)
        return [(weight, blocks[l1]) for weight, (l1, _) in zip(by_l1, self.groups, strict=True)]

    def _operators(self, edges: Tensor, nodes: int) -> list[Tensor]:
        """K for each l1, ``[n, D P (2 l1 + 1), M]``."""
        couplings = [getattr(self, f"coupling_{l1}") for l1, _ in self.groups]
        return [(edges @ coupling).view(nodes, -1, self.num_out) for coupling in couplings]

    def add_chunk(self, out: Tensor, h: Tensor, harmonics: Tensor, basis: Tensor, neighbours: Tensor) -> None:
        """A of the atoms of a chunk, added to ``out`` ``[n, M, C]``."""
        operators = self._operators(harmonics.reshape(-1, harmonics.shape[2]), len(out))
        senders = h.index_select(0, neighbours.reshape(-1))
        for operator, (weight, sender) in zip(operators, self._split(senders, basis), strict=True):
            source = (weight * sender).view(len(out), -1, self.channels)
            out.baddbmm_(operator.transpose(1, 2), source)

    def chunk_derivatives(
        self, out: Tensor, h: Tensor, harmonics: Tensor, basis: Tensor, neighbours: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From the derivative ``out`` ``[n, M, C]`` those with respect to each edge's sender, harmonics and basis."""
        nodes, edges = len(out), harmonics.reshape(-1, harmonics.shape[2])
        of_senders = h.new_zeros(len(edges), h.shape[1], self.channels)  # a degree may have no path
        of_weights, of_edges = [], torch.zeros_like(edges)
        operators, senders = self._operators(edges, nodes), h.index_select(0, neighbours.reshape(-1))
        for (l1, count), operator, (weight, sender) in zip(
            self.groups, operators, self._split(senders, basis), strict=True
        ):
            size = 2 * l1 + 1
            source = (weight * sender).view(nodes, -1, self.channels)
            of_operator = torch.bmm(source, out.transpose(1, 2))
            of_edges.addmm_(of_operator.view(len(edges), -1), getattr(self, f"coupling_{l1}").T)
            of_source = torch.bmm(operator, out, out=source).view(len(edges), count, size, self.channels)
            of_weights.append(_sum_products(of_source.unbind(2), sender.unbind(2)))
            of_senders[:, block(l1)] = _sum_products(of_source.unbind(1), weight.unbind(1))
        return of_senders, of_edges.view_as(harmonics), (torch.cat(of_weights, 1).flatten(1) @ self.weight.T).view_as(basis)

    def _one_loop(self, senders: Tensor, harmonics: Tensor, basis: Tensor, neighbours: Tensor) -> Tensor:
        """Path by path, in products and sums over short axes that a compiler unrolls; no indexing whose derivative scatters."""
        nodes, degree = neighbours.shape
        edges = harmonics.reshape(nodes * degree, -1)
        parts: list[list[Tensor]] = [[] for _ in range(self.l_out + 1)]
        for (l1, count), degrees, (weights, block_of) in zip(
            self.groups, self.outputs, self._split(senders, basis), strict=True
        ):
            size = 2 * l1 + 1
            couplings = getattr(self, f"coupling_{l1}").view(-1, count, size, self.num_out)
            sender = block_of.reshape(nodes, degree, size, 1, self.channels)
            for row, (l3, weight) in enumerate(zip(degrees, weights.unbind(1), strict=True)):
                coupling = couplings[:, row, :, block(l3)].flatten(1)
                operator = (edges @ coupling).view(nodes, degree, size, 2 * l3 + 1, 1)
                product = (operator * sender).sum(2) * weight.view(nodes, degree, 1, self.channels)
                parts[l3].append(product.sum(1))
        nothing = [senders.new_zeros(nodes, 2 * l + 1, self.channels) for l in range(self.l_out + 1)]
        return torch.cat([sum(part[1:], part[0]) if part else nothing[l] for l, part in enumerate(parts)], 1)
