"""Radial bases with compact support: B-splines, sine-Bessel functions, and an MLP over the latter.

Every basis returns features that vanish at the cutoff together with their first two derivatives, so that energies, forces and
Hessians are continuous when a neighbour enters or leaves.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mlip.nn.constants import ConstantsModule

RADIAL_KINDS = ("bspline", "bessel", "mlp")


class PolynomialEnvelope(nn.Module):
    """u(x) = 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2), x = r/r_cut; zero for x >= 1.

    Evaluated as (1 - x)^3 sum_(k<p) C(k+2, 2) x^k, the same polynomial without the cancellation near x = 1, where u, u' and u''
    vanish. Source: Gasteiger et al., "Directional message passing" (arXiv 2003.03123), eq. 8.
    """

    def __init__(self, cutoff: float, power: int = 6) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.power = power

    def forward(self, distance: Tensor) -> Tensor:
        """Distances in Angstrom, any shape -> envelope of the same shape."""
        x = (distance / self.cutoff).clamp(max=1.0)
        series = torch.zeros_like(x)
        for k in reversed(range(self.power)):
            series = series * x + math.comb(k + 2, 2)
        return (1 - x) ** 3 * series


class BSplineBasis(ConstantsModule):
    """Cubic B-splines on uniform knots over [0, r_cut], times the envelope (the spline radial of Facet, arXiv 2509.08418).

    B_k(r) = beta(r / step - k), where beta is the cardinal cubic B-spline centred at 0; ``num_basis`` splines
    overlap [0, r_cut]: centres at -1, 0, 1, ... in units of step = r_cut / (num_basis - 3).
    """

    centres: Tensor

    def __init__(self, cutoff: float, num_basis: int = 8, power: int = 6) -> None:
        super().__init__()
        if num_basis < 5:
            raise ValueError(f"num_basis is {num_basis}; cubic B-splines over [0, r_cut] need at least 5")
        self.num_features = num_basis
        self.envelope = PolynomialEnvelope(cutoff, power)
        self.step = cutoff / (num_basis - 3)
        centres = torch.arange(num_basis, dtype=torch.float64) - 1
        self.register_constant("centres", centres)
        self.norm = 2.0  # the splines' squares sum to about 1/2: brings the features to order one

    def forward(self, distance: Tensor) -> Tensor:
        """Distances ``[...]`` in Angstrom -> ``[..., num_basis]``."""
        t = (distance.unsqueeze(-1) / self.step - self.centres).abs()
        outer = (2 - t).clamp(min=0)
        inner = (1 - t).clamp(min=0)
        spline = (outer**3 - 4 * inner**3) / 6
        return self.norm * spline * self.envelope(distance).unsqueeze(-1)


class BesselBasis(ConstantsModule):
    """sqrt(1/2) sin(n pi x) / x with x = r / r_cut: sine-Bessel functions, times the envelope.

    Source: Gasteiger et al. (arXiv 2003.03123), eq. 7; n = 1 .. ``num_basis``, with another prefactor, so that they are
    dimensionless and of order one.
    """

    frequencies: Tensor

    def __init__(self, cutoff: float, num_basis: int = 8, power: int = 6) -> None:
        super().__init__()
        self.num_features = num_basis
        self.cutoff = cutoff
        self.envelope = PolynomialEnvelope(cutoff, power)
        frequencies = math.pi * torch.arange(1, num_basis + 1, dtype=torch.float64)
        self.register_constant("frequencies", frequencies)

    def forward(self, distance: Tensor) -> Tensor:
        """Distances ``[...]`` in Angstrom (> 0) -> ``[..., num_basis]``."""
        x = (distance / self.cutoff).unsqueeze(-1)
        return math.sqrt(0.5) * torch.sin(self.frequencies * x) / x * self.envelope(distance).unsqueeze(-1)


class MLPBasis(nn.Module):
    """A two-layer SiLU network over sine-Bessel functions whose outputs, times the envelope, serve as the basis.

    The conventional radial network of NequIP and MACE with its last layer left to the tensor product; ``num_features`` bounds
    the rank of the path weights.
    """

    def __init__(
        self, cutoff: float, num_basis: int = 8, hidden: int = 64, num_features: int = 16, power: int = 6
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.bessel = BesselBasis(cutoff, num_basis, power)
        self.envelope = PolynomialEnvelope(cutoff, power)
        self.network = nn.Sequential(
            nn.Linear(num_basis, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, num_features)
        )

    def forward(self, distance: Tensor) -> Tensor:
        """Distances ``[...]`` in Angstrom (> 0) -> ``[..., num_features]``."""
        return self.network(self.bessel(distance)) * self.envelope(distance).unsqueeze(-1)


def make_radial_basis(
    kind: str, cutoff: float, num_basis: int = 8, mlp_hidden: int = 64, mlp_features: int = 16
) -> BSplineBasis | BesselBasis | MLPBasis:
    """The basis called ``kind``: ``bspline``, ``bessel`` or ``mlp``."""
    if kind == "bspline":
        return BSplineBasis(cutoff, num_basis)
    if kind == "bessel":
        return BesselBasis(cutoff, num_basis)
    if kind == "mlp":
        return MLPBasis(cutoff, num_basis, mlp_hidden, mlp_features)
    raise ValueError(f"radial kind {kind!r} is unknown; allowed: {', '.join(RADIAL_KINDS)}")
