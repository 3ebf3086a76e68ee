"""Orbital values on an integration grid: densities and potential matrices from blocks kept in memory.

With the orbitals ``phi_m`` of a basis, a density matrix ``D`` and grid weights ``w``:

    rho = sum_mn D_mn phi_m phi_n        grad rho = 2 sum_mn D_mn phi_m grad phi_n
    tau = 1/2 sum_mn D_mn grad phi_m . grad phi_n
    V_mn = sum_g w [ v_rho phi_m phi_n + v_grad . grad(phi_m phi_n) + v_tau/2 grad phi_m . grad phi_n ]

Each block of neighbouring points stores only the orbitals that reach it. Blocks are worked on by one thread each, with
single-threaded matrix products that stay in the processor's cache. All quantities are in atomic units.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyscf import lib
from pyscf.dft import gen_grid

from scf_accel.threads import each

BLOCK = 20 * gen_grid.BLKSIZE
NEGLIGIBLE = 1e-18  # smaller values are stored as 0: products of them would be subnormal numbers, which are slow
VARIABLES = {"LDA": 1, "GGA": 4, "MGGA": 5}
COMPONENTS = {"LDA": 1, "GGA": 4, "MGGA": 4}


@dataclass(frozen=True)
class Block:
    """Orbitals ``index[n]`` with values (and gradients) ``ao[components, n, points]`` on grid points ``start:stop``."""

    start: int
    stop: int
    index: np.ndarray
    ao: np.ndarray


class GridOrbitals:
    """Orbitals of ``mol`` on ``grids`` for functionals of one kind.

    Args:
        mol: PySCF molecule.
        grids: a built PySCF grid.
        kind: ``"LDA"``, ``"GGA"`` or ``"MGGA"``.
        dtype: type in which values are kept and products computed; sums over blocks are float64.
        max_bytes: values beyond this are evaluated anew in each pass.
        threshold: orbitals whose values stay below this in all of a block are left out of it.
    """

    def __init__(
        self,
        mol: Any,
        grids: Any,
        kind: str,
        dtype: type = np.float32,
        max_bytes: float = 2e9,
        threshold: float = 1e-10,
    ) -> None:
        self.mol, self.grids, self.kind, self.dtype = mol, grids, kind, dtype
        self.threshold, self.threads = threshold, lib.num_threads()
        self.weights = np.asarray(grids.weights)
        self.points = len(self.weights)
        self._left, self._lock = float(max_bytes), threading.Lock()
        self._kept: dict[int, Block] = {}

    @property
    def bytes(self) -> int:
        """Memory held by the kept blocks."""
        return sum(block.ao.nbytes for block in self._kept.values())

    def evaluate(self, start: int, dtype: type) -> Block:
        """The block from point ``start`` on, computed."""
        stop = min(start + BLOCK, self.points)
        non0tab = getattr(self.grids, "non0tab", None)
        rows = slice(start // gen_grid.BLKSIZE, -(-stop // gen_grid.BLKSIZE))
        mask = None if non0tab is None else np.ascontiguousarray(non0tab[rows])
        name = "GTOval_sph_deriv1" if self.kind != "LDA" else "GTOval_sph"
        if self.mol.cart:
            name = name.replace("sph", "cart")
        ao = self.mol.eval_gto(name, self.grids.coords[start:stop], non0tab=mask)
        ao = ao.reshape(COMPONENTS[self.kind], stop - start, self.mol.nao).transpose(0, 2, 1)  # memory order of PySCF
        index = np.flatnonzero(np.abs(ao[0]).max(axis=1) > self.threshold)
        kept: np.ndarray = np.ascontiguousarray(ao[:, index], dtype=dtype)
        kept[np.abs(kept) < NEGLIGIBLE] = 0.0
        return Block(start, stop, index, kept)

    def block(self, start: int) -> Block:
        """The block from memory, else computed and kept if there is room."""
        block = self._kept.get(start)
        if block is None:
            block = self.evaluate(start, self.dtype)
            with self._lock:
                if block.ao.nbytes <= self._left:
                    self._left -= block.ao.nbytes
                    self._kept[start] = block
        return block

    def density(self, dms: np.ndarray) -> np.ndarray:
        """``[sets, variables, points]`` density, its gradient and tau of symmetric ``dms[sets, nao, nao]``."""
        tau = self.kind == "MGGA"
        rho = np.empty((len(dms), VARIABLES[self.kind], self.points))

        def work(start: int) -> None:
            block = self.block(start)
            for dm, out in zip(dms, rho, strict=True):
                out[:, block.start : block.stop] = density_of(block, dm, tau)

        deque(each(work, range(0, self.points, BLOCK), self.threads), maxlen=0)
        return rho

    def matrix(self, potential: np.ndarray) -> np.ndarray:
        """``[sets, nao, nao]`` matrices of ``potential[sets, variables, points]`` (weights not yet included)."""

        def work(start: int) -> tuple[np.ndarray, list[np.ndarray]]:
            block = self.block(start)
            weights = self.weights[block.start : block.stop]
            return block.index, [matrix_of(block, v[:, block.start : block.stop] * weights) for v in potential]

        out = np.zeros((len(potential), self.mol.nao, self.mol.nao))
        with closing(each(work, range(0, self.points, BLOCK), self.threads)) as results:
            for index, parts in results:
                for total, part in zip(out, parts, strict=True):
                    total[np.ix_(index, index)] += part
        return out + out.transpose(0, 2, 1)


def density_of(block: Block, dm: np.ndarray, tau: bool) -> np.ndarray:
    """``[variables, points]`` of one block in its own type."""
    ao = block.ao
    part = dm[np.ix_(block.index, block.index)].astype(ao.dtype)
    rho = np.einsum("kpg,pg->kg", ao, part @ ao[0])
    rho[1:] *= 2.0
    if not tau:
        return rho
    kinetic = sum(np.einsum("pg,pg->g", gradient, part @ gradient) for gradient in ao[1:])
    return np.concatenate([rho, 0.5 * kinetic[None]])


def matrix_of(block: Block, weighted: np.ndarray) -> np.ndarray:
    """``[n, n]``: half of the block's potential matrix; the other half is its transpose."""
    ao = block.ao
    half = weighted.astype(ao.dtype)
    half[np.abs(half) < NEGLIGIBLE] = 0.0
    half[0] *= 0.5
    matrix = ao[0] @ np.einsum("kpg,kg->pg", ao, half[: len(ao)]).T
    if len(half) > len(ao):
        for gradient in ao[1:]:
            matrix += gradient @ (0.25 * half[-1] * gradient).T
    return matrix
