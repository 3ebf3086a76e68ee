"""A trained network for more elements: what it predicts for those that it knew stays as it was."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mlip.models.compaction import interaction_layers
from mlip.models.config import ModelConfig
from mlip.models.density import ShellReadout
from mlip.models.densitystats import DensityReference
from mlip.models.potential import Potential
from mlip.nn import ElementScale


def per_element(model: Potential) -> set[str]:
    """Names in the state dict of what has one row an element."""
    names = {"backbone.embedding"}
    if model.head is not None:
        names |= {"head.bias", "head.e0"}
    for name, module in model.named_modules():
        if isinstance(module, ElementScale):
            names.add(f"{name}.weight")
        if isinstance(module, ShellReadout):
            names |= {f"{name}.weight.{l}" for l in range(len(module.weight))}
    return names


@torch.no_grad()
def grow(
    model: Potential, elements: Sequence[int], config: ModelConfig, density: DensityReference | None = None, seed: int = 0
) -> Potential:
    """A copy of ``model`` that also knows ``elements``; without a head that ``config`` lacks, with an energy head that it adds.

    A new element begins with random weights, as in an untrained model, and the mean bias (bonding energy); its E0 is 0. So does a
    new energy head; its biases are 0, its scale is 1.

    Args:
        model: a trained model; it is not changed.
        elements: atomic numbers; those that it knows are left as they are.
        config: that of ``model``, or the same without one of two heads, or with an energy head more.
        density: reference of the density head for all elements, that of ``model`` for those it knows.
        seed: of the new weights.
    """
    together = sorted({*model.elements, *elements})
    scale = 1.0 if model.head is None else float(model.head.energy_scale)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        grown = Potential(config, together, None, scale, model.avg_num_neighbors, density=density).to(model.dtype)
    rows = torch.tensor([together.index(z) for z in model.elements])
    special, known, state = per_element(grown), model.state_dict(), grown.state_dict()
    kept = [name for name in state if model.head is not None or not name.startswith(("head.", "zbl."))]
    for name in kept:
        fresh = state[name]
        state[name] = _with_rows(name, fresh, known[name], rows) if name in special else known[name]
    grown.load_state_dict(state)
    for layer in interaction_layers(grown):
        if layer.gate is not None:
            layer.gate.selected = None  # gates that are still open choose anew
    return grown.eval()


def without_density(model: Potential) -> Potential:
    """A copy of ``model`` without its density head; energies and forces are the same."""
    return grow(model, [], model.config.without_density())


def _with_rows(name: str, fresh: Tensor, known: Tensor, rows: Tensor) -> Tensor:
    """``fresh`` with the known elements' rows; a density readout may have got columns more, which they do not use."""
    grown = fresh.clone()
    if name == "head.bias":
        grown[:] = known.mean()
    if known.dim() > 1:
        known = nn.functional.pad(known, (0, fresh.shape[-1] - known.shape[-1]))
    grown[rows] = known
    return grown
