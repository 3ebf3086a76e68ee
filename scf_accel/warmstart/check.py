"""Is a predicted density better than the stock guess? Decided before any Fock matrix of the SCF is made.

The guess turns a density ``rho_in`` into the density ``rho_out`` of its own Fock matrix. To first order

    rho_out - rho_in = -(1 - chi_0 v) (rho_in - rho_SCF)

with the response ``chi_0`` of independent electrons and the interaction ``v``: the dielectric operator ``1 - chi_0 v`` is not
below one (the Coulomb part of the response screens), so that the self-repulsion of the residual

    W[rho_in] = 1/2 (rho_out - rho_in | rho_out - rho_in),   Hartree

bounds that of the error, and is the second-order energy that a density still has to change. For the density of another
start, ``rho_out`` stands for the solution. For ``rho_in = rho_stock`` the two are equal; a prediction is accepted if
``W[rho_in] <= WORTH W[rho_stock]``, since one that is hardly better than the stock guess saves no cycle and costs its making.
The total energies themselves would not tell: that of a superposition of atoms is often *below* the converged one (N2, PBE:
by 0.15 Hartree), since its density matrix belongs to no wave function.

All densities are projected onto the auxiliary functions; one pass over three-index integrals makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pyscf import gto, lib

from scf_accel.fitting import electron_count, solve_metric, three_index_blocks, total_density_matrix
from scf_accel.warmstart.report import Refused

COUNT_TOLERANCE = 0.01  # electrons per electron
WORTH = 0.5


def check_coefficients(auxmol: gto.Mole, coefficients: Any, electrons: int) -> tuple[np.ndarray, float]:
    """The coefficients as ``[naux]`` float64, and their number of electrons.

    Raises:
        Refused: another shape, not finite, or a number of electrons that is off by more than ``COUNT_TOLERANCE``.
    """
    values = np.asarray(coefficients)
    if values.shape != (auxmol.nao,) or not np.issubdtype(values.dtype, np.floating):
        raise Refused("shape", f"it is a {values.dtype} array {values.shape} instead of {auxmol.nao} real coefficients")
    if not np.isfinite(values).all():
        raise Refused("finite", f"{int((~np.isfinite(values)).sum())} of its {len(values)} coefficients are not finite")
    values = values.astype(np.float64)
    count = electron_count(auxmol, values)
    if abs(count - electrons) > COUNT_TOLERANCE * electrons:
        raise Refused("count", f"it holds {count:.2f} electrons instead of {electrons}")
    return values, count


def residuals(mol: gto.Mole, auxmol: gto.Mole, coefficients: np.ndarray, dm: Any, other: Any) -> tuple[float, float]:
    """``W`` (Hartree) of ``coefficients``, whose output is ``dm``, and of the density matrix ``other``."""
    out, reference = projections(mol, auxmol, [unbroken(dm), other])
    metric = auxmol.intor("int2c2e", hermi=1)
    solved = solve_metric(metric, np.stack([out, reference - out], axis=1))
    change = coefficients - solved[:, 0]
    return 0.5 * float(change @ metric @ change), 0.5 * float((reference - out) @ solved[:, 1])


def projections(mol: gto.Mole, auxmol: gto.Mole, dms: Sequence[Any]) -> np.ndarray:
    """``[n, naux]`` inner products ``(P|rho)`` of the densities of ``n`` density matrices, from one pass over the integrals."""
    totals = [total_density_matrix(dm) for dm in dms]
    weights = np.stack([lib.pack_tril(2.0 * total - np.diag(total.diagonal())) for total in totals])
    out = np.empty((len(dms), auxmol.nao))
    for part, integrals in three_index_blocks(mol, auxmol):
        out[:, part] = weights @ integrals
    return out


def unbroken(dm: Any) -> np.ndarray:
    """``[nao, nao]`` of both spins, before the guess (:mod:`scf_accel.guess.start`) broke their symmetry."""
    plain = getattr(dm, "unbroken", None)
    return total_density_matrix(dm if plain is None else plain)


def check_density_matrix(dm: Any) -> None:
    """Raise :class:`Refused` unless ``dm`` is real and finite."""
    if np.iscomplexobj(dm):
        raise Refused("complex", "density matrices are complex")
    if not np.isfinite(np.asarray(dm)).all():
        raise Refused("finite", "the density matrix made from it is not finite")
