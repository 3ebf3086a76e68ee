"""Do energies, forces and stress belong together? Signs and scales tested against the structures themselves.

Two frames ``a``, ``b`` of the same atoms that lie close together obey, to second order (trapezoid rule, exact for a
quadratic energy)::

    E_b - E_a = -1/2 (F_a + F_b) . (x_b - x_a) + V (sigma_a + sigma_b)/2 : strain

so the regression of the energy difference on the work has a slope of about +1 if sign and units agree; thermal frames,
which are not that close, give 0.3 to 1.1 on published sets. A negative slope is a wrong sign, a slope of 23 or 1/51 a
wrong unit. Where no pair is close enough, forces are tested by the closest contacts: a shorter bond pushes more.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from mlip.data.frame import Frame
from mlip.data.geometry import short_cutoff
from mlip.data.neighbors import neighbor_list

MAX_FRAMES = 400
MAX_GROUP = 100
MAX_RMSD = 0.6
"""Angstrom; pairs further apart say too little."""
FORCE_SLOPE = (0.08, 6.0)
STRESS_SLOPE = (0.3, 3.0)


@dataclass
class Finding:
    """Outcome of one test: what was tested, whether it could decide, and whether the labels passed."""

    label: str
    text: str
    conclusive: bool
    passed: bool = True


class PairSample:
    """A bounded, reproducible sample of frames, grouped by their list of atoms."""

    def __init__(self, seed: int = 0):
        self._rng = np.random.default_rng(seed)
        self._groups: dict[bytes, list[Frame]] = defaultdict(list)
        self._seen: dict[bytes, int] = defaultdict(int)
        self._kept = 0

    def add(self, frame: Frame) -> None:
        """Offer a frame; each group keeps a uniform sample of what it was offered."""
        if len(frame) < 2 or frame.energy is None or frame.forces is None:
            return
        if not (np.isfinite(frame.energy) and np.isfinite(frame.forces).all() and np.isfinite(frame.positions).all()):
            return
        key = np.asarray(frame.atomic_numbers, dtype=np.int64).tobytes() + np.asarray(frame.pbc, dtype=bool).tobytes()
        if key not in self._groups and self._kept >= MAX_FRAMES:
            return
        group = self._groups[key]
        self._seen[key] += 1
        if len(group) < MAX_GROUP:
            group.append(frame)
            self._kept += 1
        else:
            place = int(self._rng.integers(self._seen[key]))
            if place < MAX_GROUP:
                group[place] = frame

    @property
    def groups(self) -> list[list[Frame]]:
        """Groups of at least two frames."""
        return [group for group in self._groups.values() if len(group) > 1]

    @property
    def frames(self) -> list[Frame]:
        """All frames of the sample."""
        return [frame for group in self._groups.values() for frame in group]


def check_consistency(sample: PairSample) -> list[Finding]:
    """Test forces (and stress, where cells vary) against energies; see the module's text."""
    return [_check_forces(sample), _check_stress(sample)]


def _check_forces(sample: PairSample) -> Finding:
    work, difference = _pairs(sample, strained=False)
    count = len(work)
    if count >= 20:
        slope, correlation = _regress(work, difference)
        text = f"energy differences against work of forces: slope {slope:.2g}, r = {correlation:.2f}, {count} pairs"
        if abs(correlation) > max(0.45, 3.0 / np.sqrt(count)):
            if correlation < 0:
                return Finding("forces", f"{text}: the sign is opposite (gradients?)", True, False)
            if not FORCE_SLOPE[0] < slope < FORCE_SLOPE[1]:
                return Finding("forces", f"{text}, about 1 expected: the units do not match", True, False)
            return Finding("forces", text, True)
    return _check_contacts(sample.frames)


def _check_contacts(frames: list[Frame]) -> Finding:
    """Closest contacts of each frame: the shorter against the covalent radii, the more they must repel."""
    contacts = [contact for frame in frames if (contact := _closest_contact(frame)) is not None]
    if len(contacts) < 30:
        return Finding("forces", f"sign not testable: {len(contacts)} close contacts, no close pairs of frames", False)
    ratio, repulsion = np.array(contacts).T
    spread = ratio.std() * repulsion.std()
    correlation = float(np.mean((ratio - ratio.mean()) * (repulsion - repulsion.mean())) / spread) if spread else 0.0
    balance = float(repulsion.sum() / max(np.abs(repulsion).sum(), 1e-12))
    measures = f"r = {correlation:.2f}, balance {balance:.2f}, {len(contacts)} frames"
    text = f"repulsion of the closest contacts against their length: {measures}"
    if correlation > 0.5 or (correlation > 0.15 and balance < -0.5):
        return Finding("forces", f"{text}: short bonds attract, so the sign is opposite (gradients?)", True, False)
    return Finding("forces", text, correlation < -0.5 or (correlation < -0.15 and balance > 0.5))


def _closest_contact(frame: Frame) -> tuple[float, float] | None:
    """Closest contact below 1.1 sums of covalent radii: its length over that sum, its repulsion in eV/Angstrom."""
    from ase.data import covalent_radii

    edge_index, shifts = neighbor_list(frame.positions, frame.cell, frame.pbc, short_cutoff(frame))
    sender, receiver = edge_index
    vectors = frame.positions[sender] - frame.positions[receiver] + shifts @ frame.cell
    lengths = np.linalg.norm(vectors, axis=1)
    radii = covalent_radii[frame.atomic_numbers]
    ratio = np.where(sender != receiver, lengths / (radii[sender] + radii[receiver]), np.inf)
    if not ratio.size or not 0 < ratio.min() < 1.1 or frame.forces is None:
        return None
    edge = int(ratio.argmin())
    relative = frame.forces[sender[edge]] - frame.forces[receiver[edge]]
    return float(ratio[edge]), float(relative @ vectors[edge] / lengths[edge])


