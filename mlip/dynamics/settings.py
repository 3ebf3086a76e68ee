"""What a molecular-dynamics run is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlip.errors import ConfigError


@dataclass(frozen=True)
class MDSettings:
    """What to run.

    Attributes:
        steps: number of steps in all, those before a resume included.
        ensemble: ``"nve"``, ``"nvt"`` or ``"npt"``.
        timestep: fs.
        temperature: K; of the first velocities and of the thermostat.
        pressure: GPa, for ``npt``.
        thermostat: ``"langevin"`` or ``"nose-hoover"``, for ``nvt``.
        damping: time constant of the thermostat, fs.
        pressure_damping: time constant of the barostat, fs.
        keep_velocities: start from the velocities of the structure rather than from random ones.
        seed: of the first velocities and of the Langevin noise.
        save_every, log_every, state_every: steps between frames, table rows and states to resume from.
        max_temperature: above this the run is stopped as exploded, K.
        stop_above: end the run, to be gone on with, where the largest ``forces_std`` of an atom is above this, eV/Angstrom;
            infinity only writes it to the table. ``None``: it is not asked for.
    """

    steps: int
    ensemble: str = "nvt"
    timestep: float = 0.5
    temperature: float = 300.0
    pressure: float = 0.0
    thermostat: str = "langevin"
    damping: float = 100.0
    pressure_damping: float = 1000.0
    keep_velocities: bool = False
    seed: int = 0
    save_every: int = 10
    log_every: int = 10
    state_every: int = 100
    max_temperature: float = 20000.0
    stop_above: float | None = None

    def __post_init__(self) -> None:
        choices = {"ensemble": ("nve", "nvt", "npt"), "thermostat": ("langevin", "nose-hoover")}
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise ConfigError(f"{key} is {getattr(self, key)!r}; choose {', '.join(allowed)}")
        every = ("save_every", "log_every", "state_every")
        for key in ("timestep", "damping", "pressure_damping", "max_temperature", *every):
            if not (np.isfinite(getattr(self, key)) and getattr(self, key) > 0):
                raise ConfigError(f"{key} is {getattr(self, key)}; it must be positive")
        if self.steps < 0 or self.temperature < 0 or not np.isfinite([self.temperature, self.pressure]).all():
            raise ConfigError(
                f"steps {self.steps}, temperature {self.temperature} K and pressure {self.pressure} GPa must be "
                "finite, and the first two not negative"
            )
        if self.stop_above is not None and not self.stop_above > 0:
            raise ConfigError(f"stop_above is {self.stop_above} eV/Angstrom; it must be positive")
        if self.temperature == 0 and self.ensemble != "nve":
            raise ConfigError("temperature is 0 K, which a thermostat cannot hold; use nve, or a temperature above 0")

    @property
    def integrator(self) -> str:
        """Name of the integrator, see :func:`mlip.dynamics.integrators.make_integrator`."""
        return {"nve": "verlet", "nvt": self.thermostat, "npt": "mtk"}[self.ensemble]
