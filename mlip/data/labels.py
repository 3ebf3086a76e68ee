"""From ``ase.Atoms`` to :class:`Frame`: which of its numbers are the labels, and in which units."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from ase import Atoms

from mlip.data.frame import Frame, wrong_elements
from mlip.data.schema import SCHEMA
from mlip.data.units import LabelKeys, Units
from mlip.errors import DataError

_PREFIXED = ("{}", "ref_{}", "dft_{}", "qm_{}", "{}_ref", "{}_dft")
_STEMS = {
    "energy": ("energy", "total_energy", "potential_energy", "totenergy", "toten", "etot", "e_tot"),
    "forces": ("forces", "force"),
    "stress": ("stress", "virial", "virials"),
}
USUAL_NAMES: dict[str, set[str]] = {
    label: {pattern.format(stem) for stem in stems for pattern in _PREFIXED} for label, stems in _STEMS.items()
}
USUAL_NAMES["energy"] |= {"corrected_total_energy", "uncorrected_total_energy"}
_CHARGE, _MULTIPLICITY = ("charge", "total_charge"), ("multiplicity", "spin_multiplicity")
_EXTRA_NAME = re.compile(r"[A-Za-z_][\w.+-]*")


class AtomsReader:
    """Turns the structures of one file into frames, always in eV and Angstrom.

    Labels stand in the calculator's results, ``info`` or ``arrays`` (for an ASE database also in a row's key-value
    pairs and data), under the name that ``keys`` gives or else under one of the usual names; ``free_energy`` is taken
    only where no frame of the file has another energy (with smearing the two differ and must not mix).
    ``charge`` and ``spin`` (unpaired electrons) or ``multiplicity`` come from
    ``info``.

    Args:
        source: the file's name, for error messages.
        keys: names of the labels.
        units: units of the numbers.
    """

    def __init__(self, source: str, keys: LabelKeys | None = None, units: Units | None = None):
        self.source = source
        self.keys = keys or LabelKeys()
        self.units = units or Units()
        self.names: dict[str, set[str]] = {"energy": set(), "forces": set(), "stress": set()}
        self.seen: set[str] = set()

    def frame(self, atoms: Atoms, number: int) -> Frame:
        """The frame of one structure; ``number`` is its place in the file.

        Raises:
            DataError: several names for one label so far in this file, or a label of a wrong shape.
        """
        scalars, per_atom = _sources(atoms)
        self.seen |= set(scalars) | set(per_atom)
        where = f"{self.source}: frame {number}"
        energy, _ = self._pick("energy", scalars, where)
        forces, _ = self._pick("forces", per_atom, where)
        stress, stress_name = self._pick("stress", scalars, where)
        factor = self.units.length_factor
        frame = Frame(
            atomic_numbers=np.asarray(atoms.numbers, dtype=np.int64),
            positions=np.asarray(atoms.positions, dtype=np.float64) * factor,
            cell=np.asarray(atoms.cell[:], dtype=np.float64) * factor,
            pbc=np.asarray(atoms.pbc, dtype=bool),
            charge=_charge(scalars, where),
            spin=_spin(scalars, where) or 0,
            id=str(scalars.get("id", number)),
            extras=self._extras(scalars),
        )
        if len(frame) == 0:
            raise DataError(f"{where}: no atoms; remove the frame")
        if wrong := wrong_elements(frame.atomic_numbers):
            raise DataError(f"{where}: {wrong}")
        if energy is not None:
            frame.energy = float(_numbers(energy, (), where, "energy")) * self.units.energy_factor
        if forces is not None:
            frame.forces = _numbers(forces, (len(frame), 3), where, "forces") * self.units.forces_factor
        if stress is not None and frame.pbc.any() and frame.volume > 0:
            frame.stress = self._stress(stress, str(stress_name), frame.volume, where)
        return frame

    def finish(self) -> None:
        """After the last frame: raise DataError for a key that was asked for by name and never came."""
        for label, names in self.names.items():
            asked = getattr(self.keys, label)
            if asked is not None and not names:
                raise DataError(
                    f"{self.source}: no frame has the key '{asked}' named for {label}; "
                    f"the file has: {', '.join(sorted(self.seen)) or 'none'}"
                )

    def _pick(self, label: str, values: dict[str, Any], where: str) -> tuple[Any, str | None]:
        asked = getattr(self.keys, label)
        if asked is not None:
            found = [asked] if asked in values else []
        else:
            found = [name for name in values if name.lower().replace("-", "_") in USUAL_NAMES[label]]
            if not found and label == "energy" and "free_energy" in values:
                found = ["free_energy"]
        self.names[label].update(found)
        if len(self.names[label]) > 1:
            names = sorted(self.names[label])
            raise DataError(
                f"{where}: several names for the {label}: {', '.join(names)}; say which, "
                f"e.g. --{label}-key {names[0]} (or keys: {{{label}: {names[0]}}} in a config)"
            )
        return (values[found[0]], found[0]) if found else (None, None)

    def _stress(self, value: Any, name: str, volume: float, where: str) -> np.ndarray:
        """Voigt stress in eV/Angstrom^3, tension positive, from six or nine numbers of a stress or a virial."""
        numbers = _numbers(value, None, where, name)
        if numbers.size == 9:
            matrix = numbers.reshape(3, 3)
            if np.abs(matrix - matrix.T).max() > 1e-3 * max(1e-3, np.abs(matrix).max()):
                raise DataError(f"{where}: {name} is not symmetric; give six numbers (xx yy zz yz xz xy)")
            matrix = (matrix + matrix.T) / 2
            numbers = matrix[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        if numbers.size != 6:
            raise DataError(f"{where}: {name} has {numbers.size} numbers; six (xx yy zz yz xz xy) or nine expected")
        if "virial" in name.lower() and "stress" not in name.lower():
            return -numbers.ravel() * self.units.energy_factor / volume
        return numbers.ravel() * self.units.stress_factor

    def _extras(self, scalars: dict[str, Any]) -> dict[str, Any]:
        """Further numbers and strings of a frame, kept under their names."""
        skip = {*_CHARGE, *_MULTIPLICITY, "spin", "id", "free_energy", "magmom", "unique_id", *SCHEMA}
        extras = {}
        for name, value in scalars.items():
            plain = value.item() if isinstance(value, np.generic) else value
            usual = any(name.lower().replace("-", "_") in names for names in USUAL_NAMES.values())
            if name in skip or usual or not _EXTRA_NAME.fullmatch(name):
                continue
            if isinstance(plain, (int, float, str)) and not isinstance(plain, bool) and plain == plain and plain != "":
                extras[name] = plain
        return extras


def charge_and_spin(atoms: Atoms, where: str) -> tuple[int, int | None]:
    """Total charge (0 where not given) and unpaired electrons (``None`` where not given) of a structure.

    They are called ``charge`` or ``total_charge``, and ``spin`` (unpaired electrons) or ``multiplicity`` or
    ``spin_multiplicity``, in ``atoms.info``.

    Raises:
        DataError: names that contradict each other, or a value that is no whole number; it starts with ``where``.
    """
    scalars, _ = _sources(atoms)
    return _charge(scalars, where), _spin(scalars, where)


def _sources(atoms: Atoms) -> tuple[dict[str, Any], dict[str, Any]]:
    """Everything that could be a label of the whole frame, and of its atoms."""
    results = dict(getattr(atoms.calc, "results", {})) if atoms.calc is not None else {}
    info = dict(atoms.info)
    row = {**(info.pop("key_value_pairs", None) or {}), **(info.pop("data", None) or {})}
    everything = {name: value for name, value in {**row, **info, **results}.items() if value is not None}
    return everything, {**row, **atoms.arrays, **{k: v for k, v in results.items() if v is not None}}


def _numbers(value: Any, shape: tuple[int, ...] | None, where: str, name: str) -> np.ndarray:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{where}: {name} is '{str(value)[:40]}', not numbers") from None
    if shape == () and array.size == 1:
        array = array.reshape(())
    if shape is not None and array.shape != shape:
        raise DataError(f"{where}: {name} has shape {array.shape}, {shape} expected")
    return array


def _integer(value: Any, where: str, name: str) -> int:
    number = _numbers(value, (), where, name)
    if not abs(number) < 1e6 or abs(number - round(float(number))) > 1e-6:
        raise DataError(f"{where}: {name} is {value}; a whole number below a million is expected")
    return round(float(number))


def _charge(scalars: dict[str, Any], where: str) -> int:
    found = [_integer(scalars[name], where, name) for name in _CHARGE if name in scalars]
    if len(set(found)) > 1:
        raise DataError(f"{where}: charge and total_charge disagree: {found}")
    return found[0] if found else 0


def _spin(scalars: dict[str, Any], where: str) -> int | None:
    """Unpaired electrons from ``spin``, or from a multiplicity less one; ``None`` where neither is given."""
    found = [_integer(scalars[name], where, name) - 1 for name in _MULTIPLICITY if name in scalars]
    if "spin" in scalars:
        found.append(_integer(scalars["spin"], where, "spin"))
    if len(set(found)) > 1:
        raise DataError(
            f"{where}: spin {found[-1]} and multiplicity {found[0] + 1} disagree; spin counts unpaired electrons"
        )
    if found and found[0] < 0:
        raise DataError(f"{where}: a multiplicity of {found[0] + 1} is impossible; 1 is a singlet")
    return found[0] if found else None
