"""Laws of the coarse model, of the extrapolation over anchors, and of the estimate of the energy that is left."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from agreement import coarse_grid, radical, tight
from pyscf import dft, lib, scf
from small_molecules import molecule

from scf_accel.multilevel import Settings
from scf_accel.multilevel.anchors import HISTORY, Anchor, Anchors
from scf_accel.multilevel.coarse import CoarseModel, CoarseModelError, determinant, exchange_terms, factors, occupied
from scf_accel.multilevel.convergence import energy_left, fractional

METHODS = {
    "rhf": lambda: scf.RHF(molecule()),
    "uhf": lambda: scf.UHF(radical()),
    "rks": lambda: dft.RKS(molecule(), xc="pbe"),
    "meta": lambda: dft.UKS(radical(), xc="tpss"),
    "hybrid": lambda: dft.UKS(radical(), xc="b3lyp"),
    "short": lambda: dft.RKS(molecule(), xc="hse06"),
    "long": lambda: dft.RKS(molecule(), xc="camb3lyp"),
    "local": lambda: dft.ROKS(radical(), xc="lda,vwn"),
    "fitted": lambda: dft.RKS(molecule(), xc="pbe0").density_fit(),
}


def determinants(mf, count=3):
    """Orbitals of determinants near the converged one: ``(dms[sets, nao, nao], orbitals)``."""
    mf = coarse_grid(mf).run(conv_tol=1e-6)
    sets = 1 if np.ndim(mf.make_rdm1()) == 2 else 2
    generator, out = np.random.default_rng(3), []
    for _ in range(count):
        turn = generator.normal(scale=0.02, size=(mf.mo_coeff.shape[-1],) * 2)
        c = np.asarray(mf.mo_coeff) @ scipy.linalg.expm(turn - turn.T)
        orbitals = occupied(c, mf.mo_occ, sets)
        out.append((np.stack([o @ o.T for o in orbitals]), orbitals))
    return mf, out


@pytest.mark.parametrize("name", METHODS)
def test_increments(name):
    mf, points = determinants(METHODS[name]())
    model = CoarseModel(mf, Settings(), 1e9, np.float64)
    dms = [point[0] for point in points]
    exchange = [model.exchange(point[1]) for point in points]
    references = [model.reference(d, x) for d, x in zip(dms, exchange, strict=True)]
    np.testing.assert_allclose(model.increment(dms[0], exchange[0], references[0]), 0.0, atol=1e-12)
    one, two, both = (model.increment(dms[a], exchange[a], references[b]) for a, b in ((1, 0), (2, 1), (2, 0)))
    np.testing.assert_allclose(one + two, both, atol=1e-9)
    np.testing.assert_allclose(model.increment(dms[0], exchange[0], references[1]), -one, atol=1e-9)
    whole = model.increment(dms[1], exchange[1], None) - model.increment(dms[0], exchange[0], None)
    np.testing.assert_allclose(whole, one, atol=1e-9)
    np.testing.assert_allclose(both, both.transpose(0, 2, 1), atol=1e-12)


@pytest.mark.parametrize("name", ["rhf", "rks", "hybrid", "short", "local"])
def test_increments_resemble_those_of_the_full_operator(name):
    mf, points = determinants(METHODS[name](), 2)
    model = CoarseModel(mf, Settings(), 1e9)
    (first, c_first), (second, c_second) = points
    coarse = model.increment(second, model.exchange(c_second), model.reference(first, model.exchange(c_first)))
    shape = np.shape(mf.make_rdm1())
    full = (mf.get_veff(mf.mol, second.reshape(shape)) - mf.get_veff(mf.mol, first.reshape(shape))).reshape(coarse.shape)
    assert np.linalg.norm(coarse - full) < 0.02 * np.linalg.norm(full)


@pytest.mark.parametrize("name", ["uhf", "rks", "meta", "long"])
def test_single_precision_is_relative_to_the_increment(name):
    mf, points = determinants(METHODS[name](), 2)
    models = [CoarseModel(mf, Settings(), 1e9, dtype) for dtype in (np.float32, np.float64)]
    (first, c_first), (second, c_second) = points
    for size in (1.0, 1e-3):
        near, c_near = first + size * (second - first), None
        got = []
        for model in models:
            x_first = model.exchange(c_first)
            x_near = None if x_first is None else x_first + size * (model.exchange(c_second) - x_first)
            got.append(model.increment(near, x_near, model.reference(first, x_first)))
        assert c_near is None and np.abs(got[0] - got[1]).max() < 3e-5 * np.abs(got[1]).max() + 2e-7


def test_restricted_equals_unrestricted():
    restricted, unrestricted = (coarse_grid(method(molecule(), xc="pbe0")) for method in (dft.RKS, dft.UKS))
    mf, points = determinants(restricted, 2)
    potentials = []
    for mean_field, sets in ((mf, 1), (unrestricted, 2)):
        model = CoarseModel(mean_field, Settings(), 1e9, np.float64)
        dms = [np.repeat(point[0] / sets, sets, axis=0) for point in points]
        exchange = [model.exchange([point[1][0] / np.sqrt(sets)] * sets) for point in points]
        potentials.append(model.increment(dms[1], exchange[1], model.reference(dms[0], exchange[0])))
    np.testing.assert_allclose(potentials[1], np.repeat(potentials[0], 2, axis=0), atol=1e-9)


@pytest.mark.parametrize("xc", ["pbe", "b3lyp", "hse06", "camb3lyp", "LC_WPBE", "wb97x", "hf"])
def test_exact_exchange_terms(xc):
    """``sum factor K(omega)`` is the exchange in the functional's own potential: the difference to the same without it."""
    mf = coarse_grid(dft.RKS(molecule(), xc=xc))
    dm = mf.get_init_guess()
    expected = np.zeros_like(dm)
    for factor, omega in exchange_terms(mf):
        expected += factor * mf.get_k(mf.mol, dm, omega=omega)
    vxc = mf.get_veff(mf.mol, dm) - mf.get_j(mf.mol, dm)
    semilocal = mf._numint.nr_rks(mf.mol, mf.grids, xc, dm)[2]
    np.testing.assert_allclose(vxc, semilocal - 0.5 * expected, atol=1e-9)
    assert len(exchange_terms(mf)) == {"pbe": 0, "camb3lyp": 2, "wb97x": 2}.get(xc, 1)


