"""What a model does not cover, and what looks wrong, starts from the user's own guess, with one warning and the right energy."""

from __future__ import annotations

import numpy as np
import pytest
from predictors import Bad, Oracle, coarse, logged, noise, tight, warnings_in
from pyscf import dft, scf
from pyscf.pbc import gto as pbcgto
from pyscf.pbc import scf as pbcscf
from small_molecules import molecule

import scf_accel
from scf_accel.fitting import auxiliary_charges
from scf_accel.predictor import DensityPredictor, PredictionError


def falls_back(mf, predictor, reason, **settings):
    """One warning that gives the reason, the same guess and the same energy as stock PySCF."""
    ours, stock = scf_accel.warm_start(mf, predictor, **settings), tight(mf)
    text = logged(ours)
    report = ours.warm_start_report
    assert not report.used and reason in report.fallback, report
    assert report.start == mf.init_guess
    assert warnings_in(text) == 1 and report.fallback in text and repr(mf.init_guess) in text, text
    assert ours.converged and abs(ours.e_tot - stock.e_tot) < 1e-8
    assert ours.cycles == mf.copy().run().cycles
    return ours


def rescaled(c):
    return 1.05 * c


def kept_count(how):
    """``how`` and then the right number of electrons: only the comparison of densities can find the error."""

    def change(c):
        aux = Oracle(coarse(dft.RKS(molecule()))).auxmol(molecule())
        charges = auxiliary_charges(aux)
        wrong = how(c)
        return wrong + charges * (charges @ (c - wrong)) / (charges @ charges)

    return change


