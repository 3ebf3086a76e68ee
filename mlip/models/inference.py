"""A potential arranged for energies and forces of one structure at a time: fixed weights, folded constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mlip.models.backbone import InteractionLayer
from mlip.models.geometry import edge_vectors, forces_from_edges, padded_slots, stress_from_edges
from mlip.models.potential import Potential
from mlip.models.uncertainty import Uncertainty, uncertainty_of
from mlip.nn import EquivariantLinear, GridMix, TensorProductConv
from mlip.nn.frozenconv import FrozenConv, SpeciesConv
from mlip.nn.irreps import num_components


def _per_component(linear: EquivariantLinear) -> Tensor:
    """Its weight for every spherical component, ``[(l_max+1)^2, channels_in, channels_out]`` float64."""
    repeats = torch.tensor([2 * l + 1 for l in range(linear.l_max + 1)], device=linear.weight.device)
    return (linear.factor * linear.weight.detach().double()).repeat_interleave(repeats, dim=0)


def _ungated_conv(layer: InteractionLayer) -> TensorProductConv:
    """The layer's tensor product with the factors and the choice of its path gate folded in."""
    if layer.gate is None:
        return layer.conv
    gated = layer.gate()
    kept = range(len(layer.conv.paths)) if gated.active is None else gated.active
    return layer.conv.restricted(list(kept), gated.factor.detach())


class PairTables(NamedTuple):
    """Who is a neighbour of whom, in tables of equal rows.

    Attributes:
        neighbours: senders ``[N, D]``. degree: how many of the D are neighbours ``[N]``; they come first in their rows.
        outgoing: for every atom the places in the flattened ``neighbours`` where it stands ``[N, K]``. counts: of them ``[N]``.
    """

    neighbours: Tensor
    degree: Tensor
    outgoing: Tensor
    counts: Tensor

    @classmethod
    def of_edges(cls, edge_index: Tensor, num_nodes: int) -> tuple[Tensor, PairTables]:
        """The place of every edge in the flattened ``neighbours`` ``[E]``, and the tables; D and K are at least 1."""
        slots, degree, width = padded_slots(edge_index[1], num_nodes)
        neighbours = edge_index.new_zeros(num_nodes, max(width, 1))
        neighbours.view(-1).index_copy_(0, slots, edge_index[0])
        back, counts, width = padded_slots(edge_index[0], num_nodes)
        outgoing = edge_index.new_zeros(num_nodes, max(width, 1))
        outgoing.view(-1).index_copy_(0, back, slots)
        return slots, cls(neighbours, degree, outgoing, counts)


class FrozenLayer(nn.Module):
    """:class:`InteractionLayer` with its constants folded: features component first, ``[(l+1)^2, N, C]``, one product a map.

    ``scalars_only``: gives the degree 0 of the result alone (what the energy of a last layer needs).
    """

    mix: Tensor
    own: Tensor
    own_scale: Tensor

    def __init__(self, layer: InteractionLayer, embedding: Tensor | None, scalars_only: bool) -> None:
        super().__init__()
        conv, scale = _ungated_conv(layer), 1.0 / layer.avg_num_neighbors
        self.first = None if embedding is None else SpeciesConv(conv, embedding, scale)
        self.later = FrozenConv(conv, scale) if embedding is None else None
        dtype = conv.weight.dtype
        self.register_buffer("mix", _per_component(layer.mix).to(dtype), persistent=False)
        degrees = layer.self_scale.degrees
        scales = layer.self_scale.weight.detach().double().index_select(1, degrees).transpose(0, 1)  # [M, Z, C]
        own = _per_component(layer.self_mix)
        if embedding is None:
            self.register_buffer("own_scale", scales.to(dtype), persistent=False)
        else:  # what an atom adds to itself depends on its element alone
            value = scales * (embedding.detach().double() @ own)
            own = torch.cat([value, value.new_zeros(len(self.mix) - len(value), *value.shape[1:])])
        self.register_buffer("own", own.to(dtype), persistent=False)
        self.scalars_only = scalars_only
        self.grid = None if layer.grid_mix is None else FrozenGrid(layer, layer.grid_mix, scalars_only)

    def forward(
        self, h: Tensor | None, species: Tensor, harmonics: Tensor, basis: Tensor, pairs: PairTables
    ) -> Tensor:
        """Features ``[(l_in+1)^2, N, C]``, ``None`` before the first layer -> ``[(l_max+1)^2, N, C]`` (``[1, N, C]``)."""
        if self.first is not None:
            senders = species.index_select(0, pairs.neighbours.reshape(-1)).view_as(pairs.neighbours)
            message = self.first(harmonics, basis, senders)
            own = self.own.index_select(1, species)
        else:
            assert h is not None and self.later is not None
            nodes = h.transpose(0, 1).contiguous()
            message = self.later(nodes, harmonics, basis, pairs.neighbours, pairs.outgoing, pairs.counts).transpose(0, 1)
            own = torch.bmm(h, self.own) * self.own_scale.index_select(1, species)
        if self.grid is None and self.scalars_only:
            return torch.bmm(message[:1], self.mix[:1]) + own[:1]
        u = torch.bmm(message, self.mix) + own
        return u if self.grid is None else u[: self.grid.num_out] + self.grid(u)


