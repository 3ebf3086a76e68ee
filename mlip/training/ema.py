"""A running average of the weights: smoother than the last step, usually better on unseen data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average ``a <- d a + (1 - d) w`` of all trainable parameters.

    Early on the decay is ``min(decay, (1 + n) / (10 + n))`` after ``n`` updates: the first weights are soon forgotten.

    Args:
        module: whose parameters are averaged; starts at their present values.
        decay: 0 makes the average equal to the weights.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self._weights = [p for p in module.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights into the average."""
        decay = min(self.decay, (1.0 + self.updates) / (10.0 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(self.average, [p.detach() for p in self._weights], 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the module holds the averaged weights; after, its own again (also after an exception)."""
        own = [p.detach().clone() for p in self._weights]
        self.copy_to_module()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(list(self._weights), own)

    @torch.no_grad()
    def copy_to_module(self) -> None:
        """Overwrite the module's weights by the average."""
        torch._foreach_copy_(list(self._weights), self.average)

    def follow(self, module: nn.Module, averaged: nn.Module) -> None:
        """Go on with the parameters that ``module`` has now; ``averaged`` is a module of the same kind that holds their average."""
        self._weights = [p for p in module.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in averaged.parameters() if p.requires_grad]

    def state_dict(self) -> dict[str, int | list[Tensor]]:
        """Plain tensors and numbers."""
        return {"updates": self.updates, "average": [a.clone() for a in self.average]}

    def load_state_dict(self, state: dict) -> None:
        """Inverse of :meth:`state_dict`."""
        self.updates = int(state["updates"])
        with torch.no_grad():
            torch._foreach_copy_(self.average, list(state["average"]))
