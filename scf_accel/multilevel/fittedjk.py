"""Coulomb and exchange matrices of the coarse model: density fitting in single precision.

With the Cholesky-transformed three-index integrals ``B_P,mn`` of a fitting basis:

    J_mn[D] = sum_P B_P,mn sum_kl B_P,kl D_kl            K_mn[C] = sum_P,i Y_mPi Y_nPi,   Y_mPi = sum_n B_P,mn C_ni

(Whitten 1973; Weigend 2002). Orbitals carry the square root of their occupation, so ``K`` belongs to ``D = C C^T``.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import scipy.linalg
from pyscf import df, lib

from scf_accel.threads import blocks, each

CHUNK_BYTES = 1.5e8
CACHE_BYTES = 2e6
ROWS = 64  # of integrals unpacked at a time
TERMS = 64  # of a sum in single precision; the partial sums are added in double
SMALLEST_METRIC = 1e-9  # eigenvalues of the fitting metric below this are dropped


class PackedFit:
    """``J`` and ``K`` from integrals over the ``nao (nao + 1) / 2`` distinct pairs.

    Args:
        integrals: ``[naux, npair]``, PySCF's ``DF._cderi``; kept as it is when already of ``dtype``.
    """

    def __init__(self, integrals: np.ndarray, nao: int, dtype: type = np.float32) -> None:
        self.nao, self.threads = nao, lib.num_threads()
        self.integrals: np.ndarray = np.asarray(integrals, dtype=dtype)
        diagonal = np.arange(nao)
        self._diagonal = diagonal * (diagonal + 3) // 2

    @functools.cached_property
    def _places(self) -> np.ndarray:
        """``[nao nao]``: where each pair of orbitals is among the distinct ones."""
        return lib.unpack_tril(np.arange(self.integrals.shape[1], dtype=float)).astype(np.int64).ravel()

    def coulomb(self, dm: np.ndarray, exact: bool = False) -> np.ndarray:
        """``[nao, nao]`` J of a symmetric ``dm[nao, nao]``; ``exact``: summed in double precision, slower."""
        pairs = lib.pack_tril(2.0 * dm)
        pairs[self._diagonal] *= 0.5
        dtype = np.float64 if exact else self.integrals.dtype
        pairs = pairs.astype(dtype)

        def work(rows: slice) -> np.ndarray:
            block = self.integrals[rows].astype(dtype, copy=False)
            return (block @ pairs) @ block

        step = int(CACHE_BYTES / (len(pairs) * self.integrals.itemsize))
        return lib.unpack_tril(sum(each(work, blocks(len(self.integrals), step), self.threads), np.zeros(len(pairs))))

    def exchange(self, orbitals: np.ndarray) -> np.ndarray:
        """``[nao, nao]`` K of ``D = C C^T`` for ``orbitals = C[nao, n]``."""
        nao, count = self.nao, orbitals.shape[1]
        if not count:
            return np.zeros((nao, nao))
        occupied = orbitals.astype(self.integrals.dtype)

        def work(rows: slice) -> np.ndarray:
            full = np.take(self.integrals[rows], self._places, axis=1).reshape(-1, nao, nao)
            return square(np.matmul(full, occupied).transpose(1, 0, 2).reshape(nao, -1))

        step = int(CHUNK_BYTES / self.threads / (nao * (nao + count) * self.integrals.itemsize))
        return sum(each(work, blocks(len(self.integrals), step), self.threads), np.zeros((nao, nao)))


class FullFit:
    """``K`` from integrals over all pairs, ``[nao, naux, nao]``: twice the memory, faster.

    Args:
        integrals: ``[naux, npair]``, as for :class:`PackedFit`.
    """

    def __init__(self, integrals: np.ndarray, nao: int, dtype: type = np.float32) -> None:
        naux = len(integrals)
        self.nao, self.threads = nao, lib.num_threads()
        self.integrals: np.ndarray = np.empty((nao, naux, nao), dtype=dtype)
        for row in range(0, naux, ROWS):
            block = lib.unpack_tril(np.asarray(integrals[row : row + ROWS], dtype=float))
            self.integrals[:, row : row + ROWS] = block.transpose(1, 0, 2)

    def exchange(self, orbitals: np.ndarray) -> np.ndarray:
        """``[nao, nao]`` K of ``D = C C^T`` for ``orbitals = C[nao, n]``."""
        nao, naux, count = self.nao, self.integrals.shape[1], orbitals.shape[1]
        if not count:
            return np.zeros((nao, nao))
        occupied = orbitals.astype(self.integrals.dtype)

        def work(rows: slice) -> np.ndarray:
            return square(np.matmul(self.integrals[:, rows], occupied).reshape(nao, -1))

        step = min(int(CHUNK_BYTES / self.threads / (nao * count * self.integrals.itemsize)), -(-naux // (2 * self.threads)))
        return sum(each(work, blocks(naux, step), self.threads), np.zeros((nao, nao)))


def square(half: np.ndarray) -> np.ndarray:
    """``half @ half.T`` in double precision from products of :data:`TERMS` columns in the precision of ``half[nao, n]``.

    Summed in single precision throughout, K is so noisy in large bases that the coarse solve stalls above its tolerance (orbital
    gradient of benzene, B3LYP/def2-TZVP: noise of 2e-5, with partial sums 7e-6).
    """
    out = np.zeros((len(half), len(half)))
    for start in range(0, half.shape[1], TERMS):
        part = half[:, start : start + TERMS]
        out += part @ part.T
    return out


def three_index(mol: Any, auxbasis: Any, omega: float = 0.0, dtype: type = np.float32) -> np.ndarray:
    """``[naux, npair]`` transformed integrals, made a few shells at a time.

    Args:
        omega: of the long-range (> 0) or short-range (< 0) part of the Coulomb operator; 0: all of it.
    """
    nao = mol.nao
    with mol.with_range_coulomb(omega or None):
        auxmol = df.addons.make_auxmol(mol, auxbasis)
        with auxmol.with_range_coulomb(omega or None):
            transform, triangular = _metric_root(auxmol.intor("int2c2e", hermi=1))
            out = np.empty((len(transform), nao * (nao + 1) // 2), dtype=dtype)
            for first, last in _shell_blocks(mol, auxmol.nao):
                shells = (first, last, 0, mol.nbas, 0, auxmol.nbas)
                block = df.incore.aux_e2(mol, auxmol, "int3c2e", aosym="s2ij", shls_slice=shells).T
                if triangular:
                    block = scipy.linalg.solve_triangular(transform, block, lower=True, check_finite=False)
                else:
                    block = transform @ block
                start, stop = (int(row) * (int(row) + 1) // 2 for row in (mol.ao_loc[first], mol.ao_loc[last]))
                out[:, start:stop] = block
    return out


def _metric_root(metric: np.ndarray) -> tuple[np.ndarray, bool]:
    """``(L, True)`` with ``L L^T`` the metric, or ``(X, False)`` with ``X^T X`` its pseudo-inverse if it is singular."""
    try:
        return scipy.linalg.cholesky(metric, lower=True), True
    except scipy.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(metric)
        keep = values > SMALLEST_METRIC
        return (vectors[:, keep] / np.sqrt(values[keep])).T, False


def _shell_blocks(mol: Any, naux: int) -> list[tuple[int, int]]:
    """Ranges of shells whose rows of pairs take about ``CHUNK_BYTES``."""
    blocks, first = [], 0
    for last in range(1, mol.nbas + 1):
        rows = range(mol.ao_loc[first], mol.ao_loc[last])
        if last == mol.nbas or 8.0 * naux * sum(row + 1 for row in rows) > CHUNK_BYTES:
            blocks.append((first, last))
            first = last
    return blocks
