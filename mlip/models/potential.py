"""Backbone and heads put together: energies, with forces and stress from one backward pass, and electron densities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mlip.data.density import DensityBasis
from mlip.elements import MAX_ELEMENT
from mlip.errors import ConfigError, StructureError
from mlip.models.backbone import Backbone, NodeFeatures
from mlip.models.config import ModelConfig
from mlip.models.density import DensityHead
from mlip.models.densitystats import DensityReference
from mlip.models.geometry import edge_vectors, forces_from_edges, padded_slots, stress_from_edges
from mlip.models.uncertainty import Uncertainty, uncertainty_of
from mlip.models.zbl import ZBL


class EnergyHead(nn.Module):
    """E_i = E0(Z_i) + s f(n_i) (b(Z_i) + MLP(h_i scalars)); sums in float64.

    b starts at the mean bonding energy of each element (from the training set), so that the network begins with what is left.
    n_i is the smooth number of neighbours (sum of envelopes) and f(n) = tanh(4 n): an isolated atom has E0 exactly, an atom in
    a molecule (n > 1) is not touched.
    """

    e0: Tensor
    energy_scale: Tensor

    def __init__(
        self, channels: int, hidden: int, e0: Sequence[float], energy_scale: float, shift: Sequence[float]
    ) -> None:
        super().__init__()
        last = nn.Linear(hidden, 1, bias=False)
        self.bias = nn.Parameter(torch.tensor(shift) / energy_scale)
        self.network = nn.Sequential(nn.Linear(channels, hidden), nn.SiLU(), last)
        self.register_buffer("e0", torch.tensor(e0, dtype=torch.float64))
        self.register_buffer("energy_scale", torch.tensor(energy_scale, dtype=torch.float64))

    def _apply(self, fn: Any, recurse: bool = True) -> EnergyHead:
        """Keep E0 and the scale in float64 through ``.to(dtype)``: total energies of heavy atoms exceed float32."""
        e0, scale = self.e0, self.energy_scale
        super()._apply(fn, recurse)
        self.e0, self.energy_scale = e0.to(self.e0.device), scale.to(self.energy_scale.device)
        return self

    def features(self, scalars: Tensor, species: Tensor, coordination: Tensor) -> Tensor:
        """s f(n_i) (hidden layer, element, h_i scalars): ``[N, hidden + elements + C]``, eV, float64.

        The first two are phi_i with E_i = E0 + phi_i . (weights of the last layer, b).
        """
        hidden = self.network[1](self.network[0](scalars)).double()
        element = nn.functional.one_hot(species, len(self.bias)).double()
        bonded = torch.tanh(4 * coordination).double()
        return (self.energy_scale * bonded).unsqueeze(1) * torch.cat([hidden, element, scalars.double()], dim=1)

    @property
    def num_linear(self) -> int:
        """How many of :meth:`features` are phi_i."""
        return int(self.network[0].out_features) + len(self.bias)  # type: ignore[arg-type]

    @property
    def num_features(self) -> int:
        """How many :meth:`features` are."""
        return self.num_linear + int(self.network[0].in_features)  # type: ignore[arg-type]

    def forward(self, scalars: Tensor, species: Tensor, coordination: Tensor) -> Tensor:
        """Scalars ``[N, C]`` and smooth coordination numbers ``[N]`` -> atomic energies ``[N]``, eV, float64."""
        learned = self.network(scalars).squeeze(1).double() + self.bias.index_select(0, species).double()
        bonded = torch.tanh(4 * coordination).double()
        return self.e0.index_select(0, species) + self.energy_scale * bonded * learned


class Potential(nn.Module):
    """Energies, forces and stress of batched structures; or their electron densities; or both.

    Attributes:
        config: hyper-parameters. elements: atomic numbers it knows. cutoff: Angstrom. metadata: free-form JSON (level of theory,
        validation errors, training data). head: of the energy, or None. density_head: or None. uncertainty: fitted to the finished
        weights by :func:`mlip.training.uncertainty.fit_uncertainty`, or None.
    """

    species_of_z: Tensor

    def __init__(
        self,
        config: ModelConfig,
        elements: Sequence[int],
        e0: Mapping[int, float] | None = None,
        energy_scale: float = 1.0,
        avg_num_neighbors: float = 16.0,
        bonding_energy: Mapping[int, float] | None = None,
        density: DensityReference | None = None,
    ) -> None:
        super().__init__()
        if (config.density is None) != (density is None):
            missing = "density is None, and the model config has" if density is None else "density is given, and the config lacks"
            raise ConfigError(f"{missing} a density section; give both (see mlip.models.density_statistics) or neither")
        if not 0 < avg_num_neighbors < float("inf"):
            raise ConfigError(f"avg_num_neighbors is {avg_num_neighbors}; a number above 0 is needed")
        self.config = config
        self.elements = sorted({int(z) for z in elements})
        self.avg_num_neighbors = float(avg_num_neighbors)
        self.metadata: dict[str, Any] = {}
        index = torch.full((MAX_ELEMENT + 1,), -1, dtype=torch.long)
        index[torch.tensor(self.elements)] = torch.arange(len(self.elements))
        self.register_buffer("species_of_z", index, persistent=False)
        self.backbone = Backbone(config, len(self.elements), self.avg_num_neighbors)
        reference, shift = ([float((table or {}).get(z, 0.0)) for z in self.elements] for table in (e0, bonding_energy))
        self.head: EnergyHead | None = None
        if config.energy:
            self.head = EnergyHead(config.channels, config.readout_hidden, reference, energy_scale, shift)
        self.zbl = ZBL() if config.zbl else None
        self.uncertainty: Uncertainty | None = None
        self.density_head: DensityHead | None = None
        if density is not None:
            num_basis = self.backbone.radial.num_features
            self.density_head = DensityHead(config, self.elements, density, num_basis, self.avg_num_neighbors)

    @property
    def cutoff(self) -> float:
        """Neighbours within this distance interact directly, Angstrom."""
        return self.config.cutoff

    @property
    def dtype(self) -> torch.dtype:
        """Type of the network's parameters."""
        return self.backbone.embedding.dtype

    @property
    def e0(self) -> dict[int, float]:
        """Energy of the isolated atom (or its least-squares stand-in) by atomic number, eV; empty without an energy head."""
        return {} if self.head is None else dict(zip(self.elements, self.head.e0.tolist(), strict=True))

    @property
    def has_energy(self) -> bool:
        """Whether it has an energy head."""
        return self.head is not None

    @property
    def density_reference(self) -> DensityReference | None:
        """Basis, baseline and scales of the density head, if it has one."""
        return None if self.density_head is None else self.density_head.reference

    @property
    def density_basis(self) -> DensityBasis | None:
        """Auxiliary basis of the predicted densities, if it has a density head."""
        return None if self.density_head is None else self.density_head.reference.basis

    def num_parameters(self) -> int:
        """Trainable numbers."""
        return sum(p.numel() for p in self.parameters())

    def species(self, atomic_numbers: Tensor) -> Tensor:
        """Element indices of ``atomic_numbers``; an unknown element is an error, not a number."""
        inside = (atomic_numbers >= 0) & (atomic_numbers <= MAX_ELEMENT)
        species = self.species_of_z[torch.where(inside, atomic_numbers, 0)]
        if len(species) and bool((species < 0).any()):
            from ase.data import chemical_symbols

            found = sorted({int(z) for z in atomic_numbers[species < 0]})
            names = ", ".join(chemical_symbols[z] if 0 <= z <= MAX_ELEMENT else str(z) for z in found)
            known = ", ".join(chemical_symbols[z] for z in self.elements)
            raise StructureError(f"element(s) {names} unknown to this model; it knows {known}: use a model trained on them")
        return species

    def forward(
        self,
        graph: Mapping[str, Any],
        compute_forces: bool | None = None,
        compute_stress: bool = False,
        compute_density: bool | None = None,
        compute_energy: bool | None = None,
        project_density: bool | None = None,
        compute_uncertainty: bool = False,
    ) -> dict[str, Tensor]:
        """Evaluate a batch.

        Args:
            graph: ``atomic_numbers`` [N], ``positions`` [N, 3] (float64, Angstrom), ``cell`` [B, 3, 3], ``edge_index`` [2, E]
                (sender, receiver), ``edge_shift`` [E, 3] (integers), ``batch`` [N], ``num_graphs``; ``charge`` [B], 0 if missing.
            compute_forces: also return forces; in training mode they keep the graph for a second derivative. ``None``: wherever
                there is an energy.
            compute_stress: also return stress.
            compute_density: also return the density. ``None``: only a model without an energy head.
            compute_energy: ``None``: a model with an energy head; False spares a model with both heads the energy.
            project_density: to the electron count; ``None``: as configured.
            compute_uncertainty: also return the two standard deviations.

        Returns:
            ``energy`` [B] and ``energies`` [N] (eV, float64); ``forces`` [N, 3] (eV/Angstrom) and ``stress`` [B, 6]
            (eV/Angstrom^3, ASE's sign and Voigt order; NaN without a cell) in float64; ``density_coefficients`` [K],
            ``density_ptr`` [B+1] and ``density_electrons`` [B] as in :mod:`mlip.models.density`; ``energy_std`` [B] and
            ``forces_std`` [N] as in :mod:`mlip.models.uncertainty`.

        Raises:
            StructureError: an element that the model does not know.
            ConfigError: it lacks the head, or the uncertainty, that is asked for.
        """
        energy = self.has_energy if compute_energy is None else compute_energy
        forces = energy if compute_forces is None else compute_forces
        density = not self.has_energy if compute_density is None else compute_density
        self._check_heads(energy or forces or compute_stress, density)
        uncertainty = uncertainty_of(self) if compute_uncertainty else None
        derivatives, keep = forces or compute_stress, self.training
        edge_index, batch = graph["edge_index"], graph["batch"]
        species = self.species(graph["atomic_numbers"])
        with torch.no_grad():
            vectors = edge_vectors(graph["positions"], graph["cell"], edge_index, graph["edge_shift"], batch)
        vectors.requires_grad_(derivatives)
        out: dict[str, Tensor] = {}
        wanted = torch.is_grad_enabled() and (keep or not derivatives)  # of what is returned
        with torch.set_grad_enabled(derivatives or wanted):
            node = self.node_features(species, vectors, edge_index)
            if energy or derivatives:
                out.update(self._energies(node, graph, species, vectors, forces, compute_stress))
        if uncertainty is not None:
            features = self.last_features(node, species)
            out.update(uncertainty(features, species, batch, int(graph["num_graphs"]))._asdict())
        if density and self.density_head is not None:
            with torch.set_grad_enabled(wanted):
                out.update(self.density_head(node, species, batch, int(graph["num_graphs"]), graph.get("charge"), project_density))
        return out

    def _check_heads(self, energy: bool, density: bool) -> None:
        if energy and not self.has_energy:
            raise ConfigError(
                "energy, forces or stress asked of a model without an energy head, which predicts electron densities only; "
                "use a model trained on energies"
            )
        if density and self.density_head is None:
            raise ConfigError("a density asked of a model without a density head; use a model trained on densities")

    def _energies(
        self, node: NodeFeatures, graph: Mapping[str, Any], species: Tensor, vectors: Tensor, forces: bool, stress: bool
    ) -> dict[str, Tensor]:
        """Energies and, by one derivative with respect to the edge vectors, forces and stress."""
        edge_index, batch = graph["edge_index"], graph["batch"]
        energies = self.atomic_energies(node, species, graph["atomic_numbers"], vectors, edge_index)
        out = {"energy": energies.new_zeros(int(graph["num_graphs"])).index_add(0, batch, energies), "energies": energies}
        if not (forces or stress):
            return out
        keep = self.training
        gradient = self._edge_gradient(energies, vectors, keep)
        if forces:
            out["forces"] = forces_from_edges(gradient, edge_index, len(species))
        if stress:
            edge_graph = batch.index_select(0, edge_index[1])
            out["stress"] = stress_from_edges(vectors.detach(), gradient, edge_graph, graph["cell"])
        return out if keep else {key: value.detach() for key, value in out.items()}

    @staticmethod
    def _edge_gradient(energies: Tensor, vectors: Tensor, keep: bool) -> Tensor:
        if len(vectors) == 0:
            return torch.zeros_like(vectors)
        (gradient,) = torch.autograd.grad(energies.sum(), vectors, create_graph=keep)
        return gradient

    def node_features(self, species: Tensor, vectors: Tensor, edge_index: Tensor) -> NodeFeatures:
        """The backbone's features of every atom, from edge vectors ``[E, 3]``."""
        num_nodes = len(species)
        slots, degree, width = padded_slots(edge_index[1], num_nodes)
        table = vectors.new_zeros(num_nodes * width, 3)
        table[:, 2] = self.cutoff
        table = table.index_copy(0, slots, vectors).to(self.dtype).view(num_nodes, width, 3)
        neighbours = edge_index.new_zeros(num_nodes * width).index_copy(0, slots, edge_index[0]).view(num_nodes, width)
        return self.backbone(species, table, neighbours, degree)

    def last_features(self, node: NodeFeatures, species: Tensor) -> Tensor:
        """:meth:`EnergyHead.features` of every atom ``[N, d]``, without a gradient."""
        if self.head is None:
            raise ConfigError("this model has no energy head")
        with torch.no_grad():
            return self.head.features(node.features[:, 0], species, node.coordination)

    def atomic_energies(
        self, node: NodeFeatures, species: Tensor, numbers: Tensor, vectors: Tensor, edge_index: Tensor
    ) -> Tensor:
        """Atomic energies ``[N]`` (eV, float64)."""
        if self.head is None:
            raise ConfigError("this model has no energy head")
        energies = self.head(node.features[:, 0], species, node.coordination)
        if self.zbl is not None:
            distance = torch.linalg.vector_norm(vectors, dim=-1)
            pair = self.zbl(distance, numbers.index_select(0, edge_index[1]), numbers.index_select(0, edge_index[0]))
            energies = energies.index_add(0, edge_index[1], pair)
        return energies
