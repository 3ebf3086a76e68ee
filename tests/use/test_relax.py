"""Relaxation ends where the forces vanish, says so when it does not, and writes as it goes."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from rich.console import Console
from toy_potential import ToyPotential

import mlip.calculator
from mlip import MLIPCalculator
from mlip.dynamics import OPTIMIZERS, SimulationError, relax
from mlip.dynamics.commands import relax_file
from mlip.errors import ConfigError, StructureError

DEFAULTS = {"fmax": 0.01, "cell": False, "pressure": 0.0, "optimizer": "auto", "max_steps": 500}


@pytest.fixture
def toy_model(monkeypatch):
    """The commands load a toy whatever the model's name."""
    real = mlip.calculator._frozen_model
    monkeypatch.setattr(mlip.calculator, "_frozen_model", lambda model, *rest: real(ToyPotential(), *rest))


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_every_optimizer_meets_a_tight_fmax(cluster, calculator, optimizer):
    result = relax(cluster, calculator, fmax=1e-4, optimizer=optimizer.lower())
    assert result.converged and result.fmax <= 1e-4
    assert result.energy_after < result.energy_before
    assert np.linalg.norm(cluster.get_forces(), axis=1).max() == pytest.approx(result.fmax)


def test_cell_relaxation_meets_the_pressure(calculator):
    atoms = bulk("Cu", a=3.9, cubic=True)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + [[0, 0.03, 0], [0, 0.02, 0], [0, 0, -0.02]]), scale_atoms=True)
    result = relax(atoms, calculator, cell=True, fmax=1e-4, pressure=2.0)
    assert result.converged and result.stress_max < 0.01
    np.testing.assert_allclose(-atoms.get_stress()[:3] / units.GPa, 2.0, atol=0.01)


def test_not_converged_is_said(cluster, calculator):
    result = relax(cluster, calculator, fmax=1e-6, max_steps=2)
    assert not result.converged and result.steps == 2 and result.fmax > 1e-6


def test_going_astray_is_told_from_a_bad_start():
    """The minimum lies at 2.6 Angstrom, where this calculator lets no two atoms come."""
    strict = MLIPCalculator(ToyPotential(), min_distance=2.8)
    with pytest.raises(SimulationError, match="went astray after step"):
        relax(Atoms("Cu2", [[0, 0, 0], [0, 0, 3.2]]), strict)
    with pytest.raises(StructureError, match="Angstrom apart"):
        relax(Atoms("Cu2", [[0, 0, 0], [0, 0, 2.7]]), strict)


def test_trajectory_and_log_agree(cluster, calculator, tmp_path):
    result = relax(cluster, calculator, trajectory=tmp_path / "path.extxyz", log=tmp_path / "path.csv")
    frames = ase.io.read(tmp_path / "path.extxyz", ":")
    rows = (tmp_path / "path.csv").read_text().splitlines()[1:]
    assert len(frames) == len(rows) == result.steps + 1
    assert frames[-1].get_potential_energy() == pytest.approx(float(rows[-1].split(",")[1]), abs=1e-6)


def test_bad_requests(cluster, calculator):
    with pytest.raises(ConfigError, match="LBFGS"):
        relax(cluster, calculator, optimizer="newton")
    with pytest.raises(StructureError, match="three directions"):
        relax(cluster, calculator, cell=True)
    with pytest.raises(ConfigError, match="fmax"):
        relax(cluster, calculator, fmax=0)
    with pytest.raises(ConfigError, match="--cell"):
        relax(cluster, calculator, pressure=1.0)


def run(path, tmp_path, **changes):
    console = Console(record=True, width=200)
    options = {"dtype": "float64", "device": "cpu", "overwrite": False}
    options |= {key: changes.pop(key) for key in list(changes) if key in options}
    ok = relax_file(path, "toy", {"out": tmp_path / "out.extxyz"}, DEFAULTS | changes, console=console, **options)
    return ok, console.export_text()


def test_every_frame_of_a_file(cluster, toy_model, tmp_path):
    other = cluster.copy()
    other.rattle(0.1, seed=2)
    ase.io.write(tmp_path / "in.xyz", [cluster, other])
    ok, text = run(tmp_path / "in.xyz", tmp_path)
    assert ok and text.count("yes") == 2 and "out.extxyz" in text
    for frame in ase.io.read(tmp_path / "out.extxyz", ":"):
        assert np.linalg.norm(frame.get_forces(), axis=1).max() <= 0.01
        fresh = MLIPCalculator(ToyPotential()).get_forces(frame)
        np.testing.assert_allclose(frame.get_forces(), fresh, atol=1e-6)
    with pytest.raises(SimulationError, match="--overwrite"):
        run(tmp_path / "in.xyz", tmp_path)
    ok, text = run(tmp_path / "in.xyz", tmp_path, overwrite=True, max_steps=1)
    assert not ok and "NO" in text and "--max-steps" in text


def test_unreadable_files(tmp_path, toy_model):
    with pytest.raises(StructureError, match="does not exist"):
        run(tmp_path / "absent.xyz", tmp_path)
    (tmp_path / "bad.xyz").write_text("not a structure")
    with pytest.raises(StructureError, match="cannot be read"):
        run(tmp_path / "bad.xyz", tmp_path)