def test_memory_limit_is_named():
    with pytest.raises(CoarseModelError, match=r"mf\.max_memory"):
        CoarseModel(coarse_grid(dft.RKS(molecule())), Settings(), 1e3)


@pytest.mark.parametrize("grid", [(20, 50), 0, 1])
def test_grid_setting(grid):
    model = CoarseModel(coarse_grid(dft.RKS(molecule())), Settings(grid=grid), 1e9)
    assert 1000 < model.orbitals.points < 30000


@pytest.mark.parametrize("sets", [1, 2])
def test_density_matrices_are_taken_apart(sets):
    mf = tight(scf.UHF(radical()) if sets == 2 else scf.RHF(molecule()))
    s = mf.get_ovlp()
    half = scipy.linalg.sqrtm(s).real
    inverse = np.linalg.inv(half)
    dms = np.asarray(mf.make_rdm1()).reshape(sets, mf.mol.nao, -1)
    for c, dm in zip(factors(dms, half, inverse), dms, strict=True):
        np.testing.assert_allclose(c @ c.T, dm, atol=1e-10)
    coefficients, occupations = determinant(dms, half, inverse)
    np.testing.assert_allclose(np.einsum("spi,si,sqi->spq", coefficients, occupations, coefficients), dms, atol=1e-10)
    np.testing.assert_allclose(
        coefficients.transpose(0, 2, 1) @ s @ coefficients, np.stack([np.eye(mf.mol.nao)] * sets), atol=1e-10
    )
    assert determinant(0.99 * dms, half, inverse) is None


def test_occupied_orbitals_of_a_restricted_open_shell():
    mf = tight(scf.ROHF(radical()))
    for c, dm in zip(occupied(mf.mo_coeff, mf.mo_occ, 2), mf.make_rdm1(), strict=True):
        np.testing.assert_allclose(c @ c.T, dm, atol=1e-12)


def anchor(residual, value=0.0):
    matrix = np.full((1, 2, 2), value)
    return Anchor(matrix, 2 * matrix, None, np.asarray(residual, dtype=float))


def test_one_anchor_stands_for_itself():
    anchors = Anchors()
    anchors.add(anchor([1.0, 2.0], 3.0))
    assert anchors.weights().tolist() == [1.0]
    combined = anchors.extrapolate()
    np.testing.assert_array_equal(combined.dms, anchors.points[0].dms)
    assert combined.exchange is None


