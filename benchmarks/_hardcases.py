"""Molecules whose SCF is hard: radicals, stretched bonds, transition-metal complexes, small gaps.

Geometries are made by hand from standard bond lengths and angles (Angstrom, degrees), by MMFF from SMILES, or read from
../shared/data/molecules/metals_ee.extxyz where that file is. They are test inputs, no optimised structures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from _molecules import SHARED
from rdkit import Chem

from scf_accel.structures import Structure, read_structures, structure_from_smiles

Atom = tuple[str, Sequence[float]]
METALS_FILE = SHARED / "metals_ee.extxyz"
# molecule's name in METALS_FILE -> its name here
FROM_FILE = {
    "MOR41_ED02": "Fe(CO)4",
    "MOR41_ED01": "Cr(CO)5",
    "MOR41_PR05": "HMn(CO)5",
    "MOR41_ED04": "Co C9H9",
    "LTMBH26_5-d-RC-H2O-Cl2Pt-II": "PtCl2(H2O)CH4",
}
TETRAHEDRON = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
OCTAHEDRON = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], dtype=float)


@dataclass(frozen=True)
class HardCase:
    """A molecule: name, group and geometry with charge and unpaired electrons."""

    name: str
    group: str
    structure: Structure


def from_atoms(atoms: Sequence[Atom], charge: int = 0, spin: int = 0) -> Structure:
    """Structure of a list of ``(element, position)``."""
    table = Chem.GetPeriodicTable()
    numbers = np.array([table.GetAtomicNumber(symbol) for symbol, _ in atoms])
    return Structure(numbers, np.array([position for _, position in atoms], dtype=float), charge, spin)


def from_smiles(smiles: str) -> Structure:
    """MMFF geometry; charge and unpaired electrons as written."""
    return structure_from_smiles(smiles, Chem.AddHs(Chem.MolFromSmiles(smiles)), 0)


def diatomic(first: str, second: str, length: float, charge: int = 0, spin: int = 0) -> Structure:
    return from_atoms([(first, (0, 0, 0)), (second, (0, 0, length))], charge, spin)


def bent(centre: str, end: str, length: float, angle: float, charge: int = 0, spin: int = 0) -> Structure:
    """A symmetric triatomic."""
    half = np.radians(angle) / 2
    ends = [(end, length * np.array([sign * np.sin(half), np.cos(half), 0.0])) for sign in (1, -1)]
    return from_atoms([(centre, (0, 0, 0)), *ends], charge, spin)


def star(centre: str, directions: np.ndarray, chains: Sequence[tuple[str, float]], charge: int = 0, spin: int = 0) -> Structure:
    """A central atom with, along each direction, the atoms ``chains`` at their distances."""
    around = [(symbol, distance * direction) for direction in directions for symbol, distance in chains]
    return from_atoms([(centre, (0, 0, 0)), *around], charge, spin)


def ferrocene() -> Structure:
    """Eclipsed: Fe to ring planes 1.66, C-C 1.43, C-H 1.08."""
    radius = 1.43 / (2 * np.sin(np.pi / 5))
    atoms: list[Atom] = [("Fe", (0, 0, 0))]
    for height in (1.66, -1.66):
        for angle in 2 * np.pi * np.arange(5) / 5:
            direction = np.array([np.cos(angle), np.sin(angle), 0.0])
            atoms += [("C", radius * direction + [0, 0, height]), ("H", (radius + 1.08) * direction + [0, 0, height])]
    return from_atoms(atoms)


def hexaaqua(metal: str, length: float, charge: int, spin: int) -> Structure:
    """``[M(H2O)6]`` with the waters of each axis in one plane (Th): O-H 0.97, H-O-H 107."""
    half = np.radians(107.0) / 2
    atoms: list[Atom] = [(metal, (0, 0, 0))]
    for axis in OCTAHEDRON:
        sideways = np.roll(np.abs(axis), 1)
        oxygen = length * axis
        hydrogens = [oxygen + 0.97 * (np.cos(half) * axis + sign * np.sin(half) * sideways) for sign in (1, -1)]
        atoms += [("O", oxygen), *(("H", hydrogen) for hydrogen in hydrogens)]
    return from_atoms(atoms, charge, spin)


CARBONYL = (("C", 0.0), ("O", 1.141))


def carbonyl(metal: str, directions: np.ndarray, length: float) -> Structure:
    """``M(CO)n``: metal-carbon ``length``, C-O 1.141."""
    return star(metal, directions, [(symbol, length + distance) for symbol, distance in CARBONYL])


MADE = {
    "radicals": {
        "OH": partial(diatomic, "O", "H", 0.970, spin=1),
        "NO": partial(diatomic, "N", "O", 1.151, spin=1),
        "CN": partial(diatomic, "C", "N", 1.172, spin=1),
        "O2 triplet": partial(diatomic, "O", "O", 1.208, spin=2),
        "O2-": partial(diatomic, "O", "O", 1.347, charge=-1, spin=1),
        "NO2": partial(bent, "N", "O", 1.193, 134.1, spin=1),
        "allyl": partial(from_smiles, "C=C[CH2]"),
        "phenoxyl": partial(from_smiles, "[O]c1ccccc1"),
        "nitroxide (CH3)2NO": partial(from_smiles, "CN(C)[O]"),
    },
    "stretched bonds": {
        "N2 at 2.0 re": partial(diatomic, "N", "N", 2 * 1.098),
        "HF at 2.5 re": partial(diatomic, "H", "F", 2.5 * 0.917),
        "F2 at 1.6 re": partial(diatomic, "F", "F", 1.6 * 1.412),
        "H2O, both bonds at 2.0 re": partial(bent, "O", "H", 2 * 0.958, 104.5),
        "C2 singlet": partial(diatomic, "C", "C", 1.243),
        "CO at 1.8 re": partial(diatomic, "C", "O", 1.8 * 1.128),
    },
    "metals": {
        "CuCl2": partial(star, "Cu", OCTAHEDRON[:2], [("Cl", 2.035)], spin=1),
        "TiCl4": partial(star, "Ti", TETRAHEDRON, [("Cl", 2.170)]),
        "MnO4-": partial(star, "Mn", TETRAHEDRON, [("O", 1.629)], charge=-1),
        "Ni(CO)4": partial(carbonyl, "Ni", TETRAHEDRON, 1.838),
        "Cr(CO)6": partial(carbonyl, "Cr", OCTAHEDRON, 1.914),
        "ferrocene": ferrocene,
        "[Fe(H2O)6]2+ quintet": partial(hexaaqua, "Fe", 2.12, 2, 4),
        "[Cr(H2O)6]3+ quartet": partial(hexaaqua, "Cr", 1.98, 3, 3),
        "FeO quintet": partial(diatomic, "Fe", "O", 1.616, spin=4),
    },
    "small gaps": {
        "azulene": partial(from_smiles, "c1ccc2cccc-2cc1"),
        "cyanine": partial(from_smiles, "CN(C)/C=C/C=C/C=[N+](C)C"),
        "indigo core": partial(from_smiles, "O=C1C=CN/C1=C1\\NC=CC1=O"),
        "polyene C16H18": partial(from_smiles, "/".join(["C=C", *["C=C"] * 7])),
        "p-benzoquinone anion": partial(from_smiles, "[O-]C1=CC=C([O])C=C1"),
    },
}


def hard_cases() -> list[HardCase]:
    """All cases, those of the published file where it is present."""
    out = [HardCase(name, group, make()) for group, members in MADE.items() for name, make in members.items()]
    if METALS_FILE.is_file():
        frames = {structure.molecule: structure for structure in named_frames()}
        out += [HardCase(name, "metals", frames[label]) for label, name in FROM_FILE.items() if label in frames]
    return out


def named_frames() -> list[Structure]:
    """Frames of METALS_FILE with their own names."""
    import ase.io

    structures = read_structures(METALS_FILE)
    for structure, atoms in zip(structures, ase.io.read(METALS_FILE, index=":"), strict=True):
        structure.molecule = str(atoms.info.get("name", ""))
    return structures
