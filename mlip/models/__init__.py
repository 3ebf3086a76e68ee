"""Backbone, heads and their assembly."""

from mlip.models.build import build, parse_dtype
from mlip.models.config import PRESETS, DensityConfig, GridConfig, ModelConfig, RadialConfig, preset
from mlip.models.densitystats import DensityReference, density_statistics
from mlip.models.potential import Potential

__all__ = [
    "PRESETS",
    "DensityConfig",
    "DensityReference",
    "GridConfig",
    "ModelConfig",
    "Potential",
    "RadialConfig",
    "build",
    "density_statistics",
    "parse_dtype",
    "preset",
]
