"""Laws of the guess: right electrons, idempotent, the SCF's own energy in fewer cycles, whatever the mean-field object."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pyscf import df, dft, gto, lib, qmmm, scf

from mlip.errors import ConfigError
from scf_accel.fitting import fit_density, make_auxmol
from scf_accel.gridorbitals import BLOCK
from scf_accel.guess import density_matrix, guess_fock, refusal
from scf_accel.guess.coulomb import coulomb_matrix, direct, from_fitting
from scf_accel.guess.gridpotential import GuessPotential, fitted_density, make_grids
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


def in_field(mf: Any) -> Any:
    """``mf`` in a field of 0.02 atomic units along z, the way PySCF's manual does it."""
    hcore = mf.get_hcore() + 0.02 * mf.mol.intor("int1e_r")[2]
    mf.get_hcore = lambda *_: hcore
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
    "electric field": lambda: in_field(kohn_sham(dft.RKS, molecule(FORMALDEHYDE), "pbe")),
    "solvent, open shell": lambda: kohn_sham(dft.ROKS, molecule(METHYLENE, "6-31g", spin=2), "pbe").ddCOSMO(),
    "symmetry": lambda: kohn_sham(dft.RKS, molecule("O 0 0 0.12; H 0 0.76 -0.47; H 0 -0.76 -0.47", symmetry=True), "pbe"),
    "symmetry, open shell": lambda: scf.UHF(molecule("O 0 0 0; O 0 0 1.2", symmetry=True, spin=2)),
    "ghost": lambda: kohn_sham(dft.RKS, molecule(WATER + "; ghost-O 0 0 3"), "pbe"),
}


@pytest.mark.parametrize("name", CASES)
def test_same_energy_in_fewer_cycles(name):
    check_helps(CASES[name]())


@pytest.mark.parametrize("name", ["uhf", "rks b3lyp", "rks b3lyp density fitting", "roks pbe", "solvent, open shell"])
def test_no_full_fock_build_inside(name, monkeypatch):
    mf = CASES[name]()
    auxmol = make_auxmol(mf.mol)
    coefficients = fit_density(mf.mol, auxmol, mf.get_init_guess(mf.mol, "minao"))

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a full Fock build")

    for method in ("get_veff", "get_jk", "get_j", "get_k"):
        monkeypatch.setattr(type(mf), method, forbidden)
    assert np.isfinite(density_matrix(mf, auxmol, coefficients)).all()


@pytest.fixture(scope="module")
def water() -> tuple[Any, gto.Mole, np.ndarray]:
    return oracle(kohn_sham(dft.RKS, molecule(), "pbe"))


def test_second_order_solver_starts_from_it(water):
    done, auxmol, coefficients = water
    newton = kohn_sham(dft.RKS, molecule(), "pbe").newton()
    newton.kernel(dm0=density_matrix(newton, auxmol, coefficients))
    assert newton.e_tot == pytest.approx(done.e_tot, abs=2e-8)


def test_smearing_decides_the_occupations(water):
    _, auxmol, coefficients = water
    mf = kohn_sham(dft.RKS, molecule(), "pbe").smearing(sigma=0.2, method="fermi")
    dm = density_matrix(mf, auxmol, coefficients)
    assert np.count_nonzero((dm.mo_occ > 1e-6) & (dm.mo_occ < 2 - 1e-6)) > 0
    np.testing.assert_allclose(electrons(mf, dm), 10.0, atol=1e-6)


def test_dependent_basis_functions_are_left_out():
    hydrogen = gto.basis.load("6-31g", "H")
    again = [0, [1.0001 * hydrogen[-1][1][0], 1.0]]
    mf = scf.RHF(molecule(basis={"O": "6-31g", "H": [*hydrogen, again]}))
    _, auxmol, coefficients = oracle(mf)
    dm = density_matrix(mf, auxmol, coefficients)
    assert dm.mo_coeff.shape == (mf.mol.nao, mf.mol.nao - 2)
    check_helps(mf)


def test_coulomb_matrix_of_every_route_is_that_of_the_integrals(water):
    _, auxmol, coefficients = water
    mol = molecule()
    expected = df.incore.aux_e2(mol, auxmol, "int3c2e") @ coefficients
    np.testing.assert_allclose(direct(mol, auxmol, coefficients), expected, atol=1e-9)
    same = dft.RKS(mol).density_fit(auxbasis="def2-universal-jfit")
    same.with_df.build()
    np.testing.assert_allclose(from_fitting(same.with_df, auxmol, coefficients), expected, atol=1e-9)
    other = dft.RKS(mol, xc="b3lyp").density_fit(auxbasis="def2-universal-jkfit")
    np.testing.assert_allclose(coulomb_matrix(other, auxmol, coefficients), expected, atol=5e-4)
    assert other.with_df._cderi is not None  # its SCF needs the integrals next


