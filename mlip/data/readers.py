"""Reading structures with labels: this package's HDF5, extended XYZ, ASE databases and trajectories, VASP output."""

from __future__ import annotations

import io
import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mlip.data.frame import Frame, FrameChain
from mlip.data.hdf5 import HDF5Frames
from mlip.data.labels import AtomsReader
from mlip.data.units import LabelKeys, Units
from mlip.errors import DataError
from mlip.memory import available_memory

logger = logging.getLogger(__name__)

FORMATS = ".h5/.hdf5 (this package), .xyz/.extxyz, .db/.json (ASE database), .traj (ASE), OUTCAR*, vasprun*.xml"


class LoadedFrames(list[Frame]):
    """Frames in memory, with the file they came from.

    Attributes:
        path: the file.
        attrs: its root attributes (empty for formats that have none).
    """

    def __init__(self, frames: Iterable[Frame], path: Path):
        super().__init__(frames)
        self.path = path
        self.attrs: dict[str, Any] = {}


def file_format(path: str | Path) -> str:
    """``hdf5``, ``extxyz``, ``db``, ``traj``, ``vasp-out`` or ``vasp-xml``, by the file's name."""
    name = Path(path).name.lower()
    for kind, suffixes in (
        ("hdf5", (".h5", ".hdf5")),
        ("extxyz", (".xyz", ".extxyz")),
        ("db", (".db", ".json")),
        ("traj", (".traj",)),
        ("vasp-out", (".outcar",)),
    ):
        if name.endswith(suffixes):
            return kind
    if name.startswith("outcar") and not name.endswith((".gz", ".bz2", ".xz")):
        return "vasp-out"
    if "vasprun" in name and name.endswith(".xml"):
        return "vasp-xml"
    raise DataError(f"{path}: cannot tell the format from the name; readable are {FORMATS}")


def open_frames(path: str | Path, keys: LabelKeys | None = None, units: Units | None = None) -> Sequence[Frame]:
    """The frames of a file, in eV and Angstrom: lazily from HDF5, in memory from anything else.

    Args:
        path: a file; see :data:`FORMATS`.
        keys: names of the labels (extended XYZ, ASE databases and trajectories).
        units: units of the numbers (extended XYZ and ASE databases).

    Raises:
        DataError: no such file, unknown format, damaged (with the frame's number), several names for one label,
            larger than memory (then ``mlip data convert`` it), or keys or units for a format that fixes its own.
    """
    path = Path(path)
    kind = _check(path, keys, units)
    if kind == "hdf5":
        return HDF5Frames(path)
    available = available_memory()
    if available is not None and path.stat().st_size > available:
        sizes = f"{path.stat().st_size / 1e9:.1f} GB of text, {available / 1e9:.1f} GB of memory left"
        command = f"mlip data convert {path} {path.with_suffix('.h5').name}"
        raise DataError(f"{path}: {sizes}; run `{command}` and use that file: it is read lazily")
    return LoadedFrames(iter_frames(path, keys, units), path)


def open_files(paths: str | Path | Sequence[str], keys: LabelKeys | None = None, units: Units | None = None) -> Sequence[Frame]:
    """The frames of one file, or of several one after the other; arguments and errors as of :func:`open_frames`.

    Of the root attributes ``attrs`` those are kept in which the files agree. The density basis is that of the files that state one.
    In ``level_of_theory`` what differs becomes a list of the values, and one warning says so.

    Raises:
        DataError: besides, for densities in different bases or metrics.
    """
    if isinstance(paths, str | Path):
        return open_frames(paths, keys, units)
    parts = [open_frames(path, keys, units) for path in paths]
    if len(parts) == 1:
        return parts[0]
    attrs = [getattr(part, "attrs", {}) for part in parts]
    common = {name: value for name, value in attrs[0].items() if all(other.get(name) == value for other in attrs[1:])}
    bases = {path: other["density_basis"] for path, other in zip(paths, attrs, strict=True) if "density_basis" in other}
    if bases:
        first = next(iter(bases))
        for path, basis in bases.items():
            if basis != bases[first]:
                raise DataError(f"{path}: its densities are in other functions than those of {first}; label both in the same basis")
        common["density_basis"] = bases[first]
    theories = [other.get("level_of_theory") for other in attrs]
    if all(isinstance(theory, dict) for theory in theories):
        common["level_of_theory"] = theory = _joined_theory(theories, paths)
        if isinstance(theory.get("density_metric"), list):
            raise DataError(f"{', '.join(map(str, paths))}: densities fitted in different metrics; label all in the same")
    return FrameChain(parts, common)


