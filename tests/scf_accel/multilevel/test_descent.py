"""Second-order descent: orbital rotations, the trust-region step, and the SCF problems that DIIS does not solve."""

import numpy as np
import pytest
from pyscf import dft, gto, scf

from scf_accel import accelerate
from scf_accel.multilevel.convergence import orbital_energies
from scf_accel.multilevel.descent import Rotations, descend, to_boundary, trust_region_step


def occupations(kind):
    return {
        "closed": np.array([2.0, 2, 0, 0, 0]),
        "open": np.array([2.0, 1, 1, 0, 0]),
        "two": np.array([[1.0, 1, 0, 0], [1, 0, 0, 0]]),
    }[kind]


@pytest.mark.parametrize(("kind", "size"), [("closed", 6), ("open", 8), ("two", 7)])
def test_rotations_keep_orbitals_orthonormal(kind, size):
    mo_occ = occupations(kind)
    rotations = Rotations.of(mo_occ)
    assert rotations.size == size
    generator = np.random.default_rng(0)
    x = generator.normal(size=size)
    start = np.broadcast_to(np.eye(mo_occ.shape[-1]), (*mo_occ.shape, mo_occ.shape[-1]))
    turned = rotations.turn(start, x)
    assert turned.shape == start.shape
    assert np.allclose(np.swapaxes(turned, -1, -2) @ turned, start, atol=1e-12)
    assert np.allclose(rotations.turn(turned, -x), start, atol=1e-12)


@pytest.mark.parametrize("radius", [0.01, 100.0])
def test_trust_region_step_of_a_quadratic(radius):
    generator = np.random.default_rng(1)
    root = generator.normal(size=(8, 8))
    hessian, gradient = root @ root.T + np.eye(8), generator.normal(size=8)
    step, _ = trust_region_step(lambda v: hessian @ v, gradient, np.diag(hessian).copy(), radius, 1e-10, 50)
    if radius > 10:
        assert np.allclose(step, -np.linalg.solve(hessian, gradient), atol=1e-8)
    else:
        assert np.linalg.norm(step) == pytest.approx(radius)
        assert gradient @ step + 0.5 * step @ hessian @ step < 0


def test_negative_curvature_leads_to_the_boundary():
    hessian, gradient = np.diag([1.0, -1.0]), np.array([0.1, 1e-3])
    step, _ = trust_region_step(lambda v: hessian @ v, gradient, np.ones(2), 0.5, 1e-12, 20)
    assert np.linalg.norm(step) == pytest.approx(0.5)
    assert gradient @ step + 0.5 * step @ hessian @ step < 0


def test_boundary():
    x, direction = np.array([0.1, 0.2]), np.array([-1.0, 3.0])
    t = to_boundary(x, direction, 2.0)
    assert t > 0 and np.linalg.norm(x + t * direction) == pytest.approx(2.0)


@pytest.mark.parametrize("method", [scf.RHF, scf.UHF, scf.ROHF, dft.RKS, dft.UKS, dft.ROKS])
def test_descent_on_the_full_operator_finds_the_scf_energy(method):
    """With the full operator in place of the coarse one, descent alone is an SCF solver."""
    open_shell = method not in (scf.RHF, dft.RKS)
    mol = gto.M(
        atom="O 0 0 0; H 0 0.76 0.59; H 0 -0.76 0.59", basis="sto-3g", charge=int(open_shell), spin=int(open_shell), verbose=0
    )
    mf = method(mol)
    if isinstance(mf, dft.rks.KohnShamDFT):
        mf.xc, mf.grids.level = "pbe", 0
    stock = mf.copy().run(conv_tol=1e-11)
    start = mf.copy().run(max_cycle=1)

    def evaluate(mo_coeff):
        fock = mf.get_fock(dm=mf.make_rdm1(mo_coeff, start.mo_occ))
        return np.asarray(mf.get_grad(mo_coeff, start.mo_occ, fock)), orbital_energies(mo_coeff, fock)

    mo_coeff, size, spent = descend(evaluate, start.mo_coeff, start.mo_occ, not open_shell, 1e-6, 400)
    assert size < 1e-6 and spent <= 400 + 26
    assert abs(mf.energy_tot(mf.make_rdm1(mo_coeff, start.mo_occ)) - stock.e_tot) < 1e-9


