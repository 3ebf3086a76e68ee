"""The density head: coefficients of the electron density in an auxiliary basis, from the backbone's features.

How a model with this head is made from labelled frames, and called::

    from mlip.data.density import DensityBasis
    from mlip.data.graph import GraphDataset
    from mlip.models import build, density_statistics

    basis = DensityBasis.from_dict(frames.attrs["density_basis"])          # frames: HDF5Frames, the training set
    reference = density_statistics(frames, basis, metric="coulomb")        # DensityReference: baseline, modes, charges
    fields = {"channels": 64, "l_max": 2, "energy": False, "density": {}}  # energy: True for both heads
    model = build(fields, elements, density=reference, avg_num_neighbors=16.0, dtype="float32", seed=0)

    graphs = GraphDataset(frames, model.cutoff, density_basis=basis)       # a basis: density labels are in the graphs
    out = model(graph, compute_density=True)

``model.density_basis`` and ``model.density_reference`` are None where the model has no such head; ``model.has_energy`` is a bool.

``graph`` is a batch's dict (:func:`mlip.data.graph.graph_dict`). Its labels, where asked for: ``density_coefficients`` (float32,
data order, all graphs' one after the other), ``density_size`` [B] and ``density_ptr`` [B+1]; a graph without a label has size 0.
Whoever merges graphs by hand joins the first two and sets ``density_ptr = mlip.data.graph.density_pointer(density_size)``.
The model reads none of these; it reads ``charge`` [B] (0 where it is missing).

``out`` gains, for *all* atoms of the batch: ``density_coefficients`` [K] in data order and the network's dtype, ``density_ptr``
[B+1], and ``density_electrons`` [B] (float64), what the coefficients integrate to before they are projected to the electron
count. With a pair gate also ``density_pairs`` [B], the directed pairs, and ``density_pairs_kept`` [B], those that it lets through
(float64); in training ``density_pairs_soft`` [B] besides, a number near it that can be derived.
``project_density=False`` in the call leaves the projection out. ``compute_energy=False`` (and no forces) makes a model
with both heads do the density alone. A model without an energy head does only this, and ``model(graph)`` is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from mlip.data.density import DensityBasis, to_irreps
from mlip.errors import ConfigError
from mlip.models.backbone import InteractionLayer, NodeFeatures
from mlip.models.config import DensityConfig, GridConfig, ModelConfig
from mlip.models.densitystats import DensityReference
from mlip.models.pairs import tables_of
from mlip.nn import EquivariantLinear, PairGate, SphericalHarmonics
from mlip.nn.constants import ConstantsModule
from mlip.nn.irreps import block, num_components
from mlip.nn.pairgate import GatedPairs, soft_count

READOUT_START = 0.01
"""Spread of the readout's first weights. At 1 the first predictions are far worse than the baseline (organics, held-out
molecules: Coulomb error 115 against 2.5 mHa per electron)."""


class ElementTables(nn.Module):
    """Per-element constants of an auxiliary basis, ``[elements, K_max]`` in data order, padded to the largest element.

    ``column``: place of the coefficient in the network's output (see :class:`ShellReadout`). ``weight``: diagonal of the metric
    in which the electron-count projection is a minimal change. Everything stays float64 through ``.to(dtype)``.
    """

    baseline: Tensor
    charge: Tensor
    weight: Tensor
    column: Tensor
    num_functions: Tensor
    electrons: Tensor

    def __init__(self, elements: Sequence[int], reference: DensityReference, l_max: int, projection: str) -> None:
        super().__init__()
        basis = reference.basis
        self.shells_of_degree = [max(basis.degrees(z).count(l) for z in elements) for l in range(l_max + 1)]
        width = max(basis.num_functions(z) for z in elements)
        names = ("baseline", "charge", "weight", "column")
        tables = {name: np.zeros((len(elements), width)) for name in names}
        tables["weight"] += 1.0
        for row, z in enumerate(elements):
            for name, values in self._columns(z, reference, projection).items():
                tables[name][row, : len(values)] = values
        for name, table in tables.items():
            kind = np.int64 if name == "column" else np.float64
            self.register_buffer(name, torch.from_numpy(table.astype(kind)), persistent=False)
        sizes = [basis.num_functions(z) for z in elements]
        electrons = [reference.electrons_of(z) for z in elements]
        self.register_buffer("num_functions", torch.tensor(sizes), persistent=False)
        self.register_buffer("electrons", torch.tensor(electrons, dtype=torch.float64), persistent=False)

    def _columns(self, z: int, reference: DensityReference, projection: str) -> dict[str, np.ndarray]:
        """One element's row of every table, ``[num_functions]`` each."""
        basis = reference.basis
        baseline, _ = reference.of(z)
        degrees = np.array(basis.degrees(z))
        shell = np.repeat(np.arange(len(degrees)), 2 * degrees + 1)
        starts = np.cumsum([0] + [(2 * l + 1) * count for l, count in enumerate(self.shells_of_degree)])
        places, seen = [], [0] * (int(degrees.max()) + 1)
        for l in degrees.tolist():
            if l < len(self.shells_of_degree):
                places.append(starts[l] + seen[l] + self.shells_of_degree[l] * np.arange(2 * l + 1))
            else:
                places.append(np.full(2 * l + 1, starts[-1]))  # the column of zeros behind all others
            seen[l] += 1
        return {
            "baseline": baseline[shell],
            "charge": basis.charges(z),
            "weight": basis.metric_diagonal(z, "coulomb" if projection == "coulomb" else "overlap"),
            "column": np.concatenate(places),
        }

    def _apply(self, fn: Any, recurse: bool = True) -> ElementTables:
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, value in kept.items():
            self._buffers[name] = value.to(self._buffers[name].device)  # type: ignore[union-attr]
        return self

    def rows(self, species: Tensor) -> tuple[Tensor, Tensor]:
        """For every coefficient of the atoms ``species`` [N]: its atom ``[K]`` and its place in the flat tables ``[K]``."""
        width = self.column.shape[1]
        places = torch.arange(width, device=species.device)
        atom, place = (places < self.num_functions.index_select(0, species)[:, None]).nonzero(as_tuple=True)
        return atom, species.index_select(0, atom) * width + place

    def at(self, name: str, entry: Tensor) -> Tensor:
        """The table ``name`` at the flat places ``entry`` [K]."""
        return getattr(self, name).view(-1).index_select(0, entry)