def _joined_theory(theories: list[Any], paths: Sequence[str]) -> dict[str, Any]:
    """What the levels of theory agree in, and a list of values where they do not, with a warning."""
    joined: dict[str, Any] = {}
    for name in dict.fromkeys(name for theory in theories for name in theory):
        values = [theory.get(name) for theory in theories]
        joined[name] = values[0] if all(value == values[0] for value in values) else values
        if joined[name] is values:
            logger.warning("%s: %s is %s", ", ".join(map(str, paths)), name, ", ".join(map(str, values)))
    return joined


def iter_frames(path: str | Path, keys: LabelKeys | None = None, units: Units | None = None) -> Iterator[Frame]:
    """The same frames one after the other, with bounded memory. Raises like :func:`open_frames`."""
    path = Path(path)
    kind = _check(path, keys, units)
    if kind == "hdf5":
        yield from HDF5Frames(path)
        return
    reader = AtomsReader(str(path), keys, units)
    number = -1
    for number, atoms in enumerate(_iter_atoms(path, kind)):
        yield reader.frame(atoms, number)
    if number < 0:
        raise DataError(f"{path}: no structure in it")
    reader.finish()


def _check(path: Path, keys: LabelKeys | None, units: Units | None) -> str:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    kind = file_format(path)
    if units not in (None, Units()) and kind in ("hdf5", "vasp-out", "vasp-xml", "traj"):
        raise DataError(f"{path}: this format is always in eV and Angstrom; leave the units away")
    if keys not in (None, LabelKeys()) and kind == "hdf5":
        raise DataError(f"{path}: this format fixes the names of its labels; leave the keys away")
    return kind


def _iter_atoms(path: Path, kind: str) -> Iterator[Atoms]:
    """Structures of an ASE-readable file; whatever goes wrong in the reader becomes a DataError with the place."""
    import ase.db
    import ase.io

    frames: Iterator[Atoms]
    if kind == "extxyz":
        frames = _iter_extxyz(path)
    elif kind == "db":
        frames = (row.toatoms(add_additional_information=True) for row in ase.db.connect(path).select(sort="id"))
    else:
        frames = ase.io.iread(path, index=":", format=kind)
    number = 0
    while True:
        try:
            atoms = next(frames)
        except StopIteration:
            return
        except DataError:
            raise
        except Exception as error:  # the readers of ASE raise nearly anything on a damaged file
            what = f"{type(error).__name__}: {error}"
            raise DataError(f"{path}: frame {number} cannot be read as {kind} (truncated?): {what}") from error
        yield atoms
        number += 1


def _iter_extxyz(path: Path) -> Iterator[Atoms]:
    """Frame by frame, each parsed by ASE; ASE's own loop would scan the whole file first."""
    from ase.io.extxyz import read_xyz

    with open(path, encoding="utf-8") as file:
        number = 0
        while header := file.readline():
            if not header.strip():
                continue
            try:
                count = int(header)
            except ValueError:
                text = header.strip()[:40]
                raise DataError(f"{path}: frame {number}: a number of atoms expected, found '{text}'") from None
            lines = list(itertools.islice(file, count + 1))
            complete = sum(1 for line in lines[1:] if line.strip())
            if complete < count:
                raise DataError(
                    f"{path}: frame {number} is truncated: {complete} of {count} atoms; copy the file again or cut it"
                )
            _check_columns(lines, f"{path}: frame {number}")
            yield next(iter(read_xyz(io.StringIO(header + "".join(lines)), 0)))
            number += 1


def _check_columns(lines: Sequence[str], where: str) -> None:
    """Refuse ``Properties`` of more columns than the atoms have: ASE would make room for any number of them."""
    named = re.search(r'Properties="?([^"\s]+)', lines[0]) if len(lines) > 1 else None
    if named is None:
        return
    widths = named.group(1).split(":")[2::3]
    columns, found = sum(int(width) for width in widths if width.isdecimal()), len(lines[1].split())
    if columns > found:
        raise DataError(f"{where}: Properties names {columns} columns, the first atom has {found}; write the file again")


def to_atoms(frame: Frame) -> Atoms:
    """The frame as ``ase.Atoms`` with its labels in a calculator; charge, multiplicity and extras in ``info``."""
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = Atoms(frame.atomic_numbers, positions=frame.positions, cell=frame.cell, pbc=frame.pbc)
    labels = {"energy": frame.energy, "forces": frame.forces, "stress": frame.stress}
    present = {name: value for name, value in labels.items() if value is not None}
    if present:
        atoms.calc = SinglePointCalculator(atoms, **present)
    if frame.id:
        atoms.info["id"] = frame.id
    if frame.charge or frame.spin:
        atoms.info.update(charge=int(frame.charge), multiplicity=int(frame.spin) + 1)
    atoms.info.update({name: value for name, value in frame.extras.items() if np.isscalar(value)})
    return atoms
