"""Every method and every way of making integrals: the accelerated result is that of stock PySCF."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import agree, coarse_grid, radical
from pyscf import dft, scf
from small_molecules import molecule

FUNCTIONALS = ["lda,vwn", "pbe", "r2scan", "b3lyp", "camb3lyp", "hse06", "LC_WPBE"]


@pytest.mark.parametrize("xc", FUNCTIONALS)
def test_restricted_functionals(xc):
    agree(coarse_grid(dft.RKS(molecule(basis="sto-3g"), xc=xc)))


@pytest.mark.parametrize("xc", ["lda,vwn", "tpss", "b3lyp", "camb3lyp"])
def test_unrestricted_functionals(xc):
    agree(coarse_grid(dft.UKS(radical("sto-3g"), xc=xc)))


@pytest.mark.parametrize("xc", ["pbe", "r2scan", "hse06"])
def test_restricted_open_shell_functionals(xc):
    agree(coarse_grid(dft.ROKS(radical("sto-3g"), xc=xc)))


@pytest.mark.parametrize("method", [scf.RHF, scf.UHF])
def test_hartree_fock_of_a_closed_shell(method):
    agree(method(molecule(basis="def2-svp")))


@pytest.mark.parametrize("method", [scf.UHF, scf.ROHF])
def test_hartree_fock_of_a_radical(method):
    agree(method(radical("def2-svp")))


@pytest.mark.parametrize("method", [scf.RHF, dft.RKS, dft.UKS, scf.ROHF])
@pytest.mark.parametrize("integrals", ["fitted", "direct", "stored", "fitted_coulomb"])
def test_integrals(method, integrals):
    restricted = method in (scf.RHF, dft.RKS)
    mf = coarse_grid(method(molecule(basis="sto-3g") if restricted else radical("sto-3g")))
    if hasattr(mf, "xc"):
        mf.xc = "pbe0"
    if integrals == "fitted":
        mf = mf.density_fit()
    elif integrals == "fitted_coulomb":
        mf = mf.density_fit(auxbasis="def2-universal-jkfit", only_dfj=True)
    elif integrals == "direct":
        mf._is_mem_enough = lambda: False
    else:
        mf._eri = mf.mol.intor("int2e", aosym="s8")
    ours = agree(mf)
    assert (ours._eri is None) == (integrals in ("fitted", "direct"))


@pytest.mark.parametrize("xc", ["wb97m-v"])
def test_nonlocal_correlation(xc):
    mf = coarse_grid(dft.RKS(molecule("hydrogen"), xc=xc))
    assert mf.do_nlc()
    agree(mf)


def test_nonlocal_correlation_added_by_hand():
    mf = coarse_grid(dft.UKS(radical("sto-3g"), xc="pbe"))
    mf.nlc = "vv10"
    agree(mf)


@pytest.mark.parametrize("case", ["restricted", "unrestricted"])
def test_functional_of_the_users_own(case):
    mf = dft.RKS(molecule()) if case == "restricted" else dft.UKS(radical("sto-3g"))
    mf = coarse_grid(mf.define_xc_("0.3*HF + 0.7*B88, LYP", "GGA", 0.3))
    agree(mf)


def test_functional_given_as_a_function():
    def exchange(xc_code, rho, spin=0, relativity=0, deriv=1, omega=None, verbose=None):
        return dft.libxc.eval_xc("pbe,pbe", rho, spin, relativity, deriv, omega, verbose)

    mf = coarse_grid(dft.RKS(molecule())).define_xc_(exchange, "GGA", hyb=0.0)
    ours = agree(mf)
    reference = coarse_grid(dft.RKS(molecule(), xc="pbe")).run(conv_tol=1e-11)
    assert abs(ours.e_tot - reference.e_tot) < 1e-8


def test_functional_with_changed_omega():
    mf = coarse_grid(dft.RKS(molecule(), xc="camb3lyp"))
    mf.omega = 0.2
    ours = agree(mf)
    assert ours.omega == 0.2


def test_unrestricted_equals_restricted_for_a_closed_shell():
    energies = [agree(coarse_grid(method(molecule(), xc="pbe"))).e_tot for method in (dft.RKS, dft.UKS, dft.ROKS)]
    np.testing.assert_allclose(energies, energies[0], atol=2e-8)
