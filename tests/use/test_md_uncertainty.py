"""mlip md --stop-above: it stops where the model is unsure, keeps what led there, and can be gone on with."""

from __future__ import annotations

from dataclasses import replace

import ase.io
import numpy as np
import pytest
from ase.calculators.emt import EMT
from in_process import command
from toy_potential import ToyPotential

from mlip import MLIPCalculator
from mlip.dynamics import MDSettings, commands, run_md
from mlip.dynamics.output import read_csv
from mlip.errors import ConfigError

BASE = MDSettings(steps=12, ensemble="nve", timestep=2.0, save_every=5, log_every=2, state_every=100, seed=3)


class Doubtful(EMT):
    """EMT that is the less sure the further an atom went from its place in the crystal."""

    implemented_properties = [*EMT.implemented_properties, "forces_std"]  # noqa: RUF012

    def __init__(self, start):
        super().__init__()
        self.start = start.positions.copy()

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.results["forces_std"] = 0.01 + np.linalg.norm(self.atoms.positions - self.start, axis=1)


def log(out):
    return read_csv(out.with_suffix(".csv"))


@pytest.fixture
def limit(crystal, tmp_path):
    """One that is passed within the run, not at its start."""
    out = tmp_path / "free.traj"
    free = run_md(crystal.copy(), Doubtful(crystal), replace(BASE, stop_above=np.inf, log_every=1), out)
    largest = log(out)["forces_std_max_eV_A"]
    assert free.stopped is None and free.steps == BASE.steps
    assert np.all(np.diff(largest[:5]) > 0) and largest[0] == 0.01
    return 0.5 * (largest[3] + largest[4]), 4


def test_it_stops_and_goes_on(crystal, tmp_path, limit):
    limit, step = limit
    out = tmp_path / "run.extxyz"
    summary = run_md(crystal.copy(), Doubtful(crystal), replace(BASE, stop_above=limit), out)
    assert summary.steps == step and summary.stopped > limit
    assert log(out)["step"][-1] == step and log(out)["forces_std_max_eV_A"][-1] == pytest.approx(summary.stopped, abs=1e-6)
    last = ase.io.read(out, -1)
    assert last.info["step"] == step
    gone_on = run_md(crystal.copy(), Doubtful(crystal), replace(BASE, stop_above=None), out, resume=True)
    assert gone_on.resumed_from == step and gone_on.steps == BASE.steps and gone_on.stopped is None
    whole = tmp_path / "whole.extxyz"
    run_md(crystal.copy(), Doubtful(crystal), BASE, whole)
    with np.load(out.with_suffix(".state.npz")) as parts, np.load(whole.with_suffix(".state.npz")) as once:
        np.testing.assert_allclose(parts["positions"], once["positions"], rtol=0, atol=1e-12)  # EMT adds up by its history
    rows = log(out)
    assert rows["step"][-1] == BASE.steps and np.isnan(rows["forces_std_max_eV_A"][-1])
    assert set(log(whole)) == set(rows) - {"forces_std_max_eV_A"}


def test_unsure_from_the_start(crystal, tmp_path):
    out = tmp_path / "run.traj"
    summary = run_md(crystal.copy(), Doubtful(crystal), replace(BASE, stop_above=1e-9), out)
    assert summary.steps == 0 and summary.frames == 1 and len(log(out)["step"]) == 1


def test_exit_code_and_one_line(crystal, tmp_path, monkeypatch, limit):
    limit, step = limit
    asked = []
    monkeypatch.setattr(commands, "_load", lambda *_, uncertainty=False: asked.append(uncertainty) or Doubtful(crystal))
    crystal.write(tmp_path / "start.xyz")
    run = ["md", "start.xyz", "--model", "x", "--ensemble", "nve", "--timestep", 2, "--steps", 12, "--seed", 3]
    stopped = command("mlip", *run, "--stop-above", limit, cwd=tmp_path)
    assert stopped.returncode == 3 and asked == [True]
    lines = [line for line in stopped.stdout.splitlines() if f"stopped at step {step}: forces_std is" in line]
    assert len(lines) == 1 and "--resume" in lines[0]
    assert command("mlip", *run, "--resume", cwd=tmp_path).returncode == 0 and asked == [True, False]


def test_a_calculator_without_it_is_refused_before_anything_is_written(cluster, tmp_path):
    for calculator in (MLIPCalculator(ToyPotential()), EMT()):
        with pytest.raises(ConfigError, match="forces_std"):
            run_md(cluster.copy(), calculator, replace(BASE, stop_above=1.0), tmp_path / "run.traj")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="positive"):
        replace(BASE, stop_above=0.0)
