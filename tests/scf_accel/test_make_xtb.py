"""datasets/organics/make_xtb.py: the labels that organics-energy is pretrained on."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tblite", reason="tblite, which has wheels for Linux on x86-64 alone, is not installed")

FOLDER = Path(__file__).parents[2] / "datasets" / "organics"


@pytest.fixture(scope="module")
def make_xtb():
    spec = importlib.util.spec_from_file_location("make_xtb", FOLDER / "make_xtb.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_forces_are_the_slope_of_the_energy(make_xtb):
    frame = make_xtb.frames_of(["CC(F)S"])[0][1]
    numbers, positions, step = frame.atomic_numbers, frame.positions, 3e-4
    direction = np.random.default_rng(0).normal(size=positions.shape)
    plus, minus = (make_xtb.label(numbers, positions + sign * step * direction)[0] for sign in (1, -1))
    assert np.abs(frame.forces).max() > 0.1
    assert -(plus - minus) / (2 * step) == pytest.approx(float((frame.forces * direction).sum()), rel=1e-4)


def test_frames_say_what_they_are_and_are_bound(make_xtb):
    frames, failed = make_xtb.frames_of(["CCO", "N#CP"])
    again, _ = make_xtb.frames_of(["CCO", "N#CP"])
    atoms = {int(frame.atomic_numbers[0]): frame for frame in make_xtb.atoms()}
    assert {z: frame.spin for z, frame in atoms.items()} == {1: 1, 6: 2, 7: 3, 8: 2, 9: 1, 15: 3, 16: 2, 17: 1}
    assert failed == 0 and len(frames) == 8
    assert {frame.extras["molecule"] for frame in frames} == {"CCO", "N#CP"}
    assert {frame.extras["origin"].split()[0] for frame in frames} == {"mmff", "gaussian", "langevin", "stretched"}
    for frame, same in zip(frames, again, strict=True):
        assert frame.energy < sum(atoms[int(z)].energy for z in frame.atomic_numbers)
        assert frame.id == same.id and frame.energy == pytest.approx(same.energy, abs=1e-6)
