"""The folder of a run: what it may already hold, and what every run leaves there."""

from __future__ import annotations

import csv
import io
import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from mlip.config import RunConfig
from mlip.configfile import read_yaml
from mlip.errors import ConfigError
from mlip.files import atomic_write_text, locked

PACKAGES = ("mlip-scf-accel", "torch", "lightning", "numpy", "e3nn", "vesin", "ase", "h5py")
CHECKPOINT, MODEL, RESULTS = "training.ckpt", "model.safetensors", "results.json"
LISTED_CHANGES = 8
WRITTEN = (
    CHECKPOINT, MODEL, RESULTS, "results.txt", "config.yaml", "environment.json", "log.csv", "learning_curve.png",
    "parity_energy.png", "parity_forces.png", "parity_stress.png", "parity_density.png",
    "calibration.png",
)  # fmt: skip


class RunFolder:
    """Paths inside a run folder, and the rules for entering one that exists."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoint = self.path / CHECKPOINT
        self.model = self.path / MODEL
        self.results = self.path / RESULTS

    def holds_a_run(self) -> bool:
        """Whether a run's weights or its state lie here."""
        return self.checkpoint.exists() or self.model.exists()

    def check(self, config: RunConfig, restart: bool) -> bool:
        """Whether the folder holds an unfinished run of the same config that is gone on with. Nothing is written.

        Raises:
            ConfigError: the folder holds a finished run or a run of another config (and ``run.overwrite`` is not set), or
                files that are not a run's.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"run.dir: {self.path} is a file; choose another folder")
        present = {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
        resumed = False
        if present & set(WRITTEN):
            resumed = not restart and self._goes_on(config) and self.checkpoint.exists()
        elif any(not name.startswith(("mlip-error", ".")) for name in present):
            raise ConfigError(f"run.dir: {self.path} holds files that are not a run's; choose another run.dir")
        return resumed

    @contextmanager
    def entered(self, config: RunConfig, restart: bool, resumed: bool) -> Iterator[None]:
        """Begin the run or go on, as :meth:`check` has found (``resumed``); what is replaced goes, and the folder is locked.

        Raises:
            ConfigError: the folder is no longer as it was found.
            UserError: another run writes here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            if self.check(config, restart) != resumed:
                raise ConfigError(f"run.dir: another run has written to {self.path} meanwhile; choose another folder")
            for name in () if resumed else WRITTEN:
                (self.path / name).unlink(missing_ok=True)
            atomic_write_text(self.path / "config.yaml", dump_config(config))
            atomic_write_text(self.path / "environment.json", json.dumps(environment(), indent=2) + "\n")
            yield

    def _goes_on(self, config: RunConfig) -> bool:
        """Whether the run that the folder holds is to be continued; with ``run.overwrite`` any other one is replaced."""
        try:
            self._check_same(config)
        except ConfigError:
            if not config.run.overwrite:
                raise
            return False
        return True

    def _check_same(self, config: RunConfig) -> None:
        choice = "--restart to start anew, or --set run.dir=ANOTHER"
        if self.results.exists():
            raise ConfigError(f"run.dir: {self.path} holds a finished run; use {choice}")
        written = self.path / "config.yaml"
        if not written.exists():
            raise ConfigError(f"run.dir: {self.path} holds parts of a run without its config.yaml; use {choice}")
        old, new = flatten(_written_config(written, choice)), flatten(plain_config(config))
        if "model.density.projection" in old:
            old.setdefault("model.density.modes", False)  # runs from before there were modes
        old.setdefault("loss.density.auxiliary", False)
        ignored = ("run.", "data.num_workers", "data.cache_mb")
        changed = [
            f"{key} {old.get(key)!r} -> {new.get(key)!r}"
            for key in sorted({*old, *new})
            if old.get(key) != new.get(key) and not key.startswith(ignored)
        ]
        if changed:
            what = "; ".join(changed[:LISTED_CHANGES]) + (" ..." if len(changed) > LISTED_CHANGES else "")
            raise ConfigError(f"run.dir: {self.path} holds a run of another config ({what}); use {choice}")

    def write_log(self, rows: Sequence[dict[str, float]]) -> None:
        """``log.csv``: one row a validation; errors in meV/atom, meV/Angstrom and meV/Angstrom^3."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)
        atomic_write_text(self.path / "log.csv", text.getvalue())


def _written_config(path: Path, choice: str) -> dict[str, Any]:
    """The config that a run was begun with."""
    try:
        values = read_yaml(path)
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: no config in it")
    except ConfigError as error:
        raise ConfigError(f"run.dir: the config of the run there is damaged ({error}); use {choice}") from error
    return values


def plain_config(config: RunConfig) -> dict[str, Any]:
    """The config as nested plain values, the model section written out in full."""
    values = config.model_dump(mode="json")
    start = {} if config.model.init_from is None else {"init_from": config.model.init_from}
    values["model"] = {"preset": None, **start, **config.model.resolve().model_dump(mode="json")}
    return values


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML; ``mlip train`` takes it as it is."""
    return yaml.safe_dump(plain_config(config), sort_keys=False)


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def environment() -> dict[str, Any]:
    """Versions, machine, git commit and command of this run."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
        "directory": str(Path.cwd()),
        "python": platform.python_version(),
        "machine": {"platform": platform.platform(), "processor": _processor()},
        "versions": versions,
        "git_commit": _git_commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def _git_commit() -> str | None:
    """The commit of the source tree this package runs from, if it is one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
