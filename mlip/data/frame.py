"""One structure with its labels, as plain arrays."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np

from mlip.elements import MAX_ELEMENT

FARTHEST = 1e6
"""Angstrom. No coordinate and no cell of a structure is larger; a file that says so is broken, or in another unit."""


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
        extras: further scalars of the frame by name (int, float or str), e.g. ``molecule`` or ``scf_cycles``.
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
    extras: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.atomic_numbers)

    @property
    def volume(self) -> float:
        """Cell volume in Angstrom^3; zero where there is no full cell."""
        return float(abs(np.linalg.det(self.cell)))


def electrons_fit(numbers: np.ndarray, charge: int, spin: int) -> bool:
    """Whether so many electrons can have ``spin`` unpaired ones."""
    electrons = int(np.sum(numbers)) - charge
    return electrons >= spin and (electrons - spin) % 2 == 0


class FrameSequence(Sequence[Frame]):
    """Frames that are read one by one; a slice is a :class:`FrameSubset`."""

    @abstractmethod
    def _at(self, place: int) -> Frame:
        """The frame at ``place``, from 0 to the length."""

    @overload
    def __getitem__(self, index: int) -> Frame: ...

    @overload
    def __getitem__(self, index: slice) -> FrameSubset: ...

    def __getitem__(self, index: int | slice) -> Frame | FrameSubset:
        if isinstance(index, slice):
            return FrameSubset(self, np.arange(len(self))[index])
        try:
            place = range(len(self))[index]
        except IndexError:
            raise IndexError(f"frame {index} of {len(self)}") from None
        return self._at(place)


class FrameSubset(FrameSequence):
    """Some frames of a sequence, in a given order, without reading them."""

    def __init__(self, frames: Sequence[Frame], indices: Sequence[int] | np.ndarray):
        self.frames = frames
        self.indices = np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def _at(self, place: int) -> Frame:
        return self.frames[int(self.indices[place])]


class FrameChain(FrameSequence):
    """The frames of several sequences one after the other, without reading them.

    Args:
        parts: the sequences.
        attrs: what holds for all of them, as the root attributes of a file.
    """

    def __init__(self, parts: Sequence[Sequence[Frame]], attrs: dict[str, Any] | None = None):
        self.parts = list(parts)
        self.attrs = dict(attrs or {})
        self.starts = np.cumsum([0, *(len(part) for part in self.parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _at(self, place: int) -> Frame:
        part = int(np.searchsorted(self.starts, place, side="right")) - 1
        return self.parts[part][place - int(self.starts[part])]


def wrong_elements(numbers: np.ndarray) -> str | None:
    """What is wrong with atomic numbers, for an error line; ``None`` where nothing is."""
    wrong = numbers[(numbers < 1) | (numbers > MAX_ELEMENT)]
    return f"{wrong[0]} is no atomic number (1 to {MAX_ELEMENT}); correct or remove the frame" if len(wrong) else None


def wrong_coordinates(positions: np.ndarray, cell: np.ndarray) -> str | None:
    """What is wrong with positions or a cell, Angstrom, for an error line; ``None`` where nothing is."""
    for name, values in (("positions", positions), ("cell", cell)):
        if not (np.abs(values) <= FARTHEST).all():  # false for NaN too
            return f"{name} with numbers that are not finite or beyond {FARTHEST:.0e} Angstrom; correct or remove the frame"
    return None


def count_atoms(frames: Sequence[Frame]) -> np.ndarray:
    """Atoms in each frame, ``[N]`` int64; read from the offsets where the frames lie in a file, else counted."""
    known = getattr(frames, "num_atoms", None)
    if known is not None:
        return np.asarray(known, dtype=np.int64)
    if isinstance(frames, FrameSubset):
        return count_atoms(frames.frames)[frames.indices]
    if isinstance(frames, FrameChain):
        return np.concatenate([count_atoms(part) for part in frames.parts])
    return np.array([len(frame) for frame in frames], dtype=np.int64)


def frame_extra(frames: Sequence[Frame], name: str) -> np.ndarray | None:
    """The extra ``name`` of every frame as ``[N]``, or ``None`` where no frame has it."""
    if isinstance(frames, FrameSubset):
        values = frame_extra(frames.frames, name)
        return None if values is None else values[frames.indices]
    if isinstance(frames, FrameChain):
        return _joined_extra([frame_extra(part, name) for part in frames.parts], np.diff(frames.starts))
    names = getattr(frames, "extra_names", None)
    if names is not None:
        return frames.frame_extra(name) if name in names else None  # type: ignore[attr-defined]
    found = [frame.extras.get(name) for frame in frames]
    if all(value is None for value in found):
        return None
    if any(isinstance(value, str) for value in found):
        return np.array(["" if value is None else str(value) for value in found], dtype=object)
    return np.array([np.nan if value is None else value for value in found])


def _joined_extra(parts: list[np.ndarray | None], sizes: np.ndarray) -> np.ndarray | None:
    """Of parts of these sizes; where one has no value it is ``""`` or NaN, as above."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    text = any(part.dtype == object for part in known)
    filled = [
        np.full(size, "" if text else np.nan, dtype=object if text else float) if part is None else part
        for part, size in zip(parts, sizes, strict=True)
    ]
    return np.concatenate(filled)
