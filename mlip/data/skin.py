"""A neighbour list that is reused while atoms move less than a skin allows (Verlet 1967, Phys. Rev. 159, 98)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mlip.data.neighbors import neighbor_list
from mlip.errors import StructureError

# Slack taken off the skin for rounding in the criterion itself, Angstrom.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Edges:
    """The pairs within the cutoff, sorted by receiver, then sender, then shift.

    Attributes:
        edge_index: ``[2, E]`` int64, row 0 sender j, row 1 receiver i.
        shifts: ``[E, 3]`` int64; ``r_ij = positions[j] - positions[i] + shifts @ cell``.
        min_distance: shortest pair distance, Angstrom; infinite where there is no pair.
        closest: atom indices of that pair, or ``None``.
        same_pairs: the arrays are the very ones that the previous call returned.
    """

    edge_index: np.ndarray
    shifts: np.ndarray
    min_distance: float
    closest: tuple[int, int] | None
    same_pairs: bool


class SkinNeighborList:
    """Pairs within ``cutoff``, from candidates within ``cutoff + skin`` that are kept while they must be complete.

    With the candidates found at ``r0`` in the cell ``h0``, and now ``r`` in ``h = h0 F``, write ``r_i = r0_i F + u_i``.
    A pair now at distance d < cutoff was then at a distance of at most ``(cutoff + |u_i| + |u_j|) ||F^-1||_2``, so
    the candidates hold every pair as long as

        (cutoff + u_1 + u_2) ||F^-1||_2 <= cutoff + skin,

    u_1 and u_2 the two largest ``|u_i|`` once their common drift is removed. With a fixed cell F = 1 and this is the
    usual "no two atoms moved by more than the skin together". Cells that are not periodic in all three directions
    are searched anew when they change.

    The order of the pairs depends on the positions of now alone, not on when the candidates were found, so a restarted
    run adds up the same numbers in the same order.

    Args:
        cutoff: Angstrom.
        skin: Angstrom; zero searches anew at every call.
    """

    def __init__(self, cutoff: float, skin: float = 0.5) -> None:
        if not (math.isfinite(cutoff) and cutoff > 0 and math.isfinite(skin) and skin >= 0):
            raise StructureError(f"a neighbour list needs cutoff > 0 and skin >= 0; found cutoff={cutoff}, skin={skin}")
        self.cutoff = float(cutoff)
        self.skin = float(skin)
        self.builds = 0
        self.reset()

    def reset(self) -> None:
        """Forget the candidates."""
        self._positions: np.ndarray | None = None
        self._mask: np.ndarray | None = None

    def update(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> Edges:
        """The pairs of this structure.

        Args:
            positions: ``[n, 3]``, Angstrom.
            cell: ``[3, 3]``, Angstrom, rows are lattice vectors.
            pbc: ``[3]`` bool.

        Raises:
            StructureError: positions or cell are not finite, or a periodic direction has no lattice vector.
        """
        if not self._still_complete(positions, cell, pbc):
            self._build(positions, cell, pbc)
        return self._filter(positions, cell)

    def _still_complete(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> bool:
        old = self._positions
        if old is None or self.skin == 0 or old.shape != positions.shape or not np.array_equal(pbc, self._pbc):
            return False
        stretch = 1.0
        if np.array_equal(cell, self._cell):
            moved = positions - old
        elif not pbc.all() or abs(np.linalg.det(cell)) < 1e-6 * abs(np.linalg.det(self._cell)):
            return False
        else:
            deformation = np.linalg.solve(self._cell, cell)
            moved = positions - old @ deformation
            stretch = 1.0 / np.linalg.svd(deformation, compute_uv=False)[-1]
        moved = moved - moved.mean(axis=0)
        squares = np.einsum("ij,ij->i", moved, moved)
        if not np.isfinite(squares).all():
            return False
        largest = np.sqrt(np.partition(squares, -2)[-2:]).sum() if len(squares) > 1 else 0.0
        return bool((self.cutoff + largest) * stretch <= self.cutoff + self.skin - _ROUNDING)

    def _build(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
        index, shifts = neighbor_list(positions, cell, pbc, self.cutoff + self.skin)
        order = np.lexsort((shifts[:, 2], shifts[:, 1], shifts[:, 0], index[0], index[1]))
        self._index, self._shifts = index[:, order], shifts[order]
        self._positions = positions.copy()
        self._cell, self._pbc = np.array(cell, dtype=np.float64), np.array(pbc, dtype=bool)
        self._offset_cell: np.ndarray | None = None
        self._mask = None
        self.builds += 1

    def _filter(self, positions: np.ndarray, cell: np.ndarray) -> Edges:
        if self._offset_cell is None or not np.array_equal(cell, self._offset_cell):
            self._offset_cell = np.array(cell, dtype=np.float64)
            self._offsets = self._shifts @ self._offset_cell
        vectors = positions[self._index[0]]
        vectors -= positions[self._index[1]]
        vectors += self._offsets
        squares = np.einsum("ij,ij->i", vectors, vectors)
        mask = squares < self.cutoff * self.cutoff
        same = self._mask is not None and np.array_equal(mask, self._mask)
        if not same:
            self._mask = mask
            self._kept = (self._index[:, mask], self._shifts[mask])
        minimum, closest = math.inf, None
        if len(squares):
            at = int(squares.argmin())
            minimum = math.sqrt(squares[at])
            closest = (int(self._index[1, at]), int(self._index[0, at]))
        return Edges(*self._kept, min_distance=minimum, closest=closest, same_pairs=same)
