"""What the density head is measured against: basis, baseline, scale per shell; from the training set."""

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
COUNT_TOLERANCE = 0.01
"""A fit in a sensible basis holds the electrons to 0.1 %; coefficients read in another basis' order are off by far more."""


class DensityFrame(Protocol):
    """The part of :class:`mlip.data.frame.Frame` that is read here."""

    atomic_numbers: np.ndarray
    charge: int
    density_coefficients: np.ndarray | None


@dataclass(frozen=True)
class DensityReference:
    """Everything about the training set's densities that a model has to know: prediction = baseline + scale * network.

    Attributes:
        basis: the auxiliary basis of the coefficients.
        baseline: atomic number -> one coefficient a shell: the mean over the training set for l = 0, 0 for l > 0.
        scales: atomic number -> one scale a shell (> 0): standard deviation about the baseline, over atoms and components.
        metric: in which the labels were fitted (``coulomb`` or ``overlap``), for the record.
        charges: total charges in the training set.
        electrons: atomic number -> electrons of the neutral atom in the labels: Z, less with an effective core potential.

    An empty ``baseline`` is 0 and an empty ``scales`` is 1 for every shell, an element missing in ``electrons`` has Z.
    """

    basis: DensityBasis
    baseline: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    scales: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    metric: str = "coulomb"
    charges: tuple[int, ...] = (0,)
    electrons: Mapping[int, float] = field(default_factory=dict)

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

    def electrons_of(self, z: int) -> float:
        """Electrons that a neutral atom contributes to the density."""
        return float(self.electrons.get(z, z))

    def subset(self, elements: Iterable[int]) -> DensityReference:
        """The same for some of the elements."""
        kept = sorted({int(z) for z in elements})
        baseline, scales = ({z: table[z] for z in kept if z in table} for table in (self.baseline, self.scales))
        electrons = {z: self.electrons[z] for z in kept if z in self.electrons}
        return replace(self, basis=self.basis.subset(kept), baseline=baseline, scales=scales, electrons=electrons)

    def to_dict(self) -> dict[str, Any]:
        """JSON types only; see :meth:`from_dict`."""
        return {
            "basis": self.basis.to_dict(),
            "baseline": {str(z): list(values) for z, values in self.baseline.items()},
            "scales": {str(z): list(values) for z, values in self.scales.items()},
            "metric": self.metric,
            "charges": list(self.charges),
            "electrons": {str(z): float(count) for z, count in self.electrons.items()},
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
        )


class _ElementSums:
    """Sums over the atoms of one element, per function."""

    def __init__(self, num_functions: int) -> None:
        self.count = 0
        self.sum = np.zeros(num_functions)
        self.square = np.zeros(num_functions)

    def add(self, rows: np.ndarray) -> None:
        self.count += len(rows)
        self.sum += rows.sum(axis=0)
        self.square += np.square(rows).sum(axis=0)

    def per_shell(self, degrees: Iterable[int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Baseline and scale of every shell."""
        baseline, scales, start = [], [], 0
        for l in degrees:
            part = slice(start, start + 2 * l + 1)
            mean = float(self.sum[part].mean()) / self.count if l == 0 else 0.0
            variance = float(self.square[part].mean()) / self.count - mean**2
            baseline.append(mean)
            scales.append(max(variance, SCALE_FLOOR**2) ** 0.5)
            start = part.stop
        return tuple(baseline), tuple(scales)


def density_statistics(
    frames: Iterable[DensityFrame],
    basis: DensityBasis,
    metric: str = "coulomb",
    electrons: Mapping[int, float] | None = None,
) -> DensityReference:
    """Baseline and scales of a training set; frames without density labels are passed over.

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
    tables = {z: sums[z].per_shell(basis.degrees(z)) for z in sorted(sums)}
    return DensityReference(
        basis.subset(sums),
        {z: table[0] for z, table in tables.items()},
        {z: table[1] for z, table in tables.items()},
        metric,
        tuple(sorted(total_charges)),
        {int(z): float(count) for z, count in counts.items() if z in sums},
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
        sums.setdefault(z, _ElementSums(rows.shape[1])).add(rows)
        held += float((rows @ basis.charges(z)).sum())
    return held
