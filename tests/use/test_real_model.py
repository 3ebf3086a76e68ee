"""The calculator and the commands with a real (untrained) potential: checkpoints, copies, dtypes, files end to end."""

from __future__ import annotations

import copy
import pickle

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from typer.testing import CliRunner

from mlip import MLIPCalculator, build
from mlip.checkpoint import save_model
from mlip.cli import app

TINY = {"channels": 4, "l_max": 1, "num_layers": 1, "readout_hidden": 4, "cutoff": 3.0, "zbl": True}


@pytest.fixture(scope="module")
def model():
    return build(TINY, ["H", "C", "O"], e0={1: -13.6, 6: -1030.0, 8: -2042.0}, seed=3)


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    return save_model(model, tmp_path_factory.mktemp("model") / "model.safetensors", {"level_of_theory": "none"})


def test_path_and_object_agree_and_a_pickle_needs_no_file(model, tmp_path):
    path = save_model(model, tmp_path / "model.safetensors")
    atoms = molecule("CH3CH2OH")
    calculator = MLIPCalculator(path)
    forces = calculator.get_forces(atoms)
    np.testing.assert_array_equal(MLIPCalculator(model).get_forces(atoms), forces)
    packed = pickle.dumps(calculator)
    path.unlink()
    moved = atoms.copy()
    moved.rattle(0.02, seed=0)
    for twin in (pickle.loads(packed), copy.deepcopy(calculator)):
        np.testing.assert_array_equal(twin.get_forces(atoms), forces)
        np.testing.assert_array_equal(twin.get_forces(moved), calculator.get_forces(moved))
        assert twin.fingerprint() == calculator.fingerprint() and twin.model.dtype == torch.float32


def test_gradients_in_float64(path):
    calculator = MLIPCalculator(path, dtype="float64")
    atoms = bulk("C", a=3.4, cubic=True)
    atoms.rattle(0.1, seed=0)
    atoms.numbers[0] = 8
    atoms.calc = calculator
    np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-4), atol=1e-6)
    np.testing.assert_allclose(atoms.get_stress(), calculate_numerical_stress(atoms, eps=1e-5), atol=1e-7)
    assert calculator.model.dtype == torch.float64


def test_an_isolated_atom_has_its_reference_energy_and_no_force(path):
    calculator = MLIPCalculator(path)
    lone, pair = Atoms("C"), Atoms("CH", [[0, 0, 0], [0, 0, 50.0]])
    assert calculator.get_potential_energy(lone) == pytest.approx(-1030.0, abs=1e-9)
    assert calculator.get_potential_energy(pair) == pytest.approx(-1030.0 - 13.6, abs=1e-9)
    assert np.abs(calculator.get_forces(lone)).max() == 0


def invoke(*words):
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "160"})
    return result.exit_code, result.output, result.exception


def test_relax_and_md_from_the_command_line(path, tmp_path):
    """An untrained network with its screened nuclear repulsion: short runs on real files."""
    start = tmp_path / "water.xyz"
    ase.io.write(start, molecule("H2O"))
    code, text, error = invoke("relax", start, "--model", path, "--max-steps", 2, "--fmax", 1e-9)
    assert code == 1 and isinstance(error, SystemExit) and "NO" in text, text
    assert (tmp_path / "water-relaxed.extxyz").exists()
    common = ["md", start, "-m", path, "--ensemble", "nve", "--timestep", 0.1, "--log-every", 2]
    code, text, error = invoke(*common, "--steps", 10, "--temperature", 10)
    assert code == 0 and "drift" in text and "water-md.traj" in text, text + repr(error)
    code, text, error = invoke(*common, "--steps", 20, "--temperature", 10)
    assert code == 1 and "--resume" in str(error)
    code, text, error = invoke(*common, "--steps", 20, "--temperature", 10, "--resume")
    assert code == 0 and "resumed from step 10" in text, text + repr(error)
    assert len(ase.io.read(tmp_path / "water-md.traj", ":")) == 3
    code, text, error = invoke(*common, "--steps", 20, "--model", tmp_path / "absent.safetensors", "--overwrite")
    assert code == 1 and "absent.safetensors" in str(error)
    assert (tmp_path / "water-md.traj").exists(), "a run that cannot start replaces nothing"
