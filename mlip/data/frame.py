"""One structure with its labels, as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Frame:
    """A structure and the labels it has; a label it lacks is ``None``, never zero.

    Attributes:
        atomic_numbers: ``[n]`` integers.
        positions: ``[n, 3]`` float64, Angstrom.
        cell: ``[3, 3]`` float64, Angstrom, rows are lattice vectors; zeros where there is no cell.
        pbc: ``[3]`` bool.
        energy: total energy, eV.
        forces: ``[n, 3]``, eV/Angstrom.
        stress: ``[6]``, eV/Angstrom^3, ASE's sign (tension positive), Voigt order xx yy zz yz xz xy.
        charge: total charge, e.
        spin: number of unpaired electrons, N_alpha - N_beta (PySCF's ``mol.spin``).
        density_coefficients: ``[k]`` coefficients in the auxiliary basis of the file's level of theory.
        id: a name that is unique in its file.
    """

    atomic_numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray = field(default_factory=lambda: np.zeros((3, 3)))
    pbc: np.ndarray = field(default_factory=lambda: np.zeros(3, dtype=bool))
    energy: float | None = None
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    charge: int = 0
    spin: int = 0
    density_coefficients: np.ndarray | None = None
    id: str = ""

    def __len__(self) -> int:
        return len(self.atomic_numbers)

    @property
    def volume(self) -> float:
        """Cell volume in Angstrom^3; zero where there is no full cell."""
        return float(abs(np.linalg.det(self.cell)))
