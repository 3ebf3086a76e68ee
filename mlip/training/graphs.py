"""Graphs of a run: with metric matrices for the density, and a weight, where the run needs them."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mlip.data.density import DensityBasis, Metric, metric_matrix
from mlip.data.frame import Frame, frame_extra
from mlip.data.graph import Graph, GraphDataset
from mlip.errors import ConfigError
from mlip.models import DensityReference
from mlip.training.density import COLUMNS, METRICS, factor_key


def available_metrics() -> tuple[Metric, ...]:
    """The metrics whose matrices can be had: none without PySCF."""
    return METRICS if importlib.util.find_spec("pyscf") else ()


def metric_factor(basis: DensityBasis, frame: Frame, metric: Metric) -> np.ndarray:
    """``[K, K]`` L with L L^T the metric matrix; by eigenvalues, negative ones 0, where rounding spoils Cholesky's way.

    Raises:
        ConfigError: PySCF, whose integrals these are, is not installed.
    """
    try:
        matrix = metric_matrix(basis, frame.atomic_numbers, frame.positions, metric)
    except ImportError:
        raise ConfigError(
            f"the {metric} metric needs PySCF: pip install 'mlip-scf-accel[scf]', or choose loss.density.kind l1 or l2"
        ) from None
    try:
        return np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(matrix)
        return vectors * np.sqrt(np.clip(values, 0.0, None))


class LabelColumns:
    """What each coefficient of an atom is, by element: the ``[L]`` keys of :mod:`mlip.training.density` for a frame."""

    def __init__(self, reference: DensityReference):
        self.reference = reference
        self.of_element = {z: self._columns(z) for z in reference.basis.elements}

    def _columns(self, z: int) -> dict[str, np.ndarray]:
        basis = self.reference.basis
        baseline, scale = self.reference.of(z)
        degrees = np.array(basis.degrees(z), dtype=np.int64)
        shell = np.repeat(np.arange(len(degrees)), 2 * degrees + 1)
        columns = {"degree": degrees[shell], "shell": shell, "scale": scale[shell], "baseline": baseline[shell]}
        return {**columns, "charge": basis.charges(z), "element": np.full(len(shell), z, dtype=np.int64)}

    def of(self, frame: Frame, labelled: bool) -> dict[str, Tensor]:
        """The keys for one frame; nothing but the electrons without a label."""
        numbers = np.asarray(frame.atomic_numbers)
        electrons = sum(self.reference.electrons_of(int(z)) for z in numbers) - frame.charge
        atoms = [self.of_element[int(z)] for z in numbers] if labelled else []
        parts = {name: [columns[name] for columns in atoms] for name in COLUMNS}
        # shells that follow each other must differ: across atoms they are numbered on
        starts = np.cumsum([0, *(len(columns["shell"]) for columns in atoms)])
        parts["shell"] = [part + start for part, start in zip(parts["shell"], starts, strict=False)]
        keys = {f"density_{name}": _joined(name, values) for name, values in parts.items()}
        return {**keys, "density_wanted": torch.tensor([electrons], dtype=torch.float64)}


def _joined(name: str, values: list[np.ndarray]) -> Tensor:
    dtype = torch.float64 if name in ("scale", "baseline", "charge") else torch.int64
    return torch.from_numpy(np.concatenate(values)).to(dtype) if values else torch.zeros(0, dtype=dtype)


class TrainingGraphs(GraphDataset):
    """Graphs, with the keys of :mod:`mlip.training.density` and ``weight`` [1] if asked for, in memory under one byte budget.

    Args:
        frames, cutoff, cache_bytes: see :class:`mlip.data.graph.GraphDataset`.
        reference: of the density labels; ``None`` leaves them out.
        metrics: whose factors the frames with a density carry.
        weights: ``[N]`` weights of the frames in the loss; ``None``: the graphs carry none.
    """

    def __init__(
        self, frames: Sequence[Frame], cutoff: float, cache_bytes: int = 0, reference: DensityReference | None = None,
        metrics: Sequence[Metric] = (), weights: np.ndarray | None = None,
    ):  # fmt: skip
        super().__init__(frames, cutoff, cache_bytes, density_basis=reference.basis if reference else None)
        self.columns = LabelColumns(reference) if reference else None
        self.metrics = tuple(metrics)
        self.weights = weights
        self._whole: set[int] = set()

    @property
    def makes_metrics(self) -> bool:
        """Whether integrals are computed: PySCF's OpenMP may hang in a process that was forked."""
        return self.columns is not None and bool(self.metrics)

    def __getitem__(self, index: int) -> Graph:
        index = int(index)
        graph = super().__getitem__(index)
        if index in self._whole or (self.columns is None and self.weights is None):
            return graph
        extra = self._extra(index, graph)
        size = sum(value.numel() * value.element_size() for value in extra.values())
        if index in self._cache and size <= self._room:
            self._room -= size
            self._whole.add(index)
        else:
            graph = copy.copy(graph)  # the cached one stays as small as it is
        for key, value in extra.items():
            graph[key] = value
        return graph

    def _extra(self, index: int, graph: Graph) -> dict[str, Tensor]:
        """What this class adds to ``graph``, of frame ``index`` or of the filler ``-1 - i`` made of frame ``i``."""
        extra: dict[str, Tensor] = {}
        if self.weights is not None:
            extra["weight"] = torch.tensor([self.weights[index if index >= 0 else -1 - index]], dtype=torch.float64)
        if self.columns is not None:
            frame, labelled = self.frames[index if index >= 0 else -1 - index], int(graph["density_size"]) > 0
            extra |= self.columns.of(frame, labelled)
            for metric in self.metrics:
                extra[factor_key(metric)] = self._factor(frame, metric) if labelled else torch.zeros(0)
        return extra

    def _factor(self, frame: Frame, metric: Metric) -> Tensor:
        assert self.columns is not None
        factor = metric_factor(self.columns.reference.basis, frame, metric)
        return torch.from_numpy(factor.astype(np.float32).ravel())


def frame_weights(frames: Sequence[Frame], rules: Mapping[str, Mapping[str, float]]) -> np.ndarray:
    """``[N]`` weights of mean 1, proportional to the product of what the extras' rules say (of the starts that match, the longest).

    Raises:
        ConfigError: no frame has the extra, or a start matches no frame.
    """
    weights = np.ones(len(frames))
    for name, starts in rules.items():
        values = frame_extra(frames, name)
        if values is None:
            raise ConfigError(f"data.weights.{name}: no training frame has the extra '{name}'")
        texts = [str(value) for value in values]
        for start in starts:
            if not any(text.startswith(start) for text in texts):
                some = ", ".join(sorted(set(texts))[:5])
                raise ConfigError(f"data.weights.{name}: no frame's {name} begins with '{start}'; there are {some}, ...")
        for index, text in enumerate(texts):
            matching = [start for start in starts if text.startswith(start)]
            weights[index] *= starts[max(matching, key=len)] if matching else 1.0
    return weights / weights.mean()
