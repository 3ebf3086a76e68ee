"""What a data file means by its numbers: the units of its labels and the names under which they stand.

Everything inside :mod:`mlip` is in eV and Angstrom, stress in eV/Angstrom^3 with tension positive (ASE);
readers convert.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from ase import units as ase_units
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from mlip.errors import DataError

ENERGY = {
    "eV": 1.0,
    "meV": 1e-3,
    "Hartree": ase_units.Hartree,
    "Rydberg": ase_units.Rydberg,
    "kcal/mol": ase_units.kcal / ase_units.mol,
    "kJ/mol": ase_units.kJ / ase_units.mol,
}
LENGTH = {"Angstrom": 1.0, "Bohr": ase_units.Bohr, "nm": 10.0}
PRESSURE = {"GPa": ase_units.GPa, "kbar": 0.1 * ase_units.GPa, "bar": 1e-4 * ase_units.GPa, "Pa": ase_units.Pascal}
_ALIASES = {"a": "Angstrom", "ang": "Angstrom", "å": "Angstrom", "ha": "Hartree", "eh": "Hartree", "ry": "Rydberg"}
_ALIASES |= {"a0": "Bohr", "au": "Hartree"}


def _canonical(value: str, table: dict[str, float]) -> str | None:
    """The name in ``table`` that ``value`` spells, in any case or by a usual abbreviation; ``None`` if none does."""
    text = value.strip()
    by_lower = {name.lower(): name for name in table}
    name = by_lower.get(text.lower()) or _ALIASES.get(text.lower())
    if text in ("mev", "MEV", "MeV"):  # a mega-electronvolt is not meant, but neither should it be guessed
        return "meV" if text == "mev" and "meV" in table else None
    return name if name in table else None


def _quotient(value: str, power: int) -> tuple[str, str] | None:
    """Split ``energy/length`` (``power`` 1) or ``energy/length^3`` into canonical names."""
    head, _, tail = value.strip().rpartition("/")
    match = re.fullmatch(r"(.+?)(?:(?:\^|\*\*)?(\d))?", tail.strip())
    if not head or match is None or int(match.group(2) or 1) != power:
        return None
    energy, length = _canonical(head, ENERGY), _canonical(match.group(1), LENGTH)
    return (energy, length) if energy and length else None


class Units(BaseModel):
    """The units that a file's numbers are in; the defaults are this package's own.

    Attributes:
        energy: eV, meV, Hartree, Rydberg, kcal/mol or kJ/mol. Virials are energies too.
        length: Angstrom, Bohr or nm, of positions and cell.
        forces: as ``energy/length``, e.g. ``Hartree/Bohr``; ``None`` takes the two above.
        stress: GPa, kbar, bar, Pa, or ``energy/length^3``; ``None`` takes the energy and length above.
        stress_sign: which of the two a positive diagonal means. ASE, and this package: tension.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    energy: str = "eV"
    length: str = "Angstrom"
    forces: str | None = None
    stress: str | None = None
    stress_sign: Literal["tension_positive", "compression_positive"] = "tension_positive"

    @field_validator("energy", "length")
    @classmethod
    def _known(cls, value: str, info: Any) -> str:
        table = ENERGY if info.field_name == "energy" else LENGTH
        name = _canonical(value, table)
        if name is None:
            raise ValueError(f"unknown unit of {info.field_name} '{value}'; allowed: {', '.join(table)}")
        return name

    @field_validator("forces")
    @classmethod
    def _known_forces(cls, value: str | None) -> str | None:
        if value is None:
            return None
        pair = _quotient(value, 1)
        if pair is None:
            allowed = f"{', '.join(ENERGY)} over {', '.join(LENGTH)}"
            raise ValueError(f"unknown unit of forces '{value}'; allowed: ENERGY/LENGTH with {allowed}")
        return "/".join(pair)

    @field_validator("stress")
    @classmethod
    def _known_stress(cls, value: str | None) -> str | None:
        if value is None:
            return None
        name = _canonical(value, PRESSURE)
        pair = _quotient(value, 3)
        if name is None and pair is None:
            raise ValueError(f"unknown unit of stress '{value}'; allowed: {', '.join(PRESSURE)} or ENERGY/LENGTH^3")
        return name or "/".join(pair or ()) + "^3"

    @property
    def energy_factor(self) -> float:
        """eV in one unit of energy."""
        return ENERGY[self.energy]

    @property
    def length_factor(self) -> float:
        """Angstrom in one unit of length."""
        return LENGTH[self.length]

    @property
    def forces_factor(self) -> float:
        """eV/Angstrom in one unit of force."""
        if self.forces is None:
            return self.energy_factor / self.length_factor
        energy, length = self.forces.rsplit("/", 1)
        return ENERGY[energy] / LENGTH[length]

    @property
    def stress_factor(self) -> float:
        """eV/Angstrom^3, tension positive, in one unit of stress."""
        sign = 1.0 if self.stress_sign == "tension_positive" else -1.0
        if self.stress is None:
            return sign * self.energy_factor / self.length_factor**3
        if self.stress in PRESSURE:
            return sign * PRESSURE[self.stress]
        energy, length = self.stress.removesuffix("^3").rsplit("/", 1)
        return sign * ENERGY[energy] / LENGTH[length] ** 3

    @classmethod
    def parse(cls, text: str) -> Units:
        """From a command line: ``energy=Hartree,length=Bohr,stress=GPa``."""
        fields = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = part.partition("=")
            if not equals or name.strip() not in cls.model_fields:
                raise DataError(
                    f"units: '{part}' is not NAME=UNIT with NAME one of {', '.join(cls.model_fields)}, "
                    "e.g. energy=Hartree,length=Bohr"
                )
            if name.strip() in fields:
                raise DataError(f"units: {name.strip()} is given twice in '{text}'; keep one")
            fields[name.strip()] = value.strip()
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            lines = [str(line["msg"]).removeprefix("Value error, ") for line in error.errors()]
            raise DataError("units: " + "; ".join(lines)) from None


class LabelKeys(BaseModel):
    """The names of the labels in a file; ``None`` looks for the usual ones and refuses if there are several.

    A stress under a name with ``virial`` in it is taken as an energy, minus volume times stress (libAtoms, DeePMD).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
