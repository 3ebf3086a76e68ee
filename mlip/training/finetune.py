"""How fine-tuning begins: a trained network, grown by the new elements, with E0 of the new level of theory.

Everything that the weights were trained with stays: energy scale, mean number of neighbours, the density's baseline and modes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols

from mlip.checkpoint import load_model
from mlip.config import RunConfig
from mlip.data.density import DensityBasis
from mlip.data.e0shift import counts_of, fit_shift, labelled_over_compositions, rank_of
from mlip.data.frame import Frame, FrameSubset, count_atoms
from mlip.data.graph import GraphDataset
from mlip.errors import ConfigError
from mlip.models import DensityReference, ModelConfig, Potential, parse_dtype
from mlip.models.growth import grow
from mlip.training.loader import evaluation_batches, load_batches
from mlip.training.prepare_density import same_basis
from mlip.training.prepare_e0 import bonding_energies, given_energies, isolated_energies, reference_energies
from mlip.training.source import Source

SHIFT_FRAMES = 500
"""Training frames whose energies are predicted to correct E0."""
SAME = 1e-6
"""E0 that agree within this, eV, are of one level of theory."""


@dataclass(frozen=True)
class Start:
    """The network that a fine-tuning run begins with.

    Attributes:
        source: where it comes from.
        model: grown and corrected; of a resumed run with weights still to be loaded.
        e0_note: what happened to E0.
        added: elements that are new. stale: elements that keep E0 of the old level of theory.
        rate: the peak learning rate.
        note: of a resumed run: what became of the source since.
    """

    source: Source
    model: Potential
    e0_note: str
    added: list[int]
    stale: list[int]
    rate: float
    note: str = ""

    @property
    def e0(self) -> dict[int, float]:
        """E0 by atomic number, eV; empty without an energy head."""
        return self.model.e0

    def state(self) -> dict[str, Any]:
        """Plain values from which :func:`go_on` makes it again, without the source's file."""
        header = {**self.source.header, "metadata": {k: v for k, v in self.source.header["metadata"].items() if k != "errors"}}
        source = {"place": self.source.place, "digest": self.source.digest, "header": header}
        model = {"config": self.model.config.model_dump(mode="json"), "elements": self.model.elements}
        return {"source": source, **model, "e0_note": self.e0_note, "added": self.added, "stale": self.stale}

    def lines(self, theory: object) -> list[str]:
        """What the user is told; ``theory`` is the level of theory of the new data."""
        source, new = self.source, _symbols(self.added)
        lines = [f"{self.note}: this run goes on from its own weights"] if self.note else []
        growth = f"new: {new} (random weights)" if new else "no new ones"
        lines.append(f"fine-tuning {source.place} (sha256 {source.digest[:12]}): knows {_symbols(source.elements)}; {growth}")
        head, scale = self.model.head, ""
        if head is not None and source.has_energy:
            scale = f"energy scale {float(head.energy_scale):.3f} eV and "
        elif head is not None:
            lines.append(f"{source.name} has no energies: the energy head is new (random weights)")
        lines.append(f"kept, as its weights were trained with it: {scale}{self.model.avg_num_neighbors:.1f} neighbours")
        lines.append(f"level of theory: {_in_short(source.theory)} -> {_in_short(theory)}")
        lines.append(f"peak learning rate {self.rate:g} (training.lr)")
        if self.stale and theory != source.theory:
            lines.append(
                f"{_symbols(self.stale)} stay in the model with E0 of {source.name}'s level of theory: the new data do not hold "
                "them; do not mix their energies with the new ones"
            )
        return lines


def _symbols(elements: Sequence[int]) -> str:
    return " ".join(chemical_symbols[z] for z in elements)


def _in_short(theory: object) -> str:
    """Functional and basis of a level of theory, or what it says instead."""
    if isinstance(theory, Mapping):
        named = [str(theory[name]) for name in ("xc", "basis") if name in theory]
        return "/".join(named) or str(dict(theory))
    return str(theory or "not stated by the data file")


