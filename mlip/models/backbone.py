"""The equivariant graph network shared by the heads."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mlip.errors import ConfigError
from mlip.models.config import ModelConfig
from mlip.nn import (
    ElementScale,
    EquivariantLinear,
    EquivariantRMSNorm,
    GridMix,
    Path,
    PathGate,
    PolynomialEnvelope,
    SphericalHarmonics,
    TensorProductConv,
    make_radial_basis,
    natural_parity_paths,
)
from mlip.nn.irreps import num_components

# A start at 0 (ReZero) cost 40 % in force error after four epochs on AcAc (198 against 141 meV/A at the same learning rate).
ALPHA_START = 0.3


def layer_paths(config: ModelConfig, place: int, l_in: int) -> list[Path]:
    """Paths of the interaction layer ``place``: all that keep parity, or those that the config lists.

    Raises:
        ConfigError: it lists none, one twice, or one that this layer cannot have.
    """
    possible = natural_parity_paths(l_in, config.l_max, config.l_max)
    if config.paths is None:
        return possible
    paths = [Path(*path) for path in config.paths[place]]
    strange = [tuple(path) for path in paths if path not in possible or paths.count(path) > 1]
    if strange or not paths:
        what = f"{strange[0]} is given twice, or not possible" if strange else "empty"
        raise ConfigError(
            f"model.paths of layer {place + 1}: {what}; a path (l1, l2, l3) has l1 <= {l_in}, l2 and l3 <= {config.l_max}, an even "
            "sum, and obeys the triangle rule"
        )
    return paths


class InteractionLayer(nn.Module):
    """A = conv(h) / avg_n;  u = Linear(A) + Linear_Z(h);  h' = u + alpha GridMix(Norm(u)).

    ``place`` is that of the layer in the lists of the config (:class:`mlip.models.config.ModelConfig`).
    """

    def __init__(
        self, config: ModelConfig, place: int, num_elements: int, l_in: int, num_basis: int, avg_num_neighbors: float
    ) -> None:
        super().__init__()
        self.l_in, self.l_out = l_in, config.l_max
        self.avg_num_neighbors = avg_num_neighbors
        channels = config.channels
        paths = layer_paths(config, place, l_in)
        self.conv = TensorProductConv(paths, config.l_max, config.l_max, num_basis, channels)
        self.gate = None if config.gate is None else PathGate(self.conv.paths, config.gate.of_layer(place))
        # Neighbour sums are of order sqrt(n): the gain makes A / avg_n of order one at the start.
        self.mix = EquivariantLinear(config.l_max, channels, channels, gain=avg_num_neighbors**0.5)
        self.self_mix = EquivariantLinear(l_in, channels, channels)
        self.self_scale = ElementScale(num_elements, l_in, channels)
        self.grid_mix: GridMix | None = None
        if config.grid.enabled:
            grid = config.grid
            self.norm = EquivariantRMSNorm(config.l_max, channels)
            self.grid_mix = GridMix(
                config.l_max, channels, grid.hidden or channels, grid.activation, grid.oversampling
            )
            self.alpha = nn.Parameter(torch.tensor(ALPHA_START))

    def forward(self, h: Tensor, species: Tensor, harmonics: Tensor, basis: Tensor, neighbours: Tensor) -> Tensor:
        """Features ``[N, (l_in+1)^2, C]`` -> ``[N, (l_max+1)^2, C]``."""
        return self.update(h, species, self.message(h, harmonics, basis, neighbours))

    def message(
        self, h: Tensor, harmonics: Tensor, basis: Tensor, neighbours: Tensor, pair_weight: Tensor | None = None
    ) -> Tensor:
        """A of as many receiving nodes as there are rows of ``neighbours`` ``[n, D]``: ``[n, (l_max+1)^2, C]``."""
        gated = (None, None) if self.gate is None else self.gate()
        return self.conv(h, harmonics, basis, neighbours, *gated, pair_weight) / self.avg_num_neighbors

    def update(self, h: Tensor, species: Tensor, message: Tensor) -> Tensor:
        """h' from h and A of all nodes."""
        own = self.self_scale(self.self_mix(h), species)
        if self.l_in < self.l_out:
            own = nn.functional.pad(own, (0, 0, 0, num_components(self.l_out) - num_components(self.l_in)))
        u = self.mix(message) + own
        if self.grid_mix is None:
            return u
        return u + self.alpha * self.grid_mix(self.norm(u))


class NodeFeatures(NamedTuple):
    """What the heads read.

    Attributes:
        features: ``[N, (l_max+1)^2, C]``.
        coordination: smooth coordination numbers ``[N]``, the sums of the radial envelope.
        unit: directions of the padded edges ``[N, D, 3]``. basis: their radial basis ``[N, D, num_basis]``, 0 where padded.
        neighbours: their senders ``[N, D]``. degree: how many of the D are neighbours ``[N]``; they come first.
    """

    features: Tensor
    coordination: Tensor
    unit: Tensor
    basis: Tensor
    neighbours: Tensor
    degree: Tensor


class Backbone(nn.Module):
    """Embedding, radial basis, harmonics and interaction layers; knows geometry only through edge vectors."""

    def __init__(self, config: ModelConfig, num_elements: int, avg_num_neighbors: float) -> None:
        super().__init__()
        self.cutoff = config.cutoff
        self.embedding = nn.Parameter(torch.randn(num_elements, config.channels))
        radial = config.radial
        self.radial = make_radial_basis(
            radial.kind, config.cutoff, radial.num_basis, radial.mlp_hidden, radial.mlp_features
        )
        self.envelope = PolynomialEnvelope(config.cutoff)
        self.harmonics = SphericalHarmonics(config.l_max)
        self.layers = nn.ModuleList(
            InteractionLayer(
                config, t, num_elements, 0 if t == 0 else config.l_max, self.radial.num_features, avg_num_neighbors
            )
            for t in range(config.num_layers)
        )

    def forward(self, species: Tensor, vectors: Tensor, neighbours: Tensor, degree: Tensor) -> NodeFeatures:
        """Features of every node, with what a head needs for one more convolution.

        Args:
            species: element indices ``[N]``.
            vectors: padded edge vectors ``[N, D, 3]``, Angstrom; padding has length ``cutoff``, where the basis is zero.
            neighbours: padded senders ``[N, D]``. degree: neighbours of each node ``[N]``, first in their rows.
        """
        distance = torch.linalg.vector_norm(vectors, dim=-1)
        unit = vectors / distance.unsqueeze(-1)
        harmonics = self.harmonics(unit)
        basis = self.radial(distance)
        h = self.embedding.index_select(0, species).unsqueeze(1)
        for layer in self.layers:
            h = layer(h, species, harmonics, basis, neighbours)
        return NodeFeatures(h, self.envelope(distance).sum(dim=1), unit, basis, neighbours, degree)
