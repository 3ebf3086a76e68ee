"""One evaluation for every purpose: validation while training, the final tables, ``mlip eval``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlip.config import LossSection
from mlip.training.density import difference
from mlip.training.losses import TERMS, atoms_per_graph, loss_sums
from mlip.training.metrics import ErrorSums
from mlip.training.predict import density_degrees, has_energy, has_uncertainty, pair_gate_of, predict

PARITY_POINTS = 200_000


@dataclass
class Parity:
    """Labels and predictions side by side, for plots.

    Attributes:
        e0: reference energies by atomic number ``[118 + 1]``, eV; energies are kept relative to them, where given.
        energy: eV/atom. forces: eV/Angstrom, with the atoms' numbers in ``forces_elements``. stress: eV/Angstrom^3.
        density: coefficients by degree, in units of the spread of their shells; l = 0 relative to its mean in the training set.
            density_elements: the atomic number of each.
        energy_std, forces_std: absolute error (of a force: root mean square of its components) beside the standard deviation, eV
            and eV/Angstrom.
    """

    e0: Tensor | None = None
    energy: list[np.ndarray] = field(default_factory=list)
    forces: list[np.ndarray] = field(default_factory=list)
    forces_elements: list[np.ndarray] = field(default_factory=list)
    stress: list[np.ndarray] = field(default_factory=list)
    density: dict[int, list[np.ndarray]] = field(default_factory=dict)
    density_elements: dict[int, list[np.ndarray]] = field(default_factory=dict)
    energy_std: list[np.ndarray] = field(default_factory=list)
    forces_std: list[np.ndarray] = field(default_factory=list)

    def add(self, prediction: dict[str, Tensor], graph: dict[str, Any]) -> None:
        """Keep a batch's labelled numbers, up to :data:`PARITY_POINTS` of each kind."""
        if "energy" in prediction:
            self._add_energy(prediction, graph)
        if "density_coefficients" in prediction and "density_size" in graph:
            self._add_density(prediction, graph)

    def _add_energy(self, prediction: dict[str, Tensor], graph: dict[str, Any]) -> None:
        atoms = atoms_per_graph(graph)
        reference = torch.zeros_like(graph["energy"])
        if self.e0 is not None:
            e0 = self.e0.to(reference.device)[graph["atomic_numbers"]]
            reference = reference.index_add(0, graph["batch"], e0)
        self._keep(self.energy, (graph["energy"] - reference) / atoms, (prediction["energy"] - reference) / atoms)
        if "forces" in prediction:
            rows = torch.isfinite(graph["forces"]).all(dim=1)
            if rows.any() and sum(map(len, self.forces_elements)) * 3 < PARITY_POINTS:
                self._keep(self.forces, graph["forces"][rows], prediction["forces"][rows])
                self.forces_elements.append(graph["atomic_numbers"][rows].cpu().numpy())
        if "stress" in prediction:
            self._keep(self.stress, graph["stress"], prediction["stress"])
        if "energy_std" in prediction:
            self._keep(self.energy_std, (prediction["energy"] - graph["energy"]).abs(), prediction["energy_std"])
            errors = (prediction["forces"].double() - graph["forces"]).square().mean(1).sqrt()
            self._keep(self.forces_std, errors, prediction["forces_std"])

    def _add_density(self, prediction: dict[str, Tensor], graph: dict[str, Any]) -> None:
        found = difference(prediction, graph)
        label = (found.label - found.baseline) / found.scale
        predicted = label + found.values / found.scale
        for degree in torch.unique(found.degree).tolist():
            store, elements = self.density.setdefault(degree, []), self.density_elements.setdefault(degree, [])
            chosen = found.degree == degree
            if sum(map(len, elements)) < PARITY_POINTS:
                self._keep(store, label[chosen], predicted[chosen])
                elements.append(found.element[chosen].cpu().numpy())

    @staticmethod
    def _keep(store: list[np.ndarray], label: Tensor, predicted: Tensor) -> None:
        label, predicted = label.detach().double().flatten(), predicted.detach().double().flatten()
        known = torch.isfinite(label)
        if known.any() and sum(part.shape[1] for part in store) < PARITY_POINTS:
            store.append(torch.stack([label[known], predicted[known]]).cpu().numpy())


@dataclass
class Evaluation:
    """Outcome of one pass: errors; sums of the penalties of :data:`mlip.config.TERMS` and how many they are."""

    errors: ErrorSums
    penalties: Tensor
    counts: Tensor
    parity: Parity | None = None

    def loss(self, weights: dict[str, float]) -> float:
        """The weighted loss over the whole pass."""
        means = self.penalties / self.counts.clamp(min=1.0)
        return float(sum(weights.get(name, 0.0) * means[index] for index, name in enumerate(TERMS)))

    def tensors(self) -> list[Tensor]:
        """What is to be summed over processes."""
        return [self.errors.sums, self.penalties, self.counts]


def _predicted(terms: Collection[str], prediction: dict[str, Tensor]) -> list[str]:
    return [name for name in terms if (name if name != "density" else "density_coefficients") in prediction]


def reference_table(model: nn.Module) -> Tensor | None:
    """A model's E0 by atomic number ``[119]``, eV, float64; ``None`` where it has none."""
    e0 = getattr(model, "e0", None)
    if not isinstance(e0, dict):
        return None
    table = torch.zeros(119, dtype=torch.float64)
    for number, energy in e0.items():
        table[number] = energy
    return table


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within, ``model`` is in eval mode; after, as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def evaluate(
    model: nn.Module,
    batches: Iterable[dict[str, Any]],
    elements: Iterable[int],
    *,
    loss: LossSection | None = None,
    terms: Collection[str] = TERMS,
    stress: bool = True,
    collect: bool = False,
) -> Evaluation:
    """Compare a potential with the labels of all batches.

    Args:
        model: takes a graph dict, returns ``energy``, ``forces`` and ``stress`` (eV, Angstrom), ``density_coefficients``.
        batches: graph dicts on the model's device.
        elements: atomic numbers that may occur.
        loss: also sum these penalties. terms: of these labels.
        stress: compute stresses, for batches that have stress labels.
        collect: keep labels and predictions for parity plots.
    """
    errors = ErrorSums(list(elements), density_degrees(model), pair_gate_of(model) is not None, has_uncertainty(model))
    penalties = torch.zeros(len(TERMS), dtype=torch.float64)
    counts = torch.zeros(len(TERMS), dtype=torch.float64)
    parity = Parity(reference_table(model)) if collect else None
    with evaluating(model), torch.set_grad_enabled(has_energy(model)):
        for graph in batches:
            wanted = stress and bool(torch.isfinite(graph["stress"]).any())
            prediction = {name: value.detach() for name, value in predict(model, graph, stress=wanted).items()}
            errors.add(prediction, graph)
            if loss is not None:
                sums, number = loss_sums(prediction, graph, loss, _predicted(terms, prediction))
                counts += number.cpu()
                for index, name in enumerate(TERMS):
                    if name in sums:
                        penalties[index] += sums[name].double().cpu()
            if parity is not None:
                parity.add(prediction, graph)
    return Evaluation(errors, penalties, counts, parity)
