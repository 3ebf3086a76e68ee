"""Compaction: a gated model becomes a smaller one that predicts the same, with the chosen paths alone and no gates.

    from mlip.models import compact
    compact(model)          # in place; each gate's chosen paths, or the strongest where none were chosen yet

The paths that go are gone from weights, operations and files: the model's config lists those that stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from mlip.models.backbone import InteractionLayer
from mlip.models.potential import Potential
from mlip.nn import Path


class Replaced(NamedTuple):
    """What became of one layer's parameters: ``weight_new = weight_old[:, kept] * factor[:, None]``, the gate is gone."""

    old: nn.Parameter
    gate: nn.Parameter
    new: nn.Parameter
    kept: list[int]
    factor: Tensor


def interaction_layers(model: Potential) -> list[InteractionLayer]:
    """All layers with a tensor product, in the order of the config's lists: the backbone's, then the density head's own."""
    layers = [layer for layer in model.backbone.layers if isinstance(layer, InteractionLayer)]
    return layers if model.density_head is None else [*layers, model.density_head.interaction]


def choose_strongest(model: Potential) -> None:
    """Every gate selects its strongest paths by the present weights."""
    for layer in interaction_layers(model):
        if layer.gate is not None:
            layer.gate.select(layer.conv.weight)


def choose_paths(model: Potential, paths: Sequence[Sequence[Sequence[int]]]) -> None:
    """Every gate selects the given paths, one list (l1, l2, l3) a layer as in the config of a compacted model."""
    for layer, wanted in zip(interaction_layers(model), paths, strict=True):
        if layer.gate is not None:
            layer.gate.selected = sorted(layer.conv.paths.index(Path(*path)) for path in wanted)


def compact(model: Potential) -> list[Replaced]:
    """Reduce ``model`` in place to the selected paths; returns what was replaced, for an optimiser to follow.

    Outputs stay the same to rounding. A gate that has selected nothing selects its strongest paths first.
    """
    replaced = []
    for layer in interaction_layers(model):
        gate, conv = layer.gate, layer.conv
        if gate is None:
            continue
        if gate.selected is None:
            gate.select(conv.weight)
        kept = list(gate.selected or [])
        factor = gate.scale.detach()
        layer.conv, layer.gate = conv.restricted(kept, factor), None
        replaced.append(Replaced(conv.weight, gate.scale, layer.conv.weight, kept, conv.folded(kept, factor)))
    paths = [[tuple(path) for path in layer.conv.paths] for layer in interaction_layers(model)]
    if replaced:
        model.config = model.config.model_copy(update={"gate": None, "paths": paths})
    return replaced
