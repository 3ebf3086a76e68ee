"""Laws of the guess: right electrons, idempotent, the SCF's own energy in fewer cycles, whatever the mean-field object."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pyscf import df, dft, gto, qmmm, scf

from mlip.errors import ConfigError
from scf_accel.fitting import fit_density, make_auxmol
from scf_accel.guess import density_matrix, guess_fock, refusal
from scf_accel.guess.coulomb import coulomb_matrix, direct
from scf_accel.guess.gridpotential import fitted_density, make_grids
from scf_accel.guess.surrogate import functional_of

WATER = "O 0 0 0.12; H 0 0.76 -0.47; H 0.02 -0.75 -0.48"
METHYLENE = "C 0 0 0; H 0 0.99 0.42; H 0.05 -0.99 0.42"
FORMALDEHYDE = "C 0 0 0; O 0 0.03 1.21; H 0 0.94 -0.58; H 0.05 -0.94 -0.58"


def molecule(atom: str = WATER, basis: Any = "def2-svp", **keywords: Any) -> gto.Mole:
    return gto.M(atom=atom, basis=basis, verbose=0, **keywords)


def kohn_sham(kind: Any, mol: gto.Mole, xc: str) -> Any:
    mf = kind(mol, xc=xc)
    mf.grids.level = 0
    mf.nlcgrids.level = 0
    return mf


def oracle(mf: Any, auxbasis: str = "def2-universal-jfit") -> tuple[Any, gto.Mole, np.ndarray]:
    """``mf`` converged from minao, and the fit of its density."""
    done = mf.copy()
    done.kernel()
    assert done.converged
    auxmol = make_auxmol(mf.mol, auxbasis)
    return done, auxmol, fit_density(mf.mol, auxmol, done.make_rdm1())


def electrons(mf: Any, dm: np.ndarray) -> np.ndarray:
    """``[sets]`` electrons of each spin (closed shells: of both)."""
    return np.einsum("smn,nm->s", np.reshape(dm, (-1, *np.shape(dm)[-2:])), mf.get_ovlp())


def check_determinant(mf: Any, dm: np.ndarray) -> None:
    """Integer electrons as ``mf`` wants them, ``D S D = D`` of each spin, the shape of PySCF's guess, tags that make ``dm``."""
    assert dm.shape == np.shape(mf.get_init_guess(mf.mol, "minao"))
    closed = dm.ndim == 2
    np.testing.assert_allclose(electrons(mf, dm), [sum(mf.mol.nelec)] if closed else mf.mol.nelec, atol=1e-8)
    for spin in [0.5 * dm] if closed else dm:
        np.testing.assert_allclose(spin @ mf.get_ovlp() @ spin, spin, atol=1e-8)
    np.testing.assert_allclose(mf.make_rdm1(dm.mo_coeff, dm.mo_occ), dm, atol=1e-12)
    assert np.shape(dm.mo_energy) == np.shape(dm.mo_occ)


def check_helps(mf: Any, surplus: int = 0) -> None:
    """From the guess of the oracle: the energy from minao, in fewer cycles."""
    done, auxmol, coefficients = oracle(mf)
    before = dict(mf.__dict__)
    dm = density_matrix(mf, auxmol, coefficients)
    assert {key: value for key, value in mf.__dict__.items() if key in before} == before
    check_determinant(mf, dm)
    ours = mf.copy()
    ours.kernel(dm0=dm)
    assert ours.converged
    assert ours.e_tot == pytest.approx(done.e_tot, abs=2e-8)
    assert ours.cycles < done.cycles + surplus


CASES = {
    "rhf": lambda: scf.RHF(molecule()),
    "rhf density fitting": lambda: scf.RHF(molecule()).density_fit(),
    "uhf": lambda: scf.UHF(molecule(METHYLENE, spin=2)),
    "rohf": lambda: scf.ROHF(molecule(METHYLENE, spin=2)),
    "rks lda": lambda: kohn_sham(dft.RKS, molecule(), "lda,vwn"),
    "rks pbe": lambda: kohn_sham(dft.RKS, molecule(FORMALDEHYDE), "pbe"),
    "rks pbe density fitting": lambda: kohn_sham(dft.RKS, molecule(), "pbe").density_fit(),
    "rks pbe newton": lambda: kohn_sham(dft.RKS, molecule(), "pbe").newton(),
    "rks b3lyp": lambda: kohn_sham(dft.RKS, molecule(FORMALDEHYDE), "b3lyp"),
    "rks b3lyp density fitting": lambda: kohn_sham(dft.RKS, molecule(), "b3lyp").density_fit(),
    "rks r2scan": lambda: kohn_sham(dft.RKS, molecule(), "r2scan"),
    "rks wb97x-v": lambda: kohn_sham(dft.RKS, molecule(), "wb97x-v"),
    "uks pbe": lambda: kohn_sham(dft.UKS, molecule(METHYLENE, spin=2), "pbe"),
    "uks b3lyp": lambda: kohn_sham(dft.UKS, molecule(METHYLENE, spin=2), "b3lyp"),
    "roks pbe": lambda: kohn_sham(dft.ROKS, molecule(METHYLENE, spin=2), "pbe"),
    "roks r2scan": lambda: kohn_sham(dft.ROKS, molecule(METHYLENE, spin=2), "r2scan"),
    "cation": lambda: kohn_sham(dft.UKS, molecule(charge=1, spin=1), "pbe"),
    "anion": lambda: kohn_sham(dft.RKS, molecule("O 0 0 0; H 0 0.1 0.97", charge=-1), "pbe"),
    "minimal basis": lambda: scf.RHF(molecule(FORMALDEHYDE, "sto-3g")),
    "large basis": lambda: kohn_sham(dft.RKS, molecule(basis="def2-tzvp"), "pbe"),
    "Cartesian": lambda: kohn_sham(dft.RKS, molecule(basis="6-31g*", cart=True), "pbe"),
    "core potential": lambda: kohn_sham(dft.RKS, molecule("I 0 0 0; H 0 0 1.61", ecp="def2-svp"), "pbe"),
    "x2c": lambda: scf.RHF(molecule()).x2c(),
    "point charges": lambda: qmmm.add_mm_charges(kohn_sham(dft.RKS, molecule(), "pbe"), [[0, 0, 3.0]], [-0.8]),
    "symmetry": lambda: kohn_sham(dft.RKS, molecule("O 0 0 0.12; H 0 0.76 -0.47; H 0 -0.76 -0.47", symmetry=True), "pbe"),
    "symmetry, open shell": lambda: scf.UHF(molecule("O 0 0 0; O 0 0 1.2", symmetry=True, spin=2)),
    "ghost": lambda: kohn_sham(dft.RKS, molecule(WATER + "; ghost-O 0 0 3"), "pbe"),
}


@pytest.mark.parametrize("name", CASES)
def test_same_energy_in_fewer_cycles(name):
    check_helps(CASES[name]())
