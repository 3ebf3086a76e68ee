"""Errors of energies, forces, stresses and densities, accumulated in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ase.data import chemical_symbols
from ase.units import GPa
from torch import Tensor

from mlip.training.density import difference, factor_key, labelled_frames, metric_errors, quadratic_forms
from mlip.training.losses import label_differences

EV = 1000.0  # meV in one eV
UNITS = {
    "energy": "meV", "energy_per_atom": "meV/atom", "forces": "meV/A", "stress": "meV/A^3", "stress_GPa": "GPa",
    "density_coulomb": "mHa/e", "density_overlap": "%", "density_electrons": "me", "density": "sd",
    "density_pairs": "%", "energy_std": "meV", "forces_std": "meV/A",
}  # fmt: skip
SCALES = {
    "energy": EV, "energy_per_atom": EV, "forces": EV, "stress": EV, "stress_GPa": 1.0 / GPa,
    "density_coulomb": 1000.0, "density_overlap": 100.0, "density_electrons": 1000.0, "density": 1.0,
    "density_pairs": 100.0, "energy_std": EV, "forces_std": EV,
}  # fmt: skip


class ErrorSums:
    """Counts, absolute and squared errors by quantity; add batches, sum over processes, read MAE and RMSE.

    Quantities: ``energy`` (total), ``energy_per_atom``, ``forces`` (components), ``forces/<element>``, ``stress``
    (Voigt components). Sums are in eV and Angstrom, float64; reports in the units of :data:`UNITS`.

    Of densities, one number a frame: ``density_coulomb``, the self-repulsion of the error ``d (P|Q) d / 2`` per electron;
    ``density_overlap``, ``sqrt(d <P|Q> d / c <P|Q> c)``; ``density_electrons``, what the prediction holds too much before it is
    projected. One a coefficient: ``density``, ``density/<element>`` and ``density/l=<l>``, errors in units of the spread (standard
    deviation about the element's mean) of the coefficient's shell in the training set.

    Not errors: ``density_pairs``, the share of the pairs that the density head's pair gate lets through; it has a mean alone.
    ``energy_std`` and ``forces_std``, the standard deviations that the model gives where there are labels: root mean squares, to be
    compared with the errors'.

    Args:
        elements: atomic numbers that may occur.
        degrees: degrees of the coefficients; none without a density.
        pairs: count the pairs of a pair gate.
        deviations: count standard deviations.
    """

    def __init__(self, elements: Sequence[int], degrees: Sequence[int] = (), pairs: bool = False, deviations: bool = False):
        self.elements, self.degrees, self.pairs = sorted(int(z) for z in elements), sorted(degrees), pairs
        self.deviations = deviations
        self.names = ["energy", "energy_per_atom", "forces", "stress"]
        self.names += [f"forces/{chemical_symbols[z]}" for z in self.elements]
        if self.degrees:
            self.names += ["density_coulomb", "density_overlap", "density_electrons", "density"]
            self.names += [f"density/{chemical_symbols[z]}" for z in self.elements]
            self.names += [f"density/l={degree}" for degree in self.degrees]
        if self.pairs:
            self.names.append("density_pairs")
        if self.deviations:
            self.names += ["energy_std", "forces_std"]
        self.sums = torch.zeros(len(self.names), 3, dtype=torch.float64)  # count, |x|, x^2

    @torch.no_grad()
    def add(self, prediction: dict[str, Tensor], graph: dict[str, Any]) -> None:
        """Count a batch in; labels that are missing (NaN) and quantities that were not predicted are left out."""
        if "energy" in prediction:
            self._put("energy", label_differences(prediction, graph, "energy", per_atom=False))
            self._put("energy_per_atom", label_differences(prediction, graph, "energy", per_atom=True))
        if "forces" in prediction:
            self._put("forces", label_differences(prediction, graph, "forces", per_atom=False))
            self._put_by_element(prediction["forces"].double() - graph["forces"], graph["atomic_numbers"])
        if "stress" in prediction:
            self._put("stress", label_differences(prediction, graph, "stress", per_atom=False))
        if "density_coefficients" in prediction and "density_size" in graph and self.degrees:
            self._add_density(prediction, graph)
        if self.deviations and "energy_std" in prediction:
            self._put("energy_std", prediction["energy_std"][torch.isfinite(graph["energy"])])
            self._put("forces_std", prediction["forces_std"][torch.isfinite(graph["forces"]).all(1)])
        if self.pairs and "density_pairs" in prediction:
            pairs, kept = (prediction[name].detach().sum().cpu() for name in ("density_pairs", "density_pairs_kept"))
            self.sums[self.names.index("density_pairs")] += torch.stack([pairs, kept, kept])

    def _add_density(self, prediction: dict[str, Tensor], graph: dict[str, Any]) -> None:
        found = difference(prediction, graph)
        if factor_key("coulomb") in graph:
            self._put("density_coulomb", 0.5 * metric_errors(found, graph, "coulomb"))
        if factor_key("overlap") in graph:
            factors = graph[factor_key("overlap")]
            error, whole = (quadratic_forms(values, found.sizes, factors) for values in (found.values, found.label))
            self._put("density_overlap", (error / whole).sqrt())
        surplus = prediction["density_electrons"] - graph["density_wanted"]
        self._put("density_electrons", surplus[labelled_frames(graph)])
        standardised = found.values / found.scale
        self._put("density", standardised)
        self._put_by_row(standardised, found.element, [f"density/{chemical_symbols[z]}" for z in self.elements], self.elements)
        self._put_by_row(standardised, found.degree, [f"density/l={degree}" for degree in self.degrees], self.degrees)

    def _put_by_row(self, values: Tensor, kind: Tensor, names: Sequence[str], kinds: Sequence[int]) -> None:
        """Count each of ``values`` in the row of its ``kind``; all at once."""
        values, kind = values.detach().double().cpu(), kind.cpu()
        row = torch.full((max(kinds) + 1,), -1)
        row[list(kinds)] = torch.tensor([self.names.index(name) for name in names])
        self.sums.index_add_(0, row[kind], torch.stack([torch.ones_like(values), values.abs(), values.square()], dim=1))

    def empty(self) -> ErrorSums:
        """The same quantities, nothing counted."""
        return ErrorSums(self.elements, self.degrees, self.pairs, self.deviations)

    def _put(self, name: str, difference: Tensor) -> None:
        difference = difference.detach().double().cpu()
        sums = [difference.new_tensor(difference.numel()), difference.abs().sum(), difference.square().sum()]
        self.sums[self.names.index(name)] += torch.stack(sums)

    def _put_by_element(self, difference: Tensor, numbers: Tensor) -> None:
        for z in self.elements:
            rows = difference[numbers == z]
            if rows.numel():
                self._put(f"forces/{chemical_symbols[z]}", rows[torch.isfinite(rows)])

    def report(self) -> dict[str, dict[str, float]]:
        """``{quantity: {mae, rmse, count}}`` of what was labelled, ``{mean, count}`` of pairs, ``{rms, count}`` of standard
        deviations, in the units of :data:`UNITS`.
        """
        report: dict[str, dict[str, float]] = {}
        for name, (count, absolute, square) in zip(self.names, self.sums.tolist(), strict=True):
            if count == 0:
                continue
            if name == "density_pairs":
                report[name] = {"mean": absolute / count * SCALES[name], "count": int(count)}
                continue
            if name.endswith("_std"):
                report[name] = {"rms": (square / count) ** 0.5 * SCALES[name], "count": int(count)}
                continue
            mae, rmse = absolute / count, (square / count) ** 0.5
            for shown in (name, "stress_GPa") if name == "stress" else (name,):
                scale = SCALES[shown.partition("/")[0]]
                report[shown] = {"mae": mae * scale, "rmse": rmse * scale, "count": int(count)}
        return report


def unit_of(quantity: str) -> str:
    """The unit in which :meth:`ErrorSums.report` gives a quantity."""
    return UNITS[quantity.partition("/")[0]]
