"""What ``scf-accel run`` says about a calculation: before it, after it on the screen, and as JSON."""

from __future__ import annotations

import math
import platform
from typing import TYPE_CHECKING, Any

import numpy as np

from scf_accel.labels import HARTREE_TO_EV

if TYPE_CHECKING:
    from scf_accel.runinput import Theory
    from scf_accel.runscf import Outcome, RunRequest
    from scf_accel.runtable import Row
    from scf_accel.structures import Structure

FORMAT_VERSION = 1


def frontier(mf: Any) -> dict[str, Any]:
    """HOMO, LUMO and gap in eV: over all orbitals, and of each spin where they differ; None where there is none."""

    def edges(energies: Any, occupations: Any) -> tuple[float, float]:
        occupied = np.asarray(occupations) > 0
        energies = np.asarray(energies) * HARTREE_TO_EV
        return max(energies[occupied], default=-math.inf), min(energies[~occupied], default=math.inf)

    def named(homo: float, lumo: float) -> dict[str, float | None]:
        return {"homo_ev": _finite(homo), "lumo_ev": _finite(lumo), "gap_ev": _finite(lumo - homo)}

    if np.ndim(mf.mo_occ[0]) == 0:
        return named(*edges(mf.mo_energy, mf.mo_occ))
    alpha, beta = (edges(mf.mo_energy[k], mf.mo_occ[k]) for k in (0, 1))
    both = named(max(alpha[0], beta[0]), min(alpha[1], beta[1]))
    return {**both, "alpha": named(*alpha), "beta": named(*beta)}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def dipole(mf: Any) -> Any:
    """``[3]`` dipole moment, Debye, about the centre of mass (which matters for ions only)."""
    mass = mf.mol.atom_mass_list(isotope_avg=True)
    center = mass @ mf.mol.atom_coords() / mass.sum()
    return np.asarray(mf.dip_moment(mf.mol, mf.make_rdm1(), unit="Debye", origin=center, verbose=0))


def method_name(mf: Any, theory: Theory) -> str:
    """Such as ``RKS`` or ``UHF``."""
    return ("U" if mf.mol.spin else "R") + ("HF" if theory.hartree_fock else "KS")


def fitting_basis(mf: Any) -> str | None:
    """The fitting basis in use; None without density fitting."""
    with_df = getattr(mf, "with_df", None)
    if with_df is None:
        return None
    names = (with_df.auxbasis, getattr(with_df.auxmol, "basis", None))
    return next((name for name in names if isinstance(name, str)), "PySCF's choice")


def describe(mf: Any, structure: Structure, theory: Theory, request: RunRequest, threads: int) -> list[str]:
    """What will be calculated, one line each."""
    mol = mf.mol
    atoms = f"{mol.natm} atom{'s' * (mol.natm != 1)}"
    unpaired = f"{mol.spin} unpaired electron{'s' * (mol.spin != 1)}"
    core = f", core potentials on {', '.join(mol._ecp)}" if mol._ecp else ""
    fitted = "no density fitting" if not theory.fitted else "density fitting" + f" ({theory.auxbasis})" * bool(theory.auxbasis)
    grid = "" if theory.hartree_fock else f", grid level {mf.grids.level}"
    name = method_name(mf, theory) + ("" if theory.hartree_fock else f" {theory.xc}")
    solver = "stock PySCF" if request.stock else "multilevel SCF"
    return [
        f"molecule          {structure.molecule} ({request.structure}), {atoms}, charge {mol.charge}, {unpaired}",
        f"theory            {name}/{theory.basis}, {mol.nao} functions{core}, {fitted}{grid}",
        f"solver            {solver}, conv_tol {theory.conv_tol:g} Eh, {threads} thread{'s' * (threads != 1)}",
        "",
    ]


