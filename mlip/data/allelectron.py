"""Energies of atoms with all their electrons: total energies of most molecular codes are near to them, which tests their unit."""

from __future__ import annotations

import numpy as np
from ase.units import Hartree, Rydberg

from mlip.data.e0 import CompositionSums

ATOMS = np.array([
    -0.5, -2.9, -7.5, -14.6, -24.6, -37.8, -54.5, -74.9, -99.5, -128.7, -162.1, -199.9, -242.1, -289.1, -341.0, -397.8, -459.8,
    -527.1, -599.6, -677.2, -760.3, -849.0, -943.5, -1044.0, -1150.6, -1263.2, -1382.3, -1507.8, -1640.0, -1778.9, -1924.3,
    -2076.3, -2235.2, -2400.8, -2573.4, -2753.0,
])  # fmt: skip
"""Hartree, from H to Kr, PBE/def2-SVP by PySCF 2.14; functionals and basis sets differ by half a percent."""
UNITS = {"Hartree": Hartree, "Rydberg": Rydberg}
WINDOW = (0.97, 1.06)
"""Energies over those of the atoms: from other functionals to the bonds, and what a fit makes of them."""


def read_as_ev(compositions: CompositionSums) -> tuple[str, bool] | None:
    """The unit that all-electron energies seem to be in, which were read as eV, and whether that is sure; ``None``: no such thing.

    Sure is what holds for the fitted energies of two elements or more beside hydrogen, whose share of the bonds is too large to
    tell. A single element, or a composition as a whole, of pseudopotentials gets there by chance.
    """
    e0, rank = compositions.fit()
    heavy = [z for z in e0 if z > 1]
    if not heavy or max(heavy) > len(ATOMS):
        return None
    atoms = {z: float(ATOMS[z - 1]) * Hartree for z in e0}
    separate = rank == len(e0)
    ratios = np.array([e0[z] / atoms[z] for z in heavy]) if separate else compositions.means() / compositions.reference(atoms)[0]
    for unit, size in UNITS.items():
        if ((ratios * size > WINDOW[0]) & (ratios * size < WINDOW[1])).all():
            return unit, separate and len(heavy) > 1
    return None


def unit_text(unit: str) -> str:
    """What to say of it."""
    return (
        f"energy: near to what the atoms have with all their electrons in {unit}, and read as eV; if that is so name the units "
        f"(--units energy={unit},length=..., or data.units)"
    )
