"""Energies of atoms with all their electrons: total energies of most molecular codes are near to them, which tests their unit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase.units import Hartree, Rydberg

ATOMS = np.array([
    -0.5, -2.9, -7.5, -14.6, -24.6, -37.8, -54.5, -74.9, -99.5, -128.7, -162.1, -199.9, -242.1, -289.1, -341.0, -397.8, -459.8,
    -527.1, -599.6, -677.2, -760.3, -849.0, -943.5, -1044.0, -1150.6, -1263.2, -1382.3, -1507.8, -1640.0, -1778.9, -1924.3,
    -2076.3, -2235.2, -2400.8, -2573.4, -2753.0,
])  # fmt: skip
"""Hartree, from H to Kr, PBE/def2-SVP by PySCF 2.14; functionals and basis sets differ by half a percent."""
UNITS = {"Hartree": Hartree, "Rydberg": Rydberg}
WINDOW = (0.985, 1.03)
"""Energies over those of the atoms: from other functionals to the bonds of hydrocarbons."""
SHARE = 0.9
"""Of the frames have to be in the window: pseudopotentials get there by chance, and not with every composition."""


def of_atoms(numbers: np.ndarray) -> float:
    """Sum over these atoms, eV; NaN with an element beyond the table."""
    numbers = np.asarray(numbers, dtype=np.int64)
    if not numbers.size or numbers.min() < 1 or numbers.max() > len(ATOMS):
        return float("nan")
    return float(ATOMS[numbers - 1].sum()) * Hartree


def units_refused(energies: Sequence[float], atomic: Sequence[float]) -> str | None:
    """What to say where :func:`read_as_ev` suspects another unit."""
    suspected = read_as_ev(np.asarray(energies), np.asarray(atomic))
    if suspected is None:
        return None
    unit, count = suspected
    return (
        f"energy: in {count} of {len(energies)} frames what the atoms have with all their electrons in {unit}, read as eV; "
        f"name the units (--units energy={unit},length=..., or data.units)"
    )


def read_as_ev(energies: np.ndarray, atomic: np.ndarray) -> tuple[str, int] | None:
    """The unit that all-electron energies seem to be in, which were read as eV, and in how many frames; ``None``: no such thing.

    Args:
        energies: ``[N]``, of frames.
        atomic: ``[N]``, of their atoms (:func:`of_atoms`), eV.
    """
    ratio = np.asarray(energies, dtype=np.float64) / np.asarray(atomic, dtype=np.float64)
    for unit, size in UNITS.items():
        inside = int(((ratio * size > WINDOW[0]) & (ratio * size < WINDOW[1])).sum())
        if len(ratio) and inside >= SHARE * len(ratio):
            return unit, inside
    return None
