"""Small molecules, and the law that most tests of the multilevel solver state: the same result as stock PySCF."""

from __future__ import annotations

from typing import Any

import numpy as np
from pyscf import gto
from small_molecules import molecule

import scf_accel

ENERGY = 1e-8  # Hartree
ORBITAL_ENERGY = 3e-5  # Hartree; linear in the orbital gradient, whose threshold is 3e-5
DENSITY = 1e-4  # elements of the density matrix in the symmetrically orthogonalised basis


def radical(basis: Any = "6-31g", **keywords: Any) -> gto.Mole:
    """Triplet methylene: open shells without the degeneracy of a linear radical."""
    return molecule("methylene", basis, spin=2, **keywords)


def coarse_grid(mf: Any, level: int = 0) -> Any:
    """``mf`` with a grid small enough for a test."""
    if hasattr(mf, "grids"):
        mf.grids.level = level
    if hasattr(mf, "nlcgrids"):
        mf.nlcgrids.level = 0
    return mf


def accelerate(mf: Any, **settings: Any) -> Any:
    """With the solver switched on where stock PySCF would be as fast, too: the molecules here are small."""
    return scf_accel.accelerate(mf, **{"always": True, **settings})


def tight(mf: Any) -> Any:
    """A copy of ``mf`` that stock PySCF has converged to 1e-11 Hartree."""
    stock = mf.copy()
    stock.conv_tol, stock.max_cycle = 1e-11, 200
    stock.kernel()
    assert stock.converged, "stock PySCF does not converge: choose another case"
    return stock


def same_result(ours: Any, stock: Any) -> None:
    """Energy, orbital energies, occupations and density agree."""
    assert ours.converged
    assert abs(ours.e_tot - stock.e_tot) < ENERGY
    np.testing.assert_allclose(np.sort(ours.mo_energy), np.sort(stock.mo_energy), atol=ORBITAL_ENERGY)
    np.testing.assert_allclose(np.sort(ours.mo_occ), np.sort(stock.mo_occ), atol=DENSITY)
    values, vectors = np.linalg.eigh(stock.get_ovlp())
    half = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    difference = half @ (np.asarray(ours.make_rdm1()) - np.asarray(stock.make_rdm1())) @ half
    np.testing.assert_allclose(difference, 0.0, atol=DENSITY)


def gradient_of(mf: Any) -> float:
    """Norm of the orbital gradient of a finished calculation, from a Fock matrix made anew."""
    dm = mf.make_rdm1()
    fock = mf.get_fock(mf.get_hcore(), mf.get_ovlp(), mf.get_veff(mf.mol, dm), dm)
    return float(np.linalg.norm(mf.get_grad(mf.mo_coeff, mf.mo_occ, fock)))


def agree(mf: Any, **settings: Any) -> Any:
    """Accelerate ``mf``, run, compare with stock PySCF; returns the accelerated object."""
    stock = tight(mf)
    ours = accelerate(mf, **settings).run()
    assert ours.multilevel_report.fallback is None, ours.multilevel_report.fallback
    assert ours.cycles == ours.multilevel_report.fine_builds
    same_result(ours, stock)
    threshold = np.sqrt(mf.conv_tol) if mf.conv_tol_grad is None else mf.conv_tol_grad
    assert gradient_of(ours) < 3 * threshold  # PySCF's own tolerance for the check after its last cycle
    return ours