class FrozenGrid(nn.Module):
    """alpha GridMix(Norm(u)) with the gains, factors and alpha folded into its two maps."""

    square: Tensor
    first: Tensor
    to_grid: Tensor
    from_grid: Tensor
    last: Tensor
    gain: Tensor

    def __init__(self, layer: InteractionLayer, mix: GridMix, scalars_only: bool) -> None:
        super().__init__()
        self.eps, self.hidden, self.activation = layer.norm.eps, mix.hidden, mix.activation
        self.num_out = 1 if scalars_only else num_components(mix.l_max_out)
        dtype = mix.first.dtype
        gain = layer.norm.gain.detach().double().index_select(0, layer.norm.degrees)
        weights = {
            "square": layer.norm.weights.double()[:, None, None],
            "first": gain.unsqueeze(2) * (mix.factor * mix.first.detach().double()),
            "to_grid": mix.grid.to_grid,
            "from_grid": mix.grid.from_grid[: self.num_out],
            "last": layer.alpha.detach().double() * _per_component(mix.last)[: self.num_out],
            "gain": gain[0],
        }
        for name, value in weights.items():
            self.register_buffer(name, value.to(dtype).contiguous(), persistent=False)
        self.bias = mix.bias if mix.activation == "silu" else None
        self.gate = None if mix.activation == "silu" else mix.gate

    def forward(self, u: Tensor) -> Tensor:
        """``[M, N, C]`` -> ``[num_out, N, C]``."""
        norm = torch.rsqrt((u * u * self.square).sum((0, 2)) + self.eps).unsqueeze(1)
        x = u * norm
        mapped = torch.bmm(x, self.first)
        values = (self.to_grid @ mapped.flatten(1)).view(-1, mapped.shape[1], mapped.shape[2])
        if self.bias is not None:
            values = nn.functional.silu(values + self.bias)
        else:
            left, right = values.split(self.hidden, dim=2)
            values = left * right
        back = (self.from_grid @ values.flatten(1)).view(-1, values.shape[1], self.hidden)
        if self.gate is not None:
            back = back * self.gate(x[0] * self.gain)
        return torch.bmm(back, self.last)


