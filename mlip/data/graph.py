"""Frames as graphs: what a model takes in, and what it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torch_geometric.data import Batch, Data

from mlip.data.frame import Frame, count_atoms
from mlip.data.neighbors import neighbor_list

GRAPH_KEYS = (
    "atomic_numbers", "positions", "cell", "pbc", "edge_index", "edge_shift", "charge", "spin",
    "energy", "forces", "stress", "frame_index",
)  # fmt: skip
LABEL_KEYS = ("energy", "forces", "stress")


class Graph(Data):
    """A PyG ``Data`` whose ``frame_index`` is a plain number: PyG would shift any key that contains ``index``."""

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        return self.num_nodes if key == "edge_index" else 0

    def __cat_dim__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        return -1 if key == "edge_index" else 0


def frame_to_graph(frame: Frame, cutoff: float, index: int = 0) -> Graph:
    """The radius graph of a frame, with its labels (NaN where it has none).

    Keys, for ``N`` atoms and ``E`` directed edges (units: Angstrom, eV): ``atomic_numbers[N]``, ``positions[N, 3]``
    float64, ``cell[1, 3, 3]``, ``pbc[1, 3]``, ``edge_index[2, E]`` (row 0 sender, row 1 receiver, sorted by receiver),
    ``edge_shift[E, 3]`` float64 (whole numbers of lattice vectors), ``charge[1]``, ``spin[1]``, ``energy[1]``,
    ``forces[N, 3]``, ``stress[1, 6]``, ``frame_index[1]``. The stress of a frame that is not periodic is NaN.

    Raises:
        StructureError: see :func:`mlip.data.neighbors.neighbor_list`.
    """
    edge_index, shifts = neighbor_list(frame.positions, frame.cell, frame.pbc, cutoff)
    has_stress = frame.stress is not None and bool(np.any(frame.pbc)) and frame.volume > 0
    return Graph(
        num_nodes=len(frame),
        atomic_numbers=torch.from_numpy(np.asarray(frame.atomic_numbers, dtype=np.int64)),
        positions=_double(frame.positions),
        cell=_double(frame.cell)[None],
        pbc=torch.from_numpy(np.asarray(frame.pbc, dtype=bool))[None],
        edge_index=torch.from_numpy(edge_index),
        edge_shift=_double(shifts),
        charge=torch.tensor([int(frame.charge)]),
        spin=torch.tensor([int(frame.spin)]),
        energy=_double([np.nan if frame.energy is None else frame.energy]),
        forces=_double(np.full((len(frame), 3), np.nan) if frame.forces is None else frame.forces),
        stress=_double(frame.stress if has_stress else np.full(6, np.nan))[None],  # type: ignore[arg-type]
        frame_index=torch.tensor([index]),
    )


def _double(values: np.ndarray | Sequence[float]) -> torch.Tensor:
    return torch.tensor(np.asarray(values, dtype=np.float64))


def collate(graphs: Sequence[Graph]) -> Batch:
    """One batch of several graphs, with ``batch[N]`` (the graph of each atom) and ``ptr``."""
    return Batch.from_data_list(list(graphs))


def graph_dict(batch: Data) -> dict[str, Any]:
    """The plain dict that a model takes: the keys of :func:`frame_to_graph`, ``batch[N]`` and ``num_graphs`` (int).

    Takes a ``Batch`` or a single graph.
    """
    graph: dict[str, Any] = {key: batch[key] for key in GRAPH_KEYS if key in batch}
    assigned = batch.get("batch", None)
    if assigned is None:
        assigned = torch.zeros(len(graph["atomic_numbers"]), dtype=torch.int64, device=graph["positions"].device)
    graph["batch"] = assigned
    graph["num_graphs"] = int(graph["cell"].shape[0])
    return graph


def graph_bytes(graph: Data) -> int:
    """Memory of a graph's tensors in bytes."""
    return sum(value.numel() * value.element_size() for _, value in graph if isinstance(value, torch.Tensor))


class GraphDataset(Dataset):
    """Graphs of a sequence of frames, made when asked for and kept in memory under a byte budget.

    Index ``i >= 0`` is frame ``i``. Index ``-1 - i`` is frame ``i`` with all its labels NaN: a filler that adds nothing
    to a masked loss, for the rank of a parallel run that would otherwise have no frame in a step.

    Args:
        frames: any sequence of frames (lazy ones stay lazy).
        cutoff: Angstrom.
        cache_bytes: keep graphs in memory until they fill this much; 0 keeps none. Each worker has its own cache.
    """

    def __init__(self, frames: Sequence[Frame], cutoff: float, cache_bytes: int = 1 << 29):
        self.frames = frames
        self.cutoff = float(cutoff)
        self._room = int(cache_bytes)
        self._cache: dict[int, Graph] = {}
        self._num_edges: np.ndarray | None = None
        self._num_atoms: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Graph:
        index = int(index)
        if index < 0:
            return _without_labels(self[-1 - index])
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        return self._keep(index, frame_to_graph(self.frames[index], self.cutoff, index))

    def _keep(self, index: int, graph: Graph) -> Graph:
        size = graph_bytes(graph)
        if size <= self._room:
            self._room -= size
            self._cache[index] = graph
        return graph

    @property
    def num_atoms(self) -> np.ndarray:
        """Atoms in each frame, ``[N]``."""
        if self._num_atoms is None:
            self._num_atoms = count_atoms(self.frames)
        return self._num_atoms

    @property
    def num_edges(self) -> np.ndarray:
        """Edges of each frame, ``[N]``; the first call walks over all frames once (and fills the cache)."""
        if self._num_edges is None:
            counts = np.zeros(len(self), dtype=np.int64)
            for index, frame in enumerate(self.frames):
                graph = self._cache.get(index)
                if graph is None:
                    graph = self._keep(index, frame_to_graph(frame, self.cutoff, index))
                counts[index] = graph.edge_index.shape[1]
            self._num_edges = counts
        return self._num_edges

    @property
    def avg_num_neighbors(self) -> float:
        """Mean number of neighbours of an atom within the cutoff, over all frames."""
        return float(self.num_edges.sum() / max(1, self.num_atoms.sum()))


def _without_labels(graph: Graph) -> Graph:
    filler = graph.clone()
    for key in LABEL_KEYS:
        filler[key] = torch.full_like(filler[key], float("nan"))
    return filler
