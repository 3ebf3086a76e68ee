"""PySCF's numerical integrator with the atomic-orbital values of the grid kept in memory.

Stock PySCF evaluates all orbitals on all grid points again in every SCF cycle; for molecules of 5 to 20 atoms that is a
third of the cycle. The values depend on the geometry only, so they are kept from the first cycle on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from pyscf.dft import numint


class CachedNumInt(numint.NumInt):
    """``numint.NumInt`` whose :meth:`block_loop` replays stored blocks for the same grid, as long as they fit.

    Args:
        max_bytes: no caching for grids whose values would take more memory than this.
    """

    def __init__(self, max_bytes: int = 3_000_000_000) -> None:
        super().__init__()
        self.max_bytes = max_bytes
        self.clear()

    def clear(self) -> None:
        """Forget the stored values (frees the memory)."""
        self._coords: np.ndarray | None = None
        self._key: tuple[int, int] | None = None
        self._blocks: list[tuple[np.ndarray, Any, np.ndarray, np.ndarray]] = []

    def block_loop(
        self,
        mol: Any,
        grids: Any,
        nao: int | None = None,
        deriv: int = 0,
        max_memory: float = 2000,
        non0tab: Any = None,
        blksize: int | None = None,
        buf: Any = None,
    ) -> Iterator[tuple[np.ndarray, Any, np.ndarray, np.ndarray]]:
        """Yield ``(ao, mask, weight, coords)`` per block of grid points, as the base class does."""
        if grids.coords is None:
            grids.build(with_non0tab=True)
        components = (deriv + 1) * (deriv + 2) * (deriv + 3) // 6
        if components * grids.coords.shape[0] * mol.nao * 8 > self.max_bytes:
            yield from super().block_loop(mol, grids, nao, deriv, max_memory, non0tab, blksize, buf)
            return
        key = (id(mol), deriv)
        if self._coords is not grids.coords or self._key != key:
            blocks = []
            for ao, mask, weight, coords in super().block_loop(mol, grids, nao, deriv, max_memory, non0tab, blksize):
                blocks.append((np.array(ao, order="K"), mask, weight, coords))
            self._coords, self._key, self._blocks = grids.coords, key, blocks
        yield from self._blocks
