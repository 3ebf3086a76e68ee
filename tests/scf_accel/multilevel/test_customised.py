"""What PySCF users do to their objects: other occupations, other integrals, other Hamiltonians. Same result as stock."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import accelerate, agree, coarse_grid, radical, tight
from pyscf import ao2mo, df, dft, gto, scf, sgx
from pyscf.dft import rkspu, ukspu
from small_molecules import molecule

import scf_accel


def hybrid(method=dft.RKS):
    return coarse_grid(method(molecule(basis="sto-3g") if method is dft.RKS else radical("sto-3g"), xc="pbe0"))


def test_maximum_overlap_with_an_excited_state():
    ground = coarse_grid(dft.UKS(molecule(), xc="pbe")).run()
    occupations = ground.mo_occ.copy()
    occupations[0, 4:6] = 0, 1
    excited = scf.addons.mom_occ(coarse_grid(dft.UKS(molecule(), xc="pbe")), ground.mo_coeff, occupations)
    dm = excited.make_rdm1(ground.mo_coeff, occupations)
    stock, ours = excited.copy(), accelerate(excited)
    stock.kernel(dm), ours.kernel(dm)
    assert ours.converged and ours.multilevel_report.fallback is None
    assert ours.e_tot > ground.e_tot + 0.1
    assert abs(ours.e_tot - stock.e_tot) < 1e-7


def test_other_occupations():
    agree(scf.addons.float_occ(scf.UHF(radical("sto-3g"))))
    agree(scf.addons.dynamic_occ(scf.RHF(molecule())))


@pytest.mark.parametrize("kind", [rkspu.RKSpU, ukspu.UKSpU])
def test_hubbard_correction(kind):
    agree(coarse_grid(kind(molecule(), xc="pbe", U_idx=["O 2p"], U_val=[5.0])))


def test_seminumerical_exchange():
    mf = sgx.sgx_fit(hybrid())
    stock, ours = mf.copy().run(), accelerate(mf).run()
    assert ours.converged and ours.multilevel_report.fallback is None
    assert abs(ours.e_tot - stock.e_tot) < 1e-6  # its own grids change between cycles


def test_fitted_integrals_on_disk(tmp_path):
    fitting = df.DF(molecule(basis="sto-3g"), "weigend")
    fitting._cderi_to_save = str(tmp_path / "integrals.h5")
    fitting.max_memory = 0
    fitting.build()
    mf = hybrid().density_fit()
    mf.with_df._cderi = fitting._cderi_to_save
    agree(mf)


def test_fitted_integrals_are_shared_and_survive():
    mf = hybrid().density_fit().run()
    integrals = mf.with_df._cderi
    ours = accelerate(mf)
    ours.mo_coeff = None
    ours.run()
    assert ours.with_df._cderi is integrals


def test_users_own_grid():
    mf = coarse_grid(dft.RKS(molecule(), xc="pbe"))
    points = mf.grids.copy().build()
    mf.grids.coords, mf.grids.weights = points.coords[:-7].copy(), points.weights[:-7].copy()
    mf.grids.non0tab = None
    agree(mf)


def test_model_hamiltonian():
    """Hubbard chain: no atoms, no basis, the user's own integrals."""
    size = 6
    mol = gto.M(verbose=0)
    mol.nelectron, mol.incore_anyway = size, True
    mf = scf.RHF(mol)
    hopping = -np.eye(size, k=1) - np.eye(size, k=-1)
    repulsion = np.zeros((size,) * 4)
    repulsion[(np.arange(size),) * 4] = 2.0
    mf.get_hcore, mf.get_ovlp = lambda *args: hopping, lambda *args: np.eye(size)
    mf._eri = ao2mo.restore(8, repulsion, size)
    stock = tight(mf)
    for ours in (scf_accel.accelerate(mf), accelerate(mf)):
        assert abs(ours.run().e_tot - stock.e_tot) < 1e-8
        assert ours.multilevel_report.fallback


