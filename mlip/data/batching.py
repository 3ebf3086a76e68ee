"""Which frames go together in a step: by a budget of atoms and edges, or by a number of frames.

The batches of an epoch follow from ``(seed, epoch)`` alone, so a resumed run sees what an uninterrupted one would have.
With several ranks each step's batch is formed as if by one process and then split, so that the ranks together see
exactly the single process's batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from mlip.errors import ConfigError

logger = logging.getLogger(__name__)


class BudgetBatchSampler(Sampler[list[int]]):
    """Batches of frame indices, bounded by atoms, edges or frames; reproducible and the same for any number of ranks.

    A frame that alone exceeds the budget makes its own batch, with one warning. Every rank gets as many batches as
    every other; a rank for which a batch has no frame left gets a filler index ``-1 - i`` (see
    :class:`mlip.data.graph.GraphDataset`), which has no labels and so adds nothing to a masked loss.

    Args:
        num_atoms: atoms of each frame, ``[N]``.
        num_edges: edges of each frame, ``[N]``; needed only with ``max_edges``.
        max_atoms: at most so many atoms a batch (of all ranks together).
        max_edges: at most so many edges a batch.
        batch_size: at most so many frames a batch. Any of the three limits may be combined; at least one is needed.
        shuffle: a new order every epoch; off, the order of the frames.
        seed: of the shuffling.
        rank: this process.
        world_size: number of processes.
        drop_last: leave out a last batch that a ``batch_size`` does not fill.
    """

    def __init__(
        self,
        num_atoms: Sequence[int] | np.ndarray,
        num_edges: Sequence[int] | np.ndarray | None = None,
        max_atoms: int | None = None,
        max_edges: int | None = None,
        batch_size: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
    ):
        limits = {"max_atoms": max_atoms, "max_edges": max_edges, "batch_size": batch_size}
        if all(limit is None for limit in limits.values()):
            raise ConfigError("a batch needs a limit: give max_atoms, max_edges or batch_size")
        for name, limit in limits.items():
            if limit is not None and limit < 1:
                raise ConfigError(f"{name} is {limit}; it must be at least 1")
        if max_edges is not None and num_edges is None:
            raise ConfigError("max_edges needs the number of edges of each frame")
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} is not one of {world_size} processes")
        self.num_atoms = np.asarray(num_atoms, dtype=np.int64)
        sizes = {
            "max_atoms": (self.num_atoms, max_atoms),
            "max_edges": (np.asarray(num_edges if num_edges is not None else []), max_edges),
            "batch_size": (np.ones(len(self.num_atoms), dtype=np.int64), batch_size),
        }
        self._sizes = {name: (values, limit) for name, (values, limit) in sizes.items() if limit is not None}
        self._frames_per_batch = batch_size
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last
        self.rank, self.world_size = rank, world_size
        self.epoch, self._start = 0, 0
        self._made: tuple[int, list[np.ndarray]] | None = None
        if rank == 0:
            self._warn_oversized()

    def _warn_oversized(self) -> None:
        for name, (values, limit) in self._sizes.items():
            count = int((values > limit).sum())
            if count:
                text = "%d frames exceed %s = %d alone (largest: %d); each makes its own batch"
                logger.warning(text, count, name, limit, values.max())

    @property
    def sampler(self) -> BudgetBatchSampler:
        """Itself: Lightning calls ``batch_sampler.sampler.set_epoch``."""
        return self

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch; ``start_batch`` leaves out the batches that an interrupted run had done."""
        self.epoch, self._start = int(epoch), int(start_batch)

    def global_batches(self) -> list[np.ndarray]:
        """The whole epoch's batches as one process would see them."""
        if self._made is None or self._made[0] != self.epoch:
            self._made = (self.epoch, self._make())
        return self._made[1]

    def _make(self) -> list[np.ndarray]:
        count = len(self.num_atoms)
        order = np.random.default_rng((self.seed, self.epoch)).permutation(count) if self.shuffle else np.arange(count)
        limits = [(values[order].tolist(), limit) for values, limit in self._sizes.values()]
        batches, start, totals = [], 0, [0] * len(limits)
        for place in range(count):
            grown = [total + values[place] for total, (values, _) in zip(totals, limits, strict=True)]
            if place > start and any(total > limit for total, (_, limit) in zip(grown, limits, strict=True)):
                batches.append(order[start:place])
                start, grown = place, [values[place] for values, _ in limits]
            totals = grown
        if start < count:
            batches.append(order[start:])
        short = self._frames_per_batch is not None and batches and len(batches[-1]) < self._frames_per_batch
        return batches[:-1] if self.drop_last and short and len(batches) > 1 else batches

    def _share(self, batch: np.ndarray) -> list[int]:
        """This rank's part of a global batch: every ``world_size``-th frame in descending order of size."""
        if self.world_size == 1:
            return batch.tolist()
        by_size = batch[np.argsort(-self.num_atoms[batch], kind="stable")]
        mine = by_size[self.rank :: self.world_size].tolist()
        return mine or [-1 - int(by_size[-1])]

    def __len__(self) -> int:
        return max(0, len(self.global_batches()) - self._start)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.global_batches()[self._start :]:
            yield self._share(batch)
