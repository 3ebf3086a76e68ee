"""Normalisation of one node's features by an invariant of that node alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlip.nn.constants import ConstantsModule


class EquivariantRMSNorm(ConstantsModule):
    """y = g_l(m),c x / sqrt(eps + mean over degrees and channels of |x_l|^2 / (2l + 1)).

    One norm over all degrees of a node (a norm per degree would blow up the noise of a degree that vanishes by symmetry). No other
    node and no batch-mate enters, and ``eps`` keeps it smooth at zero.
    """

    degrees: Tensor
    weights: Tensor

    def __init__(self, l_max: int, channels: int, eps: float = 1e-4) -> None:
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(l_max + 1, channels))
        degrees = torch.cat([torch.full((2 * l + 1,), l) for l in range(l_max + 1)])
        weights = torch.cat(
            [torch.full((2 * l + 1,), 1.0 / (2 * l + 1), dtype=torch.float64) for l in range(l_max + 1)]
        )
        self.register_buffer("degrees", degrees, persistent=False)
        self.register_constant("weights", weights / ((l_max + 1) * channels))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, (l_max+1)^2, channels]`` -> the same shape."""
        square = (x * x).sum(dim=2) @ self.weights
        return x * torch.rsqrt(square + self.eps)[:, None, None] * self.gain.index_select(0, self.degrees)
