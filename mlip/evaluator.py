"""Which form of a model a calculator calls: the model itself, its inference form, or compiled code."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mlip.errors import CheckpointError, ConfigError

Evaluate = Callable[[dict[str, Any], bool], dict[str, Tensor]]
Network = Callable[..., tuple[Tensor, ...]]
log = logging.getLogger("mlip")

STD_KEYS = ("energy_std", "forces_std")
_TURNS = 5
"""Evaluations of either form that ``compile="auto"`` compares."""


def evaluator(model: Any, compile: bool | str, uncertainty: bool = False) -> Evaluate:
    """What maps a graph, and whether the stress is wanted, to energy, energies, forces and stress.

    Args:
        model: a ``Potential``, an ``ExportedPotential``, or any module that is called as the former.
        compile: as in :class:`mlip.MLIPCalculator`; compiled at the first call.
        uncertainty: also give ``energy_std`` and ``forces_std``; not from compiled code.

    Raises:
        ConfigError: ``compile`` is True for what cannot be compiled; no ``uncertainty`` in the model.
    """
    from mlip.models import Potential
    from mlip.models.uncertainty import uncertainty_of

    found = uncertainty_of(model) if uncertainty else None
    if isinstance(model, torch.nn.Module) and type(model) is not Potential:
        if compile is True:
            raise ConfigError(f"compile is True, and a {type(model).__name__} cannot be compiled; leave compile out")
        return lambda graph, stress: model(graph, compute_forces=True, compute_stress=stress)
    from mlip.models.inference import FastPotential, FrozenNetwork, UncertainNetwork

    if not isinstance(model, Potential):  # exported
        return FastPotential(model.cutoff, model.species_of_z, model.network)
    network: Network = FrozenNetwork(model)
    if found is not None:
        return FastPotential(model.cutoff, model.species_of_z, UncertainNetwork(FrozenNetwork(model)), found)
    if compile:
        network = _CompiledAtFirstCall(model, network, compile is True)
    return FastPotential(model.cutoff, model.species_of_z, network)


def deviations(model: Any) -> Callable[[dict[str, Any]], dict[str, Tensor]]:
    """What maps a graph to ``energy_std`` and ``forces_std``, without energy and forces.

    Raises:
        ConfigError: the model has no uncertainty.
    """
    from mlip.models.inference import FastUncertainty

    return FastUncertainty(model)


def hash_weights(digest: Any, model: torch.nn.Module) -> None:
    """Add names, types, shapes and values of all weights to a digest of :mod:`hashlib`."""
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


class _CompiledAtFirstCall:
    """The compiled network, from the cache if it is there; or ``eager`` with one log line, unless ``must``."""

    def __init__(self, model: Any, eager: Network, must: bool) -> None:
        self.model, self.eager, self.must = model, eager, must
        self.chosen: Network | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self.chosen is None:
            self.chosen = self._choose(inputs)
        return self.chosen(*inputs)

    def _choose(self, inputs: tuple[Tensor, ...]) -> Network:
        try:
            if self.model.backbone.embedding.device.type != "cpu":
                raise ConfigError("compilation is for the CPU only")
            from mlip.exported import cached_export

            compiled = cached_export(self.model).network
        except (ConfigError, CheckpointError, OSError) as error:
            if self.must:
                raise ConfigError(f"compile is True: {error}") from error
            log.warning("compile: running uncompiled: %s", error)
            return self.eager
        if self.must:
            return compiled
        slow, fast = _seconds(self.eager, compiled, inputs)
        better = fast < slow
        log.info("compile: %.1f ms a step, uncompiled %.1f; %s", 1e3 * fast, 1e3 * slow, "compiled" if better else "uncompiled")
        return compiled if better else self.eager


def _seconds(first: Network, second: Network, inputs: tuple[Tensor, ...]) -> tuple[float, float]:
    """Shortest times of two networks, called in turns."""
    best = [float("inf"), float("inf")]
    for _ in range(_TURNS):
        for place, network in enumerate((first, second)):
            start = time.perf_counter()
            network(*inputs)
            best[place] = min(best[place], time.perf_counter() - start)
    return best[0], best[1]
