"""The candidates of benchmarks/uncertainty.py, each as numbers by frame and by atom.

last layer   mlip.models.uncertainty, what the product gives
posterior    of the force: derivatives of the last features through the same covariance (Bigi et al., arXiv 2403.02251), exact
committee    standard deviation over independently seeded models; its errors are those of the mean
distance     from the mean of an element's scalar features, in units of their covariance over the training atoms
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlip.data.frame import Frame, count_atoms
from mlip.data.graph import GraphDataset
from mlip.models import Potential
from mlip.models.geometry import edge_vectors, forces_from_edges
from mlip.models.uncertainty import Uncertainty
from mlip.training.loader import evaluation_batches, load_batches
from mlip.training.uncertainty import last_features

METHODS = ("last layer", "posterior", "committee", "distance")


class Distance(NamedTuple):
    """Means ``[Z, C]`` and whitening matrices ``[Z, C, C]`` of the elements' scalars."""

    means: Tensor
    whitening: Tensor


def batches(frames: Sequence[Frame], cutoff: float) -> Iterator[dict[str, Any]]:
    """Graphs of at most 240 atoms."""
    dataset = GraphDataset(frames, cutoff, cache_bytes=0)
    yield from load_batches(dataset, evaluation_batches(count_atoms(frames).tolist(), None, 240))


def fit_distance(model: Potential, frames: Sequence[Frame]) -> Distance:
    """From the training frames."""
    assert model.head is not None
    parts, kinds = [], []
    for graph in batches(frames, model.cutoff):
        parts.append(last_features(model, graph)[0][:, model.head.num_linear :])
        kinds.append(model.species(graph["atomic_numbers"]))
    features, species = torch.cat(parts), torch.cat(kinds)
    means, whitening = [], []
    for place in range(len(model.elements)):
        mine = features[species == place]
        mean = mine.mean(0)
        covariance = (mine - mean).T @ (mine - mean) / len(mine)
        ridge = 1e-6 * features.square().mean() * torch.eye(len(mean)).double()
        means.append(mean)
        whitening.append(torch.linalg.cholesky(torch.linalg.inv(covariance + ridge)))
    return Distance(torch.stack(means), torch.stack(whitening))


def force_posterior(model: Potential, graph: dict[str, Any]) -> Tensor:
    """Standard deviation of a force component of each atom, its mean square over x, y, z ``[N]``; one derivative a feature."""
    assert model.head is not None and isinstance(model.uncertainty, Uncertainty)
    species, edges = model.species(graph["atomic_numbers"]), graph["edge_index"]
    vectors = edge_vectors(graph["positions"], graph["cell"], edges, graph["edge_shift"], graph["batch"]).requires_grad_()
    node = model.node_features(species, vectors, edges)
    features = model.head.features(node.features[:, 0], species, node.coordination)[:, : model.head.num_linear]
    variance = features.new_zeros(len(species))
    for column in (features @ model.uncertainty.energy_factor).sum(0):
        (gradient,) = torch.autograd.grad(column, vectors, retain_graph=True)
        variance += forces_from_edges(gradient, edges, len(species)).detach().square().mean(1)
    return variance.sqrt()


def by_method(members: Sequence[Potential], distance: Distance, frames: Sequence[Frame]) -> dict[str, Any]:
    """Errors and standard deviations; lists, JSON types.

    Returns:
        ``frame`` of each atom; ``error``: ``{single, committee}`` and ``std``: by method, each ``{energy: [B] eV, forces: [N]
        eV/Angstrom}``, where forces are root mean squares of components. Only the last layer's are calibrated.
    """
    model, assigned, count = members[0], [], 0
    rows: dict[tuple[str, str, str], list[Tensor]] = {}
    for graph in batches(frames, model.cutoff):
        outputs = [member(graph, compute_uncertainty=member is model) for member in members]
        energy, forces = (torch.stack([out[key].detach() for out in outputs]) for key in ("energy", "forces"))
        features = last_features(model, graph)[0][:, model.head.num_linear :]  # type: ignore[union-attr]
        species = model.species(graph["atomic_numbers"])
        offset = torch.einsum("nc,ncd->nd", features - distance.means[species], distance.whitening[species])
        found = {
            ("error", "single", "energy"): energy[0] - graph["energy"],
            ("error", "single", "forces"): (forces[0] - graph["forces"]).square().mean(1).sqrt(),
            ("error", "committee", "energy"): energy.mean(0) - graph["energy"],
            ("error", "committee", "forces"): (forces.mean(0) - graph["forces"]).square().mean(1).sqrt(),
            ("std", "last layer", "energy"): outputs[0]["energy_std"],
            ("std", "last layer", "forces"): outputs[0]["forces_std"],
            ("std", "posterior", "forces"): force_posterior(model, graph),
            ("std", "committee", "energy"): energy.std(0),
            ("std", "committee", "forces"): forces.var(0).mean(1).sqrt(),
            ("std", "distance", "forces"): torch.linalg.vector_norm(offset, dim=1),
        }
        for key, value in found.items():
            rows.setdefault(key, []).append(value)
        assigned.append(graph["batch"].numpy() + count)
        count += int(graph["num_graphs"])
    result: dict[str, Any] = {"frame": np.concatenate(assigned).tolist(), "error": {}, "std": {}}
    for (kind, method, what), values in rows.items():
        result[kind].setdefault(method, {})[what] = torch.cat(values).tolist()
    return result