def test_linear_residuals_are_solved_exactly():
    """Residuals ``A (x - x*)`` in n dimensions vanish at the combination of n + 1 points."""
    generator = np.random.default_rng(0)
    matrix, solution = generator.normal(size=(3, 3)), generator.normal(size=3)
    points, anchors = solution + generator.normal(size=(4, 3)), Anchors()
    for x in points:
        block = np.zeros((1, 2, 2))
        block[0, 0], block[0, 1, 0] = x[:2], x[2]
        anchors.add(Anchor(block, 5.0 * block, -block, matrix @ (x - solution)))
    weights, combined = anchors.weights(), anchors.extrapolate()
    assert weights.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(combined.residual, 0.0, atol=1e-9)
    np.testing.assert_allclose([*combined.dms[0, 0], combined.dms[0, 1, 0]], solution, atol=1e-9)
    np.testing.assert_allclose(combined.potential, 5.0 * combined.dms)
    np.testing.assert_allclose(combined.exchange, -combined.dms)


def test_extrapolation_never_enlarges_the_residual():
    generator, anchors = np.random.default_rng(5), Anchors()
    for scale in (1.0, 0.1, 1e-3, 1e-4, 1e-6, 1e-8):
        anchors.add(anchor(scale * generator.normal(size=30)))
        assert np.linalg.norm(anchors.extrapolate().residual) <= np.linalg.norm(anchors.points[-1].residual) * (1 + 1e-6)
    assert len(anchors.points) == HISTORY


@pytest.mark.parametrize("bad", [[0.0, 0.0], [1.0, 1.0], [np.nan, 1.0], [1e-200, 0.0]])
def test_ill_posed_residuals(bad):
    anchors = Anchors()
    anchors.add(anchor([1.0, 1.0]))
    if np.all(np.isfinite(bad)):
        anchors.add(anchor(bad))
        anchors.add(anchor(bad))
        weights = anchors.weights()
        assert np.isfinite(weights).all() and weights.sum() == pytest.approx(1.0)


ROTATED = {
    "rhf": lambda: scf.RHF(molecule()),
    "uhf": lambda: scf.UHF(radical()),
    "rohf": lambda: scf.ROHF(radical()),
    "rks": lambda: dft.RKS(molecule(), xc="pbe"),
    "uks": lambda: dft.UKS(radical(), xc="pbe"),
    "roks": lambda: dft.ROKS(radical(), xc="pbe0"),
}


@pytest.mark.parametrize("name", ROTATED)
def test_energy_left(name, size=3e-3):
    """The estimate at a slightly rotated determinant is the true excess energy within a factor of 3."""
    mf = tight(coarse_grid(ROTATED[name]()))
    generator = np.random.default_rng(7)
    for _ in range(3):
        shape = np.shape(mf.mo_coeff)
        turn = generator.normal(scale=size, size=(*shape[:-2], shape[-1], shape[-1]))
        turn = scipy.linalg.expm(turn - turn.swapaxes(-1, -2))
        c = np.asarray(mf.mo_coeff) @ turn
        dm = mf.make_rdm1(c, np.asarray(mf.mo_occ))
        vhf = mf.get_veff(mf.mol, dm)
        excess = mf.energy_tot(dm, None, vhf) - mf.e_tot
        fock = mf.get_fock(mf.get_hcore(), mf.get_ovlp(), vhf, dm)
        estimate = energy_left(mf, c, mf.mo_occ, fock, mf.get_grad(c, mf.mo_occ, fock))
        assert 1 / 3 < estimate / excess < 3


def test_energy_left_of_the_stationary_point_and_of_fractions():
    mf = tight(scf.RHF(molecule()))
    fock = mf.get_fock()
    gradient = mf.get_grad(mf.mo_coeff, mf.mo_occ, fock)
    assert 0 <= energy_left(mf, mf.mo_coeff, mf.mo_occ, fock, gradient) < 1e-11
    occupations = np.array(mf.mo_occ)
    assert not fractional(occupations) and not fractional(lib.tag_array(occupations, kind="tagged"))
    occupations[4:6] = 1.5, 0.5
    assert fractional(occupations)
    assert np.isnan(energy_left(mf, mf.mo_coeff, occupations, fock, gradient))


def test_energy_left_with_point_group_symmetry_is_an_upper_bound():
    mol = molecule("O 0 0 0.12; H 0 0.76 -0.47; H 0 -0.76 -0.47", symmetry=True)
    mf = scf.RHF(mol)
    mf.max_cycle = 3
    mf.kernel()
    dm = mf.make_rdm1()
    fock = mf.get_fock(dm=dm)
    estimate = energy_left(mf, mf.mo_coeff, mf.mo_occ, fock, mf.get_grad(mf.mo_coeff, mf.mo_occ, fock))
    assert estimate > 0.3 * (mf.energy_tot(dm) - tight(scf.RHF(mol)).e_tot)
