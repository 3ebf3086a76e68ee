"""What the density head is measured against: basis, baseline, scales and modes of each element; from the training set.

Shells of one degree on one atom overlap strongly, so their coefficients rise and fall together, and a small error in one that
the others do not follow costs much energy. The head therefore predicts amplitudes of *modes*, combinations of an element's
shells of one degree that are orthogonal in the Coulomb metric of the atom and uncorrelated over the training set (its principal
components in that metric), each scaled by its spread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from ase.data import chemical_symbols

from mlip.data.density import DensityBasis
from mlip.errors import ConfigError, DataError

SCALE_FLOOR = 1e-4
"""Least scale of a shell: below it the spread is the noise of the fit, and dividing by it would amplify that."""
MODE_FLOOR = 1e-4
"""Least spread of a mode, in the root of a Hartree: 1e-8 Hartree of self-repulsion."""
SMALLEST_REPULSION = 1e-8
"""Least self-repulsion (Hartree) of a combination of shells: below it, two of them are the same."""
COUNT_TOLERANCE = 0.01
"""A fit in a sensible basis holds the electrons to 0.1 %; coefficients read in another basis' order are off by far more."""


class DensityFrame(Protocol):
    """The part of :class:`mlip.data.frame.Frame` that is read here."""

    atomic_numbers: np.ndarray
    charge: int
    density_coefficients: np.ndarray | None


Matrices = tuple[tuple[tuple[float, ...], ...], ...]


