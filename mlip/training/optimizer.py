"""AdamW with weight decay where it makes sense."""

from __future__ import annotations

import torch
from torch import nn

from mlip.config import TrainingSection
from mlip.nn import ElementScale

_UNDECAYED_NAMES = ("bias", "alpha", "scale", "shift", "gate")


def decays(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to scalars, biases, residual factors, nor anything in a normalisation layer."""
    owner = module.get_submodule(name.rpartition(".")[0])
    last = name.rpartition(".")[2].lower()
    if isinstance(owner, ElementScale) or last == "embedding":  # their neutral values are not zero
        return False
    plain = parameter.numel() > 1 and not any(word in last for word in _UNDECAYED_NAMES)
    return plain and "norm" not in type(owner).__name__.lower()


def make_optimizer(module: nn.Module, config: TrainingSection) -> torch.optim.AdamW:
    """AdamW over the trainable parameters in two groups: with and without weight decay."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (decayed if decays(module, name, parameter) else plain).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, config.weight_decay), (plain, 0.0))
        if parameters
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.99), fused=True)