def _check_stress(sample: PairSample) -> Finding:
    work, difference = _pairs(sample, strained=True)
    if len(work) < 8:
        return Finding("stress", f"sign and unit not testable: {len(work)} close pairs with different cells", False)
    slope, correlation = _regress(work, difference)
    text = f"energy differences against work of stress: slope {slope:.2g}, r = {correlation:.2f}, {len(work)} pairs"
    if abs(correlation) < 0.8:
        return Finding("stress", f"{text}: undecided", False)
    if correlation < 0:
        return Finding("stress", f"{text}: the sign is opposite (tension is positive here)", True, False)
    if not STRESS_SLOPE[0] < slope < STRESS_SLOPE[1]:
        return Finding("stress", f"{text}, about 1 expected: the unit is not eV/Angstrom^3", True, False)
    return Finding("stress", text, True)


def _regress(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and correlation of a line through the origin."""
    xx, yy, xy = x @ x, y @ y, x @ y
    if xx == 0 or yy == 0:
        return 0.0, 0.0
    return float(xy / xx), float(xy / np.sqrt(xx * yy))


def _pairs(sample: PairSample, strained: bool) -> tuple[np.ndarray, np.ndarray]:
    """Work and energy difference of each frame with its closest partner, of equal cell or (``strained``) another one.

    For strained pairs the work is the stress's, and the forces' work is taken off the energy difference.
    """
    found = []
    for frames in sample.groups:
        if strained:
            frames = [frame for frame in frames if _has_stress(frame)]
        if len(frames) < 2:
            continue
        group = _Group(frames)
        for index in range(len(frames)):
            distance, work, difference = group.strained(index) if strained else group.equal_cell(index)
            best = int(np.argmin(distance))
            if distance[best] < MAX_RMSD:
                found.append((work[best], difference[best]))
    work, difference = np.array(found).reshape(-1, 2).T
    return work, difference


def _has_stress(frame: Frame) -> bool:
    return frame.stress is not None and bool(frame.pbc.all() and frame.volume > 0 and np.isfinite(frame.stress).all())


class _Group:
    """Stacked arrays of ``m`` frames of the same ``n`` atoms, to compare one with all others at once.

    The methods return, for each of the ``m`` frames, the root-mean-square displacement from frame ``index`` (Angstrom;
    infinite where the pair says nothing), the work on the way there and the energy difference (eV).
    """

    def __init__(self, frames: list[Frame]):
        self.energy = np.array([frame.energy for frame in frames])
        self.positions = np.stack([frame.positions for frame in frames])
        self.forces = np.stack([frame.forces for frame in frames if frame.forces is not None])
        self.cell = np.stack([frame.cell for frame in frames])
        self.pbc = np.asarray(frames[0].pbc, dtype=bool)
        if all(frame.stress is not None for frame in frames):
            self.stress = np.stack([frame.stress for frame in frames])  # type: ignore[misc]

    def equal_cell(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of equal cell, or of molecules turned onto each other; the work is the forces'."""
        positions, forces = self.positions, self.forces
        if self.pbc.any():
            move = _minimum_image(positions - positions[index], self.cell[index], self.pbc)
            same = np.abs(self.cell - self.cell[index]).max(axis=(1, 2)) < 1e-4
        else:
            centred = positions - positions.mean(axis=1, keepdims=True)
            rotation = _rotations(centred[index], centred)
            move, forces = centred @ rotation - centred[index], forces @ rotation
            same = np.ones(len(positions), dtype=bool)
        distance = np.sqrt((move**2).sum(axis=2).mean(axis=1))
        work = -0.5 * ((self.forces[index] + forces) * move).sum(axis=(1, 2))
        return np.where(same & (distance > 1e-5), distance, np.inf), work, self.energy - self.energy[index]

    def strained(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of different cells; the work is the stress's, and the forces' is taken off the energy difference."""
        cell = self.cell
        gradient = np.linalg.solve(cell[index], cell)
        strain = (gradient + np.swapaxes(gradient, 1, 2)) / 2 - np.eye(3)
        size = np.abs(strain).max(axis=(1, 2))
        scaled = self.positions @ np.linalg.inv(cell)
        scaled = scaled - scaled[index]
        move = (scaled - np.round(scaled)) @ ((cell + cell[index]) / 2)
        move -= move.mean(axis=1, keepdims=True)
        stress = ((self.stress + self.stress[index]) / 2)[:, [[0, 5, 4], [5, 1, 3], [4, 3, 2]]]
        volume = np.abs(np.linalg.det(cell))
        work = (stress * strain).sum(axis=(1, 2)) * (volume + volume[index]) / 2
        other = -0.5 * ((self.forces + self.forces[index]) * move).sum(axis=(1, 2))
        distance = np.sqrt((move**2).sum(axis=2).mean(axis=1))
        small = (size > 1e-4) & (size < 0.15)
        return np.where(small, distance, np.inf), work, self.energy - self.energy[index] - other


def _minimum_image(vectors: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Displacements by the nearest lattice vectors along the periodic directions (good for small ones)."""
    scaled = vectors @ np.linalg.pinv(cell)
    return vectors - np.where(pbc, np.round(scaled), 0.0) @ cell


def _rotations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Proper rotations ``R[m]`` that bring each ``b[m] @ R[m]`` closest to ``a`` (Kabsch)."""
    u, _, vt = np.linalg.svd(np.swapaxes(b, 1, 2) @ a)
    sign = np.where(np.linalg.det(u @ vt) < 0, -1.0, 1.0)
    u[:, :, 2] *= sign[:, None]
    return u @ vt
