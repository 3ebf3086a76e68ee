"""A cheap force field (MMFF94, else UFF, by RDKit) and Langevin dynamics on it: realistic distorted geometries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlip.errors import StructureError

if TYPE_CHECKING:
    from rdkit import Chem

KCAL_PER_MOL = 0.0433641043  # eV
BOLTZMANN = 8.617333262e-5  # eV/K
TIME_UNIT = 10.1805056  # fs: Angstrom sqrt(u/eV)


def molecular_force_field(molecule: Chem.Mol) -> tuple[Any | None, str]:
    """``(force field, name)`` for the molecule's conformer: MMFF94, or UFF where MMFF lacks a parameter.

    Returns ``(None, "etkdg")`` where neither knows an atom, and for a single atom.
    """
    from rdkit import rdBase
    from rdkit.Chem import rdForceFieldHelpers as helpers

    with rdBase.BlockLogs():
        if molecule.GetNumAtoms() < 2:
            return None, "atom"
        if helpers.MMFFHasAllMoleculeParams(molecule):
            field = helpers.MMFFGetMoleculeForceField(molecule, helpers.MMFFGetMoleculeProperties(molecule))
            if field is not None:
                field.Initialize()
                return field, "mmff"
        if helpers.UFFHasAllMoleculeParams(molecule):
            field = helpers.UFFGetMoleculeForceField(molecule)
            if field is not None:
                field.Initialize()
                return field, "uff"
    return None, "etkdg"


def bonded_molecule(numbers: np.ndarray, positions: np.ndarray, charge: int) -> Chem.Mol:
    """RDKit molecule with bonds perceived from the geometry (Angstrom); needed by the force field."""
    from ase.data import chemical_symbols
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDetermineBonds

    symbols = [chemical_symbols[int(z)] for z in numbers]
    lines = [f"{s} {x:.8f} {y:.8f} {z:.8f}" for s, (x, y, z) in zip(symbols, positions, strict=True)]
    with rdBase.BlockLogs():
        try:
            molecule = Chem.MolFromXYZBlock(f"{len(lines)}\n\n" + "\n".join(lines) + "\n")
            rdDetermineBonds.DetermineBonds(molecule, charge=charge)
            Chem.SanitizeMol(molecule)
        except Exception as error:
            raise StructureError(
                f"RDKit finds no bonds for the Langevin force field ({error}); use Gaussian copies instead"
            ) from error
    return molecule


def langevin_snapshot(
    molecule: Chem.Mol,
    positions: np.ndarray,
    kelvin: float,
    steps: int,
    rng: np.random.Generator,
    timestep: float = 0.5,
    friction: float = 0.05,
) -> np.ndarray:
    """Positions ``[n, 3]`` (Angstrom) after ``steps`` of Langevin dynamics (BAOAB; Leimkuhler and Matthews 2013).

    Args:
        molecule: gives the force field; its conformer is not changed.
        positions: start, Angstrom.
        kelvin: temperature.
        timestep: fs.
        friction: 1/fs.

    Raises:
        StructureError: no force field for this molecule, or the run blew up.
    """
    from ase.data import atomic_masses

    field, _ = molecular_force_field(molecule)
    if field is None:
        raise StructureError("no force field (MMFF94, UFF) knows this molecule; use Gaussian copies instead")
    masses = atomic_masses[[atom.GetAtomicNum() for atom in molecule.GetAtoms()]][:, None]
    dt = timestep / TIME_UNIT
    keep = np.exp(-friction * timestep)
    thermal = np.sqrt(BOLTZMANN * kelvin / masses)

    def force(x: np.ndarray) -> np.ndarray:
        flat = x.ravel().tolist()
        field.CalcEnergy(flat)  # drops RDKit's cache of distances, which CalcGrad alone would reuse from the last call
        return -np.array(field.CalcGrad(flat)).reshape(x.shape) * KCAL_PER_MOL

    x = np.array(positions, dtype=float)
    v = thermal * rng.normal(size=x.shape)
    f = force(x)
    for _ in range(steps):
        v = v + 0.5 * dt * f / masses
        x = x + 0.5 * dt * v
        v = keep * v + np.sqrt(1.0 - keep**2) * thermal * rng.normal(size=x.shape)
        x = x + 0.5 * dt * v
        f = force(x)
        v = v + 0.5 * dt * f / masses
    if not np.isfinite(x).all():
        raise StructureError("the Langevin run blew up; lower its temperature")
    return x - x.mean(axis=0) + np.asarray(positions).mean(axis=0)
