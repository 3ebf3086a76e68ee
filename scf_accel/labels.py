"""One structure -> DFT labels with PySCF: energy, analytic forces, fitted density.

The theory is Kohn-Sham DFT with density fitting of the Coulomb term (RI-J), RKS for an even number of electrons and no
unpaired ones, UKS otherwise. Forces are the analytic gradient of that same energy: they include the response of the
integration grid (``grid_response``) and of the auxiliary basis, so they equal finite differences of the energy.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlip.errors import UserError
from scf_accel.theory import check_functional, core_potential

if TYPE_CHECKING:
    from pyscf import gto

HARTREE_TO_EV = 27.211386245988  # CODATA 2018; ase.units (CODATA 2014) differs by 1e-8 of it
BOHR_TO_ANGSTROM = 0.529177210903
FORCES_FROM = "analytic gradient with grid response and auxiliary-basis response"
SOLVERS = ("multilevel", "diis")
COULOMB_ONLY = {"weigend", "weigend+etb", "weigendcfit"}  # PySCF's other names of def2-universal-jfit


class LabelError(UserError):
    """A structure got no label: SCF not converged, impossible spin, no basis for an element."""


@dataclass(frozen=True)
class LabelSettings:
    """Everything that a label depends on besides the structure (part of every job's id), and the solver.

    Attributes:
        xc, basis: functional and orbital basis, PySCF's names.
        auxbasis: fitting basis of the Coulomb term and of ``density_coefficients``.
        grid_level: PySCF's integration grid level, 0 to 9.
        conv_tol: SCF energy threshold, Hartree; the orbital-gradient threshold is its square root.
        max_cycle: SCF cycles before the second-order solver is tried, and again its own limit.
        solver: ``multilevel`` or ``diis`` (stock PySCF).
        forces: whether to compute them; a label of energy and density alone takes 40 to 60 % of the time.
    """

    xc: str = "pbe"
    basis: str = "def2-svp"
    auxbasis: str = "def2-universal-jfit"
    grid_level: int = 2
    conv_tol: float = 1e-9
    max_cycle: int = 60
    solver: str = "multilevel"
    forces: bool = True

    def as_dict(self) -> dict[str, Any]:
        """What the labels depend on: all but the solver, which only decides how soon they are there.

        ``forces`` is named only where there are none, so that sets made before the option keep their theory.
        """
        left_out = {"solver"} | ({"forces"} if self.forces else set())
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    @property
    def exact_exchange(self) -> bool:
        """Whether the functional is a hybrid."""
        from pyscf import dft

        return bool(dft.libxc.is_hybrid_xc(self.xc))

    @property
    def fitting(self) -> str:
        """What the auxiliary basis fits: the Coulomb term, for hybrids also exact exchange."""
        return "RI-JK: Coulomb and exact exchange" if self.exact_exchange else "RI-J"

    def level_of_theory(self) -> dict[str, Any]:
        """The root attributes of a labelled file."""
        import pyscf

        return {
            **self.as_dict(),
            "method": "RKS; UKS where electrons are unpaired",
            "coulomb": f"density fitting ({self.fitting}) in auxbasis",
            "forces_from": FORCES_FROM if self.forces else "none",
            "density_auxbasis": self.auxbasis,
            "density_metric": "coulomb",
            "density_convention": "PySCF real spherical Gaussians: atoms in frame order, p = x y z, l > 1: m = -l..l",
            "program": f"PySCF {pyscf.__version__}",
        }


def check_theory(settings: LabelSettings) -> None:
    """Raise :class:`LabelError` for a functional or basis that PySCF does not know, before any work starts."""
    from pyscf import gto

    try:
        check_functional(settings.xc)
    except UserError as error:
        raise LabelError(str(error)) from error
    for option, name in (("--basis", settings.basis), ("--auxbasis", settings.auxbasis)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                gto.basis.load(name, "H")
        except Exception as error:
            raise LabelError(f"{option} {name}: PySCF does not know this basis set") from error
    name = settings.auxbasis.lower().replace("-", "").replace("_", "")
    if settings.exact_exchange and (name.endswith("jfit") or name in COULOMB_ONLY):
        raise LabelError(
            f"--xc {settings.xc} has exact exchange and --auxbasis {settings.auxbasis} fits the Coulomb term only; "
            "give one for both, such as --auxbasis def2-universal-jkfit"
        )
    if settings.solver not in SOLVERS:
        raise LabelError(f"--solver {settings.solver}: give one of {', '.join(SOLVERS)}")
    if settings.conv_tol <= 0:
        raise LabelError(f"--conv-tol {settings.conv_tol}: give a positive threshold in Hartree")


@dataclass
class Labels:
    """Labels of one structure: eV, eV/Angstrom (None where not asked for); coefficients in atomic units (electrons, Bohr)."""

    energy: float
    forces: np.ndarray | None
    density_coefficients: np.ndarray
    cycles: int
    solver: str
    seconds: float = 0.0


def make_molecule(numbers: np.ndarray, positions: np.ndarray, charge: int, spin: int, settings: LabelSettings) -> gto.Mole:
    """The PySCF molecule, with the core potentials of its basis; positions in Angstrom, ``spin`` = N_alpha - N_beta."""
    from pyscf import gto

    mol = gto.Mole()
    mol.atom = [(int(z), tuple(map(float, xyz))) for z, xyz in zip(numbers, positions, strict=True)]
    mol.unit = "Angstrom"
    mol.basis = settings.basis
    mol.charge, mol.spin, mol.verbose = int(charge), int(spin), 0
    symbols = sorted({gto.mole._symbol(int(z)) for z in numbers})
    try:
        mol.ecp = {symbol: found for symbol in symbols if (found := core_potential(settings.basis, symbol))}
    except UserError as error:
        raise LabelError(str(error)) from error
    electrons = int(np.sum(numbers)) - charge
    if (electrons - spin) % 2 or spin > electrons:
        raise LabelError(f"{spin} unpaired electrons are impossible with {electrons} electrons; change charge or spin")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # PySCF's advice to install more packages
            mol.build(dump_input=False, parse_arg=False)
    except (KeyError, RuntimeError) as error:
        what = " ".join(str(error).split())
        raise LabelError(f"basis {settings.basis!r} cannot be put on this structure: {what}") from error
    return mol


def make_mean_field(mol: gto.Mole, settings: LabelSettings, workers: int = 1) -> Any:
    """The Kohn-Sham object with our settings and solver; orbital values of the grid are kept in memory.

    ``workers``: how many processes like this one share the machine's memory.
    """
    from pyscf import dft

    from scf_accel.multilevel import accelerate
    from scf_accel.storednumint import StoredNumInt, memory_share

    method = dft.UKS if mol.spin else dft.RKS
    mf = method(mol, xc=settings.xc).density_fit(auxbasis=settings.auxbasis)
    mf.grids.level = settings.grid_level
    mf.conv_tol = settings.conv_tol
    mf.max_cycle = settings.max_cycle
    mf.conv_check = False  # its extra cycle changes forces by under 0.02 meV/A at this threshold
    mf._numint = StoredNumInt(memory_share(workers))
    return accelerate(mf) if settings.solver == "multilevel" else mf


def run_scf(mf: Any) -> str:
    """Converge ``mf``; second order where its own solver fails. Returns what did it; raises :class:`LabelError`.

    ``mf.cycles`` counts full-cost Fock matrices of the first solver plus the macro cycles of the second-order one.
    """
    mf.with_df.build()  # keep the three-index integrals instead of recomputing them in each cycle
    mf.kernel()
    report = getattr(mf, "multilevel_report", None)
    first = "diis" if report is None else report.finished_by
    if mf.converged:
        return first
    last = mf.make_rdm1()
    second = mf.newton()
    second.max_cycle = mf.max_cycle
    macro = [0]
    second.callback = lambda state: macro.append(state["imacro"] + 1)  # newton() has no counter of its own
    second.kernel(last)
    if not second.converged:
        raise LabelError(
            f"SCF not converged in {mf.max_cycle} {first} and {second.max_cycle} second-order cycles "
            f"(conv_tol {mf.conv_tol:g}, last energy {second.e_tot:.6f} Eh)"
        )
    mf.mo_coeff, mf.mo_occ, mf.mo_energy = second.mo_coeff, second.mo_occ, second.mo_energy
    mf.e_tot, mf.converged = second.e_tot, True
    mf.cycles += max(macro)
    return f"{first}+newton"


def compute_forces(mf: Any, grid_response: bool = True) -> np.ndarray:
    """``[n, 3]`` forces of a converged object, eV/Angstrom: the slope of its energy, if ``grid_response`` is included."""
    from scf_accel.gradient import nuclear_gradient

    gradient = nuclear_gradient(mf)
    if hasattr(gradient, "grid_response"):  # Hartree-Fock has no grid
        gradient.grid_response = grid_response
    return -np.asarray(gradient.kernel()) * (HARTREE_TO_EV / BOHR_TO_ANGSTROM)


def compute_labels(
    numbers: np.ndarray, positions: np.ndarray, charge: int, spin: int, settings: LabelSettings, workers: int = 1
) -> Labels:
    """Label one structure.

    Args:
        numbers: ``[n]`` atomic numbers.
        positions: ``[n, 3]`` Angstrom.
        charge: total charge.
        spin: unpaired electrons.
        settings: theory.
        workers: processes that share the machine's memory.
    """
    from scf_accel.fitting import fit_density, make_auxmol
    from scf_accel.memory import give_back

    started = time.perf_counter()
    mol = make_molecule(numbers, positions, charge, spin, settings)
    mf = make_mean_field(mol, settings, workers)
    solver = run_scf(mf)
    mf._numint.clear()
    give_back()
    forces = compute_forces(mf) if settings.forces else None
    coefficients = fit_density(mol, make_auxmol(mol, settings.auxbasis), mf.make_rdm1())
    labels = Labels(
        energy=float(mf.e_tot) * HARTREE_TO_EV,
        forces=forces,
        density_coefficients=coefficients,
        cycles=int(mf.cycles),
        solver=solver,
        seconds=time.perf_counter() - started,
    )
    finite = np.isfinite(labels.energy) and np.isfinite(coefficients).all()
    if not (finite and (forces is None or np.isfinite(forces).all())):
        raise LabelError("the calculation returned a value that is not finite")
    return labels
