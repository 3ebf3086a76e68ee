"""Structures to label: files or SMILES -> geometries and perturbed copies, as jobs with stable ids.

Every random number comes from a generator seeded by (seed, molecule, kind of copy), so the same command makes the same
jobs on every machine, whatever the order or the number of workers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlip.data.frame import wrong_coordinates, wrong_elements
from mlip.errors import DataError, StructureError

if TYPE_CHECKING:
    from rdkit import Chem

SMILES_SUFFIXES = {".smi", ".smiles", ".txt"}
DUPLICATE_DISTANCE = 0.02  # Angstrom: copies of a molecule whose distance matrices differ by less everywhere are one


@dataclass
class Structure:
    """A geometry to label.

    Attributes:
        numbers: ``[n]`` atomic numbers.
        positions: ``[n, 3]`` Angstrom.
        charge, spin: total charge; unpaired electrons.
        molecule: what it is: canonical SMILES, or the file's name and frame; copies of one molecule share it.
        origin: how the geometry was made, such as ``mmff`` or ``langevin 600 K``.
    """

    numbers: np.ndarray
    positions: np.ndarray
    charge: int = 0
    spin: int = 0
    molecule: str = ""
    origin: str = "given"


@dataclass
class Job:
    """A structure with its id: a hash of content and settings."""

    id: str
    structure: Structure


@dataclass(frozen=True)
class Perturbations:
    """Which copies to make of each geometry.

    Attributes:
        gaussian: one copy each: range of the standard deviation of Gaussian displacements, Angstrom.
        langevin: one copy each: range of the temperature of a short Langevin run, K; its last geometry is taken.
        langevin_steps: steps of 0.5 fs before the snapshot.
        stretch: one copy each: range of the factor by which a bond (a random one outside rings) is made longer.
        seed: of everything random, geometry embedding included.
    """

    gaussian: Sequence[tuple[float, float]] = ()
    langevin: Sequence[tuple[float, float]] = ()
    langevin_steps: int = 400
    seed: int = 0
    stretch: Sequence[tuple[float, float]] = ()


def rng_for(seed: int, *labels: object) -> np.random.Generator:
    """A generator that depends on ``seed`` and on what the numbers are for."""
    digest = hashlib.sha256(json.dumps([seed, *map(str, labels)]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def job_id(structure: Structure, settings: dict[str, Any]) -> str:
    """16 hexadecimal digits: SHA-256 of elements, positions (to 1e-6 Angstrom), charge, spin and settings."""
    digest = hashlib.sha256()
    digest.update(np.asarray(structure.numbers, dtype="<i4").tobytes())
    digest.update(np.round(np.asarray(structure.positions) * 1e6).astype("<i8").tobytes())
    digest.update(json.dumps([int(structure.charge), int(structure.spin), settings], sort_keys=True).encode())
    return digest.hexdigest()[:16]


def lowest_spin(numbers: np.ndarray, charge: int) -> int:
    """Unpaired electrons to assume: Hund's rule for a single neutral atom, else 0 or 1 by the electron count."""
    if len(numbers) == 1 and charge == 0:
        from ase.data import ground_state_magnetic_moments

        return round(float(ground_state_magnetic_moments[int(numbers[0])]))
    return (int(np.sum(numbers)) - charge) % 2


# ---------------------------------------------------------------------------------------------------- reading


