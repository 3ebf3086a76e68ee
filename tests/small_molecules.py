"""Small molecules for the tests of scf_accel, with little symmetry."""

from __future__ import annotations

from typing import Any

from pyscf import gto

GEOMETRIES = {
    "water": "O 0 0 0.12; H 0 0.76 -0.47; H 0.02 -0.75 -0.48",
    "stretched": "O 0 0 0.12; H 0 0.80 -0.47; H 0.02 -0.75 -0.48",
    "formaldehyde": "C 0 0 0; O 0 0.03 1.21; H 0 0.94 -0.58; H 0.05 -0.94 -0.58",
    "methylene": "C 0 0 0; H 0 0.99 0.42; H 0.05 -0.99 0.42",
    "hydroxyl": "O 0 0 0; H 0 0.1 0.97",
    "hydrogen": "H 0 0 0; H 0 0.1 0.74",
}


def molecule(name: str = "water", basis: Any = "6-31g", **keywords: Any) -> gto.Mole:
    """A molecule of GEOMETRIES, or of the given geometry; silent."""
    return gto.M(atom=GEOMETRIES.get(name, name), basis=basis, verbose=0, **keywords)
