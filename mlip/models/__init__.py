"""Backbone, heads and their assembly.

Names are loaded at first use: the hyper-parameters (:mod:`mlip.models.config`) are then read without torch, so that a wrong option
is answered at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlip.models.assembly import build, parse_dtype
    from mlip.models.compaction import compact
    from mlip.models.config import PRESETS, DensityConfig, GateConfig, GridConfig, ModelConfig, PairGateConfig, RadialConfig, preset
    from mlip.models.densitystats import DensityReference, density_statistics
    from mlip.models.potential import Potential

_HOME = {
    "assembly": ("build", "parse_dtype"),
    "compaction": ("compact",),
    "config": ("PRESETS", "DensityConfig", "GateConfig", "GridConfig", "ModelConfig", "PairGateConfig", "RadialConfig", "preset"),
    "densitystats": ("DensityReference", "density_statistics"),
    "potential": ("Potential",),
}

__all__ = [
    "PRESETS",
    "DensityConfig",
    "DensityReference",
    "GateConfig",
    "GridConfig",
    "ModelConfig",
    "PairGateConfig",
    "Potential",
    "RadialConfig",
    "build",
    "compact",
    "density_statistics",
    "parse_dtype",
    "preset",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"mlip.models.{module}"), name)
    raise AttributeError(f"module 'mlip.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
