"""The universal screened nuclear repulsion of Ziegler, Biersack and Littmark."""

from __future__ import annotations

import torch
from ase.data import covalent_radii
from ase.units import Bohr, Hartree
from torch import Tensor

from mlip.nn import PolynomialEnvelope
from mlip.nn.constants import ConstantsModule

SCREENING = ((0.1818, 3.2), (0.5099, 0.9423), (0.2802, 0.4029), (0.02817, 0.2016))


class ZBL(ConstantsModule):
    """V(r) = (e^2 / 4 pi eps0) Z_i Z_j / r phi(r / a) u(r / r_c), a = 0.8854 a0 / (Z_i^0.23 + Z_j^0.23).

    phi(x) = 0.1818 e^(-3.2 x) + 0.5099 e^(-0.9423 x) + 0.2802 e^(-0.4029 x) + 0.02817 e^(-0.2016 x); u is the polynomial
    envelope over the sum r_c of the covalent radii, so bonded distances are untouched. Half of a pair's energy to
    either atom. Source: Ziegler, Biersack, Littmark, "The stopping and range of ions in solids" (1985).
    """

    radii: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_constant("radii", torch.as_tensor(covalent_radii, dtype=torch.float64))
        self.envelope = PolynomialEnvelope(1.0)

    def forward(self, distance: Tensor, z_receiver: Tensor, z_sender: Tensor) -> Tensor:
        """``distance`` ``[E]`` Angstrom, atomic numbers ``[E]`` -> half the pair energy ``[E]``, eV."""
        zi, zj = z_receiver.to(distance.dtype), z_sender.to(distance.dtype)
        screening = 0.8854 * Bohr / (zi**0.23 + zj**0.23)
        x = distance / screening
        phi = sum(a * torch.exp(-b * x) for a, b in SCREENING)
        reach = self.radii[z_receiver] + self.radii[z_sender]
        return 0.5 * Hartree * Bohr * zi * zj / distance * phi * self.envelope(distance / reach)
