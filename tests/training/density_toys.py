"""Small molecules with made-up densities that follow the geometry, for tests of training; no SCF is run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase.build import molecule
from training_toys import write_config

from mlip.config import RunConfig
from mlip.configfile import load_config
from mlip.data.density import DensityBasis, Shell, real_harmonics
from mlip.data.frame import Frame
from mlip.data.writer import write_frames

MOLECULES = ("H2O", "CH4", "CO", "CH3OH")
BASIS = DensityBasis(
    "toy",
    {
        1: (Shell(0, (1.5,), (1.0,)), Shell(1, (0.9,), (1.0,))),
        6: (Shell(0, (8.0, 2.0), (0.4, 0.7)), Shell(1, (1.1,), (1.0,)), Shell(0, (0.5,), (1.0,)), Shell(2, (0.8,), (1.0,))),
        8: (Shell(0, (9.0,), (1.0,)), Shell(0, (0.7,), (1.0,)), Shell(2, (1.0,), (1.0,)), Shell(1, (1.3,), (1.0,))),
    },
)


def made_up_density(numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Coefficients that turn with the molecule: sums of harmonics over neighbours; the electrons are nearly right."""
    parts = []
    for i, z in enumerate(numbers):
        vectors = np.delete(positions, i, axis=0) - positions[i]
        distances = np.linalg.norm(vectors, axis=1)
        strength = np.exp(-distances)[:, None] * np.sqrt(np.delete(numbers, i))[:, None]
        for k, shell in enumerate(BASIS.of(int(z))):
            values = 0.1 * (k + 1) * (strength * real_harmonics(shell.l, vectors / distances[:, None])).sum(axis=0)
            if shell.l == 0:
                count = sum(s.l == 0 for s in BASIS.of(int(z)))
                values = 0.2 * values - 0.01 + z / count / shell.charge
            parts.append(values)
    return np.concatenate(parts)


def density_frames(count: int, seed: int, density: bool = True, energy: bool = True) -> list[Frame]:
    """Rattled molecules in turn, with densities and, of a harmonic repulsion, energies and forces."""
    rng = np.random.default_rng(seed)
    frames = []
    for index in range(count):
        atoms = molecule(MOLECULES[index % len(MOLECULES)])
        positions = atoms.positions + rng.normal(scale=0.05, size=atoms.positions.shape)
        vectors = positions[:, None] - positions
        frame = Frame(
            atoms.numbers.astype(np.int64), positions, id=str(index),
            extras={"molecule": MOLECULES[index % len(MOLECULES)], "origin": ("mmff", "langevin 300 K")[index % 2]},
        )  # fmt: skip
        if energy:
            frame.energy, frame.forces = 0.05 * float(np.square(vectors).sum()), -0.2 * vectors.sum(axis=1)
        if density:
            frame.density_coefficients = made_up_density(frame.atomic_numbers, positions)
        frames.append(frame)
    return frames


def write_toys(path: Path, frames: list[Frame], basis: DensityBasis | None = BASIS) -> Path:
    """An HDF5 file as ``scf-accel label`` makes it."""
    attrs = {"level_of_theory": {"density_metric": "coulomb"}}
    write_frames(path, frames, attrs if basis is None else {**attrs, "density_basis": basis.to_dict()})
    return path


def density_values(folder: Path, epochs: int = 3, joint: bool = False, **training: object) -> dict:
    """A complete config in float64 on files written to ``folder``: a density head, and with ``joint`` both."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("train", 11, 0), ("valid", 4, 1), ("test", 5, 2)):
        if not (folder / f"{name}.h5").exists():
            write_toys(folder / f"{name}.h5", density_frames(count, seed))
    options = {"max_epochs": epochs, "lr": 0.01, "precision": "float64", "ema_decay": 0.9, "threads": 1, "accelerator": "cpu"}
    model = {"channels": 4, "l_max": 1, "num_layers": 1, "cutoff": 3.0, "gate": None}  # path gates: test_gating.py
    return {
        "data": {**{name: str(folder / f"{name}.h5") for name in ("train", "valid", "test")}, "batch_size": 3},
        "model": {**model, "energy": joint, "density": {}},
        "training": {**options, **training},
        "run": {"dir": str(folder / "run"), "plots": False},
    }


def density_config(folder: Path, epochs: int = 3, joint: bool = False, **training: object) -> RunConfig:
    """:func:`density_values`, written and loaded."""
    return load_config(write_config(folder, density_values(folder, epochs, joint, **training)))
