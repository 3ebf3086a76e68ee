"""Laws of molecular dynamics: energy is conserved, temperature and pressure are held, resumed == uninterrupted."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.constraints import FixAtoms
from toy_potential import ToyPotential

from mlip import MLIPCalculator
from mlip.dynamics import MDSettings, SimulationError, run_md
from mlip.dynamics.integrators import degrees_of_freedom, draw_velocities, temperature_of
from mlip.dynamics.output import read_csv
from mlip.errors import ConfigError, StructureError

BASE = MDSettings(
    steps=40, ensemble="nve", timestep=2.0, temperature=300, save_every=3, log_every=2, state_every=5, seed=7
)
KINDS = {
    "nve": replace(BASE),
    "langevin": replace(BASE, ensemble="nvt"),
    "nose-hoover": replace(BASE, ensemble="nvt", thermostat="nose-hoover"),
    "mtk": replace(BASE, ensemble="npt", pressure=1.0),
}


def run(atoms, settings, out, **options):
    return run_md(atoms.copy(), MLIPCalculator(ToyPotential()), settings, out, **options)


def content(out: Path) -> list:
    """What a run left, the wall times apart."""
    rows = [line.rsplit(",", 1)[0] for line in out.with_suffix(".csv").read_text().splitlines()]
    with np.load(out.with_suffix(".state.npz")) as state:
        arrays = {key: state[key].tolist() for key in state.files if key != "meta"}
    frames = ase.io.read(out, ":")
    values = [(f.positions, f.get_momenta(), f.cell.array, f.get_forces()) for f in frames]
    return [rows, arrays, [[v.tolist() for v in frame] for frame in values], [f.info["step"] for f in frames]]


# -- resume ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".extxyz", ".traj"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_resumed_equals_uninterrupted(crystal, tmp_path, kind, suffix):
    settings = KINDS[kind]
    whole, parts = tmp_path / f"whole{suffix}", tmp_path / f"parts{suffix}"
    run(crystal, settings, whole)

    class StopError(Exception):
        pass

    def stop(step, *_):
        if step == 28:  # rows, frames of steps 26 to 28 are after the last state and must be made again
            raise StopError

    run(crystal, replace(settings, steps=10), parts)
    with pytest.raises(StopError):
        run(crystal, settings, parts, resume=True, report=stop)
    assert run(crystal, settings, parts, resume=True).resumed_from == 25
    assert content(parts) == content(whole)
    if suffix == ".extxyz":
        assert parts.read_bytes() == whole.read_bytes()


def test_killed_and_resumed_equals_uninterrupted(crystal, tmp_path):
    here = Path(__file__).parent
    settings = KINDS["langevin"]
    whole, killed, start = tmp_path / "whole.traj", tmp_path / "killed.traj", tmp_path / "start.traj"
    crystal.write(start)
    process = subprocess.Popen([sys.executable, "md_worker.py", str(start), str(killed), str(settings.steps)], cwd=here)
    log = killed.with_suffix(".csv")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (log.exists() and len(log.read_text().splitlines()) > 8):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(log.read_text().splitlines()) < 22, "it was killed before its end"
    assert run(crystal, settings, killed, resume=True).resumed_from >= 5
    run(crystal, settings, whole)
    assert content(killed) == content(whole)


def test_killed_before_its_first_frame(crystal, tmp_path, monkeypatch):
    settings, out = replace(KINDS["langevin"], steps=6), tmp_path / "run.extxyz"

    def killed(path, *_):
        path.write_text("half a fra")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mlip.dynamics.md.FrameWriter", killed)
        run(crystal, settings, out)
    run(crystal, settings, out, resume=True)
    run(crystal, settings, tmp_path / "whole.extxyz")
    assert content(out) == content(tmp_path / "whole.extxyz")


def test_resume_without_its_noise_would_be_caught(crystal, tmp_path, monkeypatch):
    """A Langevin run whose random numbers start over differs: the law above can fail."""
    settings = KINDS["langevin"]
    whole, parts = tmp_path / "whole.extxyz", tmp_path / "parts.extxyz"
    run(crystal, settings, whole)
    run(crystal, replace(settings, steps=20), parts)
    monkeypatch.setattr("mlip.dynamics.md._restore_rng", lambda rng, state: None)
    run(crystal, settings, parts, resume=True)
    assert content(parts) != content(whole)


def test_outputs_are_not_replaced_unasked(crystal, tmp_path):
    out = tmp_path / "run.traj"
    settings = replace(BASE, steps=4)
    run(crystal, settings, out, resume=True)  # nothing there yet: starts
    with pytest.raises(SimulationError, match="--resume"):
        run(crystal, settings, out)
    with pytest.raises(SimulationError, match=r"timestep was 2.0, now 1.0"):
        run(crystal, replace(settings, timestep=1.0), out, resume=True)
    other = crystal.copy()
    other.numbers[0] = 1
    with pytest.raises(SimulationError, match="elements"):
        run(other, settings, out, resume=True)
    with pytest.raises(SimulationError, match="model was"):
        run_md(crystal.copy(), MLIPCalculator(ToyPotential(depth=0.3)), settings, out, resume=True)
    finished = run(crystal, settings, out, resume=True)
    assert finished.resumed_from == finished.steps == 4 and finished.ns_per_day is None
    assert run(crystal, settings, out, overwrite=True).resumed_from is None
    out.with_suffix(".state.npz").write_bytes(b"broken")
    with pytest.raises(SimulationError, match="not a state"):
        run(crystal, settings, out, resume=True)
    out.with_suffix(".state.npz").unlink()
    with pytest.raises(SimulationError, match="no state"):
        run(crystal, settings, out, resume=True)


# -- physics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nve", "nose-hoover", "mtk"])
def test_conserved_energy_drifts_with_the_square_of_the_time_step(crystal, tmp_path, kind):
    spread = []
    for timestep in (4.0, 2.0):
        settings = replace(KINDS[kind], steps=int(240 / timestep), timestep=timestep, log_every=1, save_every=1000)
        out = tmp_path / f"{timestep}.traj"
        summary = run(crystal, settings, out)
        spread.append(np.std(read_csv(summary.log)["conserved_eV"]))
    assert 2.5 < spread[0] / spread[1] < 6.5, spread


@pytest.mark.parametrize("kind", ["langevin", "nose-hoover", "mtk"])
def test_temperature_and_pressure_are_held(tmp_path, kind):
    """From 500 K and another pressure to 300 K and 1 GPa."""
    atoms = bulk("Cu", a=3.2, cubic=True) * (2, 2, 2)
    draw_velocities(atoms, 1000.0, np.random.default_rng(1))
    common = {"timestep": 4.0, "damping": 40.0, "pressure_damping": 100.0, "keep_velocities": True}
    settings = replace(KINDS[kind], steps=400, log_every=2, save_every=1000, state_every=1000, **common)
    table = read_csv(run(atoms, settings, tmp_path / "run.traj").log)
    later = slice(len(table["step"]) // 4, None)
    assert table["temperature_K"][later].mean() == pytest.approx(300, rel=0.12)
    if kind == "mtk":
        assert table["pressure_GPa"][0] > 3
        assert table["pressure_GPa"][later].mean() == pytest.approx(1.0, abs=0.5)


def test_first_velocities(crystal, cluster):
    rng = np.random.default_rng(0)
    for atoms, freedom in ((crystal, 93), (cluster, 9), (Atoms("H2", [[0, 0, 0], [0.8, 0, 0]]), 1)):
        draw_velocities(atoms, 500.0, rng)
        assert degrees_of_freedom("verlet", atoms) == freedom
        assert temperature_of(atoms, freedom) == pytest.approx(500)
        np.testing.assert_allclose(atoms.get_momenta().sum(axis=0), 0, atol=1e-12)
        if not atoms.pbc.any():
            np.testing.assert_allclose(atoms.get_angular_momentum(), 0, atol=1e-12)
    fixed = crystal.copy()
    fixed.set_constraint(FixAtoms([0, 1]))
    draw_velocities(fixed, 500.0, rng)
    assert np.abs(fixed.get_momenta()[:2]).max() == 0 and degrees_of_freedom("verlet", fixed) == 90


def test_velocities_of_the_file_can_be_kept(cluster, tmp_path):
    draw_velocities(cluster, 50.0, np.random.default_rng(5))
    summary = run(cluster, replace(BASE, steps=0, keep_velocities=True), tmp_path / "run.traj")
    np.testing.assert_array_equal(ase.io.read(summary.trajectory).get_momenta(), cluster.get_momenta())


def test_pressure_of_the_log_is_the_virial_one(crystal, tmp_path):
    summary = run(crystal, replace(BASE, steps=4), tmp_path / "run.traj")
    first = ase.io.read(summary.trajectory, "0")
    first.calc = MLIPCalculator(ToyPotential())
    expected = -np.trace(first.get_stress(voigt=False, include_ideal_gas=True)) / 3 / units.GPa
    assert read_csv(summary.log)["pressure_GPa"][0] == pytest.approx(expected, abs=1e-4)


# -- what goes wrong -------------------------------------------------------------------------------------------------


def test_explosion_stops_and_keeps_the_good_frames(crystal, tmp_path):
    out = tmp_path / "run.extxyz"
    with pytest.raises(SimulationError, match="shorter time step") as caught:
        run(crystal, replace(BASE, timestep=80.0, steps=400), out)
    assert "MD stopped after step" in str(caught.value)
    frames = ase.io.read(out, ":")
    assert frames and all(np.isfinite(frame.positions).all() for frame in frames)


def test_settings_are_checked(cluster, tmp_path):
    cold = {"ensemble": "nvt", "temperature": 0.0}
    for change in ({"ensemble": "nph"}, {"timestep": 0.0}, {"thermostat": "x"}, {"steps": -1}, {"pressure": np.nan}, cold):
        with pytest.raises(ConfigError):
            replace(BASE, **change)
    with pytest.raises(StructureError, match="three directions"):
        run(cluster, KINDS["mtk"], tmp_path / "a.traj")
    with pytest.raises(ConfigError, match="suffix"):
        run(cluster, BASE, tmp_path / "a.dump")
    with pytest.raises(StructureError, match="nothing can move"):
        run(Atoms("Cu"), BASE, tmp_path / "a.traj")
    cluster.set_constraint(FixAtoms([0]))
    with pytest.raises(ConfigError, match="constraints"):
        run(cluster, KINDS["nose-hoover"], tmp_path / "a.traj")