def begin(
    config: RunConfig, source: Source, train: Sequence[Frame], elements: Sequence[int], atoms: dict[int, float],
    density: DensityReference | None, force_rms: float,
) -> Start:  # fmt: skip
    """The source's network, grown by the new ones of ``elements``, with its energies brought to those of ``train``.

    A source without energies gets an energy head as an untrained model has it.

    Args:
        config: the run.
        source: what ``model.init_from`` names.
        train: frames. elements: that occur in them.
        atoms: energies of isolated atoms among the training files, eV.
        density: reference of the density head for all elements (:func:`joined_reference`).
        force_rms: of ``train``, eV/A: the scale of a new energy head.

    Raises:
        ConfigError: E0 as asked for cannot be had from these data.
    """
    added = sorted(set(elements) - set(source.elements))
    model = load_model(source.place, dtype=config.training.precision)
    model = grow(model, added, grown_config(config, source, density), density, config.training.seed)
    rate = config.training.lr
    if model.head is None:
        return Start(source, model, "no energies", added, [], rate)
    if not source.has_energy:
        return Start(source, model, first_energies(config, source, model, train, elements, atoms, force_rms), added, [], rate)
    note, renewed = correct_energies(config, source, model, train, elements, atoms)
    return Start(source, model, note, added, sorted(set(source.elements) - renewed), rate)


def first_energies(
    config: RunConfig, source: Source, model: Potential, train: Sequence[Frame], elements: Sequence[int], atoms: dict[int, float],
    force_rms: float,
) -> str:  # fmt: skip
    """E0, scale and bonding energies of ``model``'s new energy head, in place; a sentence about E0."""
    assert model.head is not None
    e0, note = reference_energies(config, train, elements, atoms)
    e0 |= _fixed_energies(config, source, elements, atoms)[0] or {}  # of elements that only the source knows too
    bonding = bonding_energies(train, e0, elements)
    with torch.no_grad():
        model.head.e0.copy_(torch.tensor([e0.get(z, 0.0) for z in model.elements], dtype=torch.float64))
        model.head.energy_scale.fill_(force_rms)
        model.head.bias.copy_(torch.tensor([bonding.get(z, 0.0) / force_rms for z in model.elements]))
    unseen = sorted(set(model.elements) - set(elements))
    if unseen:
        note += f"; {_symbols(unseen)}, which {source.name} knows, are in no training frame: their energies mean nothing"
    return note


def go_on(config: RunConfig, begun: Mapping[str, Any], density: DensityReference | None) -> Start:
    """The :class:`Start` of a run that goes on, from what its state remembers (:meth:`Start.state`)."""
    stored = begun["start"]
    source = Source(**stored["source"])
    scale, neighbours = source.header["energy_scale"], source.header["avg_num_neighbors"]
    model = Potential(ModelConfig(**stored["config"]), stored["elements"], None, scale, neighbours, density=density)
    if model.head is not None:
        model.head.e0.copy_(begun["model"]["head.e0"])
    model = model.to(parse_dtype(config.training.precision))
    changed = source.change()
    note = f"{source.place} {changed} since" if changed else ""
    return Start(source, model, stored["e0_note"], stored["added"], stored["stale"], config.training.lr, note)


def correct_energies(
    config: RunConfig, source: Source, model: Potential, train: Sequence[Frame], elements: Sequence[int], atoms: dict[int, float]
) -> tuple[str, set[int]]:
    """Bring ``model``'s energies to the level of theory of ``train``, in place.

    With energies of atoms (isolated, or given) E0 is these, and the elements' biases (bonding energies) take up what the
    predictions then lack. Without, E0 itself takes it up. Either is fitted to the difference between labels and predictions, not to
    the labels: one composition is enough for energies that are right on average.

    Returns:
        A sentence about E0, and the elements that it is about: those of ``train``, and others with an isolated atom.
    """
    assert model.head is not None
    fixed, note = _fixed_energies(config, source, elements, atoms)
    kept = {**source.e0, **(fixed or {})}
    model.head.e0.copy_(torch.tensor([kept.get(z, 0.0) for z in model.elements], dtype=torch.float64))
    renewed = {*elements, *(fixed or {})}
    unchanged = fixed is not None and all(abs(kept[z] - source.e0.get(z, np.inf)) <= SAME for z in elements)
    if unchanged:
        return f"{note}, which are those of {source.name}: the same level of theory, nothing to correct", set(source.elements)
    chosen = labelled_over_compositions(train, SHIFT_FRAMES)
    if not chosen:
        return _without_energies(source, elements, fixed, note), renewed
    frames = FrameSubset(train, chosen)
    missing = np.array([frame.energy for frame in frames]) - predicted_energies(model, frames)
    counts = counts_of(frames, elements)
    shift, rank = fit_shift(counts, missing, np.array([z not in source.e0 for z in elements]), fixed is None), rank_of(counts)
    rows = [model.elements.index(z) for z in elements]
    values = torch.from_numpy(shift)
    with torch.no_grad():
        if fixed is None:
            model.head.e0[rows] += values
        else:
            model.head.bias[rows] += (values / model.head.energy_scale).to(model.dtype)
    atoms_of = counts.sum(axis=1)
    before, after = (np.abs(error / atoms_of).mean() for error in (missing, missing - counts @ shift))
    what = note if fixed is not None else f"E0 of {source.name}"
    how = "bonding energies of the elements" if fixed is not None else "E0"
    note = f"{what}; {how} corrected by what its predictions lack to {len(chosen)} training frames (mean error {before:.3f} -> "
    note += f"{after:.3f} eV/atom)"
    if rank < len(elements):
        note += f", rank {rank} of {len(elements)} elements (NOT determined one by one: only sums over the compositions seen in "
        note += "training mean something)"
    return note, renewed


