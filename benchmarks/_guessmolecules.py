"""Molecules of benchmarks/scf_guess.py, and the rule that none of them was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from _molecules import ELEMENTS, Molecule, has_geometry
from rdkit import Chem, rdBase

FOLDER = Path(__file__).resolve().parent
TRAINING = FOLDER.parent / "datasets" / "organics"
# group -> (file, fewest atoms, most atoms)
GROUPS = {"small": ("guess_small.smi", 4, 20), "large": ("guess_large.smi", 26, 60)}
FLAGS = {"transfer", "curve"}


@dataclass(frozen=True)
class GuessMolecule(Molecule):
    """A molecule to start an SCF of.

    Attributes:
        group: key of :data:`GROUPS`.
        transfer: whether it is also run with other functionals and basis sets.
        curve: whether it is in the learning curve.
    """

    group: str = "small"
    transfer: bool = False
    curve: bool = False


def flat_smiles(smiles: str) -> str | None:
    """Canonical SMILES without stereochemistry and isotopes; None for what is no SMILES."""
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
        return None if molecule is None else Chem.MolToSmiles(Chem.RemoveHs(molecule), isomericSmiles=False)


def trained_smiles(folder: Path = TRAINING) -> dict[str, str]:
    """:func:`flat_smiles` of every molecule in the ``.smi`` files of the training set -> the file's name.

    Raises:
        FileNotFoundError: there is no such file, so nothing tells what was trained on.
    """
    files = sorted(folder.glob("*.smi"))
    if not files:
        raise FileNotFoundError(f"{folder}: no .smi file says which molecules were trained on; the benchmark does not run without")
    out: dict[str, str] = {}
    for path in files:
        for words in map(str.split, path.read_text(encoding="utf-8").splitlines()):
            smiles = flat_smiles(words[0]) if words and not words[0].startswith("#") else None
            if smiles is not None:
                out.setdefault(smiles, path.name)
    return out


def listed_molecules(group: str, folder: Path = FOLDER) -> list[GuessMolecule]:
    """The list of a group, trained on or not, in the order of the file."""
    file = GROUPS[group][0]
    out = []
    for words in map(str.split, (folder / file).read_text(encoding="utf-8").splitlines()):
        if not words or words[0].startswith("#"):
            continue
        flags = set(words[2:])
        if flags - FLAGS:
            raise ValueError(f"{file}: {words[1]}: unknown word {min(flags - FLAGS)!r}; allowed are {', '.join(sorted(FLAGS))}")
        transfer, curve = "transfer" in flags, "curve" in flags
        out.append(GuessMolecule(Chem.CanonSmiles(words[0]), words[1], transfer, file, group, transfer, curve))
    return out


def untrained(molecules: Iterable[GuessMolecule], trained: dict[str, str]) -> tuple[list[GuessMolecule], list[str]]:
    """The molecules that were not trained on, and a line for each that was: stereoisomers count as the same molecule."""
    kept, refused = [], []
    for molecule in molecules:
        file = trained.get(flat_smiles(molecule.smiles) or "")
        if file is None:
            kept.append(molecule)
        else:
            refused.append(f"{molecule.name} ({molecule.smiles}) is in the training list {file}: left out")
    return kept, refused


def guess_molecules(groups: Sequence[str] = tuple(GROUPS), trained: dict[str, str] | None = None) -> list[GuessMolecule]:
    """The molecules of these groups that were not trained on; says which others are left out."""
    listed = [molecule for group in groups for molecule in listed_molecules(group)]
    kept, refused = untrained(listed, trained_smiles() if trained is None else trained)
    for line in refused:
        print(line, flush=True)
    return kept


def problem(molecule: GuessMolecule) -> str | None:
    """Why a listed molecule does not fit its group; None if it does."""
    _, fewest, most = GROUPS[molecule.group]
    symbols = molecule.symbols()
    if not fewest <= len(symbols) <= most:
        return f"{len(symbols)} atoms, not {fewest} to {most}"
    if not set(symbols) <= ELEMENTS:
        return f"elements {', '.join(sorted(set(symbols) - ELEMENTS))}"
    return None if has_geometry(molecule) else "the force field has no sensible geometry"