def test_coulomb_matrix_does_not_need_the_integrals_in_memory(water, tmp_path):
    _, auxmol, coefficients = water
    mf = dft.RKS(molecule()).density_fit(auxbasis="def2-universal-jfit")
    mf.with_df._cderi_to_save = str(tmp_path / "integrals.h5")
    mf.with_df.build()
    assert not isinstance(mf.with_df._cderi, np.ndarray)
    expected = direct(mf.mol, auxmol, coefficients)
    np.testing.assert_allclose(coulomb_matrix(mf, auxmol, coefficients), expected, atol=1e-9)


def test_integrals_of_something_else_are_not_used(water):
    _, auxmol, coefficients = water
    mf = dft.RKS(molecule()).density_fit(auxbasis="def2-universal-jfit")
    mf.with_df.build()
    mf.with_df._cderi = mf.with_df._cderi * 1.01
    assert from_fitting(mf.with_df, auxmol, coefficients) is None
    np.testing.assert_allclose(coulomb_matrix(mf, auxmol, coefficients), direct(mf.mol, auxmol, coefficients), atol=1e-12)


def test_screening_bounds_the_error_of_a_larger_molecule():
    mol = molecule("; ".join(f"H 0 0 {1.5 * n}" for n in range(16)), "6-31g")
    auxmol = make_auxmol(mol)
    coefficients = np.random.default_rng(0).normal(size=auxmol.nao)
    expected = direct(mol, auxmol, coefficients, screening=1e-16)
    np.testing.assert_allclose(direct(mol, auxmol, coefficients), expected, atol=1e-8)


@pytest.mark.parametrize("threads", [1, 2])
def test_density_in_blocks_is_the_density(water, threads):
    _, auxmol, coefficients = water
    coords = make_grids(auxmol).coords
    assert len(coords) > 2 * BLOCK
    for kind, components in (("LDA", 1), ("GGA", 4)):
        expected = auxmol.eval_gto("GTOval_sph_deriv1", coords)[:components] @ coefficients
        with lib.with_omp_threads(threads):
            np.testing.assert_allclose(fitted_density(auxmol, coefficients, coords, kind), expected, atol=1e-5)


def test_little_memory_gives_the_same_guess():
    mf = kohn_sham(dft.UKS, molecule(METHYLENE, spin=2), "pbe")
    _, auxmol, coefficients = oracle(mf)
    poor = mf.copy()
    poor.max_memory = 0
    expected = density_matrix(mf, auxmol, coefficients)
    np.testing.assert_allclose(density_matrix(poor, auxmol, coefficients), expected, atol=1e-8)


@pytest.mark.parametrize("xc", ["pbe", "lda,vwn"])
def test_potential_of_an_exact_density_is_that_of_the_functional(xc):
    """Density in products of orbitals of one s function: the fit is exact, so the Fock matrix is PySCF's."""
    mol = molecule("He 0 0 0", {"He": [[0, [0.8, 1.0]]]})
    auxmol = df.addons.make_auxmol(mol, {"He": [[0, [1.6, 1.0]]]})
    mf = dft.RKS(mol, xc=xc)
    dm = 2.0 * np.ones((1, 1))
    fock = guess_fock(mf, auxmol, fit_density(mol, auxmol, dm), grid=3)
    np.testing.assert_allclose(fock, mf.get_hcore() + mf.get_veff(mol, dm), atol=1e-5)


@pytest.mark.parametrize("xc", ["pbe", "lda,vwn"])
def test_potentials_of_alpha_and_beta_are_those_of_the_functional(xc):
    """As above with 1 alpha and 0.4 beta electrons."""
    mol = molecule("He 0 0 0", {"He": [[0, [0.8, 1.0]]]})
    auxmol = df.addons.make_auxmol(mol, {"He": [[0, [1.6, 1.0]]]})
    mf = dft.UKS(mol, xc=xc)
    dm = np.array([[[1.0]], [[0.4]]])
    coefficients = fit_density(mol, auxmol, dm)
    polarised = GuessPotential(mol, auxmol, coefficients, functional_of(mf), grid=3).polarised(dm[0] - dm[1])
    coulomb = direct(mol, auxmol, coefficients)
    np.testing.assert_allclose(coulomb + polarised, mf.get_veff(mol, dm), atol=1e-5)


