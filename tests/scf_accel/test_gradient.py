"""scf_accel.gradient: PySCF's gradients to rounding, slopes of the weights by finite differences, what is left to PySCF."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

pytest.importorskip("pyscf")

from pyscf import df, dft, gto, lib, scf
from pyscf.dft import gen_grid, radi

import scf_accel
from scf_accel.gradient import nuclear_gradient, plugin
from scf_accel.gradient.functional import functional_gradient
from scf_accel.gradient.partition import Partition, applies

WATER = "O 0 0 0.12; H 0 0.78 -0.5; H 0.05 -0.73 -0.47"
RADICAL = "N 0 0 0.1; H 0 0.83 -0.5; H 0.1 -0.8 -0.5"


def mean_field(xc: str = "pbe", open_shell: bool = False, fitted: bool = True, cart: bool = False):
    """Two cycles of an SCF: gradients are compared term by term at any density."""
    mol = gto.M(atom=RADICAL if open_shell else WATER, spin=int(open_shell), basis="6-31g*", cart=cart, verbose=0)
    mf = (dft.UKS if open_shell else dft.RKS)(mol, xc=xc)
    mf = mf.density_fit() if fitted else mf
    mf.grids.level, mf.nlcgrids.level, mf.max_cycle = 0, 0, 2
    mf.kernel()
    return mf


def both(mf, response: bool) -> tuple[np.ndarray, np.ndarray]:
    ours, theirs = nuclear_gradient(mf), mf.nuc_grad_method()
    assert isinstance(ours, plugin._Faster) and not isinstance(theirs, plugin._Faster)
    ours.grid_response = theirs.grid_response = response
    return ours.kernel(), theirs.kernel()


@pytest.fixture
def no_fallback(monkeypatch):
    """A call of PySCF's own potential matrices is an error."""
    from pyscf.grad import rks, uks

    def used(*_, **__):
        raise AssertionError("PySCF's own exchange-correlation gradient was used")

    for module in (rks, uks):
        monkeypatch.setattr(module, "get_vxc", used)
        monkeypatch.setattr(module, "get_vxc_full_response", used)
    return used


@pytest.mark.parametrize("response", [True, False])
@pytest.mark.parametrize("fitted", [True, False])
@pytest.mark.parametrize("open_shell", [True, False])
@pytest.mark.parametrize("xc", ["pbe", "lda,vwn", "b3lyp"])
def test_pyscfs_gradient(xc, open_shell, fitted, response):
    ours, theirs = both(mean_field(xc, open_shell, fitted), response)
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


@pytest.mark.parametrize(("xc", "open_shell"), [("pbe", False), ("b3lyp", True), ("lda,vwn", False)])
def test_nothing_is_left_to_pyscf(xc, open_shell, no_fallback):
    gradient = nuclear_gradient(mean_field(xc, open_shell))
    gradient.grid_response = True
    assert np.isfinite(gradient.kernel()).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_cartesian_orbitals_and_threads(threads):
    with lib.with_omp_threads(threads):
        np.testing.assert_allclose(*both(mean_field(cart=True), True), atol=1e-9)


def test_without_the_fitting_functions_response():
    mf = mean_field()
    ours, theirs = nuclear_gradient(mf), mf.nuc_grad_method()
    ours.auxbasis_response = theirs.auxbasis_response = False
    np.testing.assert_allclose(ours.kernel(), theirs.kernel(), atol=1e-9)


@pytest.mark.parametrize("xc", ["tpss", "wb97x", "wb97m_v", "hf"])
def test_what_is_not_covered_is_pyscfs(xc):
    mf = mean_field(xc, fitted=False)
    ours, theirs = nuclear_gradient(mf), mf.nuc_grad_method()
    np.testing.assert_array_equal(ours.kernel(), theirs.kernel())
    assert not ours._covered(mf.mol)


def test_the_potential_matrices_are_pyscfs():
    mf = mean_field()
    np.testing.assert_array_equal(nuclear_gradient(mf).get_veff(), mf.nuc_grad_method().get_veff())


