"""Composition with PySCF's other features, and what is built on a finished SCF: gradients, scanners, response, stability."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import accelerate, coarse_grid, radical, same_result, tight
from pyscf import dft, qmmm, scf, solvent
from small_molecules import molecule

SCANNED = ["water", "O 0 0 0.12; H 0 0.80 -0.47; H 0.02 -0.75 -0.48", "formaldehyde", "water"]


def plain(method=dft.RKS, name="water"):
    """Water, or a triplet for the restricted open-shell classes, with PBE where there is a functional."""
    mf = method(radical("sto-3g") if method in (scf.ROHF, dft.ROKS) else molecule(name, "sto-3g"))
    if hasattr(mf, "xc"):
        mf.xc = "pbe"
    return coarse_grid(mf)


def small_cavity(mf):
    mf.with_solvent.lebedev_order = 7
    return mf


FEATURES = {
    "density_fit": lambda mf: mf.density_fit(),
    "x2c": lambda mf: mf.sfx2c1e(),
    "x2c1e": lambda mf: mf.x2c(),
    "solvent": lambda mf: small_cavity(solvent.PCM(mf)),
    "cosmo": lambda mf: mf.ddCOSMO(),
    "charges": lambda mf: qmmm.mm_charge(mf, np.array([[2.5, 0.0, 0.5]]), np.array([0.5])),
    "smearing": lambda mf: scf.addons.smearing(mf, sigma=0.01, method="fermi"),
    "density_fit_solvent": lambda mf: small_cavity(solvent.PCM(mf.density_fit())),
}


@pytest.mark.parametrize("name", FEATURES)
def test_either_order(name):
    feature, method = FEATURES[name], dft.UKS if name in ("density_fit", "x2c") else dft.RKS
    stock = tight(feature(plain(method)))
    inside, outside = feature(accelerate(plain(method))).run(), accelerate(feature(plain(method))).run()
    for ours in (inside, outside):
        same_result(ours, stock)
        assert ours.multilevel_report.fallback is None and 1 < ours.multilevel_report.fine_builds <= 6
        assert ours.cycles == ours.multilevel_report.fine_builds


@pytest.mark.parametrize("method", [dft.RKS, scf.UHF, scf.ROHF])
def test_second_order_solver_on_top(method):
    ours = accelerate(plain(method)).newton().run()
    assert ours.converged and abs(ours.e_tot - tight(plain(method)).e_tot) < 1e-8


def test_second_order_solver_continues():
    ours = accelerate(plain()).run()
    second = ours.newton()
    second.kernel(ours.mo_coeff, ours.mo_occ)
    assert abs(second.e_tot - ours.e_tot) < 1e-8


@pytest.mark.parametrize("method", [scf.RHF, dft.UKS, scf.ROHF])
def test_nuclear_gradients(method):
    ours, stock = accelerate(plain(method)).run(), tight(plain(method))
    np.testing.assert_allclose(ours.nuc_grad_method().kernel(), stock.nuc_grad_method().kernel(), atol=1e-5)


@pytest.mark.parametrize("name", ["density_fit", "charges"])
def test_nuclear_gradients_with_features(name):
    ours, stock = accelerate(FEATURES[name](plain())).run(), tight(FEATURES[name](plain()))
    got, wanted = ours.nuc_grad_method(), stock.nuc_grad_method()
    np.testing.assert_allclose(got.kernel(), wanted.kernel(), atol=1e-5)


def test_gradient_scanner():
    ours, stock = accelerate(plain()).nuc_grad_method().as_scanner(), plain().nuc_grad_method().as_scanner()
    for name in SCANNED[:2]:
        energy, gradient = ours(molecule(name, "sto-3g"))
        wanted_energy, wanted = stock(molecule(name, "sto-3g"))
        assert abs(energy - wanted_energy) < 1e-8
        np.testing.assert_allclose(gradient, wanted, atol=1e-4)
    assert ours.base.multilevel_report.fine_builds > 0


@pytest.mark.parametrize(("method", "fitted"), [(scf.RHF, False), (dft.RKS, True), (dft.UKS, False)])
def test_energy_scanner(method, fitted):
    mf = plain(method).density_fit() if fitted else plain(method)
    scanner = accelerate(mf).as_scanner()
    for name in SCANNED[:3]:
        mol = molecule(name, "sto-3g")
        fresh = plain(method, name).density_fit() if fitted else plain(method, name)
        assert abs(scanner(mol) - tight(fresh).e_tot) < 1e-8
        assert scanner.converged and scanner.multilevel_report.fallback is None


def test_scanner_of_a_finished_run():
    scanner = accelerate(plain()).run().as_scanner()
    assert abs(scanner(molecule(SCANNED[1], "sto-3g")) - tight(plain(name=SCANNED[1])).e_tot) < 1e-8


@pytest.mark.parametrize(("method", "response"), [(scf.RHF, "TDHF"), (dft.RKS, "TDA"), (dft.RKS, "TDDFT"), (dft.UKS, "TDA")])
def test_excitation_energies(method, response):
    ours, stock = accelerate(plain(method)).run(), tight(plain(method))
    got, wanted = (getattr(mf, response)().run(nstates=2).e for mf in (ours, stock))
    np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize("method", [scf.RHF, scf.UHF, dft.RKS])
def test_stability_analysis(method):
    ours = accelerate(plain(method)).run()
    result = ours.stability(return_status=True)
    assert len(result) == 4 and result[2]


def test_instability_is_found_and_followed():
    """Stretched H2: the restricted determinant is unstable; the broken-symmetry one is found from its orbitals."""
    mf = scf.UHF(molecule("H 0 0 0; H 0 0 2.5"))
    ours = accelerate(mf).run()
    orbitals, _, stable, _ = ours.stability(return_status=True)
    assert not stable
    closed = ours.e_tot
    ours.kernel(ours.make_rdm1(orbitals, ours.mo_occ))
    assert ours.e_tot < closed - 0.01 and ours.stability(return_status=True)[2]
    stock = mf.copy().run()
    orbitals = stock.stability()[0]
    stock.kernel(stock.make_rdm1(orbitals, stock.mo_occ))
    assert abs(stock.e_tot - ours.e_tot) < 1e-7


@pytest.mark.parametrize("method", [dft.RKS, dft.UKS, dft.ROKS])
def test_properties(method):
    ours, stock = accelerate(plain(method)).run(), tight(plain(method))
    np.testing.assert_allclose(ours.dip_moment(verbose=0), stock.dip_moment(verbose=0), atol=1e-4)
    np.testing.assert_allclose(ours.spin_square(), stock.spin_square(), atol=1e-6)
    np.testing.assert_allclose(ours.mulliken_pop(verbose=0)[1], stock.mulliken_pop(verbose=0)[1], atol=1e-4)
    ours.analyze(verbose=0)


@pytest.mark.parametrize("method", [scf.RHF, scf.UHF])
def test_correlated_methods(method):
    ours, stock = accelerate(plain(method)).run(), tight(plain(method))
    assert abs(ours.MP2().run().e_tot - stock.MP2().run().e_tot) < 1e-6


def test_hessian():
    ours, stock = accelerate(plain(scf.RHF)).run(), tight(plain(scf.RHF))
    np.testing.assert_allclose(ours.Hessian().kernel(), stock.Hessian().kernel(), atol=1e-4)


def test_geometry_dependent_features_follow_the_scanner():
    scanner = accelerate(plain().ddCOSMO()).as_scanner()
    for name in SCANNED[:2]:
        assert abs(scanner(molecule(name, "sto-3g")) - tight(plain(name=name).ddCOSMO()).e_tot) < 1e-7