class FrozenNetwork(nn.Module):
    """The whole network as a function of padded edge vectors; what is compiled and exported.

    Attributes:
        fused: arranged for a compiler.
    """

    def __init__(self, model: Potential) -> None:
        super().__init__()
        assert model.head is not None, "a density model has no energies"
        self.dtype = model.dtype
        backbone = model.backbone
        self.radial, self.envelope, self.harmonics = backbone.radial, backbone.envelope, backbone.harmonics
        self.head, self.zbl = model.head, model.zbl
        layers = [layer for layer in backbone.layers if isinstance(layer, InteractionLayer)]
        count = len(layers)
        self.layers = nn.ModuleList(
            FrozenLayer(layer, backbone.embedding if t == 0 else None, t == count - 1)
            for t, layer in enumerate(layers)
        )
        self.requires_grad_(False)

    def set_fused(self, fused: bool) -> FrozenNetwork:
        """Arrange the neighbour sums for a compiler, or for eager execution."""
        for module in self.modules():
            if isinstance(module, FrozenConv):
                module.fused = fused
        return self

    def scalars(self, species: Tensor, table: Tensor, pairs: PairTables) -> tuple[Tensor, Tensor]:
        """What the energy head reads: the last features of degree 0 ``[N, C]``, and smooth coordination numbers ``[N]``.

        Args:
            species: element indices ``[N]``.
            table: padded edge vectors ``[N, D, 3]``, Angstrom, float64; padding has the length of the cutoff, D > 0.
        """
        vectors = table.to(self.dtype)
        distance = torch.linalg.vector_norm(vectors, dim=-1)
        harmonics = self.harmonics(vectors / distance.unsqueeze(-1))
        basis = self.radial(distance)
        h: Tensor | None = None
        for layer in self.layers:
            h = layer(h, species, harmonics, basis, pairs)
        assert h is not None
        return h[0], self.envelope(distance).sum(dim=1)

    def energies(
        self, scalars: Tensor, coordination: Tensor, species: Tensor, numbers: Tensor, table: Tensor, pairs: PairTables
    ) -> Tensor:
        """Atomic energies ``[N]`` (eV, float64), from :meth:`scalars`, atomic numbers ``[N]`` and what else it took."""
        energies = self.head(scalars, species, coordination)
        if self.zbl is not None:
            there = torch.arange(table.shape[1], device=table.device) < pairs.degree.unsqueeze(1)
            senders = numbers.index_select(0, pairs.neighbours.reshape(-1)).view_as(pairs.neighbours)
            pair = self.zbl(torch.linalg.vector_norm(table, dim=-1), numbers.unsqueeze(1).expand_as(senders), senders)
            energies = energies + torch.where(there, pair, 0.0).sum(1)
        return energies

    def forward(self, species: Tensor, numbers: Tensor, table: Tensor, *pairs: Tensor) -> tuple[Tensor, ...]:
        """``energies`` (see there) and their derivative with respect to ``table``, ``[N, D, 3]`` eV/Angstrom.

        ``pairs`` are the tensors of :class:`PairTables`, one by one.
        """
        energies, gradient, _, _ = self.evaluate(species, numbers, table, PairTables(*pairs))
        return energies, gradient

    def evaluate(self, species: Tensor, numbers: Tensor, table: Tensor, pairs: PairTables) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As :meth:`forward`, and the two of :meth:`scalars`."""
        with torch.enable_grad():
            leaf = table.detach().requires_grad_()
            scalars, coordination = self.scalars(species, leaf, pairs)
            energies = self.energies(scalars, coordination, species, numbers, leaf, pairs)
            (gradient,) = torch.autograd.grad(energies.sum(), leaf)
        return energies.detach(), gradient, scalars.detach(), coordination.detach()


class UncertainNetwork(nn.Module):
    """A :class:`FrozenNetwork` that gives its atoms' last features ``[N, d]`` (float64, eV) too, from the same pass."""

    def __init__(self, network: FrozenNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, species: Tensor, numbers: Tensor, table: Tensor, *pairs: Tensor) -> tuple[Tensor, ...]:
        """Energies, derivative, features."""
        energies, gradient, *scalars = self.network.evaluate(species, numbers, table, PairTables(*pairs))
        return energies, gradient, self.network.head.features(scalars[0], species, scalars[1])

    def features(self, species: Tensor, table: Tensor, pairs: PairTables) -> Tensor:
        """The features alone, without a derivative."""
        scalars, coordination = self.network.scalars(species, table, pairs)
        return self.network.head.features(scalars, species, coordination)


