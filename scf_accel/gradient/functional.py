"""The exchange-correlation energy's slope, from two matrix products a block of points.

With X = D phi, v = w dE/drho and b = w dE/d(grad rho), moving the centres of an atom's orbitals, and nothing else, changes the
energy by

    -2 sum_{m on atom} sum_g [ grad phi_m (v X_m + D (b . grad phi)_m) + (b . grad) grad phi_m X_m ]

and moving a point changes it by the same sum over all orbitals, with the other sign. PySCF forms a matrix for each direction
instead (and with the grid's response for each atom). Atomic units.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyscf import lib
from pyscf.dft import gen_grid

from scf_accel.fitting import atom_of_function
from scf_accel.gradient.partition import Partition
from scf_accel.gridorbitals import BLOCK
from scf_accel.storednumint import evaluate, users_own
from scf_accel.threads import each

SECOND = ((4, 5, 6), (5, 7, 8), (6, 8, 9))
"""Where PySCF keeps d/dx d/dy of an orbital."""
THRESHOLD = 1e-10
"""Orbitals whose values and slopes stay below this in all of a piece are left out of it."""
MAX_BYTES = 1e8
"""Of a piece's orbitals with their derivatives, in each thread."""


@dataclass(frozen=True)
class Piece:
    """Points ``coords[points, 3]`` with ``weights[points]``: of the molecular integral, or of the atom ``home`` they move with."""

    coords: np.ndarray
    weights: np.ndarray
    home: int = -1


def functional_gradient(mf: Any, grids: Any, dms: np.ndarray, response: bool) -> np.ndarray:
    """``[atoms, 3]`` derivative of the exchange-correlation energy (Hartree/Bohr) at fixed ``dms[spins, nao, nao]``, LDA or GGA.

    Args:
        mf: the Kohn-Sham object, for its functional.
        grids: a built PySCF grid.
        dms: one density matrix, or one of each spin.
        response: points move with their atoms and weights change; else the grid stands still.
    """
    mol, kind = grids.mol, mf._numint._xc_type(mf.xc)
    owner = atom_of_function(mol)
    partition = Partition(grids) if response else None

    def work(piece: Piece) -> np.ndarray:
        points = None if partition is None else partition.points(piece.coords, piece.weights, piece.home)
        weights = piece.weights if points is None else points.weights
        index, ao = _orbitals(mol, piece.coords, kind)
        pulls, energy = _block(mf, kind, ao, dms[:, index[:, None], index], weights)
        total = np.zeros((mol.natm, 3))
        np.subtract.at(total, owner[index], pulls)
        if points is not None:
            total[piece.home] += pulls.sum(axis=0)
            total += points.gradient(energy)
        return total

    threads = 1 if users_own(mf._numint) else lib.num_threads()
    with closing(each(work, _pieces(grids, response), threads)) as parts:
        return sum(parts, np.zeros((mol.natm, 3)))


def _pieces(grids: Any, response: bool) -> Iterator[Piece]:
    """The grid in pieces of neighbouring points; with ``response`` atom by atom."""
    mol = grids.mol
    size = max(gen_grid.BLKSIZE, min(BLOCK, int(MAX_BYTES / (80 * mol.nao))))
    if not response:
        for start in range(0, len(grids.weights), size):
            yield Piece(grids.coords[start : start + size], grids.weights[start : start + size])
        return
    own = grids.gen_atomic_grids(mol, grids.atom_grid, grids.radi_method, grids.level, grids.prune)
    for atom, centre in enumerate(mol.atom_coords()):
        coords, weights = own[mol.atom_symbol(atom)]
        coords = np.asarray(coords) + centre
        order = gen_grid.arg_group_grids(mol, coords)
        for start in range(0, len(order), size):
            part = order[start : start + size]
            yield Piece(coords[part], np.asarray(weights)[part], atom)


def _orbitals(mol: Any, coords: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The orbitals that reach these points, and ``[values and derivatives, orbitals, points]`` of them."""
    name = f"GTOval_{'cart' if mol.cart else 'sph'}_deriv{1 if kind == 'LDA' else 2}"
    ao = mol.eval_gto(name, coords, non0tab=gen_grid.make_mask(mol, coords)).transpose(0, 2, 1)
    index = np.flatnonzero(np.abs(ao[:4]).max(axis=(0, 2)) > THRESHOLD)
    return index, np.ascontiguousarray(ao[:, index])


def _block(mf: Any, kind: str, ao: np.ndarray, dms: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``[orbitals, 3]``: minus the change of energy as an orbital's centre moves; ``[points]`` energies, weights included."""
    gga = kind != "LDA"
    products = [dm @ ao[0] for dm in dms]
    rho = np.empty((len(dms), 4 if gga else 1, len(weights)))
    for values, product in zip(rho, products, strict=True):
        np.einsum("kpg,pg->kg", ao[: len(values)], product, out=values)
        values[1:] *= 2.0
    exc, vxc = evaluate(mf._numint, mf.xc, kind, rho)
    potential = vxc * weights
    pulls = np.zeros((ao.shape[1], 3))
    for dm, product, v in zip(dms, products, potential, strict=True):
        weighted = product * v[0]
        if gga:
            weighted += dm @ np.einsum("kpg,kg->pg", ao[1:4], v[1:])
        for x in range(3):
            pulls[:, x] += np.einsum("pg,pg->p", ao[1 + x], weighted)
            if gga:
                for y in range(3):
                    pulls[:, x] += np.einsum("pg,g,pg->p", ao[SECOND[x][y]], v[1 + y], product, optimize=False)
    return 2.0 * pulls, rho[:, 0].sum(axis=0) * exc * weights