RESTARTED = {
    "roks": lambda: hybrid(dft.ROKS),
    "uks": lambda: hybrid(dft.UKS),
    "rohf": lambda: scf.ROHF(radical()),
    "smearing": lambda: scf.addons.smearing(hybrid(), sigma=0.05, method="fermi"),
    "solvent": lambda: hybrid().ddCOSMO(),
    "fitted": lambda: hybrid().density_fit(),
    "symmetry": lambda: coarse_grid(dft.RKS(molecule("O 0 0 0.12; H 0 0.76 -0.47; H 0 -0.76 -0.47", symmetry=True))),
}


@pytest.mark.parametrize("name", RESTARTED)
def test_restart(name):
    """A second run from the first one's orbitals is over at once, at the same energy."""
    ours = accelerate(RESTARTED[name]()).run()
    energy, orbital_energies = ours.e_tot, np.array(ours.mo_energy)
    ours.kernel()
    assert ours.converged and ours.cycles <= {"smearing": 5, "solvent": 3}.get(name, 1)
    assert abs(ours.e_tot - energy) < 1e-9
    np.testing.assert_allclose(ours.mo_energy, orbital_energies, atol=3e-5)


@pytest.mark.parametrize("method", [dft.UKS, dft.ROKS])
def test_total_density_as_start_of_two_spins(method):
    dm = np.array(coarse_grid(dft.RKS(molecule(), xc="pbe")).run().make_rdm1())
    ours = accelerate(coarse_grid(method(molecule(), xc="pbe")))
    ours.kernel(dm)
    assert ours.converged and ours.cycles <= 2 and ours.multilevel_report.fallback is None


CHARGED = {"cation": {"charge": 1, "spin": 1}, "triplet": {"spin": 2}}


@pytest.mark.parametrize("tagged", [False, True])
@pytest.mark.parametrize(("name", "method"), [("cation", dft.ROKS), ("cation", dft.UKS), ("triplet", dft.UKS)])
def test_density_of_another_electron_number_as_start(name, method, tagged):
    """The neutral molecule's density starts an ion or a triplet: its occupations are not taken over."""
    neutral = coarse_grid(dft.UKS(molecule(basis="sto-3g"), xc="pbe")).run()
    mf = coarse_grid(method(molecule(basis="sto-3g", **CHARGED[name]), xc="pbe"))
    dm = neutral.make_rdm1()
    ours, stock = accelerate(mf), tight(mf)
    ours.kernel(dm if tagged else np.array(dm))
    occupations = np.asarray(ours.mo_occ)
    assert occupations.sum() == mf.mol.nelectron
    assert ours.converged and abs(ours.e_tot - stock.e_tot) < 1e-8


def test_poor_start_still_converges():
    mf = coarse_grid(dft.RKS(molecule(), xc="pbe"))
    stock = tight(mf)
    for start in (np.zeros_like(stock.make_rdm1()), 0.5 * stock.make_rdm1(), mf.get_init_guess(key="1e")):
        ours = accelerate(mf)
        ours.kernel(np.array(start))
        assert ours.mo_occ.sum() == 10
        assert ours.converged and abs(ours.e_tot - stock.e_tot) < 1e-8


def test_orbitals_of_another_geometry_as_start():
    near = coarse_grid(dft.RKS(molecule("O 0 0 0.12; H 0 0.80 -0.47; H 0.02 -0.75 -0.48"), xc="pbe")).run()
    ours = accelerate(coarse_grid(dft.RKS(molecule(), xc="pbe")))
    ours.kernel(near.make_rdm1())
    assert abs(ours.e_tot - tight(coarse_grid(dft.RKS(molecule(), xc="pbe"))).e_tot) < 1e-8


@pytest.mark.parametrize("grid", [0, (15, 50), (40, 110)])
def test_coarse_grid_has_no_influence_on_the_result(grid):
    agree(coarse_grid(dft.RKS(molecule(), xc="pbe"), level=1), grid=grid)


@pytest.mark.parametrize("auxbasis", ["weigend", "def2-universal-jkfit"])
def test_fitting_basis_has_no_influence_on_the_result(auxbasis):
    agree(hybrid(), auxbasis=auxbasis)
