"""A bond pulled open: geometries on the way to breaking, so that a potential knows what lies outside the wells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mlip.errors import StructureError

if TYPE_CHECKING:
    from rdkit import Chem


def two_sides(molecule: Chem.Mol, bond: Chem.Bond) -> tuple[list[int], list[int]]:
    """Atoms on the begin side of a bond that is in no ring, and all others."""
    from rdkit import Chem

    parts = Chem.GetMolFrags(Chem.FragmentOnBonds(molecule, [bond.GetIdx()], addDummies=False))
    near = next(sorted(part) for part in parts if bond.GetBeginAtomIdx() in part)
    return near, [index for index in range(molecule.GetNumAtoms()) if index not in near]


def stretched(
    molecule: Chem.Mol, positions: np.ndarray, factor: float, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[int, int]]:
    """Positions ``[n, 3]`` (Angstrom) with one bond ``factor`` times as long, and the bond's two atoms.

    The bond is a random one of those outside rings. Both sides move rigidly along it, each by the other side's share of the
    atoms, so that the mean position stays.

    Raises:
        StructureError: every bond is in a ring, or there is none.
    """
    bonds = [bond for bond in molecule.GetBonds() if not bond.IsInRing()]
    if not bonds:
        raise StructureError("no bond outside a ring to stretch")
    bond = bonds[int(rng.integers(len(bonds)))]
    near, far = two_sides(molecule, bond)
    begin, end = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
    pull = (factor - 1.0) * (positions[end] - positions[begin])
    out = np.array(positions, dtype=float)
    out[near] -= pull * len(far) / len(out)
    out[far] += pull * len(near) / len(out)
    return out, (begin, end)
