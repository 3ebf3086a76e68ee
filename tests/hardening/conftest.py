"""Good files, made once: each test damages copies."""

from __future__ import annotations

import ase.io
import pytest
from hard_inputs import water

from mlip.data.convert import convert_files


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    """``frames.xyz``, ``frames.h5``, ``one.xyz`` and an untrained ``model.safetensors`` of H and O."""
    from mlip.checkpoint import save_model
    from mlip.models import build

    folder = tmp_path_factory.mktemp("good")
    ase.io.write(folder / "frames.xyz", water(6), format="extxyz")
    ase.io.write(folder / "one.xyz", water(1)[0], format="xyz")
    convert_files([folder / "frames.xyz"], folder / "frames.h5")
    model = build({"channels": 4, "l_max": 1, "num_layers": 1}, ["H", "O"], seed=0)
    save_model(model, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def many(tmp_path_factory):
    """Enough labelled frames for the audit's tests of units."""
    path = tmp_path_factory.mktemp("many") / "many.xyz"
    ase.io.write(path, water(80), format="extxyz")
    return path
