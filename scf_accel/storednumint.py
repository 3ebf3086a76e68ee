"""PySCF's numerical integrator with the orbital values of the grid kept in memory.

Stock PySCF evaluates all orbitals on all grid points again in every SCF cycle. The values depend on the geometry only,
so they are kept, in double precision and as many as memory allows, and the matrix products run over blocks that stay
in the processor's cache. The sums are the same up to rounding (1e-11 in the matrix elements).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pyscf.dft import numint

from scf_accel.gridorbitals import GridOrbitals
from scf_accel.threads import blocks, each

MAX_BYTES = 3_000_000_000
POINTS = 4000  # grid points that a thread evaluates at least
LAPLACIAN = ("CC06", "CS", "BR89", "MK00")  # functionals of the density's Laplacian: stock PySCF refuses them


def memory_share(workers: int) -> int:
    """Bytes that one of ``workers`` processes may keep: half its share of the memory now free, at most 3e9."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return MAX_BYTES
    return min(MAX_BYTES, free // (2 * workers))


class StoredNumInt(numint.NumInt):
    """``numint.NumInt`` that keeps the orbital values of the last grid.

    ``nr_rks`` and ``nr_uks`` with symmetric real density matrices use the store; all else is stock PySCF.

    Args:
        max_bytes: values beyond this are evaluated anew in each call; a function is called when the store is made.
    """

    def __init__(self, max_bytes: float | Callable[[], float] = MAX_BYTES) -> None:
        super().__init__()
        self.max_bytes = max_bytes
        self.clear()

    def clear(self) -> None:
        """Forget the stored values (frees the memory)."""
        self._orbitals: GridOrbitals | None = None
        self._coords: np.ndarray | None = None

    def orbitals(self, mol: Any, grids: Any, kind: str) -> GridOrbitals:
        """The store of this grid."""
        store = self._orbitals
        if store is None or store.mol is not mol or store.kind != kind or self._coords is not grids.coords:
            self.clear()
            budget = self.max_bytes() if callable(self.max_bytes) else self.max_bytes
            self._orbitals = store = GridOrbitals(mol, grids, kind, np.float64, budget)
            self._coords = grids.coords
        return store

    def _applies(self, xc_code: str, dms: Any, ndim: int, relativity: int, hermi: int) -> bool:
        return (
            isinstance(dms, np.ndarray)
            and dms.ndim == ndim
            and dms.dtype == np.float64
            and hermi == 1
            and not relativity
            and self._xc_type(xc_code) in ("LDA", "GGA", "MGGA")
            and not any(name in xc_code.upper() for name in LAPLACIAN)
        )

    def nr_rks(
        self,
        mol: Any,
        grids: Any,
        xc_code: str,
        dms: np.ndarray,
        relativity: int = 0,
        hermi: int = 1,
        max_memory: float = 2000,
        verbose: Any = None,
    ) -> tuple[Any, Any, np.ndarray]:
        """Electron count, XC energy (Hartree) and XC matrix ``[nao, nao]``; see PySCF's own ``nr_rks``."""
        if not self._applies(xc_code, dms, 2, relativity, hermi):
            return super().nr_rks(mol, grids, xc_code, dms, relativity, hermi, max_memory, verbose)
        counts, energy, matrices = self._integrate(mol, grids, xc_code, np.asarray(dms)[None])
        return counts[0], energy, matrices[0]

    def nr_uks(
        self,
        mol: Any,
        grids: Any,
        xc_code: str,
        dms: np.ndarray,
        relativity: int = 0,
        hermi: int = 1,
        max_memory: float = 2000,
        verbose: Any = None,
    ) -> tuple[Any, Any, np.ndarray]:
        """Electron counts ``[2]``, XC energy (Hartree) and XC matrices ``[2, nao, nao]``; see PySCF's ``nr_uks``."""
        if not self._applies(xc_code, dms, 3, relativity, hermi) or len(dms) != 2:
            return super().nr_uks(mol, grids, xc_code, dms, relativity, hermi, max_memory, verbose)
        return self._integrate(mol, grids, xc_code, np.asarray(dms))

    def _integrate(self, mol: Any, grids: Any, xc_code: str, dms: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
        if grids.coords is None:
            grids.build(with_non0tab=True)
        kind = self._xc_type(xc_code)
        store = self.orbitals(mol, grids, kind)
        rho = store.density(dms)
        exc, vxc = evaluate(self, xc_code, kind, rho, store.threads)
        counts = rho[:, 0] @ store.weights
        return counts, float((rho[:, 0].sum(axis=0) * store.weights) @ exc), store.matrix(vxc)


def evaluate(ni: Any, xc_code: str, kind: str, rho: np.ndarray, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Energy per electron ``[points]`` and potential ``[sets, variables, points]`` of ``rho[sets, variables, points]``."""
    spin, points = len(rho) - 1, rho.shape[-1]

    def work(part: slice) -> tuple[np.ndarray, np.ndarray]:
        values = rho[..., part] if spin else rho[0, :, part]
        if kind == "LDA":
            values = values[..., 0, :]
        exc, vxc = ni.eval_xc_eff(xc_code, np.ascontiguousarray(values), deriv=1, xctype=kind, spin=spin)[:2]
        return np.asarray(exc), np.asarray(vxc).reshape(*rho.shape[:-1], part.stop - part.start)

    if users_own(ni):
        threads = 1
    parts = blocks(points, points if threads == 1 else max(POINTS, -(-points // threads)))
    exc, vxc = zip(*each(work, parts, threads), strict=True)
    return np.concatenate(exc), np.concatenate(vxc, axis=-1)


def users_own(ni: Any) -> bool:
    """Whether the functional is the user's (``define_xc_``): it is called as PySCF would, by one thread."""
    return any(name in vars(ni) for name in ("eval_xc", "eval_xc_eff"))
