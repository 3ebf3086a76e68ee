"""Becke's partition of space and the slope of an integral through its weights.

    mu_ij = (|r - R_i| - |r - R_j|) / R_ij      nu_ij = mu_ij + a_ij (1 - mu_ij^2)      P_i = prod_j (1 - f(nu_ij)) / 2
    w = w_q P_A / sum_i P_i  for a point r that moves with atom A

(Becke, JCP 88, 2547 (1988); f is three times x -> (3 - x^2) x / 2, a_ij adjusts the atoms' sizes.) Of an integral
``sum_g w_g f_g`` only ``e_g = w_g f_g`` is needed: d ln P_i / d nu_ij is summed backwards over the pairs of atoms, which takes
no more memory than the weights themselves. Atomic units.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pyscf.dft import gen_grid, radi

TINY = 1e-200


def applies(grids: Any) -> bool:
    """Whether the weights of this PySCF grid are those of this module."""
    known = (radi.treutler_atomic_radii_adjust, radi.becke_atomic_radii_adjust, None)
    return type(grids) is gen_grid.Grids and grids.becke_scheme is gen_grid.original_becke and grids.radii_adjust in known


class Partition:
    """The partition among the atoms of ``grids.mol``."""

    def __init__(self, grids: Any) -> None:
        mol = grids.mol
        self.centres = mol.atom_coords()
        between = self.centres[:, None] - self.centres
        self.distances = np.linalg.norm(between, axis=-1) + np.eye(len(between))
        self.directions = between / self.distances[..., None]
        self.adjust = _size_adjustment(grids)

    def points(self, coords: np.ndarray, quadrature: np.ndarray, home: int) -> Points:
        """Weights of ``coords[points, 3]`` with the weights ``quadrature[points]`` of the atom ``home``'s own grid."""
        return Points(self, coords, quadrature, home)


class Points:
    """Some points of one atom's grid.

    Attributes:
        weights: ``[points]`` of the molecular integral.
    """

    def __init__(self, partition: Partition, coords: np.ndarray, quadrature: np.ndarray, home: int) -> None:
        self.partition, self.home = partition, home
        self.away = coords - partition.centres[:, None]  # [atoms, points, 3]
        self.radii = np.sqrt(np.einsum("agx,agx->ag", self.away, self.away))
        cells = np.ones_like(self.radii)
        for i in range(1, len(cells)):
            step = _becke(self._nu(i))[0]
            cells[i] *= np.prod(0.5 * (1.0 - step), axis=0)
            cells[:i] *= 0.5 * (1.0 + step)
        self.shares = cells / cells.sum(axis=0)
        self.weights = quadrature * self.shares[home]

    def _mu(self, i: int) -> np.ndarray:
        """``[i, points]``: mu of the atoms i and j < i."""
        return (self.radii[i] - self.radii[:i]) / self.partition.distances[i, :i, None]

    def _nu(self, i: int) -> np.ndarray:
        mu = self._mu(i)
        return mu + self.partition.adjust[i, :i, None] * (1.0 - mu * mu)

    def gradient(self, energy: np.ndarray) -> np.ndarray:
        """``[atoms, 3]``: derivative of ``sum_g w_g f_g`` by the atoms through w alone, from ``energy[points]``, w_g f_g."""
        parts, home, count = self.partition, self.home, len(self.radii)
        by_cell = -self.shares * energy  # by ln P_i
        by_cell[home] += energy
        by_radius = np.zeros_like(self.radii)
        total = np.zeros((count, 3))
        for i in range(1, count):
            mu = self._mu(i)
            adjust, distance = parts.adjust[i, :i, None], parts.distances[i, :i, None]
            step, slope = _becke(mu + adjust * (1.0 - mu * mu))
            lower, upper = 0.5 * (1.0 - step) + TINY, 0.5 * (1.0 + step) + TINY
            by_mu = 0.5 * slope * (by_cell[:i] / upper - by_cell[i] / lower) * (1.0 - 2.0 * adjust * mu) / distance
            by_radius[i] += by_mu.sum(axis=0)
            by_radius[:i] -= by_mu
            stretch = -np.einsum("jg,jg->j", by_mu, mu)[:, None] * parts.directions[i, :i]
            total[i] += stretch.sum(axis=0)
            total[:i] -= stretch
        by_radius[home] = 0.0  # the points move with their atom
        pull = np.einsum("ag,agx->ax", by_radius / (self.radii + TINY), self.away)
        total -= pull
        total[home] += pull.sum(axis=0)
        return total


def _becke(nu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f and its slope."""
    first = (3.0 - nu * nu) * nu * 0.5
    second = (3.0 - first * first) * first * 0.5
    third = (3.0 - second * second) * second * 0.5
    return third, 3.375 * (1.0 - second * second) * (1.0 - first * first) * (1.0 - nu * nu)


def _size_adjustment(grids: Any) -> np.ndarray:
    """``[atoms, atoms]`` a_ij, antisymmetric, as the grid itself has them: nu at mu = 0.

    PySCF's gradient takes them from the nuclear charges instead, which are not the elements' under an effective core potential
    and for ghost atoms: there its response is not the slope of its energy, and this one is.
    """
    count = grids.mol.natm
    adjust = np.zeros((count, count))
    if grids.radii_adjust is not None:
        at = grids.radii_adjust(grids.mol, grids.atomic_radii)
        for i, j in np.ndindex(count, count):
            if i != j:
                adjust[i, j] = np.ravel(at(i, j, np.zeros(1)))[0]
    return adjust
