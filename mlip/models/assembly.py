"""Assembly of untrained models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ase.data import atomic_numbers as z_of_symbol
from pydantic import ValidationError

from mlip.elements import MAX_ELEMENT
from mlip.errors import ConfigError
from mlip.models.config import PRESETS, ModelConfig, preset
from mlip.models.densitystats import DensityReference
from mlip.models.potential import Potential

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def parse_dtype(name: str | torch.dtype) -> torch.dtype:
    """``float32`` or ``float64``, by name or as a torch dtype."""
    if isinstance(name, torch.dtype) and name in DTYPES.values():
        return name
    if str(name) not in DTYPES:
        raise ConfigError(f"dtype {name!r} is not supported; allowed: float32, float64")
    return DTYPES[str(name)]


def parse_config(config: str | ModelConfig | Mapping[str, Any]) -> ModelConfig:
    """A preset's name, a :class:`ModelConfig`, or its fields."""
    if isinstance(config, ModelConfig):
        return config
    if isinstance(config, str):
        if config not in PRESETS:
            raise ConfigError(f"model preset {config!r} is unknown; allowed: {', '.join(PRESETS)}")
        return preset(config)
    try:
        return ModelConfig(**config)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(['model', *map(str, first['loc'])])}: {first['msg']}") from error


def parse_elements(elements: Sequence[int | str]) -> list[int]:
    """Atomic numbers from numbers or symbols, sorted, unique."""
    numbers = set()
    for element in elements:
        z = z_of_symbol.get(element, 0) if isinstance(element, str) else int(element)
        if not 1 <= z <= MAX_ELEMENT:
            raise ConfigError(f"element {element!r} is unknown; give chemical symbols or atomic numbers 1 to {MAX_ELEMENT}")
        numbers.add(z)
    if not numbers:
        raise ConfigError("elements is empty; name at least one element the model should know")
    return sorted(numbers)


def build(
    config: str | ModelConfig | Mapping[str, Any],
    elements: Sequence[int | str],
    *,
    e0: Mapping[int, float] | None = None,
    energy_scale: float = 1.0,
    avg_num_neighbors: float | None = None,
    bonding_energy: Mapping[int, float] | None = None,
    density: DensityReference | None = None,
    dtype: str | torch.dtype = "float32",
    seed: int | None = None,
) -> Potential:
    """An untrained model with random weights.

    Args:
        config: ``"small"``, ``"medium"``, ``"large"``, a :class:`ModelConfig` or its fields.
        elements: chemical symbols or atomic numbers that the model shall know.
        e0: energy of the isolated atom by atomic number, eV; zero where absent.
        energy_scale: scale of the atomic energies that the network adds, eV (the RMS force is a good choice).
        avg_num_neighbors: mean number of neighbours within the cutoff; 16 if not known.
        bonding_energy: where the learned energy of an atom starts, by atomic number, eV relative to ``e0``; zero where absent.
        density: basis, baseline and scales of the density head, from :func:`mlip.models.density_statistics`; needed where
            ``config`` has a ``density`` section.
        dtype: ``float32`` or ``float64``.
        seed: seed of the initial weights; the global random state stays untouched when it is given.
    """
    parsed, numbers = parse_config(config), parse_elements(elements)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = Potential(parsed, numbers, e0, energy_scale, avg_num_neighbors or 16.0, bonding_energy, density)
    return model.to(parse_dtype(dtype)).eval()
