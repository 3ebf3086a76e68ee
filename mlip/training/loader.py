"""Batches as plain dictionaries of tensors: an endless, resumable stream for training, one pass for evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import Data

from mlip.data.graph import GRAPH_KEYS, GraphDataset, density_pointer
from mlip.training.density import EXTRA_KEYS


class Batches(Protocol):
    """Which frames go together in each step of an epoch."""

    def set_epoch(self, epoch: int) -> None: ...

    def __iter__(self) -> Iterator[list[int]]: ...


def merge_graphs(graphs: Sequence[Data]) -> dict[str, Any]:
    """Several graphs as one dict: as ``graph_dict(collate(graphs))``, several times faster.

    Keys as in :func:`mlip.data.graph.frame_to_graph`, with ``batch[N]`` and ``num_graphs``; those of
    :mod:`mlip.training.density` and ``weight[B]`` where the graphs have them.
    """
    atoms = torch.tensor([int(graph["atomic_numbers"].shape[0]) for graph in graphs])
    edges = torch.tensor([int(graph["edge_index"].shape[1]) for graph in graphs])
    first = torch.cumsum(atoms, 0) - atoms
    merged: dict[str, Any] = {
        key: torch.cat([graph[key] for graph in graphs], dim=1 if key == "edge_index" else 0)
        for key in dict.fromkeys((*GRAPH_KEYS, *EXTRA_KEYS))
        if key in graphs[0]
    }
    if "density_size" in merged:
        merged["density_ptr"] = density_pointer(merged["density_size"])
    merged["edge_index"] = merged["edge_index"] + torch.repeat_interleave(first, edges)
    merged["batch"] = torch.repeat_interleave(torch.arange(len(graphs)), atoms)
    merged["num_graphs"] = len(graphs)
    return merged


def to_device(graph: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    """The batch with its tensors on ``device``."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in graph.items()}


def bytes_of(graph: dict[str, Any]) -> int:
    """Bytes that the tensors of a batch take."""
    return sum(value.numel() * value.element_size() for value in graph.values() if isinstance(value, Tensor))


def load_batches(dataset: GraphDataset, batches: Iterable[list[int]], num_workers: int = 0) -> Iterator[dict[str, Any]]:
    """The graphs of each list of frame indices, merged; in ``num_workers`` processes, 0 for none."""
    if num_workers == 0:
        for indices in batches:
            yield merge_graphs([dataset[index] for index in indices])
        return
    yield from DataLoader(
        dataset, batch_sampler=list(batches), collate_fn=merge_graphs, num_workers=num_workers, prefetch_factor=4
    )


class BatchStream:
    """Training batches from a given place on, epoch after epoch without end.

    Each batch carries its place: ``epoch``, ``batch_index`` (within the epoch) and ``num_batches`` (of that epoch), all
    ints. The order depends on the sampler's seed and the epoch only, so a stream started anywhere goes on as one that
    came by there: this is what makes a resumed run equal to an uninterrupted one.
    """

    def __init__(self, dataset: GraphDataset, batches: Batches, num_workers: int = 0):
        self.dataset = dataset
        self.batches = batches
        self.num_workers = num_workers
        self.start = (0, 0)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch, first = self.start
        while True:
            self.batches.set_epoch(epoch)
            order = list(self.batches)
            if not order:
                return
            for index, graph in enumerate(load_batches(self.dataset, order[first:], self.num_workers), start=first):
                graph.update(epoch=epoch, batch_index=index, num_batches=len(order))
                yield graph
            epoch, first = epoch + 1, 0


def evaluation_batches(num_atoms: Sequence[int], batch_size: int | None, max_atoms: int = 512) -> list[list[int]]:
    """Frames in order, cut into batches of ``batch_size``, or of at most ``max_atoms`` atoms (one frame at least)."""
    batches: list[list[int]] = []
    atoms = 0
    for index, count in enumerate(num_atoms):
        full = len(batches[-1]) >= batch_size if batches and batch_size else atoms + int(count) > max_atoms
        if not batches or full:
            batches.append([])
            atoms = 0
        batches[-1].append(index)
        atoms += int(count)
    return batches
