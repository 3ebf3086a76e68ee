"""Small untrained models to fine-tune, and frames that carry their energies plus a constant an element."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from training_toys import emt_structures, toy_values, write_config

from mlip.checkpoint import load_model, save_model
from mlip.config import RunConfig
from mlip.configfile import load_config
from mlip.models import build
from mlip.testing import evaluate

E0 = {13: -7.0, 29: -100.0, 79: -200.0}
"""E0 of the source, eV: Al, which no frame holds, Cu and Au."""
FIELDS = {"channels": 4, "l_max": 1, "num_layers": 1, "cutoff": 4.0}


def write_source(folder: Path, elements=tuple(E0), **fields) -> Path:
    """A run folder with an untrained model in float64."""
    e0 = {z: E0[z] for z in elements}
    model = build({**FIELDS, **fields}, elements, e0=e0, energy_scale=2.0, avg_num_neighbors=9.0, dtype="float64", seed=3)
    save_model(model, folder / "model.safetensors", {"level_of_theory": {"xc": "pbe"}, "errors": {}, "charges": [0]})
    return folder


def fine_tune_values(folder: Path, epochs: int = 2, source: str | Path | None = None, **training: object) -> dict:
    """:func:`training_toys.toy_values` of a run that starts from ``source``, by default made in ``folder/source``."""
    values = toy_values(folder, epochs, **training)
    values["model"] = {"init_from": str(source or write_source(folder / "source"))}
    return values


def fine_tune_config(folder: Path, epochs: int = 2, source: str | Path | None = None, **training: object) -> RunConfig:
    """The same, written and loaded."""
    return load_config(write_config(folder, fine_tune_values(folder, epochs, source, **training)))


def write_shifted(path: Path, source: Path, shift: dict[str, float], alike: bool = False) -> None:
    """Cu-Au frames with the source's own energies plus ``shift`` eV for each atom; ``alike``: of one composition."""
    model, frames = load_model(source), emt_structures(9, seed=0)
    if alike:
        frames = [frame for frame in frames if len(frame) == 4]
    for frame in frames:
        found = evaluate(model, frame)
        energy = float(found["energy"][0]) + sum(shift[symbol] for symbol in frame.get_chemical_symbols())
        frame.calc = SinglePointCalculator(frame, energy=energy, forces=np.asarray(found["forces"]))
    ase.io.write(path, frames)
