"""Backbone, heads and their assembly."""

from mlip.models.build import build, parse_dtype
from mlip.models.compaction import compact
from mlip.models.config import PRESETS, DensityConfig, GateConfig, GridConfig, ModelConfig, PairGateConfig, RadialConfig, preset
from mlip.models.densitystats import DensityReference, density_statistics
from mlip.models.potential import Potential

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
