"""Checkpoints: one safetensors file with a JSON header. No pickle: a stranger's file cannot run code."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mlip import __version__
from mlip.device import usable_device
from mlip.elements import MAX_ELEMENT
from mlip.errors import CheckpointError, ConfigError, DataError
from mlip.files import atomic_path
from mlip.models import DensityReference, ModelConfig, Potential, parse_dtype
from mlip.models.uncertainty import BUFFERS, Uncertainty

FORMAT = "mlip-checkpoint"
FORMAT_VERSION = 4
UNITS = {
    "energy": "eV",
    "length": "Angstrom",
    "stress": "eV/Angstrom^3, tension positive, Voigt xx yy zz yz xz xy",
    "density": "coefficients of normalised functions (mlip.data.density), electrons and Bohr",
}


def _add_density(header: dict[str, Any]) -> dict[str, Any]:
    """Version 1 knew energies only."""
    return {**header, "format_version": 2, "density": None, "model": {**header["model"], "energy": True, "density": None}}


def _add_modes(header: dict[str, Any]) -> dict[str, Any]:
    """Version 2 predicted every shell by itself."""
    density, model = header["density"], dict(header["model"])
    if density is not None:
        density, model["density"] = {**density, "modes": {}}, {**model["density"], "modes": False}
    return {**header, "format_version": 3, "density": density, "model": model}


def _add_uncertainty(header: dict[str, Any]) -> dict[str, Any]:
    """Version 3 gave no standard deviations."""
    return {**header, "format_version": 4, "uncertainty": None}


# UPGRADES[n] turns the header of format version n into that of n + 1.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: _add_density, 2: _add_modes, 3: _add_uncertainty,
}  # fmt: skip


def save_model(model: Potential, path: str | Path, metadata: Mapping[str, Any] | None = None) -> Path:
    """Write ``model`` to ``path`` (atomically); ``metadata`` is added to the model's own, JSON types only."""
    path = Path(path)
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "model": model.config.model_dump(mode="json"),
        "elements": model.elements,
        "cutoff": model.cutoff,
        "dtype": str(model.dtype).removeprefix("torch."),
        "units": UNITS,
        "e0": {str(z): energy for z, energy in model.e0.items()},
        "energy_scale": 1.0 if model.head is None else float(model.head.energy_scale),
        "avg_num_neighbors": model.avg_num_neighbors,
        "density": None if model.density_reference is None else model.density_reference.to_dict(),
        "uncertainty": None if model.uncertainty is None else model.uncertainty.about,
        "num_parameters": model.num_parameters(),
        "metadata": {**model.metadata, **(metadata or {})},
    }
    tensors = {**model.state_dict(), **_uncertainty_tensors(model)}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        # Not safetensors' save_file, which makes files that only their owner can read.
        temporary.write_bytes(save(tensors, metadata={"mlip": json.dumps(_finite(header), allow_nan=False)}))
    return path


def _uncertainty_tensors(model: Potential) -> dict[str, torch.Tensor]:
    """By their names in the file."""
    found = model.uncertainty
    return {} if found is None else {f"uncertainty.{name}": getattr(found, name) for name in BUFFERS}


