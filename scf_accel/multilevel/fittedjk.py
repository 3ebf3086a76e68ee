"""Coulomb and exchange matrices of the coarse model: density fitting in single precision.

With the Cholesky-transformed three-index integrals ``B_P,mn`` of a fitting basis:

    J_mn[D] = sum_P B_P,mn sum_kl B_P,kl D_kl            K_mn[C] = sum_P,i Y_mPi Y_nPi,   Y_mPi = sum_n B_P,mn C_ni

(Whitten 1973; Weigend 2002). Orbitals carry the square root of their occupation, so ``K`` belongs to ``D = C C^T``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pyscf import df, lib

CHUNK_BYTES = 1.5e8


class PackedCoulomb:
    """``J`` from integrals over the ``nao (nao + 1) / 2`` distinct pairs.

    Args:
        integrals: ``[naux, npair]``, PySCF's ``DF._cderi``; kept as it is when already of ``dtype``.
    """

    def __init__(self, integrals: np.ndarray, nao: int, dtype: type = np.float32) -> None:
        self.nao = nao
        self.integrals: np.ndarray = np.asarray(integrals, dtype=dtype)
        diagonal = np.arange(nao)
        self._diagonal = diagonal * (diagonal + 3) // 2

    def coulomb(self, dm: np.ndarray) -> np.ndarray:
        """``[nao, nao]`` J of a symmetric ``dm[nao, nao]``."""
        pairs = lib.pack_tril(2.0 * dm)
        pairs[self._diagonal] *= 0.5
        fitted = self.integrals @ pairs.astype(self.integrals.dtype)
        return lib.unpack_tril((fitted @ self.integrals).astype(float))


class FullExchange:
    """``J`` and ``K`` from integrals over all pairs, stored as ``[nao, naux, nao]``."""

    def __init__(self, integrals: np.ndarray, nao: int, dtype: type = np.float32) -> None:
        naux = len(integrals)
        self.nao = nao
        self.integrals: np.ndarray = np.empty((nao, naux, nao), dtype=dtype)
        for row in range(0, naux, 64):
            block = lib.unpack_tril(np.asarray(integrals[row : row + 64]))
            self.integrals[:, row : row + 64] = block.transpose(1, 0, 2)

    def coulomb(self, dm: np.ndarray) -> np.ndarray:
        """``[nao, nao]`` J of a symmetric ``dm[nao, nao]``."""
        fitted = np.matmul(self.integrals, dm.astype(self.integrals.dtype)[:, :, None])[:, :, 0].sum(axis=0)
        return np.matmul(fitted, self.integrals).astype(float)

    def exchange(self, orbitals: np.ndarray) -> np.ndarray:
        """``[nao, nao]`` K of ``D = C C^T`` for ``orbitals = C[nao, n]``."""
        nao, naux, count = self.nao, self.integrals.shape[1], orbitals.shape[1]
        matrix = np.zeros((nao, nao))
        if not count:
            return matrix
        occupied = orbitals.astype(self.integrals.dtype)
        step = max(8, int(CHUNK_BYTES / (nao * count * 4)))
        for start in range(0, naux, step):
            half = np.matmul(self.integrals[:, start : start + step], occupied).reshape(nao, -1)
            matrix += half @ half.T
        return matrix


def three_index(mol: Any, auxbasis: Any, omega: float = 0.0) -> np.ndarray:
    """``[naux, npair]`` transformed integrals; ``omega``: of the long-range (> 0) or short-range (< 0) Coulomb operator."""
    with mol.with_range_coulomb(omega or None):
        auxmol = df.addons.make_auxmol(mol, auxbasis)
        return df.incore.cholesky_eri(mol, auxmol=auxmol, auxbasis=auxbasis, verbose=0)
