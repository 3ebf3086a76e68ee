"""Coulomb and exchange matrices of the coarse model equal PySCF's density fitting."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import radical, tight
from pyscf import df, scf
from small_molecules import molecule

from scf_accel.multilevel import fittedjk
from scf_accel.multilevel.fittedjk import FullFit, PackedFit, square, three_index

AUXBASIS = "def2-universal-jkfit"
PRECISION = [(np.float64, 1e-10), (np.float32, 2e-5)]


@pytest.fixture(scope="module")
def orbitals():
    """Triplet methylene: molecule, alpha and beta orbitals ``[nao, n]``."""
    mf = tight(scf.UHF(radical("6-31g*")))
    return mf.mol, [c[:, n > 0] for c, n in zip(mf.mo_coeff, mf.mo_occ, strict=True)]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISION)
@pytest.mark.parametrize("omega", [0.0, 0.3, -0.3])
@pytest.mark.parametrize("kind", [PackedFit, FullFit])
def test_coulomb_and_exchange(orbitals, kind, omega, dtype, tolerance):
    mol, occupied = orbitals
    if omega > 0:  # a nearly singular metric: near-zero eigenvalues are dropped or not
        tolerance = max(tolerance, 1e-7)
    fit = kind(three_index(mol, AUXBASIS, omega, dtype), mol.nao, dtype)
    assert fit.integrals.dtype == dtype
    dms = np.stack([c @ c.T for c in occupied])
    coulomb, exchange = df.DF(mol, AUXBASIS).get_jk(dms, omega=omega or None)
    for dm, c, vj, vk in zip(dms, occupied, coulomb, exchange, strict=True):
        if kind is PackedFit:
            np.testing.assert_allclose(fit.coulomb(dm), vj, atol=tolerance * np.abs(vj).max() * 10)
        np.testing.assert_allclose(fit.exchange(c), vk, atol=tolerance * np.abs(vk).max() * 10)


def test_ranges_add_up_to_the_whole_operator(orbitals):
    """Long range and short range, each with a large fitting basis, add up to the Coulomb operator's exchange."""
    mol, occupied = orbitals
    whole, short, long = (
        FullFit(three_index(mol, AUXBASIS, omega, np.float64), mol.nao, np.float64).exchange(occupied[0])
        for omega in (0.0, -0.4, 0.4)
    )
    np.testing.assert_allclose(short + long, whole, atol=2e-3)


@pytest.mark.parametrize("kind", [PackedFit, FullFit])
def test_chunks_do_not_change_the_result(orbitals, kind, monkeypatch):
    mol, occupied = orbitals
    wanted_integrals = three_index(mol, AUXBASIS, 0.0, np.float64)
    wanted = kind(wanted_integrals, mol.nao, np.float64).exchange(occupied[0])
    monkeypatch.setattr(fittedjk, "CHUNK_BYTES", 2e4)
    assert len(fittedjk._shell_blocks(mol, len(wanted_integrals))) > 3
    integrals = three_index(mol, AUXBASIS, 0.0, np.float64)
    np.testing.assert_allclose(integrals, wanted_integrals, atol=1e-12)
    np.testing.assert_allclose(kind(integrals, mol.nao, np.float64).exchange(occupied[0]), wanted, atol=1e-11)


def test_integrals_equal_stock(orbitals):
    mol, _ = orbitals
    np.testing.assert_allclose(
        three_index(mol, AUXBASIS, 0.0, np.float64), df.incore.cholesky_eri(mol, auxbasis=AUXBASIS), atol=1e-10
    )


@pytest.mark.parametrize("kind", [PackedFit, FullFit])
def test_no_electrons(orbitals, kind):
    mol, _ = orbitals
    fit = kind(three_index(mol, AUXBASIS), mol.nao)
    assert not fit.exchange(np.zeros((mol.nao, 0))).any()


def test_dependent_fitting_functions():
    """A fitting basis that counts every function twice spans the same space: the same matrices."""
    mol = molecule("hydrogen")
    ghosts = molecule("H 0 0 0; H 0 0.1 0.74; ghost-H 0 0 0; ghost-H 0 0.1 0.74", {"H": "6-31g", "ghost-H": [[0, [1.0, 1.0]]]})
    assert ghosts.natm == 4
    auxbasis = {"H": "weigend", "ghost-H": "weigend"}
    wanted = three_index(mol, "weigend", 0.0, np.float64)
    auxmol = df.addons.make_auxmol(ghosts, auxbasis)
    assert np.linalg.eigvalsh(auxmol.intor("int2c2e")).min() < 1e-10
    got = three_index(ghosts, auxbasis, 0.0, np.float64)
    pairs = mol.nao * (mol.nao + 1) // 2
    np.testing.assert_allclose(got[:, :pairs].T @ got[:, :pairs], wanted.T @ wanted, atol=1e-7)


@pytest.mark.parametrize("kind", [PackedFit, FullFit])
def test_cartesian_functions(kind):
    mol = molecule(basis="6-31g*", cart=True)
    c = np.random.default_rng(0).normal(size=(mol.nao, 3))
    fit = kind(three_index(mol, AUXBASIS, 0.0, np.float64), mol.nao, np.float64)
    vj, vk = df.DF(mol, AUXBASIS).get_jk(c @ c.T)
    if kind is PackedFit:
        np.testing.assert_allclose(fit.coulomb(c @ c.T), vj, atol=1e-8)
    np.testing.assert_allclose(fit.exchange(c), vk, atol=1e-8)


def test_squares_in_single_precision_add_up_in_double():
    """The error of a long sum is that of its short parts: well below that of one product in single precision."""
    half = np.random.default_rng(0).normal(size=(40, 40_000)).astype(np.float32)
    exact = half.astype(np.float64) @ half.T.astype(np.float64)
    ours, plain = (np.linalg.norm(np.triu(product - exact, 1)) for product in (square(half), half @ half.T))
    assert ours < 0.5 * plain
    np.testing.assert_allclose(square(half), exact, atol=2e-6 * exact.max())