class ShellReadout(ConstantsModule):
    """y[n, (l, m), s] = sum_k V_l[Z_n, s, k] C^(-1/2) sum_c (T_l^t x)[n, (l, m), c] W_l[Z_n, c, k]

    Features onto the modes k of an element's shells s of degree l. T_l turns data order into e3nn's
    (:func:`mlip.data.density.to_irreps`), V are the modes (:mod:`mlip.models.densitystats`). Elements with fewer shells have
    columns to spare. The weights begin small (:data:`READOUT_START`), so that a new model predicts about the baseline.
    Result: ``[N, sum_l (2l+1) S_l + 1]``, l after l, in each the components and for each the shells; a column of zeros last.

    Args:
        channels: of the features.
        modes: of each element a matrix for each degree; degrees above ``l_max`` are left out.
        l_max: of the features.
    """

    to_data: Tensor

    def __init__(self, channels: int, modes: Sequence[Sequence[np.ndarray]], l_max: int) -> None:
        super().__init__()
        self.factor = channels**-0.5
        sizes = [max((len(of[l]) for of in modes if l < len(of)), default=0) for l in range(l_max + 1)]
        self.shells_of_degree = sizes
        self.weight = nn.ParameterList(READOUT_START * torch.randn(len(modes), channels, size) for size in sizes)
        for l, size in enumerate(sizes):
            transposed = torch.zeros(len(modes), size, size, dtype=torch.float64)
            for row, of in enumerate(modes):
                if l < len(of):
                    transposed[row, : len(of[l]), : len(of[l])] = torch.from_numpy(of[l].T.copy())
            self.register_constant(f"modes_{l}", transposed)
        blocks = [torch.from_numpy(np.array(to_irreps(l)).T) for l in range(l_max + 1)]
        self.register_constant("to_data", torch.block_diag(*blocks))

    def forward(self, x: Tensor, species: Tensor) -> Tensor:
        """``x`` ``[N, (l_max+1)^2, C]``, e3nn's order; ``species`` ``[N]``."""
        x = self.to_data @ (self.factor * x)
        parts = []
        for l, (weight, count) in enumerate(zip(self.weight, self.shells_of_degree, strict=True)):
            if count:
                amplitudes = torch.bmm(x[:, block(l)], weight.index_select(0, species))
                modes = getattr(self, f"modes_{l}").index_select(0, species)
                parts.append(torch.bmm(amplitudes, modes).flatten(1))
        return torch.cat([*parts, x.new_zeros(len(x), 1)], dim=1)


