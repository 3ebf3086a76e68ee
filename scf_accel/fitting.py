"""Density matrix -> coefficients of an auxiliary (density-fitting) basis.

The fitted density is ``rho~(r) = sum_P c_P chi_P(r)`` with real solid-harmonic Gaussians ``chi_P`` in PySCF's order and
normalisation: atoms in the order of the molecule, shells in the order of the basis file, ``p`` as x, y, z and higher l
from m = -l to l. The Coulomb metric minimises the self-repulsion of the residual density (Whitten 1973; Dunlap,
Connolly and Sabin 1979):

    J c = b,    J_PQ = (P|Q),    b_P = sum_mn (P|mn) D_mn

All quantities are in atomic units (Bohr, electrons).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import scipy.linalg

if TYPE_CHECKING:
    from pyscf import gto

Metric = Literal["coulomb"]
DEFAULT_AUXBASIS = "def2-universal-jfit"


def make_auxmol(mol: gto.Mole, auxbasis: str = DEFAULT_AUXBASIS) -> gto.Mole:
    """The auxiliary molecule that carries ``auxbasis`` on the atoms of ``mol``."""
    from pyscf import df

    return df.addons.make_auxmol(mol, auxbasis)


def fit_density(mol: gto.Mole, auxmol: gto.Mole, dm: np.ndarray, metric: Metric = "coulomb") -> np.ndarray:
    """Coefficients ``[n_aux]`` of the density of ``dm`` in the basis of ``auxmol``.

    Args:
        mol: the molecule of the density matrix.
        auxmol: from :func:`make_auxmol`.
        dm: ``[n_ao, n_ao]`` total density matrix, or ``[2, n_ao, n_ao]`` for alpha and beta (summed).
        metric: ``"coulomb"``.
    """
    from pyscf import df, lib

    if metric != "coulomb":
        raise ValueError(f"unknown metric {metric!r}: allowed is 'coulomb'")
    dm = np.asarray(dm)
    if dm.ndim == 3:
        dm = dm.sum(axis=0)
    weights = lib.pack_tril(dm + dm.T)  # off-diagonal pairs count twice
    diagonal = np.arange(mol.nao)
    weights[diagonal * (diagonal + 3) // 2] *= 0.5
    three_center = df.incore.aux_e2(mol, auxmol, intor="int3c2e", aosym="s2ij", comp=1)  # [n_pair, n_aux]
    rhs = weights @ three_center
    return scipy.linalg.solve(auxmol.intor("int2c2e"), rhs, assume_a="pos")


def auxiliary_charges(auxmol: gto.Mole) -> np.ndarray:
    """``[n_aux]`` integrals of the auxiliary functions over space; zero for every l > 0.

    A normalised s function is ``Y_00 sum_k C_k exp(-a_k r^2)`` with ``Y_00 = 1/sqrt(4 pi)``, so its integral is
    ``sqrt(4 pi) sum_k C_k sqrt(pi) / (4 a_k^(3/2))``.
    """
    charges = np.zeros(auxmol.nao)
    offsets = auxmol.ao_loc
    for shell in range(auxmol.nbas):
        if auxmol.bas_angular(shell) == 0:
            exponents = auxmol.bas_exp(shell)
            contraction = auxmol._libcint_ctr_coeff(shell)  # [n_primitive, n_contracted], radial norm included
            radial = np.sqrt(np.pi) / (4.0 * exponents**1.5)
            charges[offsets[shell] : offsets[shell + 1]] = np.sqrt(4.0 * np.pi) * radial @ contraction
    return charges


def electron_count(auxmol: gto.Mole, coefficients: np.ndarray) -> float:
    """Number of electrons that the fitted density integrates to."""
    return float(auxiliary_charges(auxmol) @ coefficients)
