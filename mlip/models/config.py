"""The hyper-parameters of a model, documented where they are typed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class RadialConfig(BaseModel):
    """The radial basis; path weights are linear in it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    kind: Literal["bspline", "bessel", "mlp"] = Field(
        "bessel", description="sine-Bessel, B-splines, or MLP over Bessel; bessel won the ablation (benchmarks/results)"
    )
    num_basis: int = Field(8, ge=5, le=64, description="functions over [0, cutoff]")
    mlp_hidden: int = Field(64, ge=1, le=4096, description="hidden width (kind mlp only)")
    mlp_features: int = Field(16, ge=1, le=1024, description="outputs that serve as the basis (kind mlp only)")


class GridConfig(BaseModel):
    """Node-wise mixing on the sphere."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    enabled: bool = True
    activation: Literal["silu", "product"] = Field(
        "product", description="silu: a network at each grid point, equivariant up to aliasing; product: exact"
    )
    hidden: int | None = Field(None, ge=1, le=4096, description="channels on the grid; default: the model's channels")
    oversampling: float = Field(1.0, ge=1.0, le=8.0, description="grid points per direction over the exact-product grid")


class GateConfig(BaseModel):
    """Path gates of the edge tensor products (mlip.nn.gate): which couplings are worth their cost is learned, the rest goes."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    sparsity: float | list[float] = Field(
        0.5,
        description="share of the paths that go, in [0, 1): of every layer, or a list with one number a layer (the density head's "
        "own comes last). A path that is the only one into its degree stays: of a first layer none can go",
    )

    @field_validator("sparsity")
    @classmethod
    def _shares(cls, value: float | list[float]) -> float | list[float]:
        if not all(0 <= share < 1 for share in (value if isinstance(value, list) else [value])):
            raise ValueError("a share of paths that go is at least 0 and below 1")
        return value

    def of_layer(self, place: int) -> float:
        """Sparsity of the interaction layer ``place``."""
        return self.sparsity[place] if isinstance(self.sparsity, list) else self.sparsity


class PairGateConfig(BaseModel):
    """A smooth gate on the pairs of the density head's convolution (mlip.nn.pairgate); pairs that it shuts cost nothing there."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    sparsity: float = Field(0.5, ge=0, lt=1, description="share of the pairs that go, which training aims at")
    strength: float = Field(
        10.0, ge=0, description="of that aim: strength (share that goes - sparsity)^2 is added to the loss of a training step"
    )
    ramp: float = Field(
        0.3, ge=0, le=1, description="share of the run in which the aim rises from 0; what can be spared shows only as it learns"
    )
    hidden: int = Field(16, ge=1, le=1024, description="width of the gate's network")

    def aim(self, share: float) -> float:
        """Share of the pairs that are to go when ``share`` of the run is done."""
        return self.sparsity * min(1.0, share / self.ramp) if self.ramp else self.sparsity


class DensityConfig(BaseModel):
    """The density head: one convolution up to the basis' highest degree, then a linear map onto each element's shells."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    l_max: int | None = Field(
        None, ge=0, le=6, description="highest degree it predicts (shells above stay 0); default: the auxiliary basis' own"
    )
    channels: int | None = Field(None, ge=1, le=1024, description="channels of the head; default: half of the model's, at least 8")
    nonlinearity: Literal["product", "silu", "none"] = Field(
        "product", description="grid mixing after the head's convolution: product (exact), silu (to aliasing), none"
    )
    # 20 epochs on organics (one seed), Coulomb error on molecules held out: modes 0.065, shells 0.071 mHa per electron.
    modes: bool = Field(
        True, description="predict amplitudes of modes (combinations of an element's shells); false: of each shell by itself"
    )
    # 400 steps on organics, Coulomb error in microhartree per electron, training with the Coulomb loss and with L2 per shell:
    # overlap 170 and 420, coulomb 170 and 712, none 220 and 855 (365 where projected afterwards).
    projection: Literal["coulomb", "overlap", "none"] = Field(
        "overlap", description="the coefficients are changed as little as possible in this metric's diagonal to hold all electrons"
    )
    pair_gate: PairGateConfig | None = Field(None, description="learn which pairs the head's convolution needs; None: it takes all")


class ModelConfig(BaseModel):
    """A backbone with an energy head (a potential), a density head, or both."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    cutoff: float = Field(5.0, gt=0.5, le=20.0, description="neighbours within this distance, Angstrom")
    l_max: int = Field(2, ge=0, le=4, description="highest degree of features and spherical harmonics")
    channels: int = Field(64, ge=1, le=1024, description="channels of every degree")
    num_layers: int = Field(2, ge=1, le=8, description="message-passing layers")
    radial: RadialConfig = Field(default_factory=RadialConfig)
    grid: GridConfig = Field(default_factory=GridConfig)
    energy: bool = Field(True, description="has an energy head: energies, forces, stress")
    density: DensityConfig | None = Field(None, description="the density head; None: there is none")
    gate: GateConfig | None = Field(None, description="path gates, for training to prune the paths; None: every path stays")
    paths: list[list[tuple[int, int, int]]] | None = Field(
        None,
        description="paths (l1, l2, l3) of every layer's tensor product (the density head's own comes last), as pruning leaves "
        "them; None: all",
    )
    readout_hidden: int = Field(32, ge=1, le=4096, description="hidden width of the energy readout")
    zbl: bool = Field(False, description="add the Ziegler-Biersack-Littmark screened nuclear repulsion")

    @model_validator(mode="after")
    def _some_head(self) -> ModelConfig:
        if not self.energy and self.density is None:
            raise ValueError("a model needs a head: set energy: true or give a density section ({} takes its defaults)")
        if self.zbl and not self.energy:
            raise ValueError("zbl adds to the energy, and energy is false; set zbl: false or energy: true")
        return self

    @model_validator(mode="after")
    def _every_layer(self) -> ModelConfig:
        layers = self.num_layers + (self.density is not None)
        given = {"gate.sparsity": None if self.gate is None else self.gate.sparsity, "paths": self.paths}
        for name, values in given.items():
            if isinstance(values, list) and len(values) != layers:
                head = " and 1 for the density head's" if self.density is not None else ""
                raise ValueError(f"{name} has {len(values)} entries; one is needed for each of {self.num_layers} layers{head}")
        return self

    def without_density(self) -> ModelConfig:
        """The same without the density head, and without what ``gate`` and ``paths`` say about it."""
        if self.density is None:
            return self
        changes: dict[str, Any] = {"density": None, "paths": self.paths and self.paths[: self.num_layers]}
        if self.gate is not None and isinstance(self.gate.sparsity, list):
            changes["gate"] = self.gate.model_copy(update={"sparsity": self.gate.sparsity[: self.num_layers]})
        return self.model_copy(update=changes)


PRESETS: dict[str, dict] = {
    "small": {"channels": 32, "l_max": 2, "num_layers": 2},
    "medium": {"channels": 64, "l_max": 2, "num_layers": 2},
    "large": {"channels": 96, "l_max": 3, "num_layers": 3},
}


def preset(name: str) -> ModelConfig:
    """The configuration called ``small``, ``medium`` or ``large``."""
    return ModelConfig(**PRESETS[name])