def _fixed_energies(
    config: RunConfig, source: Source, elements: Sequence[int], atoms: dict[int, float]
) -> tuple[dict[int, float] | None, str]:
    """E0 that are given or measured on isolated atoms, eV; ``None`` where they are to be fitted. And a sentence."""
    choice = config.data.e0
    if isinstance(choice, dict):
        given = given_energies(choice)
        lacking = [z for z in elements if z not in given and z not in source.e0]
        if lacking:
            raise ConfigError(f"data.e0: no value for {_symbols(lacking)}, which {source.name} does not know; add it")
        return {z: given[z] for z in given if z in {*elements, *source.elements}}, "E0 as given in the config"
    isolated = isolated_energies(config, elements, atoms)
    if isolated is None:
        return None, ""
    return {z: isolated[z] for z in isolated if z in {*elements, *source.elements}}, "E0 from isolated atoms"


def _without_energies(source: Source, elements: Sequence[int], fixed: dict[int, float] | None, note: str) -> str:
    unknown = [z for z in elements if z not in source.e0 and z not in (fixed or {})]
    if unknown:
        raise ConfigError(
            f"data.e0: no training frame has an energy, and {source.name} has no E0 of {_symbols(unknown)}; give "
            f"data.e0: {{{chemical_symbols[unknown[0]]}: ...}}"
        )
    return note or f"E0 of {source.name}: no training frame has an energy to correct it by"


def predicted_energies(model: Potential, frames: Sequence[Frame]) -> np.ndarray:
    """``[frames]`` total energies, eV."""
    graphs = GraphDataset(frames, model.cutoff, cache_bytes=0)
    batches = evaluation_batches(count_atoms(frames).tolist(), None)
    energies = np.zeros(len(frames))
    with torch.no_grad():
        for batch, graph in zip(batches, load_batches(graphs, batches), strict=True):
            energies[batch] = model(graph, compute_forces=False, compute_density=False)["energy"].numpy()
    return energies


# ------------------------------------------------------------------------------------------------ density


def joined_reference(source: Source, new: DensityReference) -> DensityReference:
    """The source's reference, with that of the training set for the elements that are new.

    Raises:
        ConfigError: the two have other functions on the same element.
    """
    old = source.density
    assert old is not None
    common = set(old.basis.elements) & set(new.basis.elements)
    if not same_basis(old.basis, new.basis) or (not common and old.basis.name != new.basis.name):
        raise ConfigError(
            f"data.train: its densities are in {new.basis.name}, and {source.name} predicts {old.basis.name}"
            f"{' (of the same name, with other functions)' if old.basis.name == new.basis.name else ''}; label in the same basis, "
            "or leave the head out (model.density: null)"
        )
    fresh = [z for z in new.basis.elements if z not in common]
    owners = [*((old, z) for z in old.basis.elements), *((new, z) for z in fresh)]
    return replace(
        old,
        basis=DensityBasis(old.basis.name, {z: owner.basis.shells[z] for owner, z in owners}),
        baseline={z: tuple(owner.of(z)[0].tolist()) for owner, z in owners},
        scales={z: tuple(owner.of(z)[1].tolist()) for owner, z in owners},
        charges=tuple(sorted({*old.charges, *new.charges})),
        electrons={z: owner.electrons[z] for owner, z in owners if z in owner.electrons},
        modes={z: owner.modes[z] for owner, z in owners} if old.modes else {},
    )


def grown_config(config: RunConfig, source: Source, density: DensityReference | None) -> ModelConfig:
    """The run's model config; the density head keeps its highest degree, whatever functions a new element has."""
    fields, old = config.model.resolve(), source.density
    if density is None or old is None or fields.density is None or density.basis.l_max == old.basis.l_max:
        return fields
    limit = old.basis.l_max if fields.density.l_max is None else min(fields.density.l_max, old.basis.l_max)
    return fields.model_copy(update={"density": fields.density.model_copy(update={"l_max": limit})})
