"""Backbone, heads and their assembly."""

from mlip.models.build import build, parse_dtype
from mlip.models.config import PRESETS, GridConfig, ModelConfig, RadialConfig, preset
from mlip.models.potential import Potential

__all__ = ["PRESETS", "GridConfig", "ModelConfig", "Potential", "RadialConfig", "build", "parse_dtype", "preset"]
