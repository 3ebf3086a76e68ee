"""The hyper-parameters of a model, documented where they are typed."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class RadialConfig(BaseModel):
    """The radial basis; path weights are linear in it."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["bspline", "bessel", "mlp"] = Field(
        "bessel", description="sine-Bessel, B-splines, or MLP over Bessel; bessel won the ablation (benchmarks/results)"
    )
    num_basis: int = Field(8, ge=5, le=64, description="functions over [0, cutoff]")
    mlp_hidden: int = Field(64, ge=1, description="hidden width (kind mlp only)")
    mlp_features: int = Field(16, ge=1, description="outputs that serve as the basis (kind mlp only)")


class GridConfig(BaseModel):
    """Node-wise mixing on the sphere."""

    model_config = ConfigDict(extra="forbid")

    enabled: bool = True
    activation: Literal["silu", "product"] = Field(
        "product", description="silu: a network at each grid point, equivariant up to aliasing; product: exact"
    )
    hidden: int | None = Field(None, ge=1, description="channels on the grid; default: the model's channels")
    oversampling: float = Field(1.0, ge=1.0, le=8.0, description="grid points per direction over the exact-product grid")


class ModelConfig(BaseModel):
    """A potential: backbone and energy head."""

    model_config = ConfigDict(extra="forbid")

    cutoff: float = Field(5.0, gt=0.5, le=20.0, description="neighbours within this distance, Angstrom")
    l_max: int = Field(2, ge=0, le=4, description="highest degree of features and spherical harmonics")
    channels: int = Field(64, ge=1, le=1024, description="channels of every degree")
    num_layers: int = Field(2, ge=1, le=8, description="message-passing layers")
    radial: RadialConfig = Field(default_factory=RadialConfig)
    grid: GridConfig = Field(default_factory=GridConfig)
    readout_hidden: int = Field(32, ge=1, description="hidden width of the energy readout")
    zbl: bool = Field(False, description="add the Ziegler-Biersack-Littmark screened nuclear repulsion")


PRESETS: dict[str, dict] = {
    "small": {"channels": 32, "l_max": 2, "num_layers": 2},
    "medium": {"channels": 64, "l_max": 2, "num_layers": 2},
    "large": {"channels": 96, "l_max": 3, "num_layers": 3},
}


def preset(name: str) -> ModelConfig:
    """The configuration called ``small``, ``medium`` or ``large``."""
    return ModelConfig(**PRESETS[name])
