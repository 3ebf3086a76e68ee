"""Small labelled sets (ASE's EMT) and a small config, for tests of training."""

from __future__ import annotations

import signal
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from mlip.config import RunConfig
from mlip.configfile import load_config
from mlip.training import conductor as conductor_module
from mlip.training.run import train
from mlip.training.state import read_checkpoint


def emt_structures(count: int, seed: int) -> list[Atoms]:
    """Rattled Cu-Au crystals of four atoms (with stress) and clusters of three (without), labelled by EMT."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        atoms = bulk("Cu", "fcc", a=3.7 + 0.2 * rng.random(), cubic=True)
        if index % 3 == 2:
            atoms = atoms[:3]
            atoms.pbc, atoms.cell = False, np.zeros((3, 3))
        atoms.symbols[rng.integers(len(atoms))] = "Au"
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
        atoms.calc = EMT()
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        if atoms.pbc.all():
            labels["stress"] = atoms.get_stress()
        atoms.calc = SinglePointCalculator(atoms, **labels)
        made.append(atoms)
    return made


def toy_values(folder: Path, epochs: int = 3, **training: object) -> dict:
    """A complete config in float64 on files written to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("train", 11, 0), ("valid", 4, 1), ("test", 5, 2)):
        if not (folder / f"{name}.extxyz").exists():
            ase.io.write(folder / f"{name}.extxyz", emt_structures(count, seed))
    files = {name: str(folder / f"{name}.extxyz") for name in ("train", "valid", "test")}
    options = {"max_epochs": epochs, "lr": 0.01, "precision": "float64", "ema_decay": 0.9, "threads": 1}
    options["accelerator"] = "cpu"  # a machine with a GPU shall give the same numbers
    return {
        "data": {**files, "batch_size": 3},
        "model": {"channels": 4, "l_max": 1, "num_layers": 1, "cutoff": 4.0},
        "loss": {"stress": {"weight": 1.0}},
        "training": {**options, **training},
        "run": {"dir": str(folder / "run"), "plots": False},
    }


def write_config(folder: Path, values: dict, name: str = "config.yaml") -> Path:
    """The config as a YAML file."""
    path = folder / name
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def toy_config(folder: Path, epochs: int = 3, **training: object) -> RunConfig:
    """:func:`toy_values`, written and loaded."""
    return load_config(write_config(folder, toy_values(folder, epochs, **training)))


def stopped(config: RunConfig, step: int, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Run until a checkpoint after ``step`` steps was written; what it holds."""
    plain = conductor_module.Conductor.on_train_batch_end

    def stopping(self, *args):
        plain(self, *args)
        if self.progress.step == step:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(conductor_module, "SAVE_EVERY", 0.0)
        patch.setattr(conductor_module.Conductor, "on_train_batch_end", stopping)
        train(config)
    assert signal.getsignal(signal.SIGINT) is before  # Ctrl-C still works: Lightning ignores it from then on
    return read_checkpoint(Path(config.run.dir) / "training.ckpt")
