"""Constants of a layer that follow ``.to(dtype)`` without ever being rounded twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class ConstantsModule(nn.Module):
    """A module whose constants have float64 masters.

    A buffer that went through float32 stays rounded when the module is cast to float64; here every cast starts from the
    master. Constants are not part of the state dict: they follow from the hyper-parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self._masters: dict[str, Tensor] = {}

    def register_constant(self, name: str, value: Tensor) -> None:
        """Register ``value`` (float64) as the buffer ``name``, for now in the default floating type."""
        self._masters[name] = value.detach().to(torch.float64).contiguous()
        self.register_buffer(name, self._masters[name].to(torch.get_default_dtype()), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ConstantsModule:
        super()._apply(fn, recurse)
        for name, master in self._masters.items():
            buffer: Any = getattr(self, name)
            setattr(self, name, master.to(device=buffer.device, dtype=buffer.dtype))
        return self
