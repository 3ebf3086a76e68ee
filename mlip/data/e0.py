"""Reference energies of the elements: from isolated atoms, else by least squares."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from ase.data import chemical_symbols

from mlip.data.frame import Frame
from mlip.errors import DataError

logger = logging.getLogger(__name__)

ISOLATED_SPACING = 8.0
"""Angstrom between periodic images from which on a lone atom counts as isolated."""


class CompositionSums:
    """Energies summed over frames of equal composition: all that a least-squares fit of E0 needs, in bounded memory."""

    def __init__(self) -> None:
        self._sums: dict[bytes, list[float]] = {}
        self._places: dict[bytes, int] = {}

    def add(self, frame: Frame) -> int | None:
        """Count a frame in, if it has a finite energy; the number of its composition."""
        if frame.energy is None or not np.isfinite(frame.energy):
            return None
        numbers, counts = np.unique(np.asarray(frame.atomic_numbers, dtype=np.int64), return_counts=True)
        key = np.stack([numbers, counts]).tobytes()
        entry = self._sums.setdefault(key, [0.0, 0.0])
        entry[0] += 1
        entry[1] += frame.energy
        return self._places.setdefault(key, len(self._places))

    def means(self) -> np.ndarray:
        """Mean energy of each composition, eV, in order of appearance."""
        frames, energies = np.array(list(self._sums.values())).reshape(-1, 2).T
        return energies / frames

    def reference(self, energies: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
        """Sum of reference energies (eV) and number of atoms of each composition, in order of appearance."""
        tables = [np.frombuffer(key, dtype=np.int64).reshape(2, -1) for key in self._sums]
        sums = [sum(energies[int(number)] * int(count) for number, count in table.T) for table in tables]
        return np.array(sums), np.array([int(table[1].sum()) for table in tables])

    def fit(self, elements: Sequence[int] | None = None) -> tuple[dict[int, float], int]:
        """Minimum-norm least squares of ``E = sum_Z n_Z E0_Z``; ``(Z -> eV, rank)``. See :func:`fit_e0`."""
        tables = [np.frombuffer(key, dtype=np.int64).reshape(2, -1) for key in self._sums]
        present = sorted({int(number) for table in tables for number in table[0]})
        elements = present if elements is None else sorted(int(number) for number in elements)
        column = {number: place for place, number in enumerate(elements)}
        foreign = [chemical_symbols[number] for number in present if number not in column]
        if foreign:
            raise DataError(f"frames contain {', '.join(foreign)}, which the list of elements lacks; add them")
        if not tables:
            raise DataError("no frame has an energy, so reference energies cannot be fitted")
        matrix = np.zeros((len(tables), len(elements)))
        for row, table in enumerate(tables):
            matrix[row, [column[int(number)] for number in table[0]]] = table[1]
        frames, energies = np.array(list(self._sums.values())).T
        weight = np.sqrt(frames)
        solution, _, rank, _ = np.linalg.lstsq(matrix * weight[:, None], energies / frames * weight, rcond=1e-9)
        return dict(zip(elements, solution.tolist(), strict=True)), int(rank)


def fit_e0(frames: Iterable[Frame], elements: Sequence[int] | None = None) -> tuple[dict[int, float], int]:
    """Reference energies by least squares of the total energies on the compositions.

    Where the compositions do not determine every element (rank below the number of elements; e.g. one molecule only)
    the solution of least norm is taken and a warning is logged: sums over the given compositions are right, a single
    element's value means nothing, and other compositions will be off.

    Args:
        frames: frames; those without an energy are left out.
        elements: atomic numbers to solve for; ``None`` takes those that occur.

    Returns:
        ``Z -> eV`` and the rank of the composition matrix.

    Raises:
        DataError: no frame has an energy, or an element occurs that ``elements`` lacks.
    """
    sums = CompositionSums()
    for frame in frames:
        sums.add(frame)
    energies, rank = sums.fit(elements)
    if rank < len(energies):
        logger.warning(
            "E0 by least squares is not determined: %d elements (%s) but only %d independent compositions. "
            "Single values mean nothing; give isolated atoms if other compositions matter.",
            len(energies), " ".join(chemical_symbols[number] for number in energies), rank,
        )  # fmt: skip
    return energies, rank


def is_isolated_atom(frame: Frame) -> bool:
    """One atom, not periodic or at least :data:`ISOLATED_SPACING` from its images."""
    if len(frame) != 1:
        return False
    if not np.any(frame.pbc):
        return True
    return bool(np.linalg.norm(np.asarray(frame.cell)[np.asarray(frame.pbc)], axis=1).min() >= ISOLATED_SPACING)


def isolated_atom_energies(frames: Iterable[Frame]) -> dict[int, float]:
    """Energies of the neutral one-atom frames, ``Z -> eV``; of several of one element the lowest, with a warning."""
    found: dict[int, list[float]] = defaultdict(list)
    for frame in frames:
        if is_isolated_atom(frame) and frame.charge == 0 and frame.energy is not None and np.isfinite(frame.energy):
            found[int(frame.atomic_numbers[0])].append(frame.energy)
    for number, energies in found.items():
        if max(energies) - min(energies) > 1e-3:
            logger.warning(
                "isolated %s occurs %d times with energies from %.4f to %.4f eV; the lowest is taken",
                chemical_symbols[number], len(energies), min(energies), max(energies),
            )  # fmt: skip
    return {number: min(energies) for number, energies in sorted(found.items())}
