"""Exchange-correlation potential of a fitted density: quadrature on a small grid.

    rho(r) = sum_P c_P chi_P(r),   V_mn = sum_g w_g [ v_rho phi_m phi_n + v_grad . grad(phi_m phi_n) ]

The guess needs far less of the grid than the energy does: with the exact fitted density of formamide (PBE/def2-SVP) its density
matrix is 6e-6 Hartree above the converged energy on the grid below, 7e-6 on level 3 and 1.3e-4 on (15, 38). Blocks of
neighbouring points see only the functions that reach them: the work grows linearly with the size of the molecule. All
quantities are in atomic units.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from pyscf import dft, gto, lib
from pyscf.dft import gen_grid

from scf_accel.gridorbitals import BLOCK, VARIABLES, GridOrbitals
from scf_accel.guess.surrogate import Functional
from scf_accel.storednumint import evaluate
from scf_accel.threads import each

GRID = (25, 86)  # radial and angular points of an atom, before pruning
FLOOR = 1e-10  # electrons a cubic Bohr: below it a fitted density may be negative, and counts as none
AUXILIARY_CUTOFF = 1e-7  # auxiliary functions below it at all points of a block are left out there
ORBITAL_CUTOFF = 1e-6  # the same for orbitals


def make_grids(mol: gto.Mole, grid: tuple[int, int] | int = GRID) -> gen_grid.Grids:
    """PySCF's grid with ``grid = (radial, angular)`` points an atom before pruning, or of a PySCF level."""
    grids = dft.Grids(mol)
    grids.verbose = 0
    if isinstance(grid, int):
        grids.level = grid
    else:
        grids.atom_grid = tuple(grid)
    return grids.build(with_non0tab=True)


def fitted_density(auxmol: gto.Mole, coefficients: np.ndarray, coords: np.ndarray, kind: str = "GGA") -> np.ndarray:
    """``[variables, points]`` density, for a GGA with its gradient, at ``coords[points, 3]`` in Bohr; may be negative."""
    name = "GTOval_cart" if auxmol.cart else "GTOval_sph"
    name += "_deriv1" if kind == "GGA" else ""
    sizes = np.diff(auxmol.ao_loc)
    rho = np.zeros((VARIABLES[kind], len(coords)))

    def work(start: int) -> None:
        points = np.ascontiguousarray(coords[start : start + BLOCK])
        reached = gen_grid.make_mask(auxmol, points, cutoff=AUXILIARY_CUTOFF).any(axis=0)
        if not reached.any():  # PySCF's driver needs at least one shell
            return
        part = auxmol.copy(deep=False)
        part._bas = auxmol._bas[reached]
        values = part.eval_gto(name, points)
        rho[:, start : start + BLOCK] = values @ coefficients[np.repeat(reached, sizes)]

    deque(each(work, range(0, len(coords), BLOCK), lib.num_threads()), maxlen=0)
    return rho


class GuessPotential:
    """The exchange-correlation matrices of one fitted density.

    Args:
        mol: molecule of the orbitals.
        auxmol, coefficients: of the density.
        functional: from :func:`scf_accel.guess.surrogate.functional_of`.
        grid: ``(radial, angular)`` points an atom, or a PySCF level.
        max_bytes: memory for orbital values that a second potential uses again.
    """

    def __init__(
        self,
        mol: gto.Mole,
        auxmol: gto.Mole,
        coefficients: np.ndarray,
        functional: Functional,
        grid: tuple[int, int] | int = GRID,
        max_bytes: float = 0.0,
    ) -> None:
        self.functional = functional
        grids = make_grids(mol, grid)
        self.orbitals = GridOrbitals(mol, grids, functional.kind, np.float32, max_bytes, ORBITAL_CUTOFF)
        rho = fitted_density(auxmol, coefficients, grids.coords, functional.kind)
        self.rho = np.where(rho[0] > FLOOR, rho, 0.0)

    def matrix(self) -> np.ndarray:
        """``[nao, nao]`` potential of the density, both spins alike."""
        return self._matrices(self.rho[None])[0]

    def polarised(self, spin_density_matrix: np.ndarray) -> np.ndarray:
        """``[2, nao, nao]`` potentials of alpha and beta.

        Args:
            spin_density_matrix: ``[nao, nao]`` alpha minus beta density matrix; its density is held below the total one.
        """
        spin = self.orbitals.density(spin_density_matrix[None])[0]
        # nowhere more alpha or beta electrons than there are electrons
        allowed = np.minimum(1.0, 0.999 * self.rho[0] / np.maximum(np.abs(spin[0]), FLOOR))
        return self._matrices(0.5 * np.stack([self.rho + allowed * spin, self.rho - allowed * spin]))

    def _matrices(self, rho: np.ndarray) -> np.ndarray:
        functional = self.functional
        potential = evaluate(functional.integrator, functional.xc, functional.kind, rho, self.orbitals.threads)[1]
        return self.orbitals.matrix(potential)
