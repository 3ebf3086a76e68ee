"""The slope of a density-fitted Coulomb energy from one set of derivative integrals.

    E = c V c / 2,  V c = rho,  rho_P = sum_mn D_mn (mn|P),  V_PQ = (P|Q)
    dE = sum_P c_P d rho_P - c dV c / 2

Moving all three centres of (mn|P) together changes nothing, so that (grad m n|P) gives the slope by the atom of P too; PySCF
computes those integrals as well. Atomic units.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.linalg
from pyscf.df.incore import aux_e2

from scf_accel.fitting import atom_of_function, metric_projections, shell_ranges, solve_metric

MAX_BYTES = 2e8
"""Of the integrals in memory at a time."""


def coulomb_gradient(mol: Any, auxmol: Any, dm: np.ndarray) -> np.ndarray:
    """``[atoms, 3]`` derivative (Hartree/Bohr) of the fitted Coulomb energy at fixed, symmetric ``dm[nao, nao]``."""
    fitted = _solve(auxmol.intor("int2c2e", hermi=1), metric_projections(mol, auxmol, dm))
    by_orbital = np.zeros((3, mol.nao))
    by_function = fitted * (auxmol.intor("int2c2e_ip1") @ fitted)
    for part, slopes in _slopes(mol, auxmol, dm):
        by_orbital -= 2.0 * np.einsum("p,xpm->xm", fitted[part], slopes)
        by_function[:, part] += 2.0 * fitted[part] * slopes.sum(axis=2)
    total = np.zeros((mol.natm, 3))
    np.add.at(total, atom_of_function(mol), by_orbital.T)
    np.add.at(total, atom_of_function(auxmol), by_function.T)
    return total


def _solve(metric: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    """As PySCF fits: by Cholesky decomposition as long as there is one; else without the functions that others stand for."""
    try:
        return scipy.linalg.solve(metric, rhs, assume_a="pos")
    except scipy.linalg.LinAlgError:
        return solve_metric(metric, rhs)


def _slopes(mol: Any, auxmol: Any, dm: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """``[3, functions, nao]`` sum_n D_mn (grad m n|P) of some fitting functions at a time, and which those are."""
    starts = auxmol.ao_loc
    for first, last in shell_ranges(starts, MAX_BYTES / (24 * mol.nao**2)):
        shells = (0, mol.nbas, 0, mol.nbas, first, last)
        integrals = aux_e2(mol, auxmol, "int3c2e_ip1", aosym="s1", comp=3, shls_slice=shells)
        yield slice(int(starts[first]), int(starts[last])), np.einsum("xpnm,nm->xpm", integrals.transpose(0, 3, 2, 1), dm)
