"""E0 of a training set as ``data.e0`` asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from ase.data import atomic_numbers as number_of
from ase.data import chemical_symbols

from mlip.config import RunConfig
from mlip.data.e0 import CompositionSums, fit_e0, isolated_atom_energies
from mlip.data.frame import Frame
from mlip.data.readers import open_frames
from mlip.errors import ConfigError


def reference_energies(
    config: RunConfig, train: Sequence[Frame], elements: Sequence[int], atoms: dict[int, float]
) -> tuple[dict[int, float], str]:
    """E0 of each element in eV as ``data.e0`` asks for, and a sentence that says where they come from.

    Args:
        config: the run.
        train: frames. elements: that occur in them.
        atoms: energies of isolated atoms among the training files, eV.

    Raises:
        ConfigError: isolated atoms are asked for and lacking; given energies lack an element.
    """
    choice = config.data.e0
    if isinstance(choice, dict):
        energies = given_energies(choice)
        lacking = [chemical_symbols[z] for z in elements if z not in energies]
        if lacking:
            raise ConfigError(f"data.e0: no value for {', '.join(lacking)}, which occurs in the training set; add it")
        return {z: energies[z] for z in elements}, "E0 as given in the config"
    isolated = isolated_energies(config, elements, atoms)
    if isolated is not None:
        return {z: isolated[z] for z in elements}, "E0 from isolated atoms"
    energies, rank = fit_e0(train, elements)
    note = f"E0 by least squares over the training set, rank {rank} of {len(elements)} elements"
    if rank < len(elements):
        note += " (NOT determined one by one: only sums over the compositions seen in training mean something)"
    return energies, note


def isolated_energies(config: RunConfig, elements: Sequence[int], atoms: dict[int, float]) -> dict[int, float] | None:
    """Energies of isolated atoms in eV, of all ``elements`` and whatever else there is; ``None``: E0 is to be fitted.

    Raises:
        ConfigError: they are asked for and one is lacking.
    """
    choice = config.data.e0
    if config.data.isolated_atoms:
        frames = open_frames(config.data.isolated_atoms, config.data.keys, config.data.units)
        atoms = {**atoms, **isolated_atom_energies(frames)}
    lacking = [chemical_symbols[z] for z in elements if z not in atoms]
    wanted = choice == "isolated" or (choice == "auto" and config.data.isolated_atoms is not None)
    if wanted and lacking:
        raise ConfigError(
            f"data.e0: no isolated atom of {', '.join(lacking)} in the data; add one-atom frames "
            "(data.isolated_atoms), give data.e0 as {H: -13.6, ...}, or choose least_squares"
        )
    return None if choice == "least_squares" or lacking else atoms


def given_energies(choice: dict[str, float]) -> dict[int, float]:
    """``data.e0: {H: -13.6, ...}`` by atomic number.

    Raises:
        ConfigError: a name that is not an element's.
    """
    unknown = [name for name in choice if name not in number_of]
    if unknown:
        raise ConfigError(f"data.e0: {', '.join(unknown)} is not an element; use symbols such as H: -13.6")
    return {number_of[name]: float(value) for name, value in choice.items()}


def bonding_energies(train: Sequence[Frame], e0: Mapping[int, float], elements: Sequence[int]) -> dict[int, float]:
    """Mean energy per atom of each element relative to E0, eV, by least squares; empty where there are no energies."""
    sums, known = CompositionSums(), False
    for frame in train:
        if frame.energy is not None and np.isfinite(frame.energy):
            bonding = frame.energy - sum(e0[int(z)] for z in frame.atomic_numbers)
            sums.add(replace(frame, energy=bonding))
            known = True
    return sums.fit(elements)[0] if known else {}
