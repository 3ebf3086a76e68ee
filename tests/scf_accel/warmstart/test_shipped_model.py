"""The model in the package: what it is, and that a warm start works out of the box."""

from __future__ import annotations

import numpy as np
from pyscf import dft
from small_molecules import molecule

import scf_accel
from mlip.checkpoint import read_header, shipped_models
from scf_accel.auxbasis import make_auxmol
from scf_accel.fitting import fit_density
from scf_accel.predictor import DEFAULT_MODEL, as_predictor

FORMALDOXIME = "C -1.06 -0.17 0; N 0.12 0.36 0; O 1.08 -0.69 0; H -1.19 -1.25 0; H -1.92 0.50 0; H 1.92 -0.21 0"


def plain(geometry: str = FORMALDOXIME):
    """A molecule that is in none of the training sets; grid and basis of a test."""
    mf = dft.RKS(molecule(geometry, "def2-svp"), xc="pbe").density_fit()
    mf.grids.level = 0
    return mf


def test_its_file_says_what_it_is():
    path = shipped_models()[DEFAULT_MODEL]
    about = read_header(path)["metadata"]
    assert path.stat().st_size < 20e6
    assert about["level_of_theory"]["xc"] == "pbe" and "densities.h5" in about["training_data"]["file"]
    assert about["errors"]["valid"]["density_coulomb"]["mae"] < 0.02  # mHa an electron, molecules held out


def test_fewer_cycles_and_the_same_energy():
    stock, ours = plain().run(), scf_accel.warm_start(plain()).run()
    assert ours.warm_start_report.used and ours.warm_start_report.model == DEFAULT_MODEL
    assert abs(ours.e_tot - stock.e_tot) < 1e-8 and ours.converged
    assert ours.cycles <= stock.cycles - 3


def test_the_density_is_near_that_of_pyscf():
    mf = plain().run()
    auxmol = make_auxmol(mf.mol, "def2-universal-jfit")
    exact = fit_density(mf.mol, auxmol, mf.make_rdm1())
    change = as_predictor().coefficients(mf.mol) - exact
    metric = auxmol.intor("int2c2e")
    assert change @ metric @ change / mf.mol.nelectron < 0.03e-3
    flat = np.abs(exact).mean()
    assert np.abs(change).mean() < 0.1 * flat


def test_elements_outside_of_it_start_as_ever():
    mf = scf_accel.warm_start(plain("Br 0 0 0; H 0 0 1.41"))
    mf.verbose = 0
    assert "not trained on Br" in as_predictor().refusal(mf.mol)
    np.testing.assert_array_equal(mf.get_init_guess(), mf.undo_warm_start().get_init_guess())
