"""Linear maps that commute with rotations: they mix channels, never components."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlip.nn.irreps import block, num_components


class EquivariantLinear(nn.Module):
    """y[n, m, d] = g / sqrt(channels_in) sum_c x[n, m, c] W_l(m)[c, d], one weight per degree l.

    Weights start with unit variance, the factor stands outside (as in e3nn): one learning rate then means the same relative change
    in every layer.
    """

    def __init__(self, l_max: int, channels_in: int, channels_out: int, gain: float = 1.0) -> None:
        super().__init__()
        self.l_max = l_max
        self.factor = gain / channels_in**0.5
        self.weight = nn.Parameter(torch.randn(l_max + 1, channels_in, channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, (l_max+1)^2, channels_in]`` -> ``[N, (l_max+1)^2, channels_out]``."""
        weight = self.factor * self.weight
        return torch.cat([x[:, block(l)] @ weight[l] for l in range(self.l_max + 1)], dim=1)


class ElementScale(nn.Module):
    """y[n, m, c] = x[n, m, c] s[Z_n, l(m), c]: makes a linear map depend on the element at a cost of (l_max+1) numbers a channel.

    The factors start at 1 plus a small element-specific part.
    """

    degrees: Tensor

    def __init__(self, num_elements: int, l_max: int, channels: int, spread: float = 0.3) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + spread * torch.randn(num_elements, l_max + 1, channels))
        degrees = torch.cat([torch.full((2 * l + 1,), l) for l in range(l_max + 1)])
        self.register_buffer("degrees", degrees, persistent=False)
        self.components = num_components(l_max)

    def forward(self, x: Tensor, species: Tensor) -> Tensor:
        """``x`` ``[N, (l_max+1)^2, channels]``, ``species`` ``[N]`` indices -> the shape of ``x``."""
        return x * self.weight.index_select(0, species).index_select(1, self.degrees)
