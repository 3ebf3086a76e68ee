"""Neighbour lists: every pair of atoms, periodic images included, closer than a cutoff."""

from __future__ import annotations

import math

import numpy as np
from vesin import NeighborList

from mlip.data.frame import wrong_coordinates
from mlip.errors import StructureError
from mlip.memory import available_memory

_PAIR_BYTES = 80  # of vesin's arrays and of ours
_FEW_PAIRS = 10_000_000
_VESIN_CELLS = 100_000


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
        StructureError: positions or cell are not finite or absurdly large, a periodic direction has no proper lattice vector,
            or the pairs do not fit into memory.
    """
    positions = np.ascontiguousarray(positions, dtype=np.float64).reshape(-1, 3)
    pbc = np.broadcast_to(np.asarray(pbc, dtype=bool), (3,)).copy()
    cell = np.asarray(cell, dtype=np.float64)
    if wrong := wrong_coordinates(positions, cell):
        raise StructureError(wrong)
    box = _complete_cell(cell, pbc)
    if len(positions) == 0 or (len(positions) == 1 and not pbc.any()):
        return np.zeros((2, 0), dtype=np.int64), np.zeros((0, 3), dtype=np.int64)
    positions = _close_gaps(positions, box, pbc, cutoff)
    _check_size(positions, box, pbc, cutoff)
    calculator = NeighborList(cutoff=cutoff, full_list=True, sorted=True, n_threads=num_threads)
    pairs, shifts = calculator.compute(positions, box, pbc, "PS", copy=False)
    edge_index = np.ascontiguousarray(pairs[:, ::-1].T).astype(np.int64)  # vesin: (i, j), D = r_j - r_i + S @ box
    return edge_index, shifts.astype(np.int64)


def _check_size(positions: np.ndarray, box: np.ndarray, pbc: np.ndarray, cutoff: float) -> None:
    """Refuse what vesin does not survive: more pairs than memory holds, and boxes so long and thin that it divides by zero."""
    inverse = np.linalg.inv(box)
    along = positions @ inverse  # fractions of the periodic vectors, Angstrom along the open directions
    width = 1.0 / np.sqrt((inverse * inverse).sum(0))
    pairs = float(len(positions) ** 2)
    for side in width[pbc].tolist():
        pairs *= max(1.0, 2.0 * cutoff / side)
    if pairs > _FEW_PAIRS:  # if all were neighbours of all: count again by boxes as wide as the cutoff
        along[:, pbc] %= 1.0
        bins = np.floor(along * width / cutoff).astype(np.int64) @ [1, 2**20, 2**40]
        counts = np.unique(bins, return_counts=True)[1]
        pairs *= float(counts @ counts) / len(positions) ** 2
        free = available_memory()
        if free is not None and pairs * _PAIR_BYTES > free:
            raise StructureError(
                f"{pairs:.0e} pairs of atoms within {cutoff:g} Angstrom need {pairs * _PAIR_BYTES / 1e9:.0f} GB, and "
                f"{free / 1e9:.0f} GB are free; is the cell too small, do atoms lie on top of each other? correct it, or its units"
            )
    extent = (width if pbc.all() else np.where(pbc, width, np.ptp(along, axis=0))).tolist()
    x, y, z = (max(1.0, float(math.floor(side / cutoff))) for side in extent)
    if x * y * z > _VESIN_CELLS:  # vesin makes fewer, larger cells in the same proportions
        few_z = np.floor(np.cbrt(_VESIN_CELLS / (x / y * (y / z) ** 2)))
        few_y = np.floor(y / z * few_z)
        if min(few_z, few_y, np.floor(x / y * few_y)) < 1:
            sides = " x ".join(f"{side:.3g}" for side in extent)
            raise StructureError(
                f"the cell, {sides} Angstrom, is too long in one direction for the others; correct it, or set pbc to false there"
            )


def _complete_cell(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """``cell`` with the rows of open directions replaced by unit vectors orthogonal to the periodic ones."""
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
