"""Molecules of the SCF benchmarks: our own list, and a fixed draw from ../shared/data/molecules where that folder is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem, rdBase

from mlip.errors import StructureError
from scf_accel.structures import Structure, has_nonbonded_contact, rng_for, structure_from_smiles

LIST = Path(__file__).with_name("scf_molecules.smi")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "molecules"
ELEMENTS = {"H", "C", "N", "O", "F", "S", "P", "Cl"}
# file -> (molecules to draw, fewest atoms, most atoms)
DRAWS = {
    "qm9_30k.smi": (2, 10, 15),
    "esol_delaney.smi": (2, 10, 15),
    "tox21.smi": (2, 16, 25),
    "zinc250k_valid.smi": (1, 26, 60),
    "sider_drugs.smi": (1, 26, 60),
}
# basis functions an atom
FUNCTIONS = {
    "def2-svp": {"H": 5, "C": 14, "N": 14, "O": 14, "F": 14, "P": 18, "S": 18, "Cl": 18},
    "def2-tzvp": {"H": 6, "C": 31, "N": 31, "O": 31, "F": 31, "P": 37, "S": 37, "Cl": 37},
}


@dataclass(frozen=True)
class Molecule:
    """A molecule to run.

    Attributes:
        smiles: canonical SMILES, which identifies it.
        name: for tables.
        tzvp: whether it is also run in def2-TZVP.
        source: file that it comes from.
    """

    smiles: str
    name: str
    tzvp: bool
    source: str

    def symbols(self) -> list[str]:
        """Elements, hydrogens included."""
        return [atom.GetSymbol() for atom in Chem.AddHs(Chem.MolFromSmiles(self.smiles)).GetAtoms()]

    def functions(self, basis: str) -> int:
        """Number of basis functions in ``basis``."""
        return sum(FUNCTIONS[basis][symbol] for symbol in self.symbols())

    def structure(self) -> Structure:
        """MMFF94 geometry, Angstrom; the same on every call."""
        return structure_from_smiles(self.smiles, Chem.AddHs(Chem.MolFromSmiles(self.smiles)), 0)


def own_molecules(path: Path = LIST) -> list[Molecule]:
    """The list in this folder."""
    out = []
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.split()
        if words and not words[0].startswith("#"):
            out.append(Molecule(Chem.CanonSmiles(words[0]), words[1], "tzvp" in words[2:], path.name))
    return out


def is_usable(molecule: Chem.Mol | None, fewest: int, most: int) -> bool:
    """Whether a molecule is neutral, closed-shell, in one piece, of our elements and size; charges only as in a nitro group."""
    if molecule is None or "." in Chem.MolToSmiles(molecule) or Chem.GetFormalCharge(molecule) != 0:
        return False
    atoms = list(Chem.AddHs(molecule).GetAtoms())
    if not fewest <= len(atoms) <= most or any(atom.GetSymbol() not in ELEMENTS for atom in atoms):
        return False
    return not any(atom.GetNumRadicalElectrons() or has_lone_charge(atom) for atom in atoms)


def has_lone_charge(atom: Chem.Atom) -> bool:
    """Whether an atom carries a formal charge that no neighbour balances."""
    charge = atom.GetFormalCharge()
    return charge != 0 and not any(other.GetFormalCharge() == -charge for other in atom.GetNeighbors())


def drawn_molecules(known: Sequence[Molecule], folder: Path = SHARED, draws: Any = None) -> list[Molecule]:
    """Molecules drawn from SMILES files with a fixed seed, without those of ``known``; none where a file is absent."""
    seen = {molecule.smiles for molecule in known}
    out = []
    for file, (count, fewest, most) in (draws or DRAWS).items():
        path = folder / file
        if not path.is_file():
            continue
        lines = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        taken = 0
        for index in rng_for(0, "scf_wall", file).permutation(len(lines)):
            if taken == count:
                break
            with rdBase.BlockLogs():
                molecule = Chem.MolFromSmiles(lines[index])
            if not is_usable(molecule, fewest, most) or Chem.MolToSmiles(molecule) in seen:
                continue
            smiles = Chem.MolToSmiles(molecule)
            candidate = Molecule(smiles, smiles, False, file)
            if has_geometry(candidate):
                seen.add(smiles)
                out.append(candidate)
                taken += 1
    return out


def has_geometry(molecule: Molecule) -> bool:
    """Whether the force field gives a sensible geometry."""
    try:
        structure = molecule.structure()
    except StructureError:
        return False
    return not has_nonbonded_contact(Chem.AddHs(Chem.MolFromSmiles(molecule.smiles)), structure.positions)


def all_molecules() -> list[Molecule]:
    """Our list and the draw, smallest first."""
    own = own_molecules()
    together = [*own, *drawn_molecules(own)]
    sizes = np.array([len(molecule.symbols()) for molecule in together])
    return [together[index] for index in np.argsort(sizes, kind="stable")]
