"""Density matrix -> coefficients of an auxiliary (density-fitting) basis.

The fitted density is ``rho~(r) = sum_P c_P chi_P(r)`` in data order (:mod:`mlip.data.density`), that is PySCF's. It is the one
nearest to ``rho(r) = sum_mn D_mn phi_m(r) phi_n(r)`` in a metric (Whitten 1973; Dunlap, Connolly and Sabin 1979):

    M c = b
    overlap:  M_PQ = <P|Q>,  b_P = sum_mn <P|mn> D_mn     minimises  int |rho - rho~|^2
    Coulomb:  M_PQ = (P|Q),  b_P = sum_mn (P|mn) D_mn     minimises  (rho - rho~|1/r12|rho - rho~)

With the electron count N = tr(D S) as a constraint, ``q . c = N`` with ``q_P = int chi_P``, the minimum moves along ``M^-1 q``:

    c = c0 + lambda M^-1 q,    lambda = (N - q . c0) / (q . M^-1 q)

All quantities are in atomic units (Bohr, electrons, Hartree).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg

from mlip.data.density import Metric
from scf_accel.auxbasis import DEFAULT_AUXBASIS, make_auxmol

if TYPE_CHECKING:
    from pyscf import gto

__all__ = [
    "DEFAULT_AUXBASIS",
    "auxiliary_charges",
    "auxiliary_dipoles",
    "electron_count",
    "fit_density",
    "make_auxmol",
    "metric_projections",
    "solve_metric",
    "three_index_blocks",
    "total_density_matrix",
]
_TWO_INDEX = {"overlap": "int1e_ovlp", "coulomb": "int2c2e"}
_THREE_INDEX = {"overlap": "int3c1e", "coulomb": "int3c2e"}
_LEAST_MB = 50.0  # of integrals at a time, even where the process is over its limit already
_RECIPROCAL_CONDITION = 1e-13  # Cholesky solves down to here, eigenvectors below it
_DROPPED = 1e-11  # eigenvalues of the scaled metric below this share of the largest: the same function twice


def fit_density(
    mol: gto.Mole,
    auxmol: gto.Mole,
    dm: np.ndarray,
    metric: Metric = "coulomb",
    *,
    conserve_electrons: bool = False,
    max_memory: float | None = None,
) -> np.ndarray:
    """Coefficients ``[n_aux]`` of the density of ``dm`` in the basis of ``auxmol``.

    Args:
        mol: the molecule of the density matrix.
        auxmol: from :func:`make_auxmol`; linearly dependent functions are allowed (see :func:`solve_metric`).
        dm: ``[n_ao, n_ao]`` total density matrix, or ``[2, n_ao, n_ao]`` for alpha and beta (summed).
        metric: ``"coulomb"`` or ``"overlap"``.
        conserve_electrons: constrain the integral of the fitted density to that of ``dm``.
        max_memory: MB that the process may take; ``None`` for ``mol.max_memory``. The metric matrix is always held.
    """
    dm = total_density_matrix(dm)
    rhs = metric_projections(mol, auxmol, dm, metric, max_memory)
    matrix = auxmol.intor(_TWO_INDEX[metric], hermi=1)
    if not conserve_electrons:
        return solve_metric(matrix, rhs)
    charges = auxiliary_charges(auxmol)
    if not charges.any():
        raise ValueError("conserve_electrons: no auxiliary function carries charge; give a basis with s functions")
    free, response = solve_metric(matrix, np.stack([rhs, charges], axis=1)).T
    electrons = float(np.vdot(dm, mol.intor_symmetric("int1e_ovlp")))
    return free + (electrons - charges @ free) / (charges @ response) * response


def total_density_matrix(dm: np.ndarray) -> np.ndarray:
    """``[n_ao, n_ao]`` real, symmetric: spins summed, and the parts dropped that carry no density in real orbitals."""
    dm = np.asarray(dm).real
    if dm.ndim == 3:
        dm = dm.sum(axis=0)
    if dm.ndim != 2 or dm.shape[0] != dm.shape[1]:
        raise ValueError(f"the density matrix has shape {dm.shape}; [n_ao, n_ao] or [2, n_ao, n_ao] expected")
    return 0.5 * (dm + dm.T)


def metric_projections(
    mol: gto.Mole, auxmol: gto.Mole, dm: np.ndarray, metric: Metric = "coulomb", max_memory: float | None = None
) -> np.ndarray:
    """``b [n_aux]``, the inner products of the density of ``dm`` with the auxiliary functions."""
    from pyscf import lib

    dm = total_density_matrix(dm)
    weights = lib.pack_tril(2.0 * dm)  # off-diagonal pairs count twice
    diagonal = np.arange(len(dm))
    weights[diagonal * (diagonal + 3) // 2] *= 0.5
    rhs = np.zeros(auxmol.nao)
    for part, integrals in three_index_blocks(mol, auxmol, metric, max_memory):
        rhs[part] = weights @ integrals
    return rhs


def three_index_blocks(
    mol: gto.Mole, auxmol: gto.Mole, metric: Metric = "coulomb", max_memory: float | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks ``(part of the auxiliary functions, integrals [n_ao (n_ao + 1) / 2, n_part])`` of ``(mn|P)``, packed lower triangles.

    Each block holds whole auxiliary shells, so many that two blocks fit into ``max_memory`` (MB; ``None`` for
    ``mol.max_memory``) less what the process holds: the one in use and the next.
    """
    from pyscf import df, gto, lib

    from scf_accel.memory import give_back

    if metric not in _THREE_INDEX:
        raise ValueError(f"unknown metric {metric!r}: allowed is 'overlap' or 'coulomb'")
    if auxmol.cart:
        raise ValueError("the auxiliary molecule has Cartesian functions; make it with scf_accel.fitting.make_auxmol")
    give_back()
    limit = (mol.max_memory if max_memory is None else max_memory) - lib.current_memory()[0]
    n_pair = mol.nao * (mol.nao + 1) // 2
    work = auxmol.copy(deep=False)
    work.cart = mol.cart  # PySCF wants both of one kind; Cartesian blocks are transformed below
    columns = max(_LEAST_MB, limit) / 2 * 1e6 / (8 * n_pair * (2 if mol.cart else 1))
    intor = mol._add_suffix(_THREE_INDEX[metric])
    for first, last in shell_ranges(work.ao_loc, columns):
        shells = (0, mol.nbas, 0, mol.nbas, first, last)
        block = df.incore.aux_e2(mol, work, intor, aosym="s2ij", comp=1, shls_slice=shells)
        if mol.cart:
            pieces = [
                gto.mole.cart2sph(work.bas_angular(k), normalized="sp") for k in range(first, last) for _ in range(work.bas_nctr(k))
            ]
            block = block @ scipy.linalg.block_diag(*pieces)
        yield slice(int(auxmol.ao_loc[first]), int(auxmol.ao_loc[last])), block