def test_one_electron_and_spins_of_either_sign():
    for kind in (dft.UKS, dft.ROKS):
        mf = kohn_sham(kind, molecule("H 0 0 0", "6-31g", spin=1), "pbe")
        done, auxmol, coefficients = oracle(mf)
        dm = density_matrix(mf, auxmol, coefficients)
        check_determinant(mf, dm)
        ours = mf.copy()
        ours.kernel(dm0=dm)
        assert ours.e_tot == pytest.approx(done.e_tot, abs=2e-8)
    down = kohn_sham(dft.UKS, molecule(METHYLENE, spin=-2), "pbe")
    done, auxmol, coefficients = oracle(down)
    dm = density_matrix(down, auxmol, coefficients)
    check_determinant(down, dm)
    assert electrons(down, dm) == pytest.approx([3, 5])


def test_own_functional_where_the_density_determines_it_else_the_surrogate():
    mol = molecule(basis="sto-3g")
    for xc in ("pbe", "lda,vwn", "blyp"):
        mf = dft.RKS(mol, xc=xc)
        assert functional_of(mf).xc == xc
        assert functional_of(mf).integrator is mf._numint
    for mf in (scf.RHF(mol), *(dft.RKS(mol, xc=xc) for xc in ("b3lyp", "r2scan", "wb97x", "hf", "camb3lyp", "m06l"))):
        assert functional_of(mf, "blyp").xc == "blyp"


def test_singlet_of_an_unrestricted_object_can_leave_the_restricted_solution():
    mf = scf.UHF(molecule("H 0 0 0; H 0 0 2.5", "6-31g"))
    mf.init_guess_breaksym = "mix"
    done, auxmol, coefficients = oracle(mf)
    assert done.e_tot < scf.RHF(mf.mol).run().e_tot - 0.1
    ours = mf.copy()
    dm = density_matrix(mf, auxmol, coefficients)
    check_determinant(mf, dm)
    ours.kernel(dm0=dm)
    assert ours.e_tot == pytest.approx(done.e_tot, abs=2e-8)


def test_spin_symmetry_is_broken_as_in_pyscf_where_it_can_matter():
    """The default, 1, removes the bonds of beta where the gap is small; other gaps and None leave both spins alike."""
    for atoms, breaksym, broken in ((WATER, 1, False), (WATER, None, False), (METHYLENE, 1, True), (METHYLENE, None, False)):
        mf = scf.UHF(molecule(atoms, "6-31g"))
        mf.init_guess_breaksym = breaksym
        _, auxmol, coefficients = oracle(mf)
        dm = density_matrix(mf, auxmol, coefficients)
        if not broken:
            np.testing.assert_allclose(dm[0], dm[1], atol=1e-10)
            continue
        np.testing.assert_allclose(dm, mf_broken(mf.mol, dm[0]), atol=1e-10)
        assert not hasattr(dm, "mo_coeff"), "no orbitals make it"
        np.testing.assert_allclose(dm.unbroken, [dm[0], dm[0]], atol=1e-10)


def mf_broken(mol: gto.Mole, alpha: np.ndarray) -> np.ndarray:
    """PySCF's own symmetry breaking of two equal spins."""
    return np.asarray(scf.uhf._break_dm_spin_symm(mol, (alpha, alpha), 1))


def test_errors_say_what_to_change(water):
    done, auxmol, coefficients = water
    with pytest.raises(ValueError, match=r"shape \(3,\); allowed is"):
        density_matrix(done, auxmol, coefficients[:3])
    broken = coefficients.copy()
    broken[0] = np.nan
    with pytest.raises(ValueError, match=r"1 of .* are not finite"):
        density_matrix(done, auxmol, broken)
    moved = make_auxmol(molecule("O 0 0 0.2; H 0 0.76 -0.47; H 0.02 -0.75 -0.48"))
    with pytest.raises(ValueError, match="other atoms or positions"):
        density_matrix(done, moved, coefficients)
    for name in ("b3lyp", "r2scan", "nonsense"):
        with pytest.raises(ConfigError, match=f"surrogate '{name}'"):
            density_matrix(scf.RHF(done.mol), auxmol, coefficients, surrogate=name)


def test_objects_without_such_a_guess():
    from pyscf.pbc import gto as pbc_gto
    from pyscf.pbc import scf as pbc_scf

    mol = molecule(basis="sto-3g")
    cell = pbc_gto.M(atom="H 0 0 0; H 0 0 0.74", a=np.eye(3) * 8, basis="sto-3g", verbose=0)
    model = scf.RHF(gto.M(verbose=0))
    for mf, reason in (
        (scf.GHF(mol), "GHF: only restricted"),
        (dft.GKS(mol), "GKS: only restricted"),
        (pbc_scf.RHF(cell), "periodic"),
        (model, "model Hamiltonian"),
    ):
        assert reason in refusal(mf)
        with pytest.raises(ConfigError, match=reason):
            density_matrix(mf, make_auxmol(mol), np.zeros(3))
    assert refusal(scf.RHF(mol)) is None
