"""Leads the path gates of a model through their phases, and freezes them: network, optimiser and average become smaller."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from mlip.config import GatePhase, GateSchedule
from mlip.models import Potential
from mlip.models.compaction import Replaced, choose_paths, choose_strongest, compact, interaction_layers
from mlip.training.ema import WeightAverage


class Gating:
    """Random subsets from a generator of its own, then the strongest paths, then the network of these alone.

    Every process of a parallel run draws the same, and a resumed run goes on with the generator where it was.

    Args:
        schedule: the phases.
        seed: of the random subsets.

    Attributes:
        phase: the present one; the run's first step begins it.
    """

    def __init__(self, schedule: GateSchedule, seed: int):
        self.schedule = schedule
        self.phase: GatePhase = "random"
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def frozen(self) -> bool:
        """Whether the network has been reduced to its final paths."""
        return self.phase == "frozen"

    def before_step(self, model: Potential, share: float, epochs: float, steps: int) -> bool:
        """Draw or select the paths of the next step; True says that :meth:`freeze` is due.

        Args:
            share: of the run that is done. epochs, steps: that are done.
        """
        if self.frozen:
            return False
        phase = self.schedule.phase(share, epochs, steps)
        if phase == "frozen":
            return True
        self.phase = "adaptive" if self.phase == "adaptive" else phase  # the share of a time budget may shrink a little
        if self.phase == "adaptive":
            choose_strongest(model)
            return False
        for layer in interaction_layers(model):
            if layer.gate is not None:
                layer.gate.draw(self.generator)
        return False

    def freeze(self, model: Potential, optimizer: torch.optim.Optimizer, average: WeightAverage) -> None:
        """Reduce the network to its strongest paths; the optimiser's moments and the average follow."""
        choose_strongest(model)
        with average.applied():
            averaged = copy.deepcopy(model)
        compact(averaged)
        follow(optimizer, compact(model))
        average.follow(model, averaged)
        self.phase = "frozen"

    def describe(self, model: nn.Module) -> str:
        """A sentence about the present phase."""
        assert isinstance(model, Potential)
        if self.frozen:
            counts = ", ".join(map(str, paths_of(model)))
            return f"path gates frozen: {counts} paths stay in the layers; {model.num_parameters():,} parameters"
        gates = [layer.gate for layer in interaction_layers(model) if layer.gate is not None]
        sizes = ", ".join(f"{gate.size} of {len(gate.degrees)}" for gate in gates)
        return f"path gates {self.phase}: {sizes} paths in the layers are evaluated in training"

    def state_dict(self, model: Potential) -> dict[str, Any]:
        """Plain values: phase, generator, and the paths of a frozen network."""
        paths = model.config.paths if self.frozen else None
        return {"phase": self.phase, "generator": self.generator.get_state(), "paths": paths}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`, for a model that :func:`reduce_as_before` has reduced already."""
        self.phase = state["phase"]
        self.generator.set_state(state["generator"])


def paths_of(model: Potential) -> list[int]:
    """Number of paths in each layer's tensor product."""
    return [len(layer.conv.paths) for layer in interaction_layers(model)]


def reduce_as_before(model: Potential, content: dict[str, Any]) -> None:
    """Reduce a new model to the paths of a training checkpoint, if those were frozen; its weights are not yet loaded."""
    paths = (content.get("gate") or {}).get("paths")
    if paths is not None:
        choose_paths(model, paths)
        compact(model)


@torch.no_grad()
def follow(optimizer: torch.optim.Optimizer, replaced: list[Replaced]) -> None:
    """Let an Adam go on with the parameters that :func:`mlip.models.compact` put in place of others.

    A weight that became w' = f w has the gradient g' = g / f, so the moments become m / f and v / f^2. Weights that were
    multiplied by 0 had no gradient, and no moments.
    """
    successors = {each.old: each.new for each in replaced}
    gone = {each.gate for each in replaced}
    for group in optimizer.param_groups:
        group["params"] = [successors.get(p, p) for p in group["params"] if p not in gone]
    for each in replaced:
        optimizer.state.pop(each.gate, None)
        state = optimizer.state.pop(each.old, None)
        if not state:
            continue
        inverse = torch.where(each.factor != 0, 1 / each.factor, 0.0).unsqueeze(1)
        kept = torch.tensor(each.kept, device=inverse.device)
        optimizer.state[each.new] = {
            "step": state["step"],
            "exp_avg": state["exp_avg"].index_select(1, kept) * inverse,
            "exp_avg_sq": state["exp_avg_sq"].index_select(1, kept) * inverse.square(),
        }
