"""How unsure a potential is, from the features of its last layer: no second model, next to no time.

The energy is linear in the last weights, E = E0 + sum_i phi_i . w. Training frames fix w in the directions of their features and
leave it open in others; a structure whose features lie in open directions is an extrapolation.

    energy:  std(E)   = a   |  f  (F^T F + r)^(-1/2) |,     f = sum_i phi_i,  F = the f of all training structures
    forces:  std(F_i) = c_Z | psi_i (P^T P + s)^(-1/2) |,   psi_i = phi_i and the scalars that the head reads, P = all psi_i

The first is the Gaussian posterior of w for the given features (the last-layer approximation of the prediction rigidity: Bigi,
Chong, Ceriotti, Grasselli, arXiv 2403.02251: var = a^2 f (F^T F + r)^-1 f); validation frames give a, and r is small. The second is
the same measure for one environment (the local prediction rigidity: Chong et al., arXiv 2306.15638), scaled for each element to the
force errors of validation frames: a calibrated distance from what was trained on, not the posterior of the force.
benchmarks/uncertainty.py compares both with that posterior and with committees.

Laws: both are invariant under rotation, reflection, translation and permutation, smooth in the positions, and 0 for an isolated
atom, whose energy is exact. Errors of equal environments are equal, not independent: n far copies have n times the energy_std of
one, and the forces_std of one; of different parts, the energy_std is at most the sum of theirs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mlip.errors import ConfigError

BUFFERS = ("energy_factor", "local_factor", "force_scale")


class Deviations(NamedTuple):
    """Standard deviations.

    Attributes:
        energy_std: of each structure's energy ``[B]``, eV. forces_std: of one component of each atom's force ``[N]``, eV/Angstrom.
    """

    energy_std: Tensor
    forces_std: Tensor


class Uncertainty(nn.Module):
    """The two formulas of the module's docstring with all constants folded in; float64 whatever the network computes in.

    Its buffers are no part of a model's ``state_dict``: checkpoints store them apart, and weights stay weights.

    Args:
        energy_factor: ``[m, m]``, eV: the energy_std is the length of f times it.
        local_factor: ``[d, d]``: the length of psi_i times it is 1 for an environment as unusual as the average validation atom.
        force_scale: ``[Z]`` by element of the model, eV/Angstrom.
        about: plain facts about the fit (numbers of frames, ridges, errors), JSON types only.
    """

    energy_factor: Tensor
    local_factor: Tensor
    force_scale: Tensor

    def __init__(self, energy_factor: Tensor, local_factor: Tensor, force_scale: Tensor, about: dict[str, Any]) -> None:
        super().__init__()
        for name, value in zip(BUFFERS, (energy_factor, local_factor, force_scale), strict=True):
            self.register_buffer(name, value.detach().double(), persistent=False)
        self.about = dict(about)

    def _apply(self, fn: Any, recurse: bool = True) -> Uncertainty:
        kept = {name: getattr(self, name) for name in BUFFERS}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self

    @torch.no_grad()
    def forward(self, features: Tensor, species: Tensor, batch: Tensor | None = None, num_graphs: int = 1) -> Deviations:
        """Features ``[N, d]`` (:meth:`mlip.models.potential.EnergyHead.features`), element indices ``[N]``, graphs ``[N]``."""
        linear = features[:, : len(self.energy_factor)]
        if batch is None:
            total = linear.sum(0, keepdim=True)
        else:
            total = linear.new_zeros(num_graphs, linear.shape[1]).index_add(0, batch, linear)
        energy = torch.linalg.vector_norm(total @ self.energy_factor, dim=1)
        local = torch.linalg.vector_norm(features @ self.local_factor, dim=1)
        return Deviations(energy, local * self.force_scale.index_select(0, species))


def uncertainty_of(model: Any) -> Uncertainty:
    """A model's fitted uncertainty.

    Raises:
        ConfigError: it has none.
    """
    found = getattr(model, "uncertainty", None)
    if not isinstance(found, Uncertainty):
        raise ConfigError(f"energy_std and forces_std: {_why_not(model)}")
    return found


def _why_not(model: Any) -> str:
    if not isinstance(model, nn.Module):
        return "an exported model has none; use the checkpoint that it was made from"
    return "this model has none; `mlip train` of this version fits them where validation frames have energies and forces"
