"""What a data set looks like: sizes, neighbours, distributions, level of theory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlip.data.e0 import CompositionSums
from mlip.data.frame import Frame
from mlip.data.neighbors import neighbor_list

MAX_NEIGHBOR_FRAMES = 2000
_FORCE_EDGES = [0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, np.inf]


@dataclass
class DataStatistics:
    """What :func:`data_statistics` found.

    Attributes:
        frames, atoms, periodic: counts (of frames, atoms, frames periodic in some direction).
        elements: ``Z -> count`` of atoms.
        labels: ``name -> count`` of frames.
        ranges: ``name -> (lowest, median, highest, unit)``.
        cutoff: Angstrom, of the neighbour statistics.
        avg_num_neighbors: mean over atoms (of at most :data:`MAX_NEIGHBOR_FRAMES` evenly spaced frames).
        histograms: ``name -> (counts, edges)``; energies above E0 in eV per atom, force norms in eV/A.
        attrs: the file's root attributes (level of theory, licence).
    """

    frames: int = 0
    atoms: int = 0
    periodic: int = 0
    elements: dict[int, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float, float, str]] = field(default_factory=dict)
    cutoff: float = 5.0
    avg_num_neighbors: float = 0.0
    histograms: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)

    def __rich__(self) -> Any:
        from mlip.data.display import stats_display

        return stats_display(self)

    def __str__(self) -> str:
        from mlip.data.display import to_text

        return to_text(self)


def data_statistics(frames: Sequence[Frame], cutoff: float = 5.0) -> DataStatistics:
    """Statistics of ``frames`` in one pass, with neighbours counted within ``cutoff`` (Angstrom)."""
    stats = DataStatistics(cutoff=cutoff, attrs=dict(getattr(frames, "attrs", {})))
    stride = max(1, -(-len(frames) // MAX_NEIGHBOR_FRAMES))
    elements: Counter[int] = Counter()
    labels: Counter[str] = Counter()
    sums = CompositionSums()
    sizes, energies, places, edges, force_max = [], [], [], [], []
    force_counts = np.zeros(len(_FORCE_EDGES) - 1, dtype=np.int64)
    edge_total = edge_atoms = 0
    for number, frame in enumerate(frames):
        sizes.append(len(frame))
        elements.update(np.asarray(frame.atomic_numbers).tolist())
        stats.periodic += bool(np.any(frame.pbc))
        labels.update(
            name for name in ("energy", "forces", "stress", "density_coefficients") if getattr(frame, name) is not None
        )
        place = sums.add(frame)
        if place is not None and frame.energy is not None:
            energies.append(frame.energy)
            places.append(place)
        if frame.forces is not None and np.isfinite(frame.forces).all():
            norms = np.linalg.norm(frame.forces, axis=1)
            force_max.append(float(norms.max()))
            force_counts += np.histogram(norms, _FORCE_EDGES)[0]
        if number % stride == 0:
            count = neighbor_list(frame.positions, frame.cell, frame.pbc, cutoff)[0].shape[1]
            edges.append(count)
            edge_total, edge_atoms = edge_total + count, edge_atoms + len(frame)
    stats.frames, stats.atoms = len(sizes), int(np.sum(sizes))
    stats.elements, stats.labels = dict(sorted(elements.items())), dict(labels)
    stats.avg_num_neighbors = edge_total / max(1, edge_atoms)
    _add_range(stats, "atoms of a frame", sizes, "")
    _add_range(stats, "edges of a frame", edges, "")
    if energies:
        reference, counts = sums.reference(sums.fit()[0])
        per_atom = (np.array(energies) - reference[places]) / counts[places]
        _add_range(stats, "energy per atom", np.array(energies) / counts[places], "eV")
        _add_range(stats, "energy per atom above E0", per_atom, "eV")
        heights, bins = np.histogram(per_atom, 10)
        stats.histograms["energy per atom above least-squares E0 (eV)"] = (heights.tolist(), bins.tolist())
    if force_max:
        _add_range(stats, "largest force of a frame", force_max, "eV/A")
        stats.histograms["force norms (eV/A)"] = (force_counts.tolist(), list(_FORCE_EDGES))
    return stats


def _add_range(stats: DataStatistics, name: str, values: Any, unit: str) -> None:
    if len(values):
        stats.ranges[name] = (float(np.min(values)), float(np.median(values)), float(np.max(values)), unit)
