"""Errors of density coefficients on a batch: differences, quadratic forms in a metric, errors of shells.

A batch carries the labels of :func:`mlip.data.graph.frame_to_graph` (``density_coefficients`` [L] of the frames that have a label,
``density_size`` [B], 0 for those without) and what :class:`mlip.training.graphs.TrainingGraphs` adds:

    density_degree, density_element, density_shell, density_scale, density_baseline, density_charge   [L]
    density_wanted [B]        electrons of each frame
    density_factor_METRIC     Cholesky factors of the metric matrices of the labelled frames, each [n, n] row by row, one after
                              the other, float32

With M = L L^T, d M d = |L^T d|^2: never negative, and single precision suffices for L. Its rounding changes the form by
about 6e-8 sqrt(cond M), that of M itself in single precision by 6e-8 cond M. Differences and sums are in float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from mlip.data.density import Metric

METRICS: tuple[Metric, ...] = get_args(Metric)
LOSS_UNIT = 1000.0
"""Penalties in a metric are in mHa (Coulomb) or 1e-3 Bohr^-3 (overlap) per electron; in whole units gradients near AdamW's eps."""
COLUMNS = ("degree", "element", "shell", "scale", "baseline", "charge")
EXTRA_KEYS = (
    "weight", "density_coefficients", "density_size", "density_wanted", *(f"density_{name}" for name in COLUMNS),
    *(f"density_factor_{metric}" for metric in METRICS),
)  # fmt: skip
"""What a graph may carry for the loss, beyond structure, energy, forces and stress."""


def factor_key(metric: Metric) -> str:
    """Key of the factors of ``metric`` in a batch."""
    return f"density_factor_{metric}"


class Difference(NamedTuple):
    """Prediction and label, and what each of the ``L`` labelled coefficients of a batch is.

    Attributes:
        values: prediction minus label ``[L]`` float64. label: ``[L]`` float64.
        frame: which of the ``b`` labelled frames ``[L]``. sizes: coefficients of each of them.
        shell: number of the shell in the batch ``[L]``, rising from 0.
        degree: l ``[L]``. element: atomic number ``[L]``. scale, baseline: of the shell in the training set ``[L]``.
        electrons: number of them in the labels ``[b]``.
    """

    values: Tensor
    label: Tensor
    frame: Tensor
    sizes: list[int]
    shell: Tensor
    degree: Tensor
    element: Tensor
    scale: Tensor
    baseline: Tensor
    electrons: Tensor


def labelled_frames(graph: dict[str, Any]) -> Tensor:
    """Indices of the frames of a batch that have a density, ``[b]``."""
    return (graph["density_size"] > 0).nonzero().squeeze(1)


def difference(prediction: dict[str, Tensor], graph: dict[str, Any]) -> Difference:
    """Compare ``density_coefficients`` [K] of all atoms, cut by ``density_ptr`` [B+1], with the labels of the batch."""
    label = graph["density_coefficients"].double()
    size = graph["density_size"]
    rows = torch.repeat_interleave(size > 0, prediction["density_ptr"].diff())
    values = prediction["density_coefficients"][rows].double() - label
    sizes = size[size > 0]
    frame = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
    first = torch.ones_like(frame, dtype=torch.bool)  # of its shell
    first[1:] = (frame.diff() != 0) | (graph["density_shell"].diff() != 0)
    electrons = label.new_zeros(len(sizes)).index_add(0, frame, graph["density_charge"].double() * label)
    return Difference(
        values, label, frame, sizes.tolist(), torch.cumsum(first, 0) - 1, graph["density_degree"], graph["density_element"],
        graph["density_scale"].double(), graph["density_baseline"].double(), electrons.clamp(min=1.0),
    )  # fmt: skip


def quadratic_forms(values: Tensor, sizes: list[int], factors: Tensor) -> Tensor:
    """v M v of each frame ``[b]`` float64; ``values`` ``[L]``, ``factors`` as in a batch.

    A loop over frames: to pad the matrices to one size would move more memory than the products do.
    """
    parts = values.split(sizes)
    blocks = factors.split([size * size for size in sizes])
    forms = [
        (part @ block.view(size, size).double()).square().sum() for part, block, size in zip(parts, blocks, sizes, strict=True)
    ]
    return torch.stack(forms) if forms else values.new_zeros(0)


def metric_errors(found: Difference, graph: dict[str, Any], metric: Metric) -> Tensor:
    """d M d / N of each labelled frame ``[b]`` float64, per electron: Hartree (Coulomb) or Bohr^-3 (overlap)."""
    return quadratic_forms(found.values, found.sizes, graph[factor_key(metric)]) / found.electrons


def shell_errors(found: Difference, kind: str) -> tuple[Tensor, Tensor]:
    """``l1`` |x| or ``l2`` x^2 of each shell, and its frame; x^2 = mean_m (d_m / scale)^2, unchanged by rotations."""
    count = int(found.shell[-1]) + 1 if len(found.shell) else 0
    share = (found.values / found.scale).square() / (2 * found.degree + 1)
    squares = share.new_zeros(count).index_add(0, found.shell, share)
    frame = found.frame.new_zeros(count).index_copy(0, found.shell, found.frame)
    if kind == "l2":
        return squares, frame
    positive = squares > 0  # the slope of the root at 0 is infinite: 0 is taken there
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0), frame


def density_penalty(prediction: dict[str, Tensor], graph: dict[str, Any], kind: str) -> tuple[Tensor, Tensor]:
    """Penalties of a loss (see :class:`mlip.config.DensityTerm`), of frames or of shells ``[n]``, and the frame of each ``[n]``."""
    found = difference(prediction, graph)
    if kind in ("coulomb", "overlap"):
        errors = metric_errors(found, graph, "coulomb" if kind == "coulomb" else "overlap")
        return LOSS_UNIT * errors, labelled_frames(graph)
    penalties, frame = shell_errors(found, kind)
    return penalties, labelled_frames(graph).index_select(0, frame)
