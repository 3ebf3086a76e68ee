"""Layers: radial bases, spherical harmonics, tensor product, grid mixing, norms. No chemistry, no I/O.

Features are tensors ``[nodes, (l_max + 1)^2, channels]`` (channels last, natural parity: 0e + 1o + 2e + ...), components in
e3nn's order and normalisation.

Constants (couplings, grids, knots) keep float64 masters: see mlip.nn.constants.
"""

from mlip.nn.gate import PathGate
from mlip.nn.grid import GridMix, SphereGrid
from mlip.nn.linear import ElementScale, EquivariantLinear
from mlip.nn.norm import EquivariantRMSNorm
from mlip.nn.pairgate import PairGate
from mlip.nn.radial import BesselBasis, BSplineBasis, MLPBasis, PolynomialEnvelope, make_radial_basis
from mlip.nn.spherical import SphericalHarmonics
from mlip.nn.tensor_product import Path, TensorProductConv, natural_parity_paths

__all__ = [
    "BSplineBasis",
    "BesselBasis",
    "ElementScale",
    "EquivariantLinear",
    "EquivariantRMSNorm",
    "GridMix",
    "MLPBasis",
    "PairGate",
    "Path",
    "PathGate",
    "PolynomialEnvelope",
    "SphereGrid",
    "SphericalHarmonics",
    "TensorProductConv",
    "make_radial_basis",
    "natural_parity_paths",
]
