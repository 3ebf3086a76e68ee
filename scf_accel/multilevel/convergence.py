"""When to stop: the gradient tells how much energy is left to gain."""

from __future__ import annotations

from typing import Any

import numpy as np
from pyscf import scf

SMALLEST_GAP = 0.05  # Hartree; with smaller orbital-energy differences the estimate is not to be trusted


def fractional(mo_occ: Any) -> bool:
    """Whether any orbital holds a part of an electron."""
    occupations = np.asarray(mo_occ)
    return bool(np.any(np.abs(occupations - np.rint(occupations)) > 1e-9))


def orbital_energies(mo_coeff: Any, fock: Any) -> np.ndarray:
    """``[..., nmo]`` expectation values of the Fock matrix in the orbitals."""
    return np.einsum("...pi,...pq,...qi->...i", mo_coeff, np.asarray(fock), mo_coeff, optimize=True)


def energy_left(mf: Any, mo_coeff: Any, mo_occ: Any, fock: Any, gradient: np.ndarray) -> float:
    """Second-order estimate of the energy above the stationary point, Hartree.

    It is an estimate, not a bound: the response of the potential is left out, so soft modes are missed. nan where it makes
    no sense: fractional occupations, gaps below ``SMALLEST_GAP``.

    With the orbital gradient ``g_ai`` as PySCF returns it and the diagonal of the Fock matrix for orbital energies, the
    uncoupled quasi-Newton step lowers the energy by ``sum_ai g_ai^2 / (n (e_a - e_i))``, ``n`` = 2 for restricted closed
    shells and 1 otherwise (Bacskay, Chem. Phys. 61, 385 (1981), with the Hessian's diagonal).
    """
    coefficients, occupations, focks = np.asarray(mo_coeff), np.asarray(mo_occ), np.asarray(fock)
    if fractional(occupations):
        return float("nan")
    rohf = isinstance(mf, scf.rohf.ROHF)
    restricted = isinstance(mf, scf.hf.RHF) and not rohf
    gaps = []
    spins = [(coefficients, occupations, focks)] if coefficients.ndim == 2 else zip(coefficients, occupations, focks, strict=True)
    for c, n, f in spins:
        energies = orbital_energies(c, f)
        difference = energies[:, None] - energies
        if rohf:
            gaps.append(difference[((n == 0)[:, None] & (n > 0)) | ((n != 2)[:, None] & (n == 2))])
        else:
            gaps.append(difference[n == 0][:, n > 0].ravel())
    gap = np.concatenate(gaps)
    gradient = np.asarray(gradient).ravel()
    if gap.size and gap.min() < SMALLEST_GAP:
        return float("nan")
    share = 2.0 if restricted else 1.0
    if gap.size != gradient.size:  # a class with a gradient of its own (point-group symmetry drops pairs)
        return float(gradient @ gradient) / (gap.min() * share) if gap.size else 0.0
    return float(np.sum(gradient**2 / gap)) / share
