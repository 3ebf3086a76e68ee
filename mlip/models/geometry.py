"""From flat edge lists to padded neighbour tables, and from edge gradients to forces and stress."""

from __future__ import annotations

import torch
from torch import Tensor


def edge_vectors(
    positions: Tensor, cell: Tensor, edge_index: Tensor, edge_shift: Tensor, batch: Tensor
) -> Tensor:
    """r_ij = x_j - x_i + shift . cell for sender j, receiver i; ``[E, 3]`` in the type of ``positions`` (float64), Angstrom."""
    sender, receiver = edge_index
    vectors = positions.index_select(0, sender) - positions.index_select(0, receiver)
    cells = cell.index_select(0, batch.index_select(0, receiver))
    return vectors + torch.einsum("ea,eab->eb", edge_shift.to(positions.dtype), cells.to(positions.dtype))


def padded_slots(receiver: Tensor, num_nodes: int) -> tuple[Tensor, Tensor, int]:
    """Slot of every edge in a table of ``num_nodes`` rows of equal width: ``(slots [E], edges of each node [N], width)``.

    ``receiver`` need not be sorted; the order of a node's edges is kept, and they come first in its row.
    """
    counts = torch.bincount(receiver, minlength=num_nodes)
    width = int(counts.max()) if len(receiver) else 0
    order = torch.argsort(receiver, stable=True)
    first = torch.cumsum(counts, 0) - counts
    rank = torch.arange(len(receiver), device=receiver.device) - first.index_select(0, receiver.index_select(0, order))
    slots = torch.empty_like(receiver)
    slots[order] = receiver.index_select(0, order) * width + rank
    return slots, counts, width


def forces_from_edges(gradient: Tensor, edge_index: Tensor, num_nodes: int) -> Tensor:
    """F = -dE/dx from g_e = dE/dr_e: an edge pulls its receiver by +g and its sender by -g. ``[N, 3]``, eV/Angstrom."""
    forces = gradient.new_zeros(num_nodes, 3)
    return forces.index_add(0, edge_index[1], gradient).index_add(0, edge_index[0], -gradient)


def stress_from_edges(vectors: Tensor, gradient: Tensor, edge_graph: Tensor, cell: Tensor) -> Tensor:
    """sigma = (1/V) sum_e r_e (x) dE/dr_e, symmetric; Voigt xx yy zz yz xz xy ``[B, 6]``, eV/Angstrom^3, tension positive.

    The derivative of the energy with respect to a homogeneous strain r -> (1 + epsilon) r. Rows of graphs without a cell are NaN.
    """
    outer = vectors.unsqueeze(2) * gradient.unsqueeze(1)
    virial = vectors.new_zeros(len(cell), 3, 3).index_add(0, edge_graph, outer)
    virial = (virial + virial.transpose(1, 2)) / 2
    volume = torch.linalg.det(cell.to(vectors.dtype)).abs()
    # A division by NaN would turn the gradient of every edge of a graph without a cell into NaN, masked or not.
    full = volume > 1e-8
    stress = virial / torch.where(full, volume, 1.0)[:, None, None]
    stress = torch.where(full[:, None, None], stress, float("nan"))
    return torch.stack([stress[:, a, b] for a, b in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))], dim=1)
