"""Losses of energy, forces, stress and density, masked where a label is missing and normalised over all processes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from mlip.config import TERMS, LossSection, LossTerm
from mlip.models import PairGateConfig
from mlip.training.density import density_penalty

__all__ = ["TERMS", "atoms_per_graph", "label_differences", "loss_sums", "pair_penalty", "penalty", "total_loss"]


def penalty(difference: Tensor, kind: str, delta: float) -> Tensor:
    """Element-wise l1 ``|x|``, l2 ``x^2``, or huber: ``x^2/2`` below ``delta``, else ``delta (|x| - delta/2)``."""
    if kind == "l1":
        return difference.abs()
    if kind == "l2":
        return difference.square()
    size = difference.abs()
    return torch.where(size < delta, 0.5 * difference.square(), delta * (size - 0.5 * delta))


def atoms_per_graph(graph: dict[str, Any]) -> Tensor:
    """Atoms in each graph of a batch, ``[B]`` int64."""
    return torch.bincount(graph["batch"], minlength=int(graph["num_graphs"]))


def label_differences(prediction: dict[str, Tensor], graph: dict[str, Any], name: str, per_atom: bool) -> Tensor:
    """Prediction minus label of the labels that exist, flat: eV/atom or eV, eV/Angstrom, eV/Angstrom^3."""
    label = graph[name]
    predicted = prediction[name].to(label.dtype)
    if name == "energy" and per_atom:
        atoms = atoms_per_graph(graph).to(label.dtype)
        predicted, label = predicted / atoms, label / atoms
    known = torch.isfinite(label)
    return predicted[known] - label[known]


def loss_sums(
    prediction: dict[str, Tensor], graph: dict[str, Any], config: LossSection, terms: Collection[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """Unweighted sums of the penalties of a batch by term, and how many labels each sums over, ``[len(TERMS)]`` float64.

    Where the batch has a ``weight`` [B], of mean 1 over the training set, each penalty is multiplied by its frame's. Numbers of
    labels stay plain: divided by a batch's own sum of weights, a batch of one frame would know nothing of its weight.

    Args:
        terms: which of :data:`TERMS` to sum; each must be in ``prediction``.
    """
    sums: dict[str, Tensor] = {}
    counts = torch.zeros(len(TERMS), dtype=torch.float64, device=graph["batch"].device)
    for index, name in enumerate(TERMS):
        if name not in terms:
            continue
        if name == "density":
            penalties, frame = density_penalty(prediction, graph, config.density.kind)
        else:
            term: LossTerm = getattr(config, name)
            difference = label_differences(prediction, graph, name, per_atom=getattr(term, "per_atom", False))
            penalties, frame = penalty(difference, term.kind, term.delta), None
        if "weight" in graph:
            frame = _frames_of_labels(graph, name) if frame is None else frame
            penalties = graph["weight"].index_select(0, frame) * penalties
        sums[name], counts[index] = penalties.sum(), penalties.numel()
    return sums, counts


def _frames_of_labels(graph: dict[str, Any], name: str) -> Tensor:
    """The frame of each of :func:`label_differences`."""
    known = torch.isfinite(graph[name])
    frame = graph["batch"] if name == "forces" else torch.arange(len(known), device=known.device)
    return frame.view(-1, *[1] * (known.dim() - 1)).expand(known.shape)[known]


def total_loss(
    sums: dict[str, Tensor],
    counts: Tensor,
    weights: dict[str, float],
    world_size: int = 1,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """``sum_t weight_t * sum_t / count_t``, with counts over all processes.

    Parallel training averages the gradients of the processes, so each one's share is multiplied by their number: the
    averaged gradient is then that of one process with the whole batch.

    Args:
        reduce: sums a tensor over all processes.
    """
    overall = counts if reduce is None else reduce(counts)
    total = torch.zeros((), dtype=torch.float64, device=counts.device)
    for index, name in enumerate(TERMS):
        if name in sums:
            count = torch.where(overall[index] > 0, overall[index], 1.0)
            total = total + weights[name] * world_size * sums[name] / count
    return total


def pair_penalty(
    prediction: dict[str, Tensor],
    gate: PairGateConfig,
    done: float = 1.0,
    world_size: int = 1,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """``strength (s - aim)^2``, s the share of a step's pairs that the gate shuts, over all processes; float64.

    A count has no derivative: the value is that of the true share, the gradient that of the soft one. It points both ways, as the
    error of the density has no gradient that could open a shut pair again.

    Args:
        done: share of the run that is done; the aim rises with it to the gate's sparsity.
        reduce: sums a tensor over all processes; their gradients are averaged, as in :func:`total_loss`.
    """
    counts = torch.stack([prediction["density_pairs_kept"].sum(), prediction["density_pairs"].sum()])
    kept, pairs = counts if reduce is None else reduce(counts)
    pairs = pairs.clamp(min=1.0)
    soft = world_size * prediction["density_pairs_soft"].sum().double() / pairs
    share = kept / pairs + soft - soft.detach()
    return gate.strength * (1.0 - share - gate.aim(done)).square()