BAD = {
    "noise": (kept_count(noise(0.3)), "energy"),
    "wild": (kept_count(noise(3.0)), "energy"),
    "zero": (np.zeros_like, "electrons"),
    "count": (rescaled, "electrons"),
    "sign": (np.negative, "electrons"),
    "nan": (lambda c: np.where(np.arange(len(c)) == 3, np.nan, c), "not finite"),
    "infinite": (lambda c: np.where(np.arange(len(c)) == 3, np.inf, c), "not finite"),
    "short": (lambda c: c[:-1], "coefficients"),
    "matrix": (lambda c: np.diag(c), "coefficients"),
    "nothing": (lambda c: None, "coefficients"),
    "complex": (lambda c: c * 1j, "coefficients"),
    "exception": (RuntimeError("out of order"), "out of order"),
    "memory": (MemoryError(), "MemoryError"),
    "refused": (PredictionError("two atoms are too near"), "two atoms are too near"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_predictions(name):
    how, reason = BAD[name]
    mf = coarse(dft.RKS(molecule()))
    falls_back(mf, Bad(mf, how), reason)


@pytest.mark.parametrize("method", [scf.RHF, scf.UHF, dft.UKS])
@pytest.mark.parametrize("key", ["minao", "huckel", "1e"])
def test_the_users_own_guess_takes_over(method, key):
    mf = coarse(method(molecule()))
    mf.init_guess = key
    falls_back(mf, Bad(mf, np.zeros_like), "electrons")


def test_interrupts_pass():
    mf = coarse(dft.RKS(molecule()))
    with pytest.raises(KeyboardInterrupt):
        scf_accel.warm_start(mf, Bad(mf, KeyboardInterrupt())).run()


def test_without_the_check_only_the_count_is_looked_at():
    mf = coarse(dft.RKS(molecule()))
    ours = scf_accel.warm_start(mf, Bad(mf, kept_count(noise(0.3))), check=False)
    assert logged(ours) == "" and ours.warm_start_report.used and ours.warm_start_report.error is None
    assert abs(ours.e_tot - tight(mf).e_tot) < 1e-8


@pytest.mark.parametrize("broken", ["residuals", "density_matrix"])
def test_errors_in_our_own_parts(monkeypatch, broken):
    def fail(*args, **keywords):
        raise np.linalg.LinAlgError("no convergence")

    place = {"residuals": "scf_accel.warmstart.plugin.residuals", "density_matrix": "scf_accel.guess.density_matrix"}[broken]
    monkeypatch.setattr(place, fail)
    mf = coarse(dft.RKS(molecule()))
    falls_back(mf, Oracle(mf), "no convergence")


class Refusing(Oracle):
    def refusal(self, mol):
        return "chlorine is unknown"


def test_molecules_outside_of_the_model():
    mf = coarse(dft.RKS(molecule()))
    falls_back(mf, Refusing(mf), "chlorine is unknown")


def test_no_model_in_the_package(monkeypatch):
    monkeypatch.setattr("mlip.checkpoint.shipped_models", dict)
    falls_back(coarse(dft.RKS(molecule())), None, "ships no density model")


@pytest.mark.parametrize("kind", ["ghf", "gks", "dirac", "periodic", "points"])
def test_objects_that_are_not_covered(kind):
    cell = pbcgto.M(atom="H 0 0 0; H 0 0 0.74", a=np.eye(3) * 4.0, basis="sto-3g", verbose=0, precision=1e-4)
    mf = {
        "ghf": lambda: scf.GHF(molecule("methylene", "sto-3g", spin=2)),
        "gks": lambda: dft.GKS(molecule("H 0 0 0", spin=1), xc="lda,vwn"),
        "dirac": lambda: scf.DHF(molecule("He 0 0 0")),
        "periodic": lambda: pbcscf.RHF(cell),
        "points": lambda: pbcscf.KRHF(cell, cell.make_kpts([2, 1, 1])).density_fit(),
    }[kind]()
    ours = scf_accel.warm_start(mf, Oracle(coarse(dft.RKS(molecule()))))
    text = logged(ours)
    assert warnings_in(text) == 1, text
    assert not ours.warm_start_report.used and ours.warm_start_report.fallback
    assert ours.converged and abs(ours.e_tot - mf.copy().run().e_tot) < 1e-8
    assert type(ours.undo_warm_start()) is type(mf)


def test_core_potentials():
    """An all-electron density is refused by its number of electrons; one of the valence electrons is used."""
    mf = scf.RHF(molecule("Cl 0 0 0; H 0 0 1.28", basis={"Cl": "lanl2dz", "H": "sto-3g"}, ecp={"Cl": "lanl2dz"}))
    all_electron = scf.RHF(molecule("Cl 0 0 0; H 0 0 1.28", basis="sto-3g"))
    falls_back(mf, Bad(mf, lambda c: Oracle(all_electron).coefficients(all_electron.mol)), "electrons instead of 8")
    ours = scf_accel.warm_start(mf, Oracle(mf))
    assert logged(ours) == "" and ours.warm_start_report.used


def test_complex_orbitals():
    mf = scf.RHF(molecule())
    hcore = mf.get_hcore()
    field = 1e-3j * (np.triu(np.ones_like(hcore), 1) - np.tril(np.ones_like(hcore), -1))
    mf.get_hcore = lambda *args: hcore + field
    ours = scf_accel.warm_start(mf, Oracle(scf.RHF(molecule())))
    assert warnings_in(logged(ours)) == 1
    assert not ours.warm_start_report.used and abs(ours.e_tot - mf.copy().run().e_tot) < 1e-8


def test_one_warning_for_each_reason():
    mf = coarse(dft.RKS(molecule()))
    predictor = Bad(mf, rescaled)
    ours = scf_accel.warm_start(mf, predictor)
    assert warnings_in(logged(ours)) == 1
    ours.mo_coeff = None
    assert warnings_in(logged(ours)) == 0 and ours.warm_start_report.fallback
    predictor.how, ours.mo_coeff = RuntimeError("broken"), None
    assert warnings_in(logged(ours)) == 1 and "broken" in ours.warm_start_report.fallback
    assert warnings_in(logged(scf_accel.warm_start(mf, predictor))) == 1, "another object says it again"


def test_nuclear_charges_of_the_users_own():
    mol = molecule()
    mol._atm[0, 0], mol.nelectron = 6, 8
    ours = scf_accel.warm_start(scf.RHF(mol), Oracle(scf.RHF(molecule())))
    ours.init_guess = "1e"
    assert warnings_in(logged(ours)) == 1 and "nuclear charges" in ours.warm_start_report.fallback


def test_a_model_that_is_not_there():
    with pytest.raises(Exception, match="no model 'nowhere'"):
        scf_accel.warm_start(scf.RHF(molecule()), "nowhere")
    with pytest.raises(Exception, match="predicts no densities"):
        scf_accel.warm_start(scf.RHF(molecule()), 7)
    with pytest.raises(TypeError, match="not Mole"):
        scf_accel.warm_start(molecule())
    with pytest.raises(Exception, match="choose last"):
        scf_accel.warm_start(scf.RHF(molecule()), DensityPredictor(), scanner="best")
