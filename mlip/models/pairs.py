"""Narrow tables of the pairs that a gate lets through: what is shut is neither padding nor work."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mlip.models.backbone import NodeFeatures

MOST_TABLES = 4
WORTH = 64
"""Padded pairs that another table has to save; one more convolution has a cost of its own."""


class PairTable(NamedTuple):
    """Some atoms with the pairs that they receive, padded to a common number w.

    Attributes:
        atoms: ``[n]``.
        unit: directions ``[n, w, 3]``. basis: ``[n, w, num_basis]``. neighbours: senders ``[n, w]``.
        weight: ``[n, w]``, 0 where padded.
    """

    atoms: Tensor
    unit: Tensor
    basis: Tensor
    neighbours: Tensor
    weight: Tensor


def tables_of(node: NodeFeatures, weight: Tensor) -> list[PairTable]:
    """The pairs with a weight ``[N, D]`` above 0, in up to :data:`MOST_TABLES` tables of atoms with about as many.

    Every atom stands in one of them.
    """
    kept = weight > 0
    # Kept pairs first, in their order; what stands behind them within a table's width has weight 0.
    columns = torch.argsort((~kept).byte(), dim=1, stable=True)
    tables = []
    for atoms, width in groups_of(kept.sum(dim=1)):
        chosen = columns.index_select(0, atoms)[:, :width]
        place = (atoms.unsqueeze(1) * columns.shape[1] + chosen).view(-1)
        parts = (
            table.flatten(0, 1).index_select(0, place).view(*chosen.shape, *table.shape[2:])
            for table in (node.unit, node.basis, node.neighbours, weight)
        )
        tables.append(PairTable(atoms, *parts))
    return tables


def groups_of(counts: Tensor) -> list[tuple[Tensor, int]]:
    """Atoms with about as many pairs ``counts`` [N] together, the most first; with each group its largest number."""
    groups: list[tuple[Tensor, int]] = []
    order = torch.argsort(counts, stable=True)
    if len(order) == 0:
        return [(order, 0)]
    parts = order.tensor_split(min(MOST_TABLES, len(order)))
    widths = counts.index_select(0, torch.stack([part[-1] for part in parts])).tolist()
    for atoms, width in zip(reversed(parts), reversed(widths), strict=True):
        if groups and (groups[-1][1] - width) * len(atoms) < WORTH:
            groups[-1] = (torch.cat([atoms, groups[-1][0]]), groups[-1][1])
        else:
            groups.append((atoms, width))
    return groups
