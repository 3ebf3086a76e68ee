"""A bond pulled open: geometries on the way to breaking, so that a potential knows what lies outside the wells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mlip.errors import StructureError

if TYPE_CHECKING:
    from rdkit import Chem


def two_sides(molecule: Chem.Mol, bond: Chem.Bond) -> tuple[list[int], list[int]] | None:
    """Atoms on the begin and on the end side of a bond; ``None`` where a ring holds them together."""
    begin, end = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
    side, waiting = {begin}, [begin]
    while waiting:
        here = waiting.pop()
        for neighbour in molecule.GetAtomWithIdx(here).GetNeighbors():
            there = neighbour.GetIdx()
            if {here, there} == {begin, end}:
                continue
            if there == end:
                return None
            if there not in side:
                side.add(there)
                waiting.append(there)
    return sorted(side), [index for index in range(molecule.GetNumAtoms()) if index not in side]


def stretched(
    molecule: Chem.Mol, positions: np.ndarray, factor: float, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[int, int]]:
    """Positions ``[n, 3]`` (Angstrom) with one bond ``factor`` times as long, and the bond's two atoms.

    The bond is a random one of those outside rings. Both sides move rigidly along it, each by the other side's share of the
    atoms, so that the mean position stays.

    Raises:
        StructureError: every bond is in a ring, or there is none.
    """
    bonds = [(bond, sides) for bond in molecule.GetBonds() if (sides := two_sides(molecule, bond)) is not None]
    if not bonds:
        raise StructureError("no bond outside a ring to stretch")
    bond, (near, far) = bonds[int(rng.integers(len(bonds)))]
    begin, end = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
    pull = (factor - 1.0) * (positions[end] - positions[begin])
    out = np.array(positions, dtype=float)
    out[near] -= pull * len(far) / len(out)
    out[far] += pull * len(near) / len(out)
    return out, (begin, end)
