"""Coefficients of a fitted density -> Fock matrix -> density matrix, for any molecular mean-field object of PySCF.

    F = mf.get_hcore() + J[c] + Vxc[rho_c, grad rho_c],      F C = S C e,      D = C n C^T

``hcore`` is the object's own, so effective core potentials, X2C, point charges and fields are in it. The eigenproblem and the
occupations are the object's own as well (``mf.eig``, ``mf.get_occ``, ``mf.make_rdm1``): symmetry, dependent basis functions,
smearing, fixed occupations and N_alpha, N_beta are as in its SCF.

- LDA and GGA: ``Vxc`` is their own. Meta-GGA, hybrids, range-separated hybrids and Hartree-Fock: that of a surrogate
  (default PBE). Non-local correlation, the +U term and solvents are left out; a dispersion correction does not act on orbitals.
- Open shells: the density is the total one. Orbitals of the spin-free potential give a spin density, with which the
  potentials of alpha and beta are made and diagonalised once more.
- Unrestricted objects with as many alpha as beta electrons: both spins start alike. Where the user asks for it
  (``mf.init_guess_breaksym = "mix"``) the highest occupied and the lowest empty orbital are mixed, with opposite signs for
  alpha and beta. Under PySCF's default (``1``) beta loses its bonds, as in PySCF's own guesses, where that can decide which
  state the SCF finds: where the gap of the two orbitals is below 0.05 Hartree. From there stretched F2 returns to the
  restricted solution and CH2 leaves it, as from ``minao``; mixed orbitals would end elsewhere. A wider gap spares the 2 to 5
  cycles that a needless symmetry breaking costs. What the density matrix was before is its attribute ``unbroken``.

All quantities are in atomic units.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pyscf import gto, lib, scf

from mlip.errors import ConfigError
from scf_accel.fitting import atom_of_function
from scf_accel.guess.coulomb import coulomb_matrix
from scf_accel.guess.gridpotential import GRID, GuessPotential
from scf_accel.guess.surrogate import DEFAULT, functional_of
from scf_accel.memory import available_bytes

NEAR = 1e-4  # Bohr: atoms of the two molecules may differ by this
SMALL_GAP = 0.05  # Hartree, of the guess: below it states of broken and of full spin symmetry are close
MIXING = np.pi / 4  # angle of alpha's highest orbital with the unmixed one where spin symmetry is broken


def refusal(mf: Any) -> str | None:
    """Why there is no guess of this kind for ``mf``; None if there is one."""
    name = type(mf).__name__
    if "pyscf.pbc" in type(getattr(mf, "mol", None)).__module__ or hasattr(mf, "cell"):
        return f"{name}: periodic systems; only molecules"
    if not isinstance(mf, (scf.hf.RHF, scf.uhf.UHF)):  # ROHF and the Kohn-Sham classes derive from these
        return f"{name}: only restricted, unrestricted and restricted open-shell Hartree-Fock and Kohn-Sham objects"
    if mf.mol.nbas == 0 or mf.mol.natm == 0:
        return f"{name}: a model Hamiltonian without atoms or basis functions"
    return None


def guess_fock(
    mf: Any,
    auxmol: gto.Mole,
    coefficients: np.ndarray,
    *,
    surrogate: str = DEFAULT,
    grid: tuple[int, int] | int = GRID,
) -> np.ndarray:
    """``[nao, nao]`` Fock matrix of a fitted density, both spins alike, Hartree.

    Args:
        mf: RHF, UHF, ROHF, RKS, UKS or ROKS object of a molecule.
        auxmol: the auxiliary molecule, see :func:`scf_accel.fitting.make_auxmol`.
        coefficients: ``[n_aux]`` of the total density, in the order of ``auxmol``; valence electrons only where the
            molecule has effective core potentials.
        surrogate: LDA or GGA in place of functionals that need more than the density and its gradient.
        grid: ``(radial, angular)`` points an atom, or a PySCF level.

    Raises:
        ConfigError: for objects that have no such guess, see :func:`refusal`.
        ValueError: for coefficients or an auxiliary molecule that do not fit ``mf``.
    """
    return _Guess(mf, auxmol, coefficients, surrogate, grid).fock


def density_matrix(
    mf: Any,
    auxmol: gto.Mole,
    coefficients: np.ndarray,
    *,
    surrogate: str = DEFAULT,
    grid: tuple[int, int] | int = GRID,
) -> np.ndarray:
    """Density matrix to start the SCF of ``mf`` from; arguments and errors as of :func:`guess_fock`.

    Returns:
        ``[nao, nao]`` for restricted objects, else ``[2, nao, nao]`` (alpha, beta); tagged with ``mo_coeff``, ``mo_occ``
        and ``mo_energy`` (Hartree) in the shapes that ``mf`` uses. ``mf`` itself does not change, but for the integrals of
        its density fitting, which are made here if its SCF needs them.
    """
    guess = _Guess(mf, auxmol, coefficients, surrogate, grid)
    unrestricted, restricted_open = isinstance(mf, scf.uhf.UHF), isinstance(mf, scf.rohf.ROHF)
    dm = guess.solve(np.stack([guess.fock] * 2) if unrestricted else guess.fock)
    if (unrestricted or restricted_open) and mf.nelec[0] != mf.nelec[1]:
        return guess.repolarised(dm)
    return guess.broken(dm) if unrestricted and mf.init_guess_breaksym else dm


class _Guess:
    """What the steps of one guess share; ``fock`` is the spin-free Fock matrix."""

    def __init__(self, mf: Any, auxmol: gto.Mole, coefficients: np.ndarray, surrogate: str, grid: Any) -> None:
        reason = refusal(mf)
        if reason is not None:
            raise ConfigError(f"no guess from a density for {reason}")
        functional = functional_of(mf, surrogate)
        auxmol, coefficients = checked(mf.mol, auxmol, coefficients)
        self.mf = quiet_copy(mf)
        self.overlap = self.mf.get_ovlp()
        spins = isinstance(mf, (scf.uhf.UHF, scf.rohf.ROHF))  # the orbitals on the grid are needed twice
        room = 0.5 * available_bytes(mf) if spins else 0.0
        self.potential = GuessPotential(mf.mol, auxmol, coefficients, functional, grid, room)
        self.spinless = self.mf.get_hcore() + coulomb_matrix(mf, auxmol, coefficients)
        self.fock = self.spinless + self.potential.matrix()
        self.orthogonal = self.mf.check_linear_dependency(self.overlap)

    def solve(self, fock: np.ndarray) -> np.ndarray:
        """Orbitals, occupations and density matrix of ``fock``."""
        energies, orbitals = self.mf.eig(fock, self.overlap, x=self.orthogonal)
        return self.tagged(energies, orbitals, self.mf.get_occ(energies, orbitals))

    def tagged(self, energies: np.ndarray, orbitals: np.ndarray, occupations: np.ndarray) -> np.ndarray:
        """The density matrix with the orbitals that make it."""
        dm = np.asarray(self.mf.make_rdm1(orbitals, occupations))
        return lib.tag_array(dm, mo_coeff=orbitals, mo_occ=occupations, mo_energy=energies)

    def repolarised(self, dm: np.ndarray) -> np.ndarray:
        """With the potentials of alpha and beta that follow from the spin density of ``dm``."""
        potentials = self.spinless + self.potential.polarised(dm[0] - dm[1])
        if isinstance(self.mf, scf.uhf.UHF):
            return self.solve(potentials)
        return self.solve(scf.rohf.get_roothaan_fock(potentials, dm, self.overlap))

    def broken(self, dm: Any) -> np.ndarray:
        """``dm`` with the spin symmetry broken the way that the object asks for."""
        mix = self.mf.init_guess_breaksym == "mix"
        if mix and self.mf.mol.symmetry:  # eig would project a mixing of irreps out again
            return dm
        orbitals, occupations, energies = np.array(dm.mo_coeff), dm.mo_occ, dm.mo_energy[0]
        full, empty = np.flatnonzero(occupations[0] == 1), np.flatnonzero(occupations[0] == 0)
        if len(full) + len(empty) < len(energies) or not len(full) or not len(empty):
            return dm  # fractional occupations, or nothing to mix with
        homo, lumo = full[np.argmax(energies[full])], empty[np.argmin(energies[empty])]
        if not mix:
            return dm if energies[lumo] - energies[homo] > SMALL_GAP else without_bonds(self.mf.mol, dm)
        for sign, coefficients in zip((1, -1), orbitals, strict=True):
            first, second = coefficients[:, homo].copy(), coefficients[:, lumo].copy()
            coefficients[:, homo] = np.cos(MIXING) * first + sign * np.sin(MIXING) * second
            coefficients[:, lumo] = np.cos(MIXING) * second - sign * np.sin(MIXING) * first
        return lib.tag_array(self.tagged(dm.mo_energy, orbitals, occupations), unbroken=np.asarray(dm))


def without_bonds(mol: gto.Mole, dm: np.ndarray) -> np.ndarray:
    """``dm[2, nao, nao]`` of which beta keeps only the blocks of the atoms, as PySCF breaks the spin symmetry; no orbitals."""
    atoms = atom_of_function(mol)
    plain = np.asarray(dm)
    return lib.tag_array(np.stack([plain[0], plain[1] * (atoms[:, None] == atoms)]), unbroken=plain)


def quiet_copy(mf: Any) -> Any:
    """``mf`` without output, and without the notes that its methods leave in it."""
    quiet = mf.copy()
    quiet.verbose = 0
    quiet.scf_summary = {}
    return quiet


def checked(mol: gto.Mole, auxmol: gto.Mole, coefficients: Any) -> tuple[gto.Mole, np.ndarray]:
    """The auxiliary molecule and coefficients ``[n_aux]``, Cartesian where the orbitals are; ValueError if they do not fit."""
    coefficients = np.asarray(coefficients, dtype=float)
    if coefficients.shape != (auxmol.nao,):
        raise ValueError(
            f"coefficients have shape {coefficients.shape}; allowed is ({auxmol.nao},), one for each function of the auxiliary "
            "molecule: give that of the basis that the density was fitted in"
        )
    if not np.isfinite(coefficients).all():
        bad = int((~np.isfinite(coefficients)).sum())
        raise ValueError(f"{bad} of {len(coefficients)} coefficients are not finite numbers: the density is not usable")
    if auxmol.natm != mol.natm or np.abs(auxmol.atom_coords() - mol.atom_coords()).max(initial=0.0) > NEAR:
        raise ValueError(
            f"the auxiliary molecule ({auxmol.natm} atoms) has other atoms or positions than that of the mean-field object "
            f"({mol.natm} atoms): make it from the same geometry, in the same order of atoms"
        )
    if auxmol.cart and not mol.cart:
        raise ValueError("the auxiliary basis is Cartesian and the orbitals are spherical: give a spherical auxiliary molecule")
    if mol.cart and not auxmol.cart:  # PySCF's integrals do not mix the two
        coefficients = auxmol.cart2sph_coeff() @ coefficients
        auxmol = auxmol.copy()
        auxmol.cart = True
    return auxmol, coefficients
