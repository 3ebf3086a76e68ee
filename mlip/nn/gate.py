"""A learned choice among the paths of a tensor product (the sparse tensor-product gate of SPHNet, arXiv 2502.01171)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mlip.nn.constants import ConstantsModule
from mlip.nn.tensor_product import Path


class GatedPaths(NamedTuple):
    """What a gate asks of a tensor product: factor of each path ``[paths]``; paths to evaluate, ``None``: all."""

    factor: Tensor
    active: list[int] | None


class PathGate(ConstantsModule):
    """A = sum_p g_p m_p A_p: a learnable factor g_p on each path p, of which only a subset (m_p = 1) is evaluated.

    The gate knows paths, never geometry or atoms: energies stay as smooth as the tensor product. ``size`` of the paths are in a
    subset, (1 - sparsity) of them, and always at least one into every output degree, so that no degree falls silent.

    A gate is *open* until a subset is selected. Its life in training is that of SPHNet's three-phase scheduler:

    - random: :meth:`draw` gives each training step another random subset, so that all paths learn to do without the others;
    - adaptive: :meth:`select` takes the paths of largest |g_p| ||W_p||, W_p the path's radial weights. SPHNet orders by the gate
      alone; the product does not change when a factor moves from g_p to W_p, which leaves the network as it is;
    - frozen: the chosen paths become a smaller tensor product (mlip.models.compaction), the gate is gone.

    Outside training an open gate evaluates all paths, each times the chance r_p of being drawn, so that the result is the
    mean over the random phase's draws; a selected subset is evaluated as it is, there and in training.

    Attributes:
        scale: g, ones at the start. size: paths in a subset. selected: indices of the chosen subset; ``None`` while open.
    """

    chance: Tensor

    def __init__(self, paths: Sequence[Path], sparsity: float) -> None:
        super().__init__()
        if not 0 <= sparsity < 1:
            raise ValueError(f"sparsity {sparsity:g} is not in [0, 1): it is the share of paths that go")
        self.degrees = [path.l3 for path in paths]
        count, outputs = len(paths), len(set(self.degrees))
        self.size = max(outputs, math.ceil((1 - sparsity) * count - 1e-9))
        self.scale = nn.Parameter(torch.ones(count))
        self.selected: list[int] | None = None
        self.drawn: list[int] | None = None
        among_rest = (self.size - outputs) / (count - outputs) if count > outputs else 0.0
        # Drawn as its degree's first, or else among the rest; 1 where nothing is left out.
        into = torch.tensor([self.degrees.count(l) for l in self.degrees], dtype=torch.float64)
        self.register_constant("chance", 1 / into + (1 - 1 / into) * among_rest)

    def forward(self) -> GatedPaths:
        """Factors and paths of the present phase."""
        active = self.drawn if self.training and self.selected is None else self.selected
        return GatedPaths(self.scale if active is not None else self.scale * self.chance, active)

    def draw(self, generator: torch.Generator) -> None:
        """Draw the random subset of the next training step: one path into each degree, then any."""
        first, rest = (torch.randperm(len(self.degrees), generator=generator).tolist() for _ in range(2))
        self.drawn = self._subset(first, rest)

    @torch.no_grad()
    def select(self, weight: Tensor) -> None:
        """Choose the strongest paths, given the tensor product's weights ``[num_basis, paths, channels]``."""
        strength = self.scale.abs() * torch.linalg.vector_norm(weight, dim=(0, 2))
        order = torch.argsort(strength, descending=True, stable=True).tolist()
        self.selected = self._subset(order, order)

    def _subset(self, first: list[int], rest: list[int]) -> list[int]:
        """The first path into each degree in the order ``first``, filled up to ``size`` in the order ``rest``."""
        leaders: dict[int, int] = {}
        for path in first:
            leaders.setdefault(self.degrees[path], path)
        chosen = set(leaders.values())
        others = [path for path in rest if path not in chosen]
        return sorted([*chosen, *others[: self.size - len(chosen)]])

    def get_extra_state(self) -> Tensor:
        """The selected subset, for the state dict: indices, empty while open."""
        return torch.tensor(self.selected or [], dtype=torch.long)

    def set_extra_state(self, state: Tensor) -> None:
        """Inverse of :meth:`get_extra_state`."""
        self.selected = state.tolist() or None
