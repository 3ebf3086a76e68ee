"""Neighbour lists: every pair of atoms, periodic images included, closer than a cutoff."""

from __future__ import annotations

import numpy as np
from vesin import NeighborList

from mlip.errors import StructureError


def neighbor_list(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float, num_threads: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """All directed pairs within ``cutoff``, sorted by receiver.

    The vector of edge ``e`` from receiver ``i = edge_index[1, e]`` to sender ``j = edge_index[0, e]`` is
    ``positions[j] - positions[i] + shifts[e] @ cell``. Atoms may lie outside the cell; an atom sees its own images.

    Args:
        positions: ``[n, 3]``, Angstrom.
        cell: ``[3, 3]``, Angstrom, rows are lattice vectors; a row of a direction that is not periodic is not used.
        pbc: ``[3]`` bool.
        cutoff: Angstrom.
        num_threads: threads of vesin; more than one pays only for thousands of atoms.

    Returns:
        ``edge_index`` ``[2, E]`` int64 (row 0 sender, row 1 receiver) and ``shifts`` ``[E, 3]`` int64.

    Raises:
        StructureError: positions or cell are not finite, or a periodic direction has no proper lattice vector.
    """
    positions = np.ascontiguousarray(positions, dtype=np.float64).reshape(-1, 3)
    pbc = np.broadcast_to(np.asarray(pbc, dtype=bool), (3,)).copy()
    if not np.isfinite(positions).all():
        bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
        raise StructureError(f"positions of {len(bad)} atoms are not finite (first: {bad[0]}); correct the structure")
    box = _complete_cell(np.asarray(cell, dtype=np.float64), pbc)
    if len(positions) == 0 or (len(positions) == 1 and not pbc.any()):
        return np.zeros((2, 0), dtype=np.int64), np.zeros((0, 3), dtype=np.int64)
    positions = _close_gaps(positions, box, pbc, cutoff)
    calculator = NeighborList(cutoff=cutoff, full_list=True, sorted=True, n_threads=num_threads)
    pairs, shifts = calculator.compute(positions, box, pbc, "PS", copy=False)
    edge_index = np.ascontiguousarray(pairs[:, ::-1].T).astype(np.int64)  # vesin: (i, j), D = r_j - r_i + S @ box
    return edge_index, shifts.astype(np.int64)


def _complete_cell(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """``cell`` with the rows of open directions replaced by unit vectors orthogonal to the periodic ones."""
    if not np.isfinite(cell).all():
        raise StructureError("the cell is not finite; correct the structure")
    periodic = cell[pbc]
    if len(periodic) and np.linalg.svd(periodic, compute_uv=False)[-1] < 1e-3:
        raise StructureError(
            f"pbc is {pbc.tolist()} but the lattice vectors of the periodic directions, {periodic.tolist()} Angstrom, "
            "are zero or parallel; set the cell, or pbc to false"
        )
    box = cell.copy()
    if not pbc.all():
        _, _, rows = np.linalg.svd(periodic if len(periodic) else np.zeros((1, 3)))
        box[~pbc] = rows[len(periodic):]
    return box


def _close_gaps(positions: np.ndarray, box: np.ndarray, pbc: np.ndarray, cutoff: float) -> np.ndarray:
    """``positions`` with empty stretches along the open directions cut to just above the cutoff.

    Open rows of ``box`` are orthonormal and orthogonal to the periodic ones, so atoms on two sides of a gap wider than
    the cutoff are no neighbours, before or after. Without this a far-flung atom makes vesin fill space with cells.
    """
    for axis in box[~pbc]:
        along = positions @ axis
        if np.ptp(along) > 50 * cutoff:
            order = np.argsort(along)
            gaps = np.diff(along[order])
            cut = np.cumsum(np.where(gaps > 1.1 * cutoff, gaps - 1.1 * cutoff, 0.0))
            moved = np.zeros(len(along))
            moved[order[1:]] = cut
            positions = positions - moved[:, None] * axis
    return positions