def shell_ranges(offsets: np.ndarray, columns: float) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of shells with at most ``columns`` functions, or one shell."""
    first, count = 0, len(offsets) - 1
    while first < count:
        last = int(np.searchsorted(offsets, offsets[first] + columns, side="right")) - 1
        last = min(max(last, first + 1), count)
        yield first, last
        first = last


def solve_metric(matrix: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    """Solve ``M c = b`` for a metric matrix ``[n, n]`` and ``b [n]`` or ``[n, k]``, whose functions may be linearly dependent.

    Functions are scaled to unit norm. Cholesky where the matrix allows; else, as for large even-tempered sets, the solution of
    least norm in the space of the eigenvectors whose eigenvalue exceeds 1e-11 of the largest. Both rotate with the molecule.
    """
    scale = 1.0 / np.sqrt(np.diagonal(matrix))
    right = rhs * scale if rhs.ndim == 1 else rhs * scale[:, None]
    scaled = _scaled(matrix, scale)
    norm = scipy.linalg.lapack.dlange("1", scaled)
    try:
        factor = scipy.linalg.cholesky(scaled, lower=True, overwrite_a=True)
        condition, _ = scipy.linalg.lapack.dpocon(factor, norm, uplo="L")
        usable = condition > _RECIPROCAL_CONDITION
    except scipy.linalg.LinAlgError:
        usable = False
    if usable:
        solution = scipy.linalg.cho_solve((factor, True), right)
    else:
        values, vectors = scipy.linalg.eigh(_scaled(matrix, scale), overwrite_a=True)
        kept = values > _DROPPED * values[-1]
        values, vectors = values[kept], vectors[:, kept]
        solution = vectors @ ((vectors.T @ right).T / values).T
    return solution * scale if rhs.ndim == 1 else solution * scale[:, None]


def _scaled(matrix: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A new symmetric matrix with unit diagonal, in the memory order that LAPACK overwrites."""
    scaled = matrix * scale
    scaled *= scale[:, None]
    return np.asfortranarray(scaled.T if scaled.flags.c_contiguous else scaled)


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


def auxiliary_dipoles(auxmol: gto.Mole) -> np.ndarray:
    """``[3, n_aux]`` integrals of ``r chi_P(r)`` over space, electron Bohr, from the origin of the coordinates.

    An s function carries its charge at its atom. A p function along x is ``sqrt(3/(4 pi)) x sum_k C_k exp(-a_k r^2)``, so its
    moment along x is ``sqrt(4 pi/3) sum_k C_k 3 sqrt(pi) / (8 a_k^(5/2))``; all others are zero.
    """
    dipoles = auxiliary_charges(auxmol) * auxmol.atom_coords()[atom_of_function(auxmol)].T
    offsets = auxmol.ao_loc
    for shell in range(auxmol.nbas):
        if auxmol.bas_angular(shell) == 1:
            radial = 3.0 * np.sqrt(np.pi) / (8.0 * auxmol.bas_exp(shell) ** 2.5)
            moments = np.sqrt(4.0 * np.pi / 3.0) * radial @ auxmol._libcint_ctr_coeff(shell)
            dipoles[:, offsets[shell] : offsets[shell + 1]] = np.kron(moments, np.eye(3))
    return dipoles


def electron_count(auxmol: gto.Mole, coefficients: np.ndarray) -> float:
    """Number of electrons that the fitted density integrates to."""
    return float(auxiliary_charges(auxmol) @ coefficients)


def atom_of_function(mol: gto.Mole) -> np.ndarray:
    """``[n]`` the atom that each function of a basis sits on."""
    return np.repeat(mol._bas[:, 0], np.diff(mol.ao_loc))