class FastPotential:
    """What :class:`Potential` gives for one structure, from a :class:`FrozenNetwork` or something compiled of one.

    Tables that depend on the list of pairs alone are kept while the same tensors come again.

    Args:
        cutoff: Angstrom. species_of_z: element index of every atomic number; the atoms must be of known elements.
        network: takes and gives what :meth:`FrozenNetwork.forward` does; with ``uncertainty``, :meth:`UncertainNetwork.forward`.
        uncertainty: to give ``energy_std`` and ``forces_std`` too.
    """

    def __init__(
        self,
        cutoff: float,
        species_of_z: Tensor,
        network: Callable[..., tuple[Tensor, ...]],
        uncertainty: Uncertainty | None = None,
    ) -> None:
        self.cutoff, self.species_of_z, self.network, self.uncertainty = cutoff, species_of_z, network, uncertainty
        self._edges: Tensor | None = None
        self._numbers: Tensor | None = None

    def tables(self, graph: Mapping[str, Any]) -> tuple[Tensor, PairTables]:
        """As :meth:`PairTables.of_edges`."""
        edges, numbers = graph["edge_index"], graph["atomic_numbers"]
        if edges is not self._edges or numbers is not self._numbers:
            self._tables = PairTables.of_edges(edges, len(numbers))
            self.species = self.species_of_z.index_select(0, numbers)
            self._edges, self._numbers = edges, numbers
        return self._tables

    def padded(self, graph: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor, PairTables]:
        """Edge vectors ``[E, 3]``, the place of each in the table, the table ``[N, D, 3]``, and :class:`PairTables`."""
        slots, pairs = self.tables(graph)
        vectors = edge_vectors(graph["positions"], graph["cell"], graph["edge_index"], graph["edge_shift"], graph["batch"])
        table = vectors.new_zeros(*pairs.neighbours.shape, 3)
        table[..., 2] = self.cutoff
        table.view(-1, 3).index_copy_(0, slots, vectors)
        return vectors, slots, table, pairs

    @torch.no_grad()
    def __call__(self, graph: Mapping[str, Any], compute_stress: bool = False) -> dict[str, Tensor]:
        """``energy`` [1], ``energies`` [N], ``forces`` [N, 3] and, if asked for, ``stress`` [1, 6]; units as the model's own."""
        vectors, slots, table, pairs = self.padded(graph)
        numbers, edges = graph["atomic_numbers"], graph["edge_index"]
        energies, of_table, *features = self.network(self.species, numbers, table, *pairs)
        gradient = of_table.reshape(-1, 3).index_select(0, slots)
        out = {"energy": energies.sum().unsqueeze(0), "energies": energies}
        out["forces"] = forces_from_edges(gradient, edges, len(numbers))
        if compute_stress:
            out["stress"] = stress_from_edges(vectors, gradient, graph["batch"].index_select(0, edges[1]), graph["cell"])
        if self.uncertainty is not None:
            out.update(self.uncertainty(features[0], self.species)._asdict())
        return out


class FastUncertainty:
    """``energy_std`` [1] and ``forces_std`` [N] of one structure, without energy and forces (:mod:`mlip.models.uncertainty`).

    Raises:
        ConfigError: the model has none.
    """

    def __init__(self, model: Potential) -> None:
        self.uncertainty = uncertainty_of(model)
        self.network = UncertainNetwork(FrozenNetwork(model))
        self.whole = FastPotential(model.cutoff, model.species_of_z, self.network, self.uncertainty)

    @torch.no_grad()
    def __call__(self, graph: Mapping[str, Any]) -> dict[str, Tensor]:
        _, _, table, pairs = self.whole.padded(graph)
        features = self.network.features(self.whole.species, table, pairs)
        return self.uncertainty(features, self.whole.species)._asdict()
