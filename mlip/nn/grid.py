"""Pointwise networks on a spherical grid (the grid mixing of Facet, arXiv 2509.08418)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from mlip.nn.constants import ConstantsModule
from mlip.nn.irreps import num_components
from mlip.nn.linear import EquivariantLinear
from mlip.nn.spherical import SphericalHarmonics

GRID_ACTIVATIONS = ("silu", "product")


class SphereGrid(ConstantsModule):
    """A Gauss-Legendre x uniform grid on the unit sphere with maps to and from spherical components.

    ceil((3L+1)/2) polar x (3L+1) azimuthal points integrate polynomials of degree 3L exactly, hence the projection back to
    l <= L of a product of two functions of degree L. ``oversampling`` multiplies both numbers. The maps satisfy
    from_grid(to_grid(x)) = x.
    """

    to_grid: Tensor
    from_grid: Tensor

    def __init__(self, l_max: int, oversampling: float = 1.0) -> None:
        super().__init__()
        self.num_polar = math.ceil(oversampling * math.ceil((3 * l_max + 1) / 2))
        self.num_azimuthal = math.ceil(oversampling * (3 * l_max + 1))
        nodes, weights = np.polynomial.legendre.leggauss(self.num_polar)
        phi = 2 * np.pi * (np.arange(self.num_azimuthal) + 0.5) / self.num_azimuthal
        sine = np.sqrt(1 - nodes**2)
        points = np.stack(
            [np.outer(sine, np.cos(phi)), np.outer(sine, np.sin(phi)), np.outer(nodes, np.ones_like(phi))], axis=-1
        ).reshape(-1, 3)
        measure = np.repeat(weights / 2, self.num_azimuthal) / self.num_azimuthal
        harmonics = SphericalHarmonics(l_max).double()(torch.from_numpy(points))
        self.register_constant("to_grid", harmonics)
        self.register_constant("from_grid", (harmonics * torch.from_numpy(measure)[:, None]).T)


class GridMix(nn.Module):
    """Node-wise mixing of all degrees: to the sphere, a channel network at every point, back.

    ``silu``: f(s) -> W_2 silu(W_1 f(s)) at each grid point s. Not a polynomial: equivariant up to the aliasing error of the grid,
    which falls with ``oversampling`` (bounded in mlip.testing.tolerances).
    ``product``: f(s) -> (W_1 f)(s) (W_1' f)(s), then gated by a network of the node's scalars. A product of two functions of
    degree L is integrated exactly: equivariant to rounding at ``oversampling`` 1.

    Reflections hold for natural parity (0e + 1o + 2e + ...), since functions on the sphere transform so; antisymmetric couplings
    (l1 + l2 + l3 odd) do not exist on the grid.
    """

    def __init__(
        self,
        l_max: int,
        channels: int,
        hidden: int,
        activation: str = "silu",
        oversampling: float = 1.0,
        l_max_out: int | None = None,
    ) -> None:
        super().__init__()
        if activation not in GRID_ACTIVATIONS:
            raise ValueError(f"grid activation {activation!r} is unknown; allowed: {', '.join(GRID_ACTIVATIONS)}")
        self.activation = activation
        self.l_max_out = l_max if l_max_out is None else l_max_out
        self.grid = SphereGrid(l_max, oversampling)
        self.hidden = hidden
        width = hidden if activation == "silu" else 2 * hidden
        self.factor = channels**-0.5
        self.first = nn.Parameter(torch.randn(channels, width))
        self.last = EquivariantLinear(self.l_max_out, hidden, channels)
        if activation == "silu":
            self.bias = nn.Parameter(torch.zeros(width))
        else:
            self.gate = nn.Sequential(nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """``[N, (l_max+1)^2, channels]`` -> ``[N, (l_max_out+1)^2, channels]``."""
        values = self.grid.to_grid @ (x @ (self.factor * self.first))
        back = self.grid.from_grid[: num_components(self.l_max_out)]
        if self.activation == "silu":
            return self.last(back @ nn.functional.silu(values + self.bias))
        left, right = values.split(self.hidden, dim=2)
        return self.last((back @ (left * right)) * self.gate(x[:, 0]).unsqueeze(1))
