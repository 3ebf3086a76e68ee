"""Frames as graphs: what a model takes in, and what it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torch_geometric.data import Batch, Data

from mlip.data.density import DensityBasis
from mlip.data.frame import Frame, count_atoms
from mlip.data.neighbors import neighbor_list
from mlip.errors import DataError

GRAPH_KEYS = (
    "atomic_numbers", "positions", "cell", "pbc", "edge_index", "edge_shift", "charge", "spin",
    "energy", "forces", "stress", "frame_index", "density_coefficients", "density_size",
)  # fmt: skip
LABEL_KEYS = ("energy", "forces", "stress")


class Graph(Data):
    """A PyG ``Data`` whose ``frame_index`` is a plain number: PyG would shift any key that contains ``index``."""

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        return self.num_nodes if key == "edge_index" else 0

    def __cat_dim__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        return -1 if key == "edge_index" else 0


def frame_to_graph(frame: Frame, cutoff: float, index: int = 0, density_basis: DensityBasis | None = None) -> Graph:
    """The radius graph of a frame, with its labels (NaN where it has none).

    Keys, for ``N`` atoms and ``E`` directed edges (units: Angstrom, eV): ``atomic_numbers[N]``, ``positions[N, 3]``
    float64, ``cell[1, 3, 3]``, ``pbc[1, 3]``, ``edge_index[2, E]`` (row 0 sender, row 1 receiver, sorted by receiver),
    ``edge_shift[E, 3]`` float64 (whole numbers of lattice vectors), ``charge[1]``, ``spin[1]``, ``energy[1]``,
    ``forces[N, 3]``, ``stress[1, 6]``, ``frame_index[1]``. The stress of a frame that is not periodic is NaN.

    With ``density_basis``, also ``density_coefficients[K]`` (float32, data order) and ``density_size[1]`` = K; K = 0 where the
    frame has no such label.

    Raises:
        StructureError: see :func:`mlip.data.neighbors.neighbor_list`.
        DataError: the coefficients are not those of ``density_basis``.
    """
    edge_index, shifts = neighbor_list(frame.positions, frame.cell, frame.pbc, cutoff)
    has_stress = frame.stress is not None and bool(np.any(frame.pbc)) and frame.volume > 0
    density = {} if density_basis is None else _density_labels(frame, density_basis)
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
        **density,
    )


def _density_labels(frame: Frame, basis: DensityBasis) -> dict[str, torch.Tensor]:
    label = frame.density_coefficients
    values = np.zeros(0) if label is None else np.asarray(label)
    if label is not None and len(values) != (functions := int(basis.offsets(frame.atomic_numbers)[-1])):
        raise DataError(
            f"frame {frame.id or 'without a name'}: {len(values)} density coefficients, "
            f"{basis.name} has {functions} functions on its atoms; was it labelled in another basis?"
        )
    return {
        "density_coefficients": torch.from_numpy(values.astype(np.float32)),
        "density_size": torch.tensor([len(values)]),
    }


def density_pointer(sizes: torch.Tensor) -> torch.Tensor:
    """Offsets ``density_ptr[B + 1]`` from the graphs' ``density_size[B]``."""
    return torch.cat([sizes.new_zeros(1), torch.cumsum(sizes, 0)])


def _double(values: np.ndarray | Sequence[float]) -> torch.Tensor:
    return torch.tensor(np.asarray(values, dtype=np.float64))


def collate(graphs: Sequence[Graph]) -> Batch:
    """One batch of several graphs, with ``batch[N]`` (the graph of each atom) and ``ptr``."""
    return Batch.from_data_list(list(graphs))


def graph_dict(batch: Data) -> dict[str, Any]:
    """The plain dict that a model takes: the keys of :func:`frame_to_graph`, ``batch[N]`` and ``num_graphs`` (int).

    Graphs with density labels also give ``density_ptr[B + 1]``: the coefficients of graph ``b`` are ``ptr[b]:ptr[b + 1]``.

    Takes a ``Batch`` or a single graph.
    """
    graph: dict[str, Any] = {key: batch[key] for key in GRAPH_KEYS if key in batch}
    assigned = batch.get("batch", None)
    if assigned is None:
        assigned = torch.zeros(len(graph["atomic_numbers"]), dtype=torch.int64, device=graph["positions"].device)
    graph["batch"] = assigned
    graph["num_graphs"] = int(graph["cell"].shape[0])
    if "density_size" in graph:
        graph["density_ptr"] = density_pointer(graph["density_size"])
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
        density_basis: add density labels, which are coefficients in this basis; ``None`` leaves them out.
    """

    def __init__(
        self, frames: Sequence[Frame], cutoff: float, cache_bytes: int = 1 << 29, density_basis: DensityBasis | None = None
    ):
        self.frames = frames
        self.cutoff = float(cutoff)
        self.density_basis = density_basis
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
        return self._keep(index, self._graph(self.frames[index], index))

    def _graph(self, frame: Frame, index: int) -> Graph:
        return frame_to_graph(frame, self.cutoff, index, self.density_basis)

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
                    graph = self._keep(index, self._graph(frame, index))
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
    if "density_size" in filler:
        filler["density_coefficients"] = filler["density_coefficients"][:0]
        filler["density_size"] = torch.zeros_like(filler["density_size"])
    return filler
