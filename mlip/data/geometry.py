"""Interatomic distances of a set, to see whether its length unit can be right."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mlip.data.frame import Frame
from mlip.data.neighbors import neighbor_list

MAX_DISTANCE = 12.0


@dataclass
class DistanceSurvey:
    """Nearest neighbours over frames of at least two atoms.

    Attributes:
        frames: how many were looked at.
        closest: the shortest distance of all (Angstrom), and ``closest_frame``, where it is.
        shortest: the shortest distance in each frame, Angstrom.
        typical: median nearest-neighbour distance of each frame, Angstrom (infinite beyond :data:`MAX_DISTANCE`).
        relative: the same over the sum of covalent radii.
        light: share of H, B, C, N, O, F atoms in each frame of three atoms or more, else 0.
    """

    frames: int = 0
    closest: float = np.inf
    closest_frame: str = ""
    shortest: list[float] = field(default_factory=list)
    typical: list[float] = field(default_factory=list)
    relative: list[float] = field(default_factory=list)
    light: list[float] = field(default_factory=list)

    def add(self, frame: Frame, name: str) -> None:
        """Look at one frame."""
        if len(frame) < 2 or not np.isfinite(frame.positions).all():
            return
        distance, relative = nearest_neighbors(frame, short_cutoff(frame))
        if not np.isfinite(np.median(distance)):
            distance, relative = nearest_neighbors(frame, MAX_DISTANCE)
        self.frames += 1
        self.shortest.append(float(distance.min()))
        self.typical.append(float(np.median(distance)))
        self.relative.append(float(np.median(relative)))
        light = np.isin(frame.atomic_numbers, (1, 5, 6, 7, 8, 9)).mean() if len(frame) > 2 else 0.0  # no dimer scans
        self.light.append(float(light))
        if distance.min() < self.closest:
            self.closest, self.closest_frame = float(distance.min()), name

    def refusal(self) -> str | None:
        """Why the length unit must be wrong, if it must."""
        if not self.frames:
            return None
        shortest, typical, relative = (float(np.median(x)) for x in (self.shortest, self.typical, self.relative))
        if shortest < 0.3:
            return f"positions: atoms are {shortest:.3g} A apart in the median frame; the unit cannot be Angstrom"
        if typical > 5.0:
            return f"positions: the median nearest neighbour is {typical:.3g} A away; the unit cannot be Angstrom"
        if relative < 0.6 or (relative > 1.6 and np.median(self.light) > 0.5):
            return (
                f"positions: the median nearest-neighbour distance is {relative:.2f} times the sum of covalent radii "
                f"({typical:.2f} A); the length unit is wrong (Bohr and Angstrom swapped?)"
            )
        return None

    def warning(self) -> str | None:
        """What looks odd about distances, without being impossible."""
        overlapping = int(np.sum(np.asarray(self.shortest) < 0.3))
        if overlapping:
            where = f"frame {self.closest_frame}: {self.closest:.3f} A"
            return f"positions: {overlapping} frames have atoms closer than 0.3 A ({where})"
        if self.frames and np.median(self.relative) > 1.6:
            return f"positions: nearest neighbours are {np.median(self.relative):.2f} covalent bonds away; right unit?"
        return None


def short_cutoff(frame: Frame) -> float:
    """A cutoff that reaches the nearest neighbours: 3.5 Angstrom, less for impossibly dense crystals."""
    if np.all(frame.pbc) and frame.volume > 0:
        return float(min(3.5, 4.0 * (frame.volume / len(frame)) ** (1 / 3)))
    return 3.5


def nearest_neighbors(frame: Frame, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """Of each atom: the distance to its nearest neighbour, and the least distance over the sum of covalent radii.

    Both ``[n]``, infinite where there is none within ``cutoff`` (Angstrom).
    """
    from ase.data import covalent_radii

    edge_index, shifts = neighbor_list(frame.positions, frame.cell, frame.pbc, cutoff)
    sender, receiver = edge_index
    lengths = np.linalg.norm(frame.positions[sender] - frame.positions[receiver] + shifts @ frame.cell, axis=1)
    radii = covalent_radii[frame.atomic_numbers]
    distance, relative = np.full(len(frame), np.inf), np.full(len(frame), np.inf)
    np.minimum.at(distance, receiver, lengths)
    np.minimum.at(relative, receiver, lengths / (radii[sender] + radii[receiver]))
    return distance, relative
