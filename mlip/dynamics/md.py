"""Molecular dynamics that can be killed at any moment and resumed as if nothing had happened."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError

from mlip.dynamics.integrators import (
    conserved_energy,
    degrees_of_freedom,
    draw_velocities,
    integrator_state,
    make_integrator,
    restore_integrator,
    temperature_of,
)
from mlip.dynamics.output import (
    CsvLog,
    FrameWriter,
    SimulationError,
    check_frame_suffix,
    read_csv,
    read_state,
    refuse_existing,
    snapshot,
    write_state,
)
from mlip.dynamics.settings import MDSettings
from mlip.errors import ConfigError, StructureError, fitting
from mlip.files import check_writable, locked

_STD_COLUMN = "forces_std_max_eV_A"
# What --resume may change: how long to go on, and when to give up.
_FREE_SETTINGS = ("steps", "max_temperature", "stop_above")


@dataclass(frozen=True)
class MDSummary:
    """What a finished run has to say.

    Attributes:
        steps: the last step.
        resumed_from: step that this session started from, or ``None``.
        mean_temperature: over the second half of the log, K.
        drift: slope of the conserved energy, meV/atom/ps; ``None`` for Langevin or less than three rows.
        mean_pressure: over the second half of the log, GPa; ``None`` without a full cell.
        ns_per_day: speed of this session; ``None`` if no step was done.
        frames: frames in the trajectory.
        trajectory, log, state: the files.
        stopped: the largest ``forces_std`` that ended the run, eV/Angstrom; ``None``: it went to the end.
    """

    steps: int
    resumed_from: int | None
    mean_temperature: float
    drift: float | None
    mean_pressure: float | None
    ns_per_day: float | None
    frames: int
    trajectory: Path
    log: Path
    state: Path
    stopped: float | None = None


def run_md(
    atoms: Atoms,
    calculator: Any,
    settings: MDSettings,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    report: Callable[[int, float, float], None] | None = None,
) -> MDSummary:
    """Run MD on ``atoms`` (changed in place) and write ``out`` (frames), ``out``.csv and ``out``.state.npz as it goes.

    A run that was stopped in any way goes on with ``resume=True`` from its last state; frames and rows after that state
    are cut off and made again, so all files end as they would have without the stop (the wall-time column apart).

    With ``settings.stop_above`` it ends early, with its last frame, row and state, where the calculator is too unsure of a force.

    Args:
        calculator: any ASE calculator; with ``forces_std`` where there is a ``settings.stop_above``.
        out: trajectory, ``.traj``, ``.xyz`` or ``.extxyz``.
        resume: go on from the state file; starts at the beginning if no output exists at all.
        overwrite: replace existing output.
        report: called after every step with (step, temperature in K, potential energy in eV).

    Raises:
        SimulationError: the run exploded; output exists; the state belongs to another run.
        StructureError: ``npt`` without a cell periodic in three directions, or nothing that can move.
        ConfigError: ``stop_above`` with a calculator that has no ``forces_std``.
    """
    files = _Files.of(Path(out))
    if len(atoms) == 0:
        raise StructureError("the structure has no atoms; give at least one")
    if not (atoms.get_masses() > 0).all():
        raise StructureError("a mass is zero, negative or not a number; correct the masses of the structure")
    if settings.ensemble == "npt" and not atoms.pbc.all():
        raise StructureError(f"npt needs a cell that is periodic in three directions; found pbc = {atoms.pbc.tolist()}")
    hint = "go on with --resume, or replace it with --overwrite"
    if resume and not files.state.exists():
        resume, hint = False, "but there is no state to resume from; use --overwrite to start anew"
    if not resume and not overwrite:
        refuse_existing(files, hint)
    with ExitStack() as held:
        if resume and files.log.exists():
            held.enter_context(locked(files.log))
        run = _Run(atoms, calculator, settings, files, resume)
        if not resume:  # only now: what could not even be started has replaced nothing
            for file in files:
                check_writable(file)
            held.enter_context(locked(files.log))
            if not overwrite:
                refuse_existing(files, hint)
        run.open()
        held.callback(run.close)
        run.go(report)
    return run.summary()


class _Files(tuple[Path, ...]):
    """The three outputs of a run."""

    @classmethod
    def of(cls, out: Path) -> _Files:
        check_frame_suffix(out)
        return cls((out, out.with_suffix(".csv"), out.with_suffix(".state.npz")))

    @property
    def trajectory(self) -> Path:
        return self[0]

    @property
    def log(self) -> Path:
        return self[1]

    @property
    def state(self) -> Path:
        return self[2]


class _Run:
    """One session of a run: the integrator and, once they are opened, its files."""

    frames: FrameWriter
    log: CsvLog

    def __init__(self, atoms: Atoms, calculator: Any, settings: MDSettings, files: _Files, resume: bool) -> None:
        self.atoms, self.settings, self.files = atoms, settings, files
        self.with_stress = bool(atoms.pbc.all()) and "stress" in calculator.implemented_properties
        self.rng = np.random.default_rng(settings.seed)
        self.identity = _identity(atoms, calculator, settings)
        self.step, self.wall_before = 0, 0.0
        self.resumed_from: int | None = None
        self.stopped: float | None = None
        arrays: dict[str, np.ndarray] = {}
        meta: dict[str, Any] = {}
        if resume:
            arrays, meta = read_state(files.state)
            with fitting(files.state, SimulationError, "--overwrite"):
                self._take_up(arrays, meta)
        else:
            self.freedom = degrees_of_freedom(settings.integrator, atoms)
            if self.freedom < 1:
                raise StructureError("nothing can move: the atoms are fixed, or a single atom has no drift to keep")
            if not settings.keep_velocities:
                draw_velocities(atoms, settings.temperature, self.rng)
        atoms.calc = calculator
        self.dynamics: Any = make_integrator(
            settings.integrator,
            atoms,
            timestep=settings.timestep,
            temperature=settings.temperature,
            pressure=settings.pressure,
            damping=settings.damping,
            pressure_damping=settings.pressure_damping,
            freedom=self.freedom,
            rng=self.rng,
        )
        if resume:
            with fitting(files.state, SimulationError, "--overwrite"):
                restore_integrator(self.dynamics, arrays)
        if settings.stop_above is not None:
            self._largest_std()  # should there be none
        if not resume:
            atoms.get_forces()  # a structure that cannot be evaluated says so before anything is written
        self.started, self.first_step = time.perf_counter(), self.step
        self.wall = 0.0
        self.frames_mark, self.log_mark = meta.get("frames"), meta.get("log")
        self.nothing_written = self.frames_mark is None

    def open(self) -> None:
        """Open the files, or replace those of another run."""
        settings, files = self.settings, self.files
        if self.resumed_from is None:
            self._write_state()  # before any output: whenever the run is killed there is a state to go on from
        columns = ["step", "time_ps", "epot_eV", "ekin_eV", "etot_eV", "conserved_eV", "temperature_K"]
        columns += ["pressure_GPa", "volume_A3"] if self.with_stress else []
        columns += [_STD_COLUMN] if settings.stop_above is not None else []
        with fitting(files.state, SimulationError, "--overwrite"):
            self.frames = FrameWriter(files.trajectory, self.frames_mark)
            self.log = CsvLog(files.log, [*columns, "wall_s"], self.log_mark, [_STD_COLUMN])

    def _take_up(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Put structure, random numbers and counts back as they were."""
        _check_identity(self.identity, meta["identity"], self.files.state)
        self.atoms.set_cell(arrays["cell"])
        self.atoms.set_positions(arrays["positions"], apply_constraint=False)
        self.atoms.set_momenta(arrays["momenta"], apply_constraint=False)
        _restore_rng(self.rng, meta["rng"])
        self.step = self.resumed_from = int(meta["step"])
        self.wall_before = float(meta["wall"])
        self.freedom = int(meta["freedom"])

    def go(self, report: Callable[[int, float, float], None] | None) -> None:
        """Step until the end; write what is due."""
        if self.nothing_written:
            self._check_forces()
            self._write_due()
        while self.step < self.settings.steps and self.stopped is None:
            try:
                self.dynamics.step()
            except StructureError as error:
                raise self._explosion(str(error)) from error
            self.step += 1
            temperature = temperature_of(self.atoms, self.freedom)
            if not temperature <= self.settings.max_temperature or not np.isfinite(self.atoms.positions).all():
                raise self._explosion(
                    f"the temperature is {temperature:.4g} K, above the limit of {self.settings.max_temperature:g} K"
                )
            self._check_forces()
            self._write_due()
            if report is not None:
                report(self.step, temperature, self.atoms.get_potential_energy())
        self.wall = time.perf_counter() - self.started

    def close(self) -> None:
        """Close the files."""
        self.frames.close()
        self.log.close()

    def summary(self) -> MDSummary:
        """Summary of the whole run, read back from its log."""
        table = read_csv(self.files.log)
        later = slice(len(table["step"]) // 2, None)
        conserved, drift = table["conserved_eV"], None
        if len(conserved) > 2 and np.isfinite(conserved).all():
            drift = float(np.polyfit(table["time_ps"], conserved - conserved[0], 1)[0]) * 1000 / len(self.atoms)
        done = self.step - self.first_step
        speed = done * self.settings.timestep * 1e-6 / (self.wall / 86400) if done and self.wall > 0 else None
        pressure = table.get("pressure_GPa")
        return MDSummary(
            steps=self.step,
            resumed_from=self.resumed_from,
            mean_temperature=float(table["temperature_K"][later].mean()),
            drift=drift,
            mean_pressure=None if pressure is None else float(pressure[later].mean()),
            ns_per_day=speed,
            frames=self.frames.frames,
            trajectory=self.files.trajectory,
            log=self.files.log,
            state=self.files.state,
            stopped=self.stopped,
        )

    def _check_forces(self) -> None:
        """Look whether the model is too unsure of a force to go on."""
        limit = self.settings.stop_above
        if limit is not None and (largest := self._largest_std()) > limit:
            self.stopped = largest

    def _largest_std(self) -> float:
        """The largest standard deviation of an atom's force, eV/Angstrom, of the present frame."""
        try:
            return float(self.atoms.calc.get_property("forces_std", self.atoms).max())
        except PropertyNotImplementedError as error:
            raise ConfigError(f"stop_above (--stop-above) needs forces_std: {error}") from error

    def _write_due(self) -> None:
        """Rows and frames first, then the state, which knows how long they are."""
        step, settings = self.step, self.settings
        last = self.stopped is not None
        if step % settings.log_every == 0 or last:
            self.log.write(self._row())
        if step % settings.save_every == 0 or last:
            self.frames.write(snapshot(self.atoms, step=step, time_fs=step * settings.timestep))
        if step % settings.state_every == 0 or step == settings.steps or last:
            self.frames_mark, self.log_mark = self.frames.mark, self.log.mark
            self._write_state()

    def _row(self) -> dict[str, str]:
        atoms = self.atoms
        potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
        conserved = conserved_energy(self.dynamics)
        row = {
            "step": str(self.step),
            "time_ps": f"{self.step * self.settings.timestep * 1e-3:.6f}",
            "epot_eV": f"{potential:.8f}",
            "ekin_eV": f"{kinetic:.8f}",
            "etot_eV": f"{potential + kinetic:.8f}",
            "conserved_eV": "" if conserved is None else f"{conserved:.8f}",
            "temperature_K": f"{temperature_of(atoms, self.freedom):.3f}",
            "wall_s": f"{self.wall_before + time.perf_counter() - self.started:.2f}",
        }
        if self.with_stress:
            stress = atoms.get_stress(voigt=True, include_ideal_gas=True)
            row["pressure_GPa"] = f"{-stress[:3].mean() / units.GPa:.5f}"
            row["volume_A3"] = f"{atoms.get_volume():.4f}"
        if self.settings.stop_above is not None:
            row[_STD_COLUMN] = f"{self._largest_std():.6f}"
        return row

    def _write_state(self) -> None:
        arrays = {
            "positions": self.atoms.get_positions(),
            "momenta": self.atoms.get_momenta(),
            "cell": self.atoms.cell.array.copy(),
            **integrator_state(self.dynamics),
        }
        meta = {
            "identity": self.identity,
            "step": self.step,
            "freedom": self.freedom,
            "rng": self.rng.bit_generator.state,
            "frames": self.frames_mark,
            "log": self.log_mark,
            "wall": self.wall_before + time.perf_counter() - self.started,
        }
        write_state(self.files.state, arrays, meta)

    def _explosion(self, why: str) -> SimulationError:
        return SimulationError(
            f"MD stopped after step {self.step}: {why}; the good part is kept ({self.frames.frames} frames in "
            f"{self.files.trajectory}); try a shorter time step than {self.settings.timestep} fs, relax the structure "
            "first, or use a model trained on such structures"
        )


def _restore_rng(rng: np.random.Generator, state: dict[str, Any]) -> None:
    rng.bit_generator.state = state


def _identity(atoms: Atoms, calculator: Any, settings: MDSettings) -> dict[str, Any]:
    """What must be the same when a run is resumed."""
    kept = {key: value for key, value in asdict(settings).items() if key not in _FREE_SETTINGS}
    model = calculator.fingerprint() if hasattr(calculator, "fingerprint") else type(calculator).__name__
    particles = hashlib.sha256(atoms.numbers.tobytes() + atoms.pbc.tobytes() + atoms.get_masses().tobytes())
    return {**kept, "model": model, "elements and masses": particles.hexdigest()[:16]}


def _check_identity(now: dict[str, Any], then: dict[str, Any], path: Path) -> None:
    changed = [f"{key} was {then.get(key)}, now {now[key]}" for key in now if then.get(key) != now[key]]
    if changed:
        raise SimulationError(
            f"{path} belongs to another run: {'; '.join(changed)}; resume with the same settings (only --steps may "
            "change), or start anew with --overwrite or another --out"
        )