@dataclass(frozen=True)
class DensityReference:
    """Everything about the training set's densities that a model has to know: prediction = baseline + modes @ network.

    Attributes:
        basis: the auxiliary basis of the coefficients.
        baseline: atomic number -> one coefficient a shell: the mean over the training set for l = 0, 0 for l > 0.
        scales: atomic number -> one scale a shell (> 0): standard deviation about the baseline, over atoms and components.
        metric: in which the labels were fitted (``coulomb`` or ``overlap``), for the record.
        charges: total charges in the training set.
        electrons: atomic number -> electrons of the neutral atom in the labels: Z, less with an effective core potential.
        modes: atomic number -> for each degree a matrix ``[n_shells of l][n_modes]`` (nested tuples): what one spread of a mode
            adds to the coefficients. Empty: every shell is a mode of its own, with its scale.

    An empty ``baseline`` is 0 and an empty ``scales`` is 1 for every shell, an element missing in ``electrons`` has Z.
    """

    basis: DensityBasis
    baseline: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    scales: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    metric: str = "coulomb"
    charges: tuple[int, ...] = (0,)
    electrons: Mapping[int, float] = field(default_factory=dict)
    modes: Mapping[int, Matrices] = field(default_factory=dict)

    def of(self, z: int) -> tuple[np.ndarray, np.ndarray]:
        """Baseline and scale of one element, ``[n_shells]`` each.

        Raises:
            ConfigError: the element is not in the tables, or they do not fit the basis.
        """
        degrees = np.array(self.basis.degrees(z))
        found = []
        for name, table, default in (("baseline", self.baseline, 0.0), ("scales", self.scales, 1.0)):
            if table and z not in table:
                raise ConfigError(
                    f"no {name} for {chemical_symbols[z]}: no frame with density labels holds it; add some, or leave it out"
                )
            values = np.asarray(table[z] if table else np.full(len(degrees), default), dtype=np.float64)
            if values.shape != degrees.shape or not np.isfinite(values).all():
                raise ConfigError(f"{name} of {chemical_symbols[z]} is {values.tolist()}; {len(degrees)} numbers needed")
            found.append(values)
        baseline, scale = found
        if (baseline[degrees > 0] != 0).any() or (scale <= 0).any():
            raise ConfigError(f"{chemical_symbols[z]}: a baseline must be 0 for l > 0, and every scale above 0")
        return baseline, scale

    def modes_of(self, z: int) -> list[np.ndarray]:
        """``[n, n]`` of each degree from 0 up, n shells of that degree in their order.

        Raises:
            ConfigError: the element is not in the tables, or they do not fit the basis.
        """
        _, scale = self.of(z)
        degrees = np.array(self.basis.degrees(z))
        plain = [np.diag(scale[degrees == l]) for l in range(int(degrees.max()) + 1)]
        if not self.modes:
            return plain
        if z not in self.modes:
            raise ConfigError(f"no modes for {chemical_symbols[z]}: no frame with density labels holds it; add some")
        found = [np.array(matrix, dtype=np.float64).reshape(len(matrix), len(matrix)) for matrix in self.modes[z]]
        if [m.shape for m in found] != [m.shape for m in plain] or not all(np.isfinite(m).all() for m in found):
            raise ConfigError(f"modes of {chemical_symbols[z]}: a finite square matrix needed for the shells of each degree")
        return found

    def electrons_of(self, z: int) -> float:
        """Electrons that a neutral atom contributes to the density."""
        return float(self.electrons.get(z, z))

    def subset(self, elements: Iterable[int]) -> DensityReference:
        """The same for some of the elements."""
        kept = sorted({int(z) for z in elements})
        baseline, scales = ({z: table[z] for z in kept if z in table} for table in (self.baseline, self.scales))
        electrons = {z: self.electrons[z] for z in kept if z in self.electrons}
        modes = {z: self.modes[z] for z in kept if z in self.modes}
        return replace(self, basis=self.basis.subset(kept), baseline=baseline, scales=scales, electrons=electrons, modes=modes)

    def to_dict(self) -> dict[str, Any]:
        """JSON types only; see :meth:`from_dict`."""
        return {
            "basis": self.basis.to_dict(),
            "baseline": {str(z): list(values) for z, values in self.baseline.items()},
            "scales": {str(z): list(values) for z, values in self.scales.items()},
            "metric": self.metric,
            "charges": list(self.charges),
            "electrons": {str(z): float(count) for z, count in self.electrons.items()},
            "modes": {str(z): [[list(row) for row in matrix] for matrix in table] for z, table in self.modes.items()},
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> DensityReference:
        """The inverse of :meth:`to_dict`.

        Raises:
            KeyError, TypeError, ValueError, DataError: ``stored`` is something else.
        """
        tables = {
            name: {int(z): tuple(float(value) for value in values) for z, values in stored[name].items()}
            for name in ("baseline", "scales")
        }
        return cls(
            DensityBasis.from_dict(stored["basis"]),
            tables["baseline"],
            tables["scales"],
            str(stored["metric"]),
            tuple(int(charge) for charge in stored["charges"]),
            {int(z): float(count) for z, count in stored["electrons"].items()},
            {int(z): _matrices(table) for z, table in stored["modes"].items()},
        )


def _matrices(table: Iterable[Any]) -> Matrices:
    """Nested tuples of floats."""
    return tuple(tuple(tuple(float(value) for value in row) for row in matrix) for matrix in table)


class _ElementSums:
    """Sums over the atoms of one element: of each function, and of the products of shells of one degree."""

    def __init__(self, degrees: Iterable[int]) -> None:
        self.degrees = np.array(list(degrees))
        self.starts = np.cumsum([0, *(2 * self.degrees + 1)])
        self.count = 0
        self.sum = np.zeros(self.starts[-1])
        shells = [self.degrees == l for l in range(int(self.degrees.max()) + 1)]
        self.products = [np.zeros((which.sum(), which.sum())) for which in shells]

    def add(self, rows: np.ndarray) -> None:
        """Take note of atoms, ``[n, num_functions]``."""
        self.count += len(rows)
        self.sum += rows.sum(axis=0)
        for l, product in enumerate(self.products):
            columns = self.starts[:-1][self.degrees == l][:, None] + np.arange(2 * l + 1)
            product += np.einsum("nsm,ntm->st", rows[:, columns], rows[:, columns]) / (2 * l + 1)

    def per_shell(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Baseline and scale of every shell."""
        baseline, scales = [], []
        squares = [iter(np.diagonal(product)) for product in self.products]  # of each degree, its shells in their order
        for l, start in zip(self.degrees.tolist(), self.starts, strict=False):
            mean = float(self.sum[start]) / self.count if l == 0 else 0.0
            variance = float(next(squares[l])) / self.count - mean**2
            baseline.append(mean)
            scales.append(max(variance, SCALE_FLOOR**2) ** 0.5)
        return tuple(baseline), tuple(scales)

    def modes(self, basis: DensityBasis, z: int) -> Matrices:
        """``V = W^-T U s`` of each degree: ``W W^T`` the repulsion of the shells, ``U s^2 U^T = W^T C W``, C their covariance."""
        out = []
        for l, product in enumerate(self.products):
            covariance = product / self.count
            if l == 0:
                mean = self.sum[self.starts[:-1][self.degrees == 0]] / self.count
                covariance = covariance - np.outer(mean, mean)
            lengths, axes = np.linalg.eigh(basis.onsite_repulsion(z, l))
            root = axes * np.sqrt(np.maximum(lengths, SMALLEST_REPULSION))
            values, vectors = np.linalg.eigh(root.T @ covariance @ root)
            spread = np.sqrt(np.maximum(values[::-1], MODE_FLOOR**2))
            modes = np.linalg.solve(root.T, vectors[:, ::-1] * spread)
            largest = np.take_along_axis(modes, np.abs(modes).argmax(axis=0, keepdims=True), axis=0) if modes.size else 1.0
            out.append(modes * np.sign(largest))  # an eigenvector's sign is the library's whim
        return _matrices(out)


def density_statistics(
    frames: Iterable[DensityFrame],
    basis: DensityBasis,
    metric: str = "coulomb",
    electrons: Mapping[int, float] | None = None,
) -> DensityReference:
    """Baseline, scales and modes of a training set; frames without density labels are passed over.

    Args:
        frames: of the training set; read once, in order.
        basis: of their ``density_coefficients``; elements that occur in no labelled frame are left out of the result.
        metric: in which the labels were fitted, for the record.
        electrons: electrons of the neutral atom by atomic number where it is not Z (effective core potentials).

    Raises:
        DataError: a frame's coefficients are not finite, or not as many as the basis has functions.
        ConfigError: no frame has a label, or a label does not integrate to the electrons (another basis, or core potentials).
    """
    sums: dict[int, _ElementSums] = {}
    total_charges: set[int] = set()
    labelled = 0
    counts = electrons or {}
    for number, frame in enumerate(frames):
        if frame.density_coefficients is None:
            continue
        held = _add_frame(sums, frame, basis)
        wanted = sum(float(counts.get(int(z), z)) for z in frame.atomic_numbers) - frame.charge
        _check_count(number, frame, held, wanted, basis.name)
        labelled += 1
        total_charges.add(int(frame.charge))
    if not labelled:
        raise ConfigError("no frame has density coefficients; label with a fitting basis, or leave the density head out")
    tables = {z: sums[z].per_shell() for z in sorted(sums)}
    return DensityReference(
        basis.subset(sums),
        {z: table[0] for z, table in tables.items()},
        {z: table[1] for z, table in tables.items()},
        metric,
        tuple(sorted(total_charges)),
        {int(z): float(count) for z, count in counts.items() if z in sums},
        {z: sums[z].modes(basis, z) for z in sorted(sums)},
    )


def _check_count(number: int, frame: DensityFrame, held: float, wanted: float, name: str) -> None:
    """Every frame counts: with core potentials on some elements, only frames that hold those are off."""
    if wanted > 0 and abs(held / wanted - 1) > COUNT_TOLERANCE:
        raise ConfigError(
            f"frame {number} '{getattr(frame, 'id', '')}': its density label holds {held:.2f} electrons and should hold "
            f"{wanted:g}: it was fitted in another basis than {name}, or with effective core potentials (give the electrons of "
            "each element), or its charge is wrong"
        )


def _add_frame(sums: dict[int, _ElementSums], frame: DensityFrame, basis: DensityBasis) -> float:
    """Add the atoms of a frame; returns the electrons that its coefficients hold."""
    numbers = np.asarray(frame.atomic_numbers)
    offsets = basis.offsets(numbers)
    coefficients = np.asarray(frame.density_coefficients, dtype=np.float64)
    if len(coefficients) != offsets[-1] or not np.isfinite(coefficients).all():
        name = getattr(frame, "id", "") or "without a name"
        raise DataError(
            f"frame {name}: {len(coefficients)} density coefficients, finite: {bool(np.isfinite(coefficients).all())}; "
            f"{basis.name} has {offsets[-1]} functions on its atoms, and all must be finite; correct or remove the frame"
        )
    held = 0.0
    for z in np.unique(numbers).tolist():
        rows = coefficients[offsets[:-1][numbers == z][:, None] + np.arange(basis.num_functions(z))]
        sums.setdefault(z, _ElementSums(basis.degrees(z))).add(rows)
        held += float((rows @ basis.charges(z)).sum())
    return held