def collect(outcome: Outcome, structure: Structure, theory: Theory, request: RunRequest, threads: int) -> dict[str, Any]:
    """Everything about the run as plain numbers and words; the keys say the units. None for what is not finite."""
    mf = outcome.mf
    moment = dipole(mf)
    squared = float(mf.spin_square()[0]) if mf.mol.spin else 0.0
    results = {
        "format_version": FORMAT_VERSION,
        "structure": {
            "file": str(request.structure),
            "index": request.index,
            "formula": structure.molecule,
            "atomic_numbers": structure.numbers.tolist(),
            "positions_angstrom": structure.positions.tolist(),
            "charge": int(structure.charge),
            "unpaired_electrons": int(structure.spin),
        },
        "theory": {
            "method": method_name(mf, theory),
            "xc": theory.xc,
            "basis": theory.basis,
            "core_electrons_replaced": {symbol: int(potential[0]) for symbol, potential in mf.mol._ecp.items()},
            "basis_functions": int(mf.mol.nao),
            "density_fit": theory.fitted,
            "auxbasis": fitting_basis(mf),
            "grid_level": None if theory.hartree_fock else int(mf.grids.level),
            "conv_tol_hartree": theory.conv_tol,
            "max_cycle": theory.max_cycle,
        },
        "solver": "stock" if request.stock else "multilevel",
        "fallback": outcome.fallback,
        "converged": bool(mf.converged),
        "energy_hartree": float(mf.e_tot),
        "energy_ev": float(mf.e_tot * HARTREE_TO_EV),
        "orbitals": frontier(mf),
        "spin_squared": squared,
        "dipole_debye": moment.tolist(),
        "dipole_norm_debye": float(np.linalg.norm(moment)),
        "forces_ev_per_angstrom": None if outcome.forces is None else outcome.forces.tolist(),
        "fine_builds": outcome.fine_builds,
        "coarse_builds": sum(row.coarse_builds for row in outcome.rows),
        "steps": [_step(row) for row in outcome.rows],
        "seconds": outcome.seconds.as_dict(),
        "threads": threads,
        "max_memory_mb": mf.max_memory,
        "warnings": outcome.warnings,
        "versions": versions(),
    }
    return finite_only(results)


def finite_only(value: Any) -> Any:
    """``value`` with None for every number in it, however deep, that is not finite: JSON has no other word for it."""
    if isinstance(value, dict):
        return {key: finite_only(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_only(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step(row: Row) -> dict[str, Any]:
    return {
        "energy_hartree": row.energy,
        "energy_change_hartree": row.change,
        "gradient": row.gradient,
        "error_estimate_hartree": row.error_estimate,
        "coarse_builds": row.coarse_builds,
        "coarse_seconds": row.coarse_seconds,
        "fine_seconds": row.fine_seconds,
        "solver": row.solver,
    }


def versions() -> dict[str, str]:
    """Of this package and what the numbers depend on."""
    import pyscf

    from mlip import __version__

    return {
        "mlip-scf-accel": __version__,
        "pyscf": pyscf.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def summary(results: dict[str, Any]) -> list[str]:
    """The result for people, one line each."""

    def number(value: float | None, digits: int = 3) -> str:
        return "none" if value is None else f"{value:.{digits}f}"

    seconds, orbitals = results["seconds"], results["orbitals"]
    stock = results["solver"] == "stock"
    coarse = "" if stock else f", {results['coarse_builds']} coarse"
    state = "converged in" if results["converged"] else "NOT CONVERGED after"
    steps, fine = len(results["steps"]), results["fine_builds"]
    matrices = f"{fine} full-cost Fock {'matrix' if fine == 1 else 'matrices'}{coarse}"
    lines = [
        f"{state} {steps} step{'s' * (steps != 1)}: {matrices}",
        f"energy            {number(results['energy_hartree'], 10)} Eh = {number(results['energy_ev'], 6)} eV",
        f"HOMO, LUMO, gap   {number(orbitals['homo_ev'])}, {number(orbitals['lumo_ev'])}, {number(orbitals['gap_ev'])} eV",
        f"dipole            {number(results['dipole_norm_debye'], 4)} D",
    ]
    if results["structure"]["unpaired_electrons"]:
        lines.append(f"<S^2>             {number(results['spin_squared'], 4)}")
    if results["forces_ev_per_angstrom"] is not None:
        forces = results["forces_ev_per_angstrom"]
        known = all(component is not None for force in forces for component in force)
        largest = number(max(math.hypot(*force) for force in forces) if known else None, 5)
        lines.append(f"largest force     {largest} eV/Angstrom ({seconds['forces']:.1f} s)")
    parts = f"start {seconds['start']:.2f}, "
    if not stock:
        parts += f"coarse {seconds['coarse_setup'] + seconds['coarse']:.2f} (setup {seconds['coarse_setup']:.2f}), "
    lines.append(f"wall time         {seconds['total']:.2f} s: {parts}fine {seconds['fine']:.2f}, other {seconds['other']:.2f}")
    if not stock:
        reason = results["fallback"]
        lines.append(f"stock PySCF       {'not needed' if reason is None else 'took over: ' + reason}")
    return lines
