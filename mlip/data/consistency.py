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

MAX_FRAMES = 400
MAX_GROUP = 100
MAX_COMPARISONS = 6_000
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

    from mlip.data.neighbors import neighbor_list

    edge_index, shifts = neighbor_list(frame.positions, frame.cell, frame.pbc, 3.5)
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
    work, difference = [], []
    groups = sample.groups
    size = max(20, int(np.sqrt(MAX_COMPARISONS / max(1, len(groups)))))
    for group in groups:
        group = group[:size]
        if strained:
            group = [frame for frame in group if frame.stress is not None and frame.pbc.all() and frame.volume > 0]
        for a in group:
            best: tuple[float, float, float] | None = None
            for b in group:
                if a is not b:
                    found = _strained_pair(a, b) if strained else _equal_cell_pair(a, b)
                    if found is not None and found[0] < (best[0] if best else MAX_RMSD):
                        best = found
            if best is not None:
                work.append(best[1])
                difference.append(best[2])
    return np.array(work), np.array(difference)


def _equal_cell_pair(a: Frame, b: Frame) -> tuple[float, float, float] | None:
    """RMS displacement, work of the forces, energy difference; ``None`` if cells differ or nothing moved."""
    assert a.energy is not None and b.energy is not None and a.forces is not None and b.forces is not None
    if a.pbc.any():
        if not np.allclose(a.cell, b.cell, atol=1e-4):
            return None
        move = _minimum_image(b.positions - a.positions, a.cell, a.pbc)
        forces = b.forces
    else:
        here, there = a.positions - a.positions.mean(axis=0), b.positions - b.positions.mean(axis=0)
        rotation = _rotation(here, there)
        move, forces = there @ rotation - here, b.forces @ rotation
    distance = float(np.sqrt((move**2).sum(axis=1).mean()))
    if distance < 1e-5:
        return None
    return distance, float(-0.5 * ((a.forces + forces) * move).sum()), b.energy - a.energy


def _strained_pair(a: Frame, b: Frame) -> tuple[float, float, float] | None:
    """RMS displacement beside the strain, work of the stress, energy difference less the forces' work."""
    assert a.energy is not None and b.energy is not None and a.forces is not None and b.forces is not None
    assert a.stress is not None and b.stress is not None
    gradient = np.linalg.solve(a.cell, b.cell)
    strain = (gradient + gradient.T) / 2 - np.eye(3)
    if not 1e-4 < np.abs(strain).max() < 0.15 or not (np.isfinite(a.stress).all() and np.isfinite(b.stress).all()):
        return None
    scaled = b.positions @ np.linalg.inv(b.cell) - a.positions @ np.linalg.inv(a.cell)
    move = (scaled - np.round(scaled)) @ ((a.cell + b.cell) / 2)
    move -= move.mean(axis=0)
    stress = ((a.stress + b.stress) / 2)[[[0, 5, 4], [5, 1, 3], [4, 3, 2]]]
    work = float((stress * strain).sum() * (a.volume + b.volume) / 2)
    other = float(-0.5 * ((a.forces + b.forces) * move).sum())
    return float(np.sqrt((move**2).sum(axis=1).mean())), work, b.energy - a.energy - other


def _minimum_image(vectors: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Displacements by the nearest lattice vectors along the periodic directions (good for small ones)."""
    scaled = vectors @ np.linalg.pinv(cell)
    return vectors - np.where(pbc, np.round(scaled), 0.0) @ cell


def _rotation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Proper rotation ``R`` that brings ``b @ R`` closest to ``a`` (Kabsch)."""
    u, _, vt = np.linalg.svd(b.T @ a)
    sign = np.sign(np.linalg.det(u @ vt)) or 1.0
    return (u * [1.0, 1.0, sign]) @ vt
