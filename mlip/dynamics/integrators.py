"""Time integrators: ASE's, set up so that their complete state can be saved and put back."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import (
    IsotropicMTKBarostat,
    IsotropicMTKNPT,
    NoseHooverChainNVT,
    NoseHooverChainThermostat,
)
from ase.md.verlet import VelocityVerlet

from mlip.errors import ConfigError

INTEGRATORS = ("verlet", "langevin", "nose-hoover", "mtk")


def make_integrator(
    name: str,
    atoms: Atoms,
    *,
    timestep: float,
    temperature: float,
    pressure: float,
    damping: float,
    pressure_damping: float,
    freedom: int,
    rng: np.random.Generator,
) -> MolecularDynamics:
    """The integrator of this name on these atoms.

    - ``verlet`` (NVE): velocity Verlet.
    - ``langevin`` (NVT): Vanden-Eijnden and Ciccotti 2006, friction 1 / damping on every atom; momentum is not
      conserved.
    - ``nose-hoover`` (NVT): a chain of three, Martyna, Klein and Tuckerman 1992; deterministic, momentum stays zero.
    - ``mtk`` (NPT): Martyna, Tobias and Klein 1994, isotropic. Of ASE's barostats it samples the true
      isothermal-isobaric ensemble (Berendsen's does not), has a conserved energy to check the time step by, and its
      state is a handful of numbers. The shape of the cell is kept.

    The chains hold the kinetic energy at k temperature / 2 for each of the ``freedom`` degrees of freedom that really
    move (:func:`degrees_of_freedom`); ASE itself counts 3 n, too hot for a molecule whose drift and rotation were taken
    away.

    Args:
        timestep, damping, pressure_damping: fs.
        temperature: K.
        pressure: GPa.
        rng: for ``langevin``.

    Raises:
        ConfigError: constraints with an integrator that cannot hold them.
    """
    fs = units.fs
    if name == "verlet":
        return VelocityVerlet(atoms, timestep=timestep * fs)
    if name == "langevin":
        return Langevin(
            atoms, timestep=timestep * fs, temperature_K=temperature, friction=1 / (damping * fs), fixcm=False, rng=rng
        )
    if atoms.constraints:
        raise ConfigError(f"the integrator {name!r} cannot hold constraints; use nve, or nvt with langevin")
    common: dict[str, Any] = {"timestep": timestep * fs, "temperature_K": temperature, "tdamp": damping * fs}
    if name == "nose-hoover":
        dynamics: Any = NoseHooverChainNVT(atoms, **common)
    else:
        dynamics = IsotropicMTKNPT(atoms, **common, pressure_au=pressure * units.GPa, pdamp=pressure_damping * fs)
        dynamics._barostat = IsotropicMTKBarostat(len(atoms), temperature, pressure_damping * fs)
    share = freedom / (3 * len(atoms))
    dynamics._thermostat = NoseHooverChainThermostat(len(atoms), dynamics.masses, temperature * share, damping * fs)
    return dynamics


def integrator_state(dynamics: Any) -> dict[str, np.ndarray]:
    """What the integrator knows beyond positions, momenta and cell."""
    state: dict[str, np.ndarray] = {}
    if hasattr(dynamics, "_thermostat"):
        state["eta"] = dynamics._thermostat._eta.copy()
        state["p_eta"] = dynamics._thermostat._p_eta.copy()
    if hasattr(dynamics, "_barostat"):
        state["xi"] = dynamics._barostat._xi.copy()
        state["p_xi"] = dynamics._barostat._p_xi.copy()
        state["strain"] = np.array([dynamics._eps, dynamics._p_eps])
        state["volume0"] = np.array(dynamics._volume0)
        state["cell0"] = dynamics._cell0.copy()
    return state


def restore_integrator(dynamics: Any, state: dict[str, np.ndarray]) -> None:
    """Put back what :func:`integrator_state` returned; the atoms are restored already."""
    if hasattr(dynamics, "_thermostat"):
        dynamics._thermostat._eta = state["eta"].copy()
        dynamics._thermostat._p_eta = state["p_eta"].copy()
    if hasattr(dynamics, "_barostat"):
        dynamics._barostat._xi = state["xi"].copy()
        dynamics._barostat._p_xi = state["p_xi"].copy()
        dynamics._eps, dynamics._p_eps = (float(x) for x in state["strain"])
        dynamics._volume0 = float(state["volume0"])
        dynamics._cell0 = state["cell0"].copy()


def conserved_energy(dynamics: Any) -> float | None:
    """The quantity that the exact dynamics conserves, eV; ``None`` for Langevin, which has none."""
    if hasattr(dynamics, "get_conserved_energy"):
        return float(dynamics.get_conserved_energy())
    if isinstance(dynamics, VelocityVerlet):
        return float(dynamics.atoms.get_potential_energy() + dynamics.atoms.get_kinetic_energy())
    return None


def degrees_of_freedom(integrator: str, atoms: Atoms) -> int:
    """Momenta that are free: all for Langevin, else without drift and, for an isolated molecule, without rotation."""
    free = int(atoms.get_number_of_degrees_of_freedom())
    if integrator == "langevin" or atoms.constraints:
        return free
    return free - 3 - (0 if atoms.pbc.any() else int(np.linalg.matrix_rank(_inertia(atoms), tol=1e-6)))


def temperature_of(atoms: Atoms, freedom: int) -> float:
    """Kinetic temperature, K."""
    return float(2 * atoms.get_kinetic_energy() / (freedom * units.kB))


def draw_velocities(atoms: Atoms, temperature: float, rng: np.random.Generator) -> None:
    """Maxwell-Boltzmann momenta without drift and, for an isolated molecule, without rotation.

    The temperature (K) is met exactly. Constraints are respected; with constraints nothing is taken away.
    """
    masses = atoms.get_masses()[:, None]
    momenta = rng.standard_normal((len(atoms), 3)) * np.sqrt(masses * units.kB * temperature)
    if not atoms.constraints:
        momenta = momenta - masses * momenta.sum(axis=0) / masses.sum()
        if not atoms.pbc.any():
            arms = atoms.positions - atoms.get_center_of_mass()
            spin = np.linalg.pinv(_inertia(atoms), rcond=1e-8) @ np.cross(arms, momenta).sum(axis=0)
            momenta = momenta - masses * np.cross(spin, arms)
    atoms.set_momenta(momenta)
    freedom = degrees_of_freedom("verlet", atoms)
    found = temperature_of(atoms, freedom) if freedom > 0 else 0.0
    if found > 0:
        atoms.set_momenta(atoms.get_momenta() * np.sqrt(temperature / found))


def _inertia(atoms: Atoms) -> np.ndarray:
    """Inertia tensor about the centre of mass, ``[3, 3]``, amu Angstrom^2."""
    arms = atoms.positions - atoms.get_center_of_mass()
    masses = atoms.get_masses()
    return np.einsum("n,nk,nk->", masses, arms, arms) * np.eye(3) - np.einsum("n,ni,nj->ij", masses, arms, arms)
