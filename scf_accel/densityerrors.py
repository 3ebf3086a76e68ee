"""How far a fitted or predicted density is from a reference: four measures, all in atomic units.

With ``delta(r) = rho~(r) - rho(r)`` and ``N`` the electrons of the reference:

- ``absolute``: ``int |delta| dr / N`` on an integration grid, a fraction (0.01 is 1 %);
- ``coulomb``: self-energy of the error, ``1/2 int int delta(1) delta(2) / r12``, Hartree, never negative;
- ``dipole``: ``int r delta dr``, electron Bohr, three components; a difference in the electron count is taken at the nuclei's
  centre of charge, so that the number does not depend on the origin of the coordinates;
- ``electrons``: ``int delta dr``.

The reference is a density matrix of ``mol``, or another set of coefficients of the same auxiliary basis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scf_accel.fitting import auxiliary_charges, auxiliary_dipoles, metric_projections, total_density_matrix

if TYPE_CHECKING:
    from pyscf import gto

GRID_LEVEL = 2  # PySCF's; the measure changes by about 1 % of itself from here to level 5
_BLOCK_MB = 200.0  # orbital and auxiliary values at a time


@dataclass(frozen=True)
class DensityErrors:
    """See the module's docstring."""

    absolute: float
    coulomb: float
    dipole: np.ndarray
    electrons: float


def density_errors(
    mol: gto.Mole, auxmol: gto.Mole, coefficients: np.ndarray, reference: np.ndarray, grids: Any = None
) -> DensityErrors:
    """All measures of ``coefficients [n_aux]`` against ``reference``.

    Args:
        mol: the molecule; its basis is used where ``reference`` is a density matrix.
        auxmol: from :func:`scf_accel.fitting.make_auxmol`.
        coefficients: data order.
        reference: ``[n_aux]`` coefficients, ``[n_ao, n_ao]`` or ``[2, n_ao, n_ao]`` density matrix.
        grids: PySCF grids of ``mol``; ``None`` builds those of :data:`GRID_LEVEL`.
    """
    return DensityErrors(
        absolute=absolute_error(mol, auxmol, coefficients, reference, grids),
        coulomb=coulomb_self_energy_of_error(mol, auxmol, coefficients, reference),
        dipole=dipole_error(mol, auxmol, coefficients, reference),
        electrons=electron_error(mol, auxmol, coefficients, reference),
    )


def electron_error(mol: gto.Mole, auxmol: gto.Mole, coefficients: np.ndarray, reference: np.ndarray) -> float:
    """Electrons of the density of ``coefficients`` minus those of ``reference``."""
    return float(auxiliary_charges(auxmol) @ coefficients) - _electrons(mol, auxmol, reference)


def dipole_error(mol: gto.Mole, auxmol: gto.Mole, coefficients: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """``[3]`` first moment of ``delta`` about the nuclei's centre of charge, electron Bohr; 1 is 2.5417 Debye."""
    nuclear = np.maximum(mol.atom_charges(), 0)
    centre = nuclear @ mol.atom_coords() / max(nuclear.sum(), 1)
    moment = auxiliary_dipoles(auxmol) @ coefficients
    if reference.ndim == 1:
        moment = moment - auxiliary_dipoles(auxmol) @ reference
    else:
        with mol.with_common_orig((0.0, 0.0, 0.0)):
            moment = moment - np.einsum("xmn,mn->x", mol.intor_symmetric("int1e_r", comp=3), total_density_matrix(reference))
    return moment - electron_error(mol, auxmol, coefficients, reference) * centre


def coulomb_self_energy_of_error(mol: gto.Mole, auxmol: gto.Mole, coefficients: np.ndarray, reference: np.ndarray) -> float:
    """``1/2 (delta|1/r12|delta)`` in Hartree.

    Against a density matrix it is ``1/2 [(rho|rho) - 2 b . c + c . J c]`` with the exact four-index ``(rho|rho)``, a difference
    of large numbers: right to about 1e-11 of ``(rho|rho)``.
    """
    coulomb = auxmol.intor("int2c2e", hermi=1)
    if reference.ndim == 1:
        delta = coefficients - reference
        return float(0.5 * delta @ coulomb @ delta)
    from pyscf.scf import hf

    dm = total_density_matrix(reference)
    exact = float(np.vdot(hf.get_jk(mol, dm, hermi=1, with_k=False)[0], dm))
    mixed = float(metric_projections(mol, auxmol, dm, "coulomb") @ coefficients)
    return 0.5 * (exact - 2.0 * mixed + float(coefficients @ coulomb @ coefficients))


def absolute_error(mol: gto.Mole, auxmol: gto.Mole, coefficients: np.ndarray, reference: np.ndarray, grids: Any = None) -> float:
    """``int |delta| dr / N`` on a grid."""
    from pyscf import dft

    if grids is None:
        grids = dft.gen_grid.Grids(mol)
        grids.level = GRID_LEVEL
    if grids.coords is None:
        grids.build(with_non0tab=False)
    matrix = None if reference.ndim == 1 else total_density_matrix(reference)
    width = auxmol.nao + (0 if matrix is None else 2 * mol.nao)
    step = max(1, int(_BLOCK_MB * 1e6 / (8 * max(width, 1))))
    total = 0.0
    for start in range(0, len(grids.weights), step):
        points = grids.coords[start : start + step]
        delta = _values(auxmol, points) @ (coefficients if matrix is not None else coefficients - reference)
        if matrix is not None:
            orbitals = _values(mol, points)
            delta -= np.einsum("gm,gm->g", orbitals @ matrix, orbitals)
        total += float(grids.weights[start : start + step] @ np.abs(delta))
    return total / _electrons(mol, auxmol, reference)


def density_on_points(auxmol: gto.Mole, coefficients: np.ndarray, points: np.ndarray) -> np.ndarray:
    """``[n]`` density of ``coefficients``, electrons per Bohr^3, at ``points [n, 3]`` in Bohr."""
    step = max(1, int(_BLOCK_MB * 1e6 / (8 * max(auxmol.nao, 1))))
    parts = [_values(auxmol, points[start : start + step]) @ coefficients for start in range(0, len(points), step)]
    return np.concatenate(parts) if parts else np.zeros(0)


def _values(mol: gto.Mole, points: np.ndarray) -> np.ndarray:
    return mol.eval_gto(mol._add_suffix("GTOval"), points)


def _electrons(mol: gto.Mole, auxmol: gto.Mole, reference: np.ndarray) -> float:
    if reference.ndim == 1:
        return float(auxiliary_charges(auxmol) @ reference)
    return float(np.vdot(total_density_matrix(reference), mol.intor_symmetric("int1e_ovlp")))
