"""Fits the standard deviations of :mod:`mlip.models.uncertainty` to finished weights: one pass over the training frames, one over
the validation frames. Sums are float64; nothing is kept of a training frame but its share of two small matrices.

Validation frames of one trajectory resemble the training frames between which they lie: errors on them, and so what is fitted here,
are smaller than on a trajectory of its own. Split by trajectory or molecule (``data.split_by``) for honest numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mlip.data.frame import Frame, count_atoms
from mlip.data.graph import GraphDataset
from mlip.models import Potential
from mlip.models.geometry import edge_vectors
from mlip.models.uncertainty import Uncertainty
from mlip.training.loader import evaluation_batches, load_batches, to_device
from mlip.training.prepare import subset

FIT_FRAMES = 20_000
"""Of more training frames so many are taken, evenly spread."""
MIN_FRAMES = 5
"""Fewer validation frames with energy and forces fix no scale."""
MIN_ATOMS = 30
"""Elements with fewer validation atoms take the scale of all."""
RIDGE = 1e-6
"""Of both matrices, in units of their mean eigenvalue: above the rounding of float32 features, and small, that directions without
data stay open. The likelihood of validation errors, which lie in no such direction, cannot choose it. Sulfur that was hardly
trained on was told from test molecules (first organics model of benchmarks/uncertainty.py) with an area under the ROC curve of 0.98
by the energy and 0.99 by the forces at 1e-6, 0.81 and 0.80 at 1e-2, 0.50 and 0.36 at 1."""


class Sample(NamedTuple):
    """Validation frames: totals of linear features ``[B, m]`` and energy errors ``[B]``; of their atoms features ``[N, d]``,
    element indices ``[N]`` and mean squared force errors ``[N]`` (per component)."""

    totals: Tensor
    energy_errors: Tensor
    features: Tensor
    species: Tensor
    force_errors: Tensor


def fit_uncertainty(model: Potential, train: Sequence[Frame], valid: Sequence[Frame]) -> str:
    """Set ``model.uncertainty``; returns one line about it, or about why it cannot be fitted (it is then ``None``).

    Args:
        model: finished, in evaluation mode; its energies and forces do not change.
        train: what it was trained on. valid: frames with energies and forces that it was not.
    """
    model.uncertainty = None
    if not model.has_energy:
        return ""
    sample = _sample(model, valid)
    if len(sample.energy_errors) < MIN_FRAMES or len(sample.force_errors) < MIN_FRAMES:
        return f"no energy_std and forces_std: fewer than {MIN_FRAMES} validation frames have both energy and forces"
    by_frame, by_atom, frames = _matrices(model, subset(train, FIT_FRAMES))
    energy_factor = _energy_factor(by_frame, sample)
    local_factor = _local_factor(by_atom, sample)
    scale = _element_scales(sample, local_factor, len(model.elements))
    about = {
        "method": "last layer", "train_frames": frames, "valid_frames": len(sample.energy_errors), "ridge": RIDGE,
        "valid_energy_rmse_eV": float(sample.energy_errors.square().mean().sqrt()),
        "valid_forces_rmse_eV_A": float(sample.force_errors.mean().sqrt()),
    }  # fmt: skip
    device = next(model.parameters()).device
    model.uncertainty = Uncertainty(energy_factor, local_factor, scale, about).to(device)
    return f"energy_std and forces_std fitted to {frames} training and {len(sample.energy_errors)} validation frames"


def _graphs(model: Potential, frames: Sequence[Frame]) -> Iterator[dict[str, Any]]:
    device = next(model.parameters()).device
    dataset = GraphDataset(frames, model.cutoff, cache_bytes=0)
    for graph in load_batches(dataset, evaluation_batches(count_atoms(frames).tolist(), None)):
        yield to_device(graph, device)


@torch.no_grad()
def last_features(model: Potential, graph: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Features ``[N, d]`` of a batch's atoms, and sums ``[B, m]`` of the linear ones; eV, float64, on the CPU."""
    species = model.species(graph["atomic_numbers"])
    edges = (graph["edge_index"], graph["edge_shift"], graph["batch"])
    vectors = edge_vectors(graph["positions"], graph["cell"], *edges)
    features = model.last_features(model.node_features(species, vectors, graph["edge_index"]), species)
    assert model.head is not None
    linear = features[:, : model.head.num_linear]
    total = linear.new_zeros(int(graph["num_graphs"]), linear.shape[1]).index_add(0, graph["batch"], linear)
    return features.cpu(), total.cpu()


def _matrices(model: Potential, frames: Sequence[Frame]) -> tuple[Tensor, Tensor, int]:
    """Sums of the outer products of frames' ``[m, m]`` and of atoms' features ``[d, d]``, and how many frames they are."""
    by_frame, by_atom, count = torch.zeros(()).double(), torch.zeros(()).double(), 0
    for graph in _graphs(model, frames):
        features, total = last_features(model, graph)
        known = torch.isfinite(graph["energy"]).cpu()
        by_frame = by_frame + total[known].T @ total[known]
        by_atom = by_atom + features.T @ features
        count += len(total)
    return by_frame, by_atom, count


def _sample(model: Potential, frames: Sequence[Frame]) -> Sample:
    parts: list[Sample] = []
    for graph in _graphs(model, frames):
        output = model(graph, compute_forces=True, compute_density=False)
        features, totals = last_features(model, graph)
        energy = (output["energy"].detach() - graph["energy"]).cpu()
        forces = (output["forces"].detach() - graph["forces"]).square().mean(1).cpu()
        species = model.species(graph["atomic_numbers"]).cpu()
        kept, atoms = torch.isfinite(energy), torch.isfinite(forces)
        parts.append(Sample(totals[kept], energy[kept], features[atoms], species[atoms], forces[atoms]))
    return Sample(*(torch.cat(column) for column in zip(*parts, strict=True))) if parts else Sample(*(torch.zeros(0),) * 5)


def _factor(matrix: Tensor) -> Tensor:
    """W with W W^T the inverse of the matrix and the ridge: ``x (A + r)^-1 x = |x W|^2``."""
    unit = torch.eye(len(matrix), dtype=matrix.dtype)
    mean = float(matrix.diagonal().mean()) or 1.0
    lower = torch.linalg.cholesky(matrix + RIDGE * mean * unit)
    return torch.linalg.solve_triangular(lower, unit, upper=False).T.contiguous()


def _energy_factor(by_frame: Tensor, sample: Sample) -> Tensor:
    """Scaled by a, which makes the validation errors likeliest: a^2 is their mean square in units of the variance."""
    factor = _factor(by_frame)
    variances = (sample.totals @ factor).square().sum(1)
    there = variances > 0
    scale = (sample.energy_errors[there].square() / variances[there]).mean()
    return factor * scale.sqrt()


def _local_factor(by_atom: Tensor, sample: Sample) -> Tensor:
    """Scaled to a mean square of 1 over the validation atoms."""
    factor = _factor(by_atom)
    return factor / (sample.features @ factor).square().sum(1).mean().sqrt()


def _element_scales(sample: Sample, factor: Tensor, elements: int) -> Tensor:
    """c_Z ``[Z]``, eV/Angstrom: an element's mean variance over the validation atoms is its mean squared error."""
    squares = (sample.features @ factor).square().sum(1)
    scales = (sample.force_errors.mean() / squares.mean()).expand(elements).clone()
    for place in range(elements):
        mine = sample.species == place
        if int(mine.sum()) >= MIN_ATOMS:
            scales[place] = sample.force_errors[mine].mean() / squares[mine].mean()
    return scales.sqrt()