def read_smiles(path: str | Path) -> list[tuple[str, Chem.Mol]]:
    """``(canonical SMILES, RDKit molecule with hydrogens)`` per distinct line of a SMILES file, in its order.

    The first word of a line is the SMILES; empty lines and lines that start with ``#`` are skipped.

    Raises:
        DataError: a line that is no SMILES (all bad lines are named), or no line at all.
    """
    from rdkit import Chem, rdBase

    found: dict[str, Chem.Mol] = {}
    bad: list[str] = []
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); give one SMILES a line") from error
    with rdBase.BlockLogs():
        for number, line in enumerate(text.splitlines(), start=1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            molecule = Chem.MolFromSmiles(words[0])
            if molecule is None or not molecule.GetNumAtoms() or any(not a.GetAtomicNum() for a in molecule.GetAtoms()):
                bad.append(f"line {number} ({words[0][:40]})")
                continue
            found.setdefault(Chem.MolToSmiles(molecule), Chem.AddHs(molecule))
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise DataError(f"{path}: not a SMILES: {', '.join(bad[:5])}{more}; correct or remove these lines")
    if not found:
        raise DataError(f"{path}: no SMILES in this file; write one a line")
    return list(found.items())


def structure_from_smiles(smiles: str, molecule: Chem.Mol, seed: int) -> Structure:
    """ETKDG geometry relaxed by MMFF94 (UFF where MMFF lacks a parameter); spin from the radical electrons."""
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDistGeom

    from scf_accel.forcefield import molecular_force_field

    with rdBase.BlockLogs():
        parameters: Any = rdDistGeom.ETKDGv3()
        parameters.randomSeed = int(rng_for(seed, smiles, "etkdg").integers(1, 2**31 - 1))
        if rdDistGeom.EmbedMolecule(molecule, parameters) != 0:
            parameters.useRandomCoords = True
            if rdDistGeom.EmbedMolecule(molecule, parameters) != 0:
                raise StructureError(f"{smiles}: RDKit finds no 3D geometry; give a structure file instead")
        field, name = molecular_force_field(molecule)
        if field is not None:
            field.Minimize(maxIts=2000)
    if not np.isfinite(molecule.GetConformer().GetPositions()).all():
        raise StructureError(f"{smiles}: the force field's geometry is not finite; give a structure file instead")
    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    charge = Chem.GetFormalCharge(molecule)
    radicals = sum(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms())
    parity = (int(numbers.sum()) - charge) % 2
    spin = lowest_spin(numbers, charge) if len(numbers) == 1 else (radicals if radicals % 2 == parity else parity)
    return Structure(numbers, molecule.GetConformer().GetPositions(), charge, spin, smiles, name)


def read_structures(path: str | Path) -> list[Structure]:
    """All frames of an ASE-readable file; charge and spin (or multiplicity) as :mod:`mlip.data` reads them.

    Where no spin is given it is :func:`lowest_spin`.
    """
    import ase.io

    from mlip.data.labels import charge_and_spin

    try:
        frames = ase.io.read(path, index=":")
    except Exception as error:
        raise DataError(f"{path}: ASE cannot read this file ({type(error).__name__}: {error})") from error
    out = []
    for index, atoms in enumerate(frames):
        if atoms.pbc.any():
            raise DataError(f"{path}: frame {index} is periodic; the labeller takes molecules (pbc all false)")
        if len(atoms) == 0:
            raise DataError(f"{path}: frame {index} has no atoms; remove it")
        if wrong := wrong_elements(atoms.numbers) or wrong_coordinates(atoms.positions, atoms.cell.array):
            raise DataError(f"{path}: frame {index}: {wrong}")
        charge, given = charge_and_spin(atoms, f"{path}: frame {index}")
        spin = lowest_spin(atoms.numbers, charge) if given is None else given
        name = str(atoms.info.get("molecule", f"{Path(path).name}#{index}"))
        out.append(Structure(atoms.numbers.copy(), atoms.positions.copy(), charge, spin, name))
    if not out:
        raise DataError(f"{path}: no structure in this file")
    return out


# ---------------------------------------------------------------------------------------------------- copies


def perturbed_copies(
    base: Structure, molecule: Chem.Mol | None, perturbations: Perturbations
) -> tuple[list[Structure], list[str]]:
    """Gaussian copies, Langevin snapshots, then stretched copies of ``base``; and one line per copy that could not be made.

    Args:
        base: the geometry, Angstrom.
        molecule: its bonds; perceived from the geometry where ``None``.
        perturbations: which copies.
    """
    from scf_accel.forcefield import bonded_molecule, langevin_snapshot
    from scf_accel.stretching import stretched

    def copy(positions: np.ndarray, origin: str) -> Structure:
        return Structure(base.numbers, positions, base.charge, base.spin, base.molecule, origin)

    copies: list[Structure] = []
    failures: list[str] = []
    if len(base.numbers) == 1:
        return copies, failures
    for index, (low, high) in enumerate(perturbations.gaussian):
        noise = rng_for(perturbations.seed, base.molecule, base.origin, "gaussian", index)
        sigma = round(float(noise.uniform(low, high)), 3)
        positions = base.positions + noise.normal(scale=sigma, size=base.positions.shape)
        copies.append(copy(positions, f"gaussian {sigma:g} A"))
    for index, (low, high) in enumerate(perturbations.langevin):
        noise = rng_for(perturbations.seed, base.molecule, base.origin, "langevin", index)
        kelvin = round(float(noise.uniform(low, high)))
        try:
            if molecule is None:
                molecule = bonded_molecule(base.numbers, base.positions, base.charge)
            positions = langevin_snapshot(molecule, base.positions, kelvin, perturbations.langevin_steps, noise)
        except StructureError as error:
            failures.append(f"{base.molecule} (langevin {kelvin} K): {error}")
        else:
            copies.append(copy(positions, f"langevin {kelvin} K"))
    for index, (low, high) in enumerate(perturbations.stretch):
        noise = rng_for(perturbations.seed, base.molecule, base.origin, "stretch", index)
        factor = round(float(noise.uniform(low, high)), 3)
        try:
            if molecule is None:
                molecule = bonded_molecule(base.numbers, base.positions, base.charge)
            positions, _ = stretched(molecule, base.positions, factor, noise)
        except StructureError as error:
            failures.append(f"{base.molecule} (stretched {factor:g}): {error}")
        else:
            copies.append(copy(positions, f"stretched {factor:g}"))
    return copies, failures


def is_near_duplicate(positions: np.ndarray, others: Iterable[np.ndarray]) -> bool:
    """Whether a copy has the same interatomic distances as another one, within ``DUPLICATE_DISTANCE``."""
    if len(positions) < 2:
        return any(True for _ in others)
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    return any(
        np.abs(distances - np.linalg.norm(other[:, None] - other[None], axis=-1)).max() < DUPLICATE_DISTANCE
        for other in others
    )


def has_clash(numbers: np.ndarray, positions: np.ndarray, closest: float = 0.55) -> bool:
    """Whether two atoms are nearer than ``closest`` times the sum of their covalent radii: no sensible label there."""
    from ase.data import covalent_radii

    radii = covalent_radii[numbers]
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    return bool((distances < closest * (radii[:, None] + radii[None])).any())


def has_nonbonded_contact(molecule: Chem.Mol, positions: np.ndarray) -> bool:
    """Whether two atoms without a bond are nearer than the sum of their covalent radii: a force field that failed.

    UFF's PF5 has F-F at 0.9 Angstrom; its MD exploded.
    """
    from ase.data import covalent_radii

    radii = covalent_radii[[atom.GetAtomicNum() for atom in molecule.GetAtoms()]]
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    for bond in molecule.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        distances[i, j] = distances[j, i] = np.inf
    return bool((distances < radii[:, None] + radii[None]).any())


def has_flown_apart(numbers: np.ndarray, positions: np.ndarray, farthest: float = 2.0) -> bool:
    """Whether an atom of a molecule is more than ``farthest`` times the sum of covalent radii from every other."""
    from ase.data import covalent_radii

    if len(numbers) < 2:
        return False
    radii = covalent_radii[numbers]
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    return bool((distances / (radii[:, None] + radii[None])).min(axis=1).max() > farthest)


def make_groups(
    path: str | Path,
    perturbations: Perturbations,
    settings: dict[str, Any],
    max_atoms: int | None = None,
) -> tuple[list[list[Job]], list[str]]:
    """Jobs of a file, the copies of one geometry in one group, near-duplicates removed.

    Returns:
        groups, and one line for each thing that was left out (too many atoms, no geometry, near-duplicate, clash).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    left_out: list[str] = []
    sources: list[tuple[Structure, Chem.Mol | None]] = []
    if path.suffix.lower() in SMILES_SUFFIXES:
        for smiles, molecule in read_smiles(path):
            if max_atoms is not None and molecule.GetNumAtoms() > max_atoms:
                left_out.append(f"{smiles}: {molecule.GetNumAtoms()} atoms, more than --max-atoms {max_atoms}")
                continue
            try:
                sources.append((structure_from_smiles(smiles, molecule, perturbations.seed), molecule))
            except StructureError as error:
                left_out.append(str(error))
    else:
        for structure in read_structures(path):
            size = len(structure.numbers)
            if max_atoms is not None and size > max_atoms:
                left_out.append(f"{structure.molecule}: {size} atoms, more than --max-atoms {max_atoms}")
            else:
                sources.append((structure, None))
    return _group_jobs(sources, perturbations, settings, left_out), left_out


def _group_jobs(
    sources: list[tuple[Structure, Chem.Mol | None]],
    perturbations: Perturbations,
    settings: dict[str, Any],
    left_out: list[str],
) -> list[list[Job]]:
    """Jobs per source; appends to ``left_out`` what is a near-duplicate or has clashing atoms."""
    seen: dict[tuple[str, bytes], list[np.ndarray]] = {}
    groups = []
    for base, molecule in sources:
        group = []
        if molecule is not None and has_nonbonded_contact(molecule, base.positions):
            left_out.append(f"{base.molecule} ({base.origin}): the force field has no sensible geometry for it")
            continue
        copies, failures = perturbed_copies(base, molecule, perturbations)
        left_out.extend(failures)
        for structure in (base, *copies):
            same = seen.setdefault((structure.molecule, np.asarray(structure.numbers, dtype=np.int64).tobytes()), [])
            if is_near_duplicate(structure.positions, same):
                left_out.append(f"{structure.molecule} ({structure.origin}): near-duplicate of another copy")
            elif structure.origin != "given" and has_clash(structure.numbers, structure.positions):
                left_out.append(f"{structure.molecule} ({structure.origin}): two atoms clash")
            elif structure.origin != "given" and has_flown_apart(structure.numbers, structure.positions):
                left_out.append(f"{structure.molecule} ({structure.origin}): an atom flew away")
            else:
                same.append(structure.positions)
                group.append(Job(job_id(structure, settings), structure))
        if group:
            groups.append(group)
    return groups


def parse_range(option: str, text: str) -> tuple[float, float]:
    """``"0.05"`` -> (0.05, 0.05), ``"0.03:0.12"`` -> (0.03, 0.12); both positive and in order."""
    try:
        values = [float(word) for word in text.split(":")]
        low, high = values if len(values) == 2 else (values[0], values[0])
        if len(values) > 2 or not 0 < low <= high < np.inf:
            raise ValueError
    except ValueError:
        raise DataError(f"{option} {text}: give one positive number or a range LOW:HIGH") from None
    return low, high
