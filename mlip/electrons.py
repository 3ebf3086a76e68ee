"""Total charge and unpaired electrons of a structure, and whether a model was made for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms

from mlip.data.frame import electrons_fit
from mlip.errors import StructureError

NON_METALS = {1, 2, *range(5, 11), *range(14, 19), *range(32, 37), *range(51, 55)}


def read_charge_and_spin(atoms: Atoms) -> tuple[int, int]:
    """``info["charge"]`` or else the rounded sum of the initial charges, and ``info["spin"]``; 0 where nothing is given.

    Raises:
        StructureError: a value that is no whole number.
    """
    charge = atoms.info.get("charge")
    if charge is None:
        charges = atoms.arrays.get("initial_charges")
        total = 0.0 if charges is None else float(charges.sum())
        charge = round(total) if np.isfinite(total) else total
    values = []
    for what, value in (("charge", charge), ("spin", atoms.info.get("spin", 0))):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if not number.is_integer():
            raise StructureError(f'atoms.info["{what}"] is {value!r}; it must be a whole number')
        values.append(int(number))
    return values[0], values[1]


def known_charge_and_spin(atoms: Atoms, metadata: Mapping[str, Any], check_electrons: bool = True) -> tuple[int, int]:
    """The same, for a model that lists ``charges`` and ``spins`` in its metadata (by default 0 alone).

    Args:
        metadata: of the model.
        check_electrons: whether a molecule of non-metals must have as many electrons as these need, where the metadata say
            ``spins_fit``: that of all training frames it was so.

    Raises:
        StructureError: the model was not made for them; the electrons do not fit.
    """
    found = read_charge_and_spin(atoms)
    allowed = {what: metadata.get(what + "s") or [0] for what in ("charge", "spin")}
    for (what, known), value in zip(allowed.items(), found, strict=True):
        if value not in known:
            raise StructureError(
                f"the structure has total {what} {value}, and the model was made for {what} "
                f'{", ".join(str(a) for a in known)}; set atoms.info["{what}"], or use another model'
            )
    if check_electrons and metadata.get("spins_fit") and not electrons_fit(atoms.numbers, *found) and _is_molecule(atoms):
        others = any(known != [0] for known in allowed.values())
        more = 'set atoms.info["charge"] or ["spin"]' if others else "the model knows closed shells alone"
        raise StructureError(
            f"the structure has {int(atoms.numbers.sum()) - found[0]} electrons, and {found[1]} of them unpaired cannot be: a "
            f"radical or an ion, or an atom too few or too many; {more} (check_electrons=False computes it all the same)"
        )
    return found


def _is_molecule(atoms: Atoms) -> bool:
    """Whether its electrons are to be counted: atoms of non-metals, more than one, without a cell."""
    return len(atoms) > 1 and not atoms.pbc.any() and set(atoms.numbers.tolist()) <= NON_METALS