def test_it_can_be_pickled():
    gradient = nuclear_gradient(mean_field(fitted=False))
    gradient.base = None  # PySCF's own object of the mean field may hold what cannot be
    assert isinstance(pickle.loads(pickle.dumps(gradient)), plugin._Faster)


def test_orbitals_of_another_object():
    done = mean_field()
    mf = dft.RKS(done.mol, xc="pbe").density_fit()
    mf.grids.level = 0
    mf.mo_coeff, mf.mo_occ, mf.mo_energy, mf.converged = done.mo_coeff, done.mo_occ, done.mo_energy, True
    np.testing.assert_allclose(*both(mf, False), atol=1e-9)


def test_fitting_functions_that_are_nearly_dependent():
    mol = gto.M(atom=WATER, basis="sto-3g", verbose=0)
    mf = dft.RKS(mol, xc="lda,vwn").density_fit(auxbasis=df.aug_etb(mol, beta=1.4))
    mf.grids.level, mf.max_cycle = 0, 2
    mf.kernel()
    np.testing.assert_allclose(*both(mf, False), atol=1e-7)


def test_points_in_a_nodal_plane():
    """Values of p functions are 0 there, their slopes are not."""
    mol = gto.M(atom="O 0 0 0; H 0.76 0.6 0; H -0.76 0.6 0", basis="6-31g*", verbose=0)
    mf = dft.RKS(mol, xc="pbe")
    mf.max_cycle = 2
    mf.grids.level = 0
    mf.kernel()
    coords = np.random.default_rng(0).normal(scale=1.5, size=(gen_grid.BLKSIZE, 3))
    coords[:, 2] = 0.0
    mf.grids.coords, mf.grids.weights, mf.grids.non0tab = coords, np.ones(len(coords)), None
    np.testing.assert_allclose(*both(mf, False), atol=1e-9)


CORE = ("H 0 0 0; I 0 0 1.7", "lanl2dz", "lanl2dz")
GHOST = ("H 0 0 0; F 0 0 0.95; ghost-O 0 0.4 2.1", "6-31g", {})


@pytest.mark.parametrize(("atoms", "basis", "ecp"), [CORE, GHOST])
def test_response_is_the_slope_with_core_potentials_and_ghosts(atoms, basis, ecp):
    def run(shift: float):
        geometry = atoms.replace("H 0 0 0;", f"H 0 0 {shift:.6f};")
        mf = dft.RKS(gto.M(atom=geometry, basis=basis, ecp=ecp, verbose=0), xc="lda,vwn")
        mf = mf.density_fit()
        mf.grids.level, mf.conv_tol, mf.conv_tol_grad = 0, 1e-12, 1e-7
        return mf.run()

    step = 1e-3
    gradient = nuclear_gradient(run(0.0))
    gradient.grid_response = True
    slope = (run(step).e_tot - run(-step).e_tot) / (2 * step) * lib.param.BOHR
    assert gradient.kernel()[0, 2] == pytest.approx(slope, abs=2e-6)


def test_other_methods_keep_their_own_object():
    mol = gto.M(atom=WATER, basis="sto-3g", verbose=0)
    for method in (scf.RHF(mol), dft.ROKS(mol, xc="pbe")):
        assert type(nuclear_gradient(method.run())) is type(method.nuc_grad_method())


def test_other_grids_keep_pyscfs_response():
    mf = mean_field()
    mf.grids.becke_scheme = gen_grid.stratmann
    mf.grids.build()
    assert not applies(mf.grids)
    np.testing.assert_array_equal(*both(mf, True))
    np.testing.assert_allclose(*both(mf, False), atol=1e-9)  # a grid that stands still may be any


def test_no_net_force():
    mf = mean_field()
    mf.max_cycle = 50
    mf.run(conv_tol=1e-11)
    gradient = nuclear_gradient(mf)
    gradient.grid_response = True
    assert np.abs(gradient.kernel().sum(axis=0)).max() < 1e-8


