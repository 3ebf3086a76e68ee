"""Densities and potential matrices from kept orbital values equal PySCF's own."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import radical
from pyscf import dft, lib
from small_molecules import molecule

from scf_accel.gridorbitals import BLOCK, VARIABLES, GridOrbitals
from scf_accel.storednumint import StoredNumInt, evaluate

FUNCTIONAL = {"LDA": "lda,vwn", "GGA": "pbe", "MGGA": "tpss"}
KINDS = ["LDA", "GGA", "MGGA"]


def grid_of(mol, level=0):
    grids = dft.Grids(mol)
    grids.level = level
    return grids.build(with_non0tab=True)


def density_matrices(mol, sets):
    """Random symmetric matrices on top of a guess, so that the density stays positive."""
    guess = dft.RKS(mol).get_init_guess() / sets
    extra = np.random.default_rng(0).normal(scale=0.01, size=(sets, mol.nao, mol.nao))
    return guess + extra + extra.transpose(0, 2, 1)


def stock_density(mol, grids, dm, kind):
    ao = dft.numint.eval_ao(mol, grids.coords, deriv=0 if kind == "LDA" else 1)
    rho = dft.numint.eval_rho(mol, ao, dm, xctype=kind, hermi=1, with_lapl=False)
    return rho.reshape(VARIABLES[kind], -1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-5)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cart", [False, True])
def test_density(kind, dtype, tolerance, cart):
    mol = molecule("formaldehyde", "6-31g*", cart=cart)
    grids, dms = grid_of(mol, 1), density_matrices(mol, 2)
    assert len(grids.weights) > 2 * BLOCK
    rho = GridOrbitals(mol, grids, kind, dtype).density(dms)
    for got, dm in zip(rho, dms, strict=True):
        wanted = stock_density(mol, grids, dm, kind)
        scale = np.abs(wanted) + np.abs(wanted).max(axis=1, keepdims=True) * (1e-3 if dtype is np.float32 else 1.0)
        assert np.abs((got - wanted) / scale).max() < tolerance * (10 if dtype is np.float32 else 1)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("sets", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_matrix(kind, sets, dtype):
    mol = molecule("formaldehyde", "6-31g*")
    grids, dms, ni = grid_of(mol), density_matrices(mol, sets), dft.numint.NumInt()
    if sets == 1:
        wanted = ni.nr_rks(mol, grids, FUNCTIONAL[kind], dms[0])[2][None]
    else:
        wanted = ni.nr_uks(mol, grids, FUNCTIONAL[kind], dms)[2]
    exact = GridOrbitals(mol, grids, kind, np.float64)
    potential = evaluate(ni, FUNCTIONAL[kind], kind, exact.density(dms))[1]
    got = GridOrbitals(mol, grids, kind, dtype).matrix(potential)
    np.testing.assert_allclose(got, wanted, atol=1e-10 if dtype is np.float64 else 1e-4 * np.abs(wanted).max())
    np.testing.assert_allclose(got, got.transpose(0, 2, 1), atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_matrix_is_the_derivative_of_the_linear_functional(kind):
    """``tr V[v] D = sum_g w v . rho[D]``: the two operations are adjoint."""
    mol = molecule()
    grids, dms = grid_of(mol), density_matrices(mol, 2)
    potential = np.random.default_rng(1).normal(size=(2, VARIABLES[kind], len(grids.weights)))
    store = GridOrbitals(mol, grids, kind, np.float64)
    left = np.einsum("smn,snm->", store.matrix(potential), dms)
    right = np.einsum("svg,svg,g->", potential, store.density(dms), grids.weights)
    assert left == pytest.approx(right, rel=1e-11)


@pytest.mark.parametrize("share", [0.0, 0.5, 10.0])
def test_blocks_beyond_the_memory_are_computed_again(share):
    mol = molecule("formaldehyde")
    grids, dms = grid_of(mol, 1), density_matrices(mol, 1)
    full = GridOrbitals(mol, grids, "GGA", np.float64)
    wanted = full.density(dms)
    store = GridOrbitals(mol, grids, "GGA", np.float64, max_bytes=share * full.bytes)
    for _ in range(2):
        np.testing.assert_array_equal(store.density(dms), wanted)
    assert store.bytes <= share * full.bytes
    assert (store.bytes == 0) == (share == 0.0) and (store.bytes == full.bytes) == (share > 1.0)


def test_far_orbitals_are_left_out():
    mol = molecule("; ".join(f"He 0 0 {6 * i}" for i in range(8)))
    grids = grid_of(mol, 1)
    store, all_kept = (GridOrbitals(mol, grids, "GGA", np.float64, threshold=t) for t in (1e-6, -1.0))
    dms = density_matrices(mol, 1)
    np.testing.assert_allclose(all_kept.density(dms)[0], stock_density(mol, grids, dms[0], "GGA"), atol=1e-10)
    np.testing.assert_allclose(store.density(dms), all_kept.density(dms), atol=1e-4)
    assert 0 < store.bytes < 0.9 * all_kept.bytes


def test_threads_do_not_change_the_result():
    mol = molecule("formaldehyde")
    grids, dms = grid_of(mol, 1), density_matrices(mol, 1)
    results = []
    for threads in (1, 2):
        with lib.with_omp_threads(threads):
            store = GridOrbitals(mol, grids, "GGA", np.float64)
            results.append(store.matrix(store.density(dms)))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("method", [dft.RKS, dft.UKS, dft.ROKS])
@pytest.mark.parametrize("xc", ["lda,vwn", "pbe", "tpss", "wb97m-v"])
def test_stored_integrator(method, xc):
    mf = method(molecule() if method is dft.RKS else radical(), xc=xc)
    mf.grids.level = mf.nlcgrids.level = 0
    dm = mf.get_init_guess()
    mf.get_veff(mf.mol, dm)  # removes the grid points without density, once
    if mf.do_nlc():
        mf.nlcgrids.build()
    wanted = mf.get_veff(mf.mol, dm)
    mf._numint = StoredNumInt()
    for _ in range(2):
        got = mf.get_veff(mf.mol, dm)
        assert abs(got.exc - wanted.exc) < 1e-9 and abs(got.ecoul - wanted.ecoul) < 1e-9
        np.testing.assert_allclose(got, wanted, atol=1e-9)


def test_stored_integrator_leaves_other_requests_to_stock():
    mol = radical()
    grids, dms, stock, stored = grid_of(mol), density_matrices(mol, 1), dft.numint.NumInt(), StoredNumInt()
    dms = np.concatenate([dms, 1.1 * dms, 0.9 * dms])
    for keywords in ({"hermi": 0}, {"hermi": 1}):
        for dm in (dms, dms[:1], list(dms[:2]), dms[0] + 0j):
            try:
                wanted = stock.nr_rks(mol, grids, "pbe", dm, **keywords)
            except Exception as error:
                with pytest.raises(type(error)):
                    stored.nr_rks(mol, grids, "pbe", dm, **keywords)
                continue
            got = stored.nr_rks(mol, grids, "pbe", dm, **keywords)
            for a, b in zip(got, wanted, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-9)
    several = np.stack([dms[:2], dms[1:3]], axis=1)  # [spin, densities, nao, nao]
    for a, b in zip(stored.nr_uks(mol, grids, "pbe", several), stock.nr_uks(mol, grids, "pbe", several), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_stored_integrator_notices_a_new_grid_molecule_or_kind():
    stored, stock = StoredNumInt(), dft.numint.NumInt()
    for mol in (molecule(), molecule("formaldehyde")):
        dm = density_matrices(mol, 1)[0]
        grids = grid_of(mol)
        for xc in ("lda,vwn", "pbe", "tpss", "lda,vwn"):
            np.testing.assert_allclose(stored.nr_rks(mol, grids, xc, dm)[2], stock.nr_rks(mol, grids, xc, dm)[2], atol=1e-9)
        grids.level = 1
        grids.build(with_non0tab=True)
        np.testing.assert_allclose(stored.nr_rks(mol, grids, "pbe", dm)[2], stock.nr_rks(mol, grids, "pbe", dm)[2], atol=1e-9)
        mol.set_geom_(mol.atom_coords() * 1.05, unit="Bohr")
        grids.reset(mol).build(with_non0tab=True)
        np.testing.assert_allclose(stored.nr_rks(mol, grids, "pbe", dm)[2], stock.nr_rks(mol, grids, "pbe", dm)[2], atol=1e-9)


def test_electrons_are_counted():
    mol = molecule()
    grids, dm = grid_of(mol, 3), dft.RKS(mol).get_init_guess()
    electrons, energy, matrix = StoredNumInt().nr_rks(mol, grids, "pbe", dm)
    assert electrons == pytest.approx(np.einsum("mn,nm->", dm, mol.intor("int1e_ovlp")), abs=1e-3)
    assert energy < 0 and matrix.shape == dm.shape
