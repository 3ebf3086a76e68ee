"""Counting what a model really does: every matrix product that runs is seen, none is derived from a formula."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mlip.nn import TensorProductConv

_PRODUCTS = {torch.ops.aten.mm: 0, torch.ops.aten.bmm: 0, torch.ops.aten.addmm: 1, torch.ops.aten.baddbmm: 1}
"""Matrix products, and the place of their first factor among the arguments."""


@dataclass
class Work:
    """What one call of a model did.

    Attributes:
        multiply_adds: of all matrix products; pointwise operations are not counted.
        convolutions: of those in the forward pass of each tensor product, by its name in the model.
        paths: different paths whose weights each tensor product read, by its name.
    """

    multiply_adds: int = 0
    convolutions: dict[str, int] = field(default_factory=dict)
    paths: dict[str, int] = field(default_factory=dict)


class _Counter(TorchDispatchMode):
    """Adds up the matrix products that reach the dispatcher, those of derivatives too."""

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()
        self.inside: str | None = None
        self.read: dict[str, set[int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        operation = func.overloadpacket
        if operation in _PRODUCTS:
            count = math.prod(out.shape) * args[_PRODUCTS[operation]].shape[-1]
            self.work.multiply_adds += count
            if self.inside is not None:
                self.work.convolutions[self.inside] += count
        elif operation is torch.ops.aten.index_select and self.inside is not None and args[1] == 1:
            self._weights_are_read(args[0], args[2])
        return out

    def _weights_are_read(self, source: Tensor, index: Tensor) -> None:
        """A tensor product takes the weights ``[num_basis, paths, channels]`` of its rows' paths."""
        if source.dim() == 3 and self.inside is not None:
            self.read[self.inside].update(index.tolist())

    def enter(self, name: str, *_: Any) -> None:
        """Before a tensor product; one model may call it several times."""
        self.inside = name
        self.read.setdefault(name, set())
        self.work.convolutions.setdefault(name, 0)

    def leave(self, name: str, *_: Any) -> None:
        """After it."""
        self.work.paths[name] = len(self.read[name])
        self.inside = None


def count_work(model: nn.Module, graph: Mapping[str, Any], **options: Any) -> Work:
    """Call ``model(graph, **options)`` and count what it does."""
    counter = _Counter()
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, TensorProductConv):
            hooks.append(module.register_forward_pre_hook(partial(counter.enter, name)))
            hooks.append(module.register_forward_hook(partial(counter.leave, name)))
    try:
        with counter:
            model(graph, **options)
    finally:
        for hook in hooks:
            hook.remove()
    return counter.work
