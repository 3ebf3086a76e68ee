"""The commands that write: small jobs for fault injection, each run in a folder of its own."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from hard_tools import Ended, command

from scf_accel.executors import Result
from scf_accel.labels import Labels
from scf_accel.structures import Job

MD = ("--steps", "12", "--save-every", "3", "--log-every", "2", "--state-every", "2", "--dtype", "float64", "--out", "o.extxyz")


def md(good: Path, folder: Path, *more: object) -> Ended:
    return command("mlip", "md", good / "one.xyz", "--model", good / "model.safetensors", *MD, *more, folder=folder)


def train(good: Path, folder: Path, epochs: int = 2) -> Ended:
    if not (folder / "c.yaml").exists():
        write_config(good, folder, epochs)
    return command("mlip", "train", "c.yaml", folder=folder)


def write_config(good: Path, folder: Path, epochs: int = 2) -> None:
    """``c.yaml``: a training of four frames, with the validation set apart."""
    values = {
        "data": {"train": str(good / "frames.xyz"), "valid": 0.34, "batch_size": 2, "e0": {"H": 0.0, "O": -470.0}},
        "model": {"channels": 4, "l_max": 1, "num_layers": 1},
        "training": {"max_epochs": epochs, "precision": "float64", "threads": 1, "accelerator": "cpu"},
        "run": {"dir": "run", "plots": False},
    }  # fmt: skip
    (folder / "c.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


class _MadeUp:
    """An executor whose labels are made up from the geometry: what is tested is the store, not the chemistry."""

    def run(self, jobs: list[Job]) -> Generator[Result, None, None]:
        for job in jobs:
            positions = np.asarray(job.structure.positions)
            yield Result(job, Labels(float(positions.sum()), positions / 10, np.arange(len(positions) * 2.0), 5, "diis", 0.1))


@contextmanager
def no_chemistry() -> Iterator[None]:
    """Within, ``scf-accel label`` takes made-up labels, made in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scf_accel.labelrun.make_executor", lambda _: _MadeUp())
        yield


def label(good: Path, folder: Path, *more: object) -> Ended:
    with no_chemistry():
        return command("scf-accel", "label", good / "frames.xyz", "o.h5", *more, folder=folder)


def to_xyz(good: Path, folder: Path, *more: object) -> Ended:
    return command("mlip", "data", "convert", good / "frames.h5", "o.extxyz", *more, folder=folder)


def to_hdf5(good: Path, folder: Path, *more: object) -> Ended:
    return command("mlip", "data", "convert", good / "frames.xyz", "o.h5", *more, folder=folder)


def relax(good: Path, folder: Path) -> Ended:
    words = ("relax", good / "one.xyz", "--model", good / "model.safetensors", "--out", "o.traj", "--fmax", "1e9")
    return command("mlip", *words, folder=folder)


def evaluate(good: Path, folder: Path) -> Ended:
    return command("mlip", "eval", good / "model.safetensors", good / "frames.xyz", "--out", "o", "--no-plots", folder=folder)


JOBS = {
    "md": md, "train": train, "label": label, "to xyz": to_xyz, "to hdf5": to_hdf5, "relax": relax, "eval": evaluate,
}  # fmt: skip
PROGRAM = {"label": "scf-accel"}
"""Of the other jobs it is ``mlip``."""