def stretched_fluorine():
    mf = dft.RKS(gto.M(atom=f"F 0 0 0; F 0 0 {1.6 * 1.412}", basis="def2-svp", verbose=0), xc="pbe").density_fit()
    mf.grids.level = 1
    return mf


@pytest.mark.parametrize("max_outer", [10, pytest.param(3, marks=pytest.mark.slow)])
def test_small_gap_where_stock_diis_fails(capfd, max_outer):
    """F2 far from equilibrium: highest occupied and lowest empty orbital meet; the energy is that of PySCF's Newton solver."""
    mf = stretched_fluorine()
    assert not mf.copy().run(max_cycle=30).converged
    newton = mf.newton().run(conv_tol=1e-11)
    mf.verbose = 3
    ours = accelerate(mf, max_outer=max_outer)
    seen = []
    ours.callback = lambda envs: seen.append((envs["e_tot"], envs["scf_conv"]))
    ours.run()
    said = capfd.readouterr()
    report = ours.multilevel_report
    assert ours.converged and report.fallback is None and report.non_aufbau and ours.cycles <= 12
    assert ours.e_tot < newton.e_tot + 1e-8
    assert seen[-1] == (ours.e_tot, True) and len(seen) == ours.cycles
    assert [converged for _, converged in seen[:-1]] == [False] * (len(seen) - 1)
    assert np.linalg.norm(ours.get_grad(ours.mo_coeff, ours.mo_occ)) < 3.2e-5
    assert "not the lowest ones" in said.out + said.err


def test_descent_leaves_a_saddle_point():
    """UHF of stretched H2 from the restricted orbitals, slightly turned: down to the broken-symmetry solution."""
    mol = gto.M(atom="H 0 0 0; H 0 0 2.0", basis="sto-3g", verbose=0)
    restricted, mf = scf.RHF(mol).run(), scf.UHF(mol)
    mo_occ = np.array([[1.0, 0.0], [1.0, 0.0]])
    saddle = np.stack([restricted.mo_coeff] * 2)
    start = Rotations.of(mo_occ).turn(saddle, np.array([1e-3, -1e-3]))

    def evaluate(mo_coeff):
        fock = np.asarray(mf.get_fock(dm=mf.make_rdm1(mo_coeff, mo_occ)))
        return np.asarray(mf.get_grad(mo_coeff, mo_occ, fock)), orbital_energies(mo_coeff, fock)

    mo_coeff, size, _ = descend(evaluate, start, mo_occ, False, 1e-6, 200)
    assert size < 1e-6
    assert mf.energy_tot(mf.make_rdm1(mo_coeff, mo_occ)) < restricted.e_tot - 1e-2


def test_descent_without_rotations_of_its_kind_stands_still():
    mo_coeff, mo_occ = np.eye(3), np.array([2.0, 0, 0])
    found = descend(lambda c: (np.ones(1), np.zeros(3)), mo_coeff, mo_occ, True, 1e-6, 50)
    assert found[0] is mo_coeff and found[1:] == (1.0, 1)


@pytest.mark.slow
def test_saddle_point_is_left():
    """CuCl2 starts at a saddle point in PBE: descent, and where it does not end PySCF's Newton solver, pass below stock PySCF."""
    mol = gto.M(atom="Cu 0 0 0; Cl 2.035 0 0; Cl -2.035 0 0", basis="def2-svp", spin=1, verbose=0)
    mf = dft.UKS(mol, xc="pbe").density_fit()
    mf.grids.level = 1
    seen = []
    ours = accelerate(mf)
    ours.callback = lambda envs: seen.append(envs["e_tot"])
    ours.run()
    assert ours.converged and ours.e_tot < mf.copy().run(max_cycle=20).e_tot - 1e-5
    assert len(seen) == ours.cycles and ours.max_cycle == mf.max_cycle
    assert abs(seen[-1] - ours.e_tot) < 1e-6