def _finite(value: Any) -> Any:
    """JSON has no NaN: write null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def shipped_models() -> dict[str, Path]:
    """Names and files of the models inside the package."""
    folder = resources.files("mlip") / "models" / "shipped"
    if not folder.is_dir():
        return {}
    return {Path(str(f)).stem: Path(str(f)) for f in folder.iterdir() if f.name.endswith(".safetensors")}


def find_model(path_or_name: str | Path) -> Path:
    """The file of a checkpoint given by path or by the name of a shipped model."""
    path = Path(path_or_name)
    if path.is_file():
        return path
    shipped = shipped_models()
    if str(path_or_name) in shipped:
        return shipped[str(path_or_name)]
    if path.is_dir() and (path / "model.safetensors").is_file():
        return path / "model.safetensors"
    names = ", ".join(sorted(shipped)) or "none in this version"
    raise CheckpointError(f"no model {str(path_or_name)!r}: neither a file nor a shipped model ({names})")


def read_header(path_or_name: str | Path) -> dict[str, Any]:
    """The JSON header of a checkpoint, upgraded to the current format."""
    path = find_model(path_or_name)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("mlip")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}); was it truncated?") from error
    if text is None:
        raise CheckpointError(f"{path}: a safetensors file without an mlip header; give a model.safetensors of 'mlip train'")
    try:
        header = json.loads(text, object_pairs_hook=_unique)
        version = int(header["format_version"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path}: its mlip header is damaged ({error})") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {version}, this package reads up to {FORMAT_VERSION}; upgrade mlip-scf-accel"
        )
    try:
        while version < FORMAT_VERSION:
            header = UPGRADES[version](header)
            version = int(header["format_version"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its mlip header is damaged ({error!r})") from error
    _check_header(header, path)
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no key stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{max(names, key=names.count)!r} stands there twice")
    return found


def _check_header(header: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError unless the header has every key with a value of the right kind."""
    number = (int, float)
    kinds: dict[str, Any] = {
        "model": dict, "elements": list, "cutoff": number, "dtype": str, "units": dict, "e0": dict, "energy_scale": number,
        "avg_num_neighbors": number, "density": (dict, type(None)), "uncertainty": (dict, type(None)), "metadata": dict,
    }  # fmt: skip
    wrong = [name for name, kind in kinds.items() if not isinstance(header.get(name, ()), kind)]
    elements = header.get("elements")
    if "elements" not in wrong and not all(type(z) is int and 1 <= z <= MAX_ELEMENT for z in elements or [0]):
        wrong.append("elements")
    if "e0" not in wrong and not all(key.isdecimal() and isinstance(value, number) for key, value in header["e0"].items()):
        wrong.append("e0")
    if wrong:
        found = ", ".join(f"{name} is {str(header.get(name, 'missing'))[:40]!r}" for name in wrong)
        raise CheckpointError(f"{path}: header and weights do not fit together ({found}); was it edited? get the file again")


def _fitting_uncertainty(model: Potential, parts: Sequence[torch.Tensor], about: dict[str, Any]) -> Uncertainty:
    """Of a file; ValueError where the tensors are not of the sizes that the model asks for."""
    if model.head is None:
        raise ValueError("an uncertainty without an energy head")
    linear, features = model.head.num_linear, model.head.num_features
    for name, part, shape in zip(
        BUFFERS, parts, ((linear, linear), (features, features), (len(model.elements),)), strict=True
    ):
        if tuple(part.shape) != shape or not part.is_floating_point():
            raise ValueError(f"uncertainty.{name} holds {part.dtype} {tuple(part.shape)} instead of {shape}")
    energy, local, scale = parts
    return Uncertainty(energy, local, scale, about)


def load_model(
    path_or_name: str | Path, dtype: str | torch.dtype | None = None, device: str | torch.device = "cpu"
) -> Potential:
    """A trained model in evaluation mode; ``dtype`` overrides the type it was saved in.

    Raises:
        CheckpointError: no such model, or a damaged one.
        ConfigError: ``device`` cannot be used here.
    """
    place = usable_device(device)
    path = find_model(path_or_name)
    header = read_header(path)
    try:
        model = Potential(
            ModelConfig(**header["model"]),
            header["elements"],
            {int(z): e for z, e in header["e0"].items()},
            header["energy_scale"],
            header["avg_num_neighbors"],
            density=None if header["density"] is None else DensityReference.from_dict(header["density"]),
        )
        model = model.to(parse_dtype(dtype or header["dtype"]))
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["uncertainty"] is not None:
            parts = [state.pop(f"uncertainty.{name}") for name in BUFFERS]
            model.uncertainty = _fitting_uncertainty(model, parts, header["uncertainty"])
        for name, tensor in model.state_dict().items():
            if name in state and state[name].is_floating_point() != tensor.is_floating_point():
                raise ValueError(f"{name} holds {state[name].dtype}")
        model.load_state_dict(state)
        model.metadata = dict(header["metadata"])
    except (
        SafetensorError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, ConfigError, DataError,
    ) as error:  # fmt: skip
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: header and weights do not fit together ({why})") from error
    return model.to(place).eval()
