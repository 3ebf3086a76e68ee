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
from mlip.training.losses import TERMS, atoms_per_graph, loss_sums
from mlip.training.metrics import ErrorSums

PARITY_POINTS = 200_000


@dataclass
class Parity:
    """Labels and predictions side by side, for plots.

    Attributes:
        e0: reference energies by atomic number ``[118 + 1]``, eV; energies are kept relative to them, where given.
        energy: eV/atom. forces: eV/Angstrom, with the atoms' numbers in ``forces_elements``. stress: eV/Angstrom^3.
    """

    e0: Tensor | None = None
    energy: list[np.ndarray] = field(default_factory=list)
    forces: list[np.ndarray] = field(default_factory=list)
    forces_elements: list[np.ndarray] = field(default_factory=list)
    stress: list[np.ndarray] = field(default_factory=list)

    def add(self, prediction: dict[str, Tensor], graph: dict[str, Any]) -> None:
        """Keep a batch's labelled numbers, up to :data:`PARITY_POINTS` of each kind."""
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

    @staticmethod
    def _keep(store: list[np.ndarray], label: Tensor, predicted: Tensor) -> None:
        label, predicted = label.detach().double().flatten(), predicted.detach().double().flatten()
        known = torch.isfinite(label)
        if known.any() and sum(part.shape[1] for part in store) < PARITY_POINTS:
            store.append(torch.stack([label[known], predicted[known]]).cpu().numpy())


@dataclass
class Evaluation:
    """Outcome of one pass: errors; penalty sums ``[3]`` and their counts ``[3]`` of energy, forces, stress."""

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
        model: takes a graph dict, returns ``energy``, ``forces`` and ``stress`` (eV, Angstrom).
        batches: graph dicts on the model's device.
        elements: atomic numbers that may occur.
        loss: also sum these penalties. terms: of these labels.
        stress: compute stresses, for batches that have stress labels.
        collect: keep labels and predictions for parity plots.
    """
    errors = ErrorSums(list(elements))
    penalties = torch.zeros(len(TERMS), dtype=torch.float64)
    counts = torch.zeros(len(TERMS), dtype=torch.float64)
    parity = Parity(reference_table(model)) if collect else None
    with evaluating(model), torch.enable_grad():
        for graph in batches:
            wanted = stress and bool(torch.isfinite(graph["stress"]).any())
            prediction = model(graph, compute_forces=True, compute_stress=wanted)
            prediction = {name: value.detach() for name, value in prediction.items()}
            if not wanted:
                prediction.pop("stress", None)
            errors.add(prediction, graph)
            if loss is not None:
                sums, number = loss_sums(prediction, graph, loss, [name for name in terms if name in prediction])
                counts += number.cpu()
                for index, name in enumerate(TERMS):
                    if name in sums:
                        penalties[index] += sums[name].double().cpu()
            if parity is not None:
                parity.add(prediction, graph)
    return Evaluation(errors, penalties, counts, parity)
