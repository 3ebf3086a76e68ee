"""Real spherical harmonics by recursion, in e3nn's order and 'component' normalisation (|Y_l|^2 = 2l + 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from mlip.nn.constants import ConstantsModule
from mlip.nn.coupling import wigner_3j


class SphericalHarmonics(ConstantsModule):
    """Y(r) for l = 0 .. ``l_max`` of unit vectors.

    Y_0 = 1, Y_1 = sqrt(3) (x, y, z), and Y_l = a_l C(l-1, 1, l) Y_(l-1) Y_1 with e3nn's Wigner 3j symbols C; the positive
    constants a_l fix the norm sqrt(2l + 1). A plain sequence of matrix products: nothing to compile before the first step.
    """

    def __init__(self, l_max: int) -> None:
        super().__init__()
        self.l_max = l_max
        point = torch.tensor([0.3, -0.5, 0.7], dtype=torch.float64)
        point = point / point.norm()
        previous = 3**0.5 * point
        for l in range(2, l_max + 1):
            coupling = wigner_3j(l - 1, 1, l)
            raw = torch.einsum("a,b,abm->m", previous, 3**0.5 * point, coupling)
            scale = (2 * l + 1) ** 0.5 / raw.norm()
            previous = scale * raw
            matrix = (scale * coupling).reshape(3 * (2 * l - 1), 2 * l + 1)
            self.register_constant(f"coupling_{l}", matrix)

    def forward(self, unit: Tensor) -> Tensor:
        """Unit vectors ``[..., 3]`` -> ``[..., (l_max + 1)^2]``."""
        parts = [torch.ones_like(unit[..., :1])]
        if self.l_max >= 1:
            first = 3**0.5 * unit
            parts.append(first)
        for l in range(2, self.l_max + 1):
            outer = (parts[-1].unsqueeze(-1) * first.unsqueeze(-2)).flatten(-2)
            parts.append(outer @ getattr(self, f"coupling_{l}"))
        return torch.cat(parts, dim=-1)
