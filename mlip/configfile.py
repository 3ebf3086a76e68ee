"""Reading a run's YAML file: overrides from the command line, errors that name the nearest known key, data paths."""

from __future__ import annotations

import difflib
import reprlib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from mlip.config import ModelSection, RunConfig, merge
from mlip.errors import ConfigError
from mlip.initfrom import adopt
from mlip.settling import settled

_BRIEF = reprlib.Repr()  # a few lines of YAML with aliases can stand for gigabytes
_BRIEF.maxstring, _BRIEF.maxother, _BRIEF.maxlist, _BRIEF.maxlevel = 200, 200, 4, 2
LISTED_PROBLEMS = 8


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key given twice is an error, not a silent choice of the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # <<: *other, whose keys may be given again
                continue
            key = self.construct_object(key_node, deep=deep)
            if not isinstance(key, str | int | float | bool | None):
                raise ConfigError(f"line {key_node.start_mark.line + 1}: a key must be a name, found '{str(key)[:40]}'")
            if key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: the key '{key}' is given twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; :class:`ConfigError` where it is none, or gives a key twice."""
    try:
        return _parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _parse_yaml(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError("not valid YAML: nested too deeply") from error


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a run config; data paths come back absolute.

    Args:
        path: YAML file.
        overrides: ``a.b=value`` texts laid over the file, the value parsed as YAML.

    Raises:
        ConfigError: no such file, not YAML, an unknown key (the nearest known one is named), an impossible value,
            a data file that does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file; see configs/ for examples")
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a mapping with the sections {', '.join(RunConfig.model_fields)} is expected")
    folders = [Path.cwd(), path.resolve().parent, path.resolve().parent.parent]
    return resolve_paths(parse_config(apply_overrides(values, overrides), folders), folders)


def parse_config(values: dict[str, Any], folders: Sequence[Path] | None = None) -> RunConfig:
    """Check a nested dictionary of settings; the model section is checked against the model's own schema too.

    Args:
        values: the settings.
        folders: where ``model.init_from`` is looked up; ``None``: in the working directory.

    Raises:
        ConfigError: see :func:`load_config`.
    """
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, RunConfig)) from None
    try:
        config.model.resolve()
    except ValidationError as error:
        from mlip.models import ModelConfig

        # what the fields have to say together, those of model.init_from may settle
        if config.model.init_from is None or any(problem["loc"] for problem in error.errors()):
            raise ConfigError(describe(error, ModelConfig, prefix=("model",), also=ModelSection.model_fields)) from None
    return settled(adopt(config, folders or [Path.cwd()]))


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lay ``a.b=value`` texts over nested settings; a value that is a mapping replaces, a single key merges.

    Raises:
        ConfigError: a text that is not ``key=value``, or a path through something that is not a section.
    """
    for text in overrides:
        name, equals, value = text.partition("=")
        keys = name.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f"--set {text}: expected section.key=value, e.g. --set training.lr=0.001")
        try:
            parsed = _parse_yaml(value)
        except ConfigError as error:
            raise ConfigError(f"--set {text}: {error}") from error
        section = values
        for key in keys[:-1]:
            if not isinstance(section, dict):
                break
            section = section.get(key) or {}
        if not isinstance(section, dict):
            raise ConfigError(f"--set {text}: {'.'.join(keys[:-1])} is a value, not a section")
        replaced: dict[str, Any] = {}
        _put(replaced, keys, None)
        changed: dict[str, Any] = {}
        _put(changed, keys, parsed)
        values = merge(merge(values, replaced), changed)
    return values


def _put(target: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        target = target.setdefault(key, {})
    target[keys[-1]] = value


def resolve_paths(config: RunConfig, folders: Sequence[Path]) -> RunConfig:
    """Data paths made absolute: the first of ``folders`` in which a relative one exists.

    Raises:
        ConfigError: a file that exists in none of them.
    """

    def find(key: str, name: str) -> str:
        tried = [folder / Path(name).expanduser() for folder in dict.fromkeys(folders)]
        for place in tried:
            if place.exists():
                return str(place.resolve())
        places = ", ".join(dict.fromkeys(str(place.parent) for place in tried))
        raise ConfigError(f"data.{key}: the file {name} does not exist (looked in {places})")

    data = config.data
    train = data.train
    changes: dict[str, Any] = {"train": find("train", train) if isinstance(train, str) else [find("train", file) for file in train]}
    if isinstance(data.valid, str):
        changes["valid"] = find("valid", data.valid)
    if isinstance(data.test, str):
        changes["test"] = find("test", data.test)
    elif isinstance(data.test, dict):
        changes["test"] = {name: find(f"test.{name}", file) for name, file in data.test.items()}
    if data.isolated_atoms:
        changes["isolated_atoms"] = find("isolated_atoms", data.isolated_atoms)
    return config.model_copy(update={"data": data.model_copy(update=changes)})


def describe(
    error: ValidationError, schema: type[BaseModel], prefix: tuple[str, ...] = (), also: typing.Iterable[str] = ()
) -> str:
    """The problems of a validation error in one line, each with its path; unknown keys with the nearest known one."""
    messages = []
    for problem in error.errors():
        where = [str(part) for part in problem["loc"]]
        alternatives = ("function-", "literal[", "dict[", "list[")  # of a union, not keys; "float" is one too
        path = ".".join([*prefix, *(part for part in where if part != "float" and not part.startswith(alternatives))])
        if problem["type"] == "extra_forbidden":
            keys = [*_known_keys(schema), *((name,) for name in also)]
            known = {".".join([*prefix, *parts]) for parts in keys}
            messages.append(f"{path}: unknown key; {_nearest(path, known)}")
        elif problem["type"] == "missing":
            messages.append(f"{path}: missing, it must be given")
        else:
            text = problem["msg"].removeprefix("Value error, ")
            found = problem["input"]
            shown = "" if isinstance(found, dict) else f" (found {_BRIEF.repr(found)})"
            messages.append(f"{path or 'config'}: {text[0].lower()}{text[1:]}{shown}")
    different = list(dict.fromkeys(messages))
    more = f"; {len(different) - LISTED_PROBLEMS} more" if len(different) > LISTED_PROBLEMS else ""
    return "; ".join(different[:LISTED_PROBLEMS]) + more


def _nearest(path: str, known: set[str]) -> str:
    """A hint at the known key that ``path`` probably means: a sibling first, else a key of that name elsewhere."""
    section, _, name = path.rpartition(".")
    siblings = {key.rpartition(".")[2]: key for key in sorted(known) if key.rpartition(".")[0] == section}
    close = difflib.get_close_matches(name, siblings, n=1, cutoff=0.6)
    if close:
        return f"did you mean {siblings[close[0]]}?"
    by_name = {key.rpartition(".")[2]: key for key in sorted(known, reverse=True)}
    elsewhere = difflib.get_close_matches(name, by_name, n=1, cutoff=0.75)
    if elsewhere:
        return f"did you mean {by_name[elsewhere[0]]}?"
    return f"allowed here: {', '.join(sorted(siblings)) or 'nothing'}"


def _known_keys(schema: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in schema.model_fields.items():
        yield (*prefix, name)
        for part in _sections(field.annotation):
            yield from _known_keys(part, (*prefix, name))


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        for part in typing.get_args(annotation):
            yield from _sections(part)