class DensityHead(nn.Module):
    """c = baseline(Z) + Readout_Z(Interaction(h)), then the electron-count projection.

    The interaction is one more layer of the backbone's kind with edge harmonics and output up to the basis' highest degree
    (backbones stop at 2 or 3 because it costs), at fewer channels. All degrees have natural parity, as the basis functions have.
    A pair gate, where configured, weights its messages by w_ij in [0, 1]; pairs with w = 0 are left out of it.

    Projection: the smallest change, in the norm ``sum_P w_P d_P^2`` with w the diagonal of a metric, after which
    ``sum_P q_P c_P = N``:  ``d_P = (q_P / w_P) (N - q.c) / sum_Q q_Q^2 / w_Q``, per graph, in float64. It is the only part that
    is not local. N = sum of the atoms' electrons - charge.
    """

    def __init__(
        self,
        config: ModelConfig,
        elements: Sequence[int],
        reference: DensityReference,
        num_basis: int,
        avg_num_neighbors: float,
    ) -> None:
        super().__init__()
        density = config.density or DensityConfig()
        lacking = [chemical_symbols[z] for z in elements if z not in reference.basis.shells]
        if lacking:
            raise ConfigError(
                f"no density functions ({reference.basis.name}) for {', '.join(lacking)}: no frame with density labels holds "
                "it, or the basis lacks it; leave such frames out or label some"
            )
        self.reference = reference.subset(elements)
        self.projection = density.projection
        l_max = self.reference.basis.l_max
        self.l_max = l_max if density.l_max is None else min(density.l_max, l_max)
        self.l_in = min(config.l_max, self.l_max)
        channels = density.channels or max(8, config.channels // 2)
        self.tables = ElementTables(elements, self.reference, self.l_max, density.projection)
        self.harmonics = SphericalHarmonics(self.l_max)
        self.reduce = EquivariantLinear(self.l_in, config.channels, channels)
        activation = "silu" if density.nonlinearity == "silu" else "product"
        grid = GridConfig(
            enabled=density.nonlinearity != "none", activation=activation, oversampling=config.grid.oversampling, hidden=None
        )
        layer = config.model_copy(update={"l_max": self.l_max, "channels": channels, "grid": grid})
        self.interaction = InteractionLayer(
            layer, config.num_layers, len(elements), self.l_in, num_basis, avg_num_neighbors
        )
        source = self.reference if density.modes else replace(self.reference, modes={})
        self.readout = ShellReadout(channels, [source.modes_of(z) for z in elements], self.l_max)
        gate = density.pair_gate
        self.pair_gate = None if gate is None else PairGate(channels, num_basis, gate.hidden)

    @property
    def basis(self) -> DensityBasis:
        """The auxiliary basis, for the model's elements."""
        return self.reference.basis

    def forward(
        self,
        node: NodeFeatures,
        species: Tensor,
        batch: Tensor,
        num_graphs: int,
        charge: Tensor | None,
        project: bool | None = None,
    ) -> dict[str, Tensor]:
        """``density_coefficients`` [K] (dtype of the features), ``density_ptr`` [B+1], ``density_electrons`` [B]; pairs if gated.

        Args:
            node: of the backbone.
            species: element indices. batch: graph of each atom ``[N]``.
            charge: total charge of each graph ``[B]``, e; ``None``: 0.
            project: to the electron count; ``None``: as configured.
        """
        reduced = self.reduce(node.features[:, : num_components(self.l_in)])
        pairs: dict[str, Tensor] = {}
        if self.pair_gate is None:
            message = self.interaction.message(reduced, self.harmonics(node.unit), node.basis, node.neighbours)
        else:
            gated = self.pair_gate(reduced[:, 0], node.basis, node.neighbours, node.degree)
            pairs = self._pair_counts(gated, node.degree, batch, num_graphs)
            message = self._gated_message(reduced, node, gated.weight)
        features = self.interaction.update(reduced, species, message)
        values = self.readout(features, species)
        atom, entry = self.tables.rows(species)
        columns = atom * values.shape[1] + self.tables.at("column", entry)
        raw = values.reshape(-1).index_select(0, columns).double()
        coefficients = self.tables.at("baseline", entry) + raw
        graph = batch.index_select(0, atom)
        charges = self.tables.at("charge", entry)
        count = coefficients.new_zeros(num_graphs).index_add(0, graph, charges * coefficients)
        if self.projection != "none" if project is None else project:
            wanted = count.new_zeros(num_graphs).index_add(0, batch, self.tables.electrons.index_select(0, species))
            wanted = wanted if charge is None else wanted - charge.double()
            change = electron_correction(wanted - count, charges, self.tables.at("weight", entry), graph)
            coefficients = coefficients + change
        sizes = torch.bincount(graph, minlength=num_graphs)
        pointer = torch.cat([sizes.new_zeros(1), torch.cumsum(sizes, 0)])
        return {
            "density_coefficients": coefficients.to(values.dtype),
            "density_ptr": pointer,
            "density_electrons": count,
            **pairs,
        }

    def _gated_message(self, reduced: Tensor, node: NodeFeatures, weight: Tensor) -> Tensor:
        """The sum over the pairs with a weight ``[N, D]`` above 0."""
        tables = tables_of(node, weight)
        parts = [self.interaction.message(reduced, self.harmonics(t.unit), t.basis, t.neighbours, t.weight) for t in tables]
        atoms = torch.cat([t.atoms for t in tables])
        return torch.cat(parts).index_select(0, torch.argsort(atoms))

    def _pair_counts(self, gated: GatedPairs, degree: Tensor, batch: Tensor, num_graphs: int) -> dict[str, Tensor]:
        """Pairs of each graph, and how many of them are let through."""
        counts = {"density_pairs": degree.double(), "density_pairs_kept": (gated.weight > 0).sum(dim=1).double()}
        if self.training:
            counts["density_pairs_soft"] = soft_count(gated, degree)
        return {name: count.new_zeros(num_graphs).index_add(0, batch, count) for name, count in counts.items()}


def electron_correction(missing: Tensor, charge: Tensor, weight: Tensor, graph: Tensor) -> Tensor:
    """The smallest change ``d`` [K] in the norm ``sum_P w_P d_P^2`` that adds ``missing`` [B] electrons to each graph.

    Args:
        missing: electrons, float64.
        charge: integral of each function ``[K]``, electrons. weight: w ``[K]``.
        graph: graph of each coefficient ``[K]``.
    """
    direction = charge / weight
    length = torch.zeros_like(missing).index_add(0, graph, charge * direction)
    step = missing / torch.where(length > 0, length, 1.0)
    return direction * step.index_select(0, graph)
