"""The trained model that a run starts from (``model.init_from``): which file, and its architecture as that of the config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mlip.config import ModelSection, RunConfig
from mlip.errors import CheckpointError, ConfigError

KEY = "model.init_from"


def adopt(config: RunConfig, folders: Sequence[Path]) -> RunConfig:
    """``config`` with the architecture of the model that ``model.init_from`` names; the same where it names none.

    Model keys that say the same may stay. A head may be left out (``model.density: null``, ``model.energy: false``), and is then
    gone; ``model.energy: true`` gives a model of densities an energy head. A run that has begun goes on where the model is gone:
    its folder knows the architecture.

    Args:
        config: a checked config.
        folders: where a relative path is looked up.

    Raises:
        ConfigError: a model key contradicts the model; it lies in ``run.dir``; no such model.
        CheckpointError: it cannot be read.
    """
    name = config.model.init_from
    if name is None:
        return config
    try:
        place, fields = _read(name, folders, Path(config.run.dir))
    except CheckpointError:
        recorded = _recorded(config, folders)
        if recorded is None:
            raise
        place, fields = recorded
    given = _given(config.model)
    fields = without_heads(with_energy_head(fields, given), given)
    for key, value, found in contradictions(given, fields):
        raise ConfigError(
            f"{key} is {value}, and {name} has {found}: fine-tuning keeps the architecture; leave {key} out (and model.preset), or "
            f"train from scratch without {KEY} (--from)"
        )
    section = ModelSection.model_validate({"preset": None, "init_from": place, **fields})
    return config.model_copy(update={"model": section})


def find_source(name: str, folders: Sequence[Path]) -> str:
    """A file or run folder as an absolute path, or the name of a shipped model.

    Raises:
        ConfigError: there is none; what lies there has no trained model.
    """
    from mlip.checkpoint import shipped_models

    places = [folder / Path(name).expanduser() for folder in dict.fromkeys(folders)]
    for place in places:
        if place.is_file():
            if place.suffix == ".pt2":
                raise ConfigError(f"{KEY}: {name} is compiled and cannot be trained; give the model.safetensors it was made from")
            return str(place.resolve())
    shipped = shipped_models()
    if name in shipped:
        return name
    for place in places:
        if (place / "model.safetensors").is_file():
            return str(place.resolve())
        if place.is_dir():
            raise CheckpointError(f"{KEY}: the folder {name} has no model.safetensors; is that run finished?")
    tried = ", ".join(dict.fromkeys(str(place.parent) for place in places))
    raise CheckpointError(
        f"{KEY}: no model {name}: neither a file nor a run folder (looked in {tried}), nor a shipped model "
        f"({', '.join(sorted(shipped)) or 'none in this version'})"
    )


def _read(name: str, folders: Sequence[Path], run: Path) -> tuple[str, dict[str, Any]]:
    """Where the model is, and the fields of its config."""
    from mlip.checkpoint import find_model, read_header
    from mlip.models import ModelConfig

    place = find_source(name, folders)
    if find_model(place).resolve().parent == run.resolve():
        raise ConfigError(f"{KEY}: {name} lies in run.dir ({run}), whose model the run would replace; choose another run.dir")
    try:
        return place, ModelConfig(**read_header(place)["model"]).model_dump(mode="json")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{place}: its mlip header is damaged ({error!r})") from error


def _recorded(config: RunConfig, folders: Sequence[Path]) -> tuple[str, dict[str, Any]] | None:
    """The same as an unfinished run in ``run.dir`` from that model has written it down."""
    run, name = Path(config.run.dir), str(config.model.init_from)
    if not (run / "training.ckpt").is_file() or (run / "results.json").exists():
        return None
    try:
        section = dict(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["model"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return None
    place = section.pop("init_from", None)
    section.pop("preset", None)
    known = {name, *(str((folder / Path(name).expanduser()).resolve()) for folder in folders)}
    return (place, section) if place in known else None


def _given(section: ModelSection) -> dict[str, Any]:
    """The fields that the config gives by itself, those of a preset that it names included."""
    from mlip.models import PRESETS

    preset = PRESETS[section.preset] if section.preset and "preset" in section.model_fields_set else {}
    return {**preset, **(section.model_extra or {})}


def with_energy_head(fields: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``fields`` with the energy head that ``given`` switches on, if there is none."""
    if fields["energy"] or given.get("energy") is not True:
        return dict(fields)
    return {**fields, "energy": True, **{key: given[key] for key in ("readout_hidden", "zbl") if key in given}}


def without_heads(fields: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``fields`` without the head that ``given`` switches off, if there are two."""
    from mlip.models import ModelConfig

    kept = dict(fields)
    if not (fields["energy"] and fields["density"]):
        return kept
    if given.get("energy") is False:
        kept |= {"energy": False, "zbl": False}
    elif "density" in given and given["density"] is None:
        kept = ModelConfig(**fields).without_density().model_dump(mode="json")
    return kept


def contradictions(
    given: Mapping[str, Any], found: Mapping[str, Any], path: str = "model"
) -> Iterator[tuple[str, Any, Any]]:
    """Keys of ``given`` with another value than in ``found``: key, value, value found."""
    for key, value in given.items():
        other, name = found.get(key), f"{path}.{key}"
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            yield from contradictions(value, other, name)
        elif _plain(value) != other:
            yield name, value, other


def _plain(value: Any) -> Any:
    """With lists for tuples."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