@pytest.mark.parametrize("adjust", [radi.treutler_atomic_radii_adjust, radi.becke_atomic_radii_adjust, None])
def test_weights_are_those_of_the_grid(adjust):
    mol = gto.M(atom=WATER, basis="sto-3g", verbose=0)
    grids = gen_grid.Grids(mol)
    grids.level, grids.radii_adjust, grids.alignment = 0, adjust, 0
    grids.build(sort_grids=False)
    assert applies(grids)
    table = grids.gen_atomic_grids(mol, grids.atom_grid, grids.radi_method, grids.level, grids.prune)
    found = []
    for atom, centre in enumerate(mol.atom_coords()):
        coords, quadrature = table[mol.atom_symbol(atom)]
        found.append(Partition(grids).points(coords + centre, quadrature, atom).weights)
    np.testing.assert_allclose(np.concatenate(found), grids.weights, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("home", [0, 2])
@pytest.mark.parametrize("adjust", [radi.treutler_atomic_radii_adjust, None])
def test_slope_of_the_weights(adjust, home):
    mol = gto.M(atom=WATER, basis="sto-3g", verbose=0)
    rng = np.random.default_rng(0)
    away, quadrature, values = rng.normal(scale=1.5, size=(30, 3)), rng.random(30), rng.normal(size=30)

    def points(centres):
        moved = mol.copy().set_geom_(centres, unit="Bohr", inplace=False)
        grids = gen_grid.Grids(moved)
        grids.radii_adjust = adjust
        return Partition(grids).points(away + centres[home], quadrature, home)

    centres, step = mol.atom_coords(), 1e-5
    here = points(centres)
    slope = here.gradient(here.weights * values)
    for atom, axis in np.ndindex(3, 3):
        moved = [centres.copy() for _ in range(2)]
        moved[0][atom, axis] += step
        moved[1][atom, axis] -= step
        up, down = (points(each).weights @ values for each in moved)
        assert slope[atom, axis] == pytest.approx((up - down) / (2 * step), abs=1e-7)
    np.testing.assert_allclose(slope.sum(axis=0), 0.0, atol=1e-12)


def test_a_point_on_another_nucleus_is_no_trouble():
    mol = gto.M(atom=WATER, basis="sto-3g", verbose=0)
    here = Partition(gen_grid.Grids(mol)).points(mol.atom_coords(), np.ones(3), 0)
    assert np.isfinite(here.weights).all() and np.isfinite(here.gradient(here.weights)).all()


def test_accelerated_objects_have_it():
    mf = scf_accel.accelerate(mean_field())
    for gradient in (mf.nuc_grad_method(), mf.Gradients()):
        assert isinstance(gradient, plugin._Faster)
    scanner = scf_accel.accelerate(mean_field()).nuc_grad_method().as_scanner()
    stock = mean_field().nuc_grad_method().as_scanner()
    stock.base.max_cycle = scanner.base.max_cycle = 50
    stock.base.conv_tol = 1e-11
    moved = gto.M(atom=WATER.replace("0.78", "0.81"), basis="6-31g*", verbose=0)
    (energy, ours), (wanted, theirs) = scanner(moved), stock(moved)
    assert abs(energy - wanted) < 1e-8
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_functional_of_the_users():
    mf = mean_field()
    mf.define_xc_(lambda code, rho, *args, **kwargs: dft.libxc.eval_xc("pbe", rho, *args, **kwargs), "GGA")
    mf.kernel()
    theirs = mf.nuc_grad_method()
    theirs.grid_response = True
    ours = nuclear_gradient(mf)
    ours.grid_response = True
    np.testing.assert_allclose(ours.kernel(), theirs.kernel(), atol=1e-9)


def test_functional_part_alone_of_a_still_grid():
    mf = mean_field("lda,vwn")
    dm, step = mf.make_rdm1(), 1e-4
    slope = functional_gradient(mf, mf.grids, dm[None], response=False)

    def energy(shift: float) -> float:
        """The orbitals of the first hydrogen move, the points do not."""
        centres = mf.mol.atom_coords()
        centres[1, 1] += shift
        mol = mf.mol.set_geom_(centres, unit="Bohr", inplace=False)
        grids = gen_grid.Grids(mol)
        grids.coords, grids.weights = mf.grids.coords, mf.grids.weights
        return mf._numint.nr_rks(mol, grids, mf.xc, dm)[1]

    assert slope[1, 1] == pytest.approx((energy(step) - energy(-step)) / (2 * step), abs=1e-6)
