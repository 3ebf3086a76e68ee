"""One call of a model for every purpose of training."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mlip.models import PairGateConfig


def has_energy(model: nn.Module) -> bool:
    """Whether a model gives energies, forces and stress."""
    return bool(getattr(model, "has_energy", True))


def has_density(model: nn.Module) -> bool:
    """Whether a model gives density coefficients."""
    return getattr(model, "density_basis", None) is not None


def pair_gate_of(model: nn.Module) -> PairGateConfig | None:
    """Settings of a model's pair gate, if it has one."""
    density = getattr(getattr(model, "config", None), "density", None)
    return None if density is None else density.pair_gate


def density_degrees(model: nn.Module) -> list[int]:
    """Degrees of the density coefficients; none without a density head."""
    basis = getattr(model, "density_basis", None)
    return sorted({degree for z in basis.elements for degree in basis.degrees(z)}) if basis is not None else []


def has_uncertainty(model: nn.Module) -> bool:
    """Whether a model gives standard deviations of energies and forces."""
    return getattr(model, "uncertainty", None) is not None


def predict(model: nn.Module, graph: dict[str, Any], stress: bool = False) -> dict[str, Tensor]:
    """Everything that a model gives for a batch: the stress only where it is asked for, the density where there are labels."""
    if not has_energy(model):
        return model(graph, compute_forces=False, compute_density=True)
    more = {"compute_density": True} if has_density(model) and "density_size" in graph else {}
    if has_uncertainty(model):
        more["compute_uncertainty"] = True
    prediction = model(graph, compute_forces=True, compute_stress=stress, **more)
    return prediction if stress else {name: value for name, value in prediction.items() if name != "stress"}
