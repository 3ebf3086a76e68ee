"""Starts that bring orbitals: incomplete, of another basis, not orthogonal. None may hide a part of the orbital gradient."""

import numpy as np
import pytest
from pyscf import dft, gto, lib, scf

from scf_accel import accelerate
from scf_accel.multilevel.report import Settings

WATER = "O 0 0 0; H 0 0.76 0.59; H 0 -0.76 0.59"


def pbe(mol, method=dft.RKS):
    mf = method(mol, xc="pbe")
    mf.grids.level = 0
    return mf


@pytest.mark.parametrize("guess", ["huckel", "mod_huckel", "atom", "minao", "1e"])
@pytest.mark.parametrize("atom", ["H 0 0 0; H 0 0 0.74", "Ne 0 0 0"])
@pytest.mark.parametrize("method", [dft.RKS, pytest.param(dft.UKS, marks=pytest.mark.slow)])
def test_guesses_with_fewer_orbitals_than_the_basis(atom, guess, method):
    mf = pbe(gto.M(atom=atom, basis="def2-svp", verbose=0), method)
    mf.init_guess = guess
    ours = accelerate(mf).run()
    assert ours.converged and abs(ours.e_tot - mf.run(conv_tol=1e-10).e_tot) < 1e-8


@pytest.mark.parametrize("how", ["init_guess", "from_chk"])
def test_checkpoint_of_a_smaller_basis(tmp_path, how):
    small = pbe(gto.M(atom=WATER, basis="6-31g", verbose=0))
    small.chkfile = str(tmp_path / "small.chk")
    small.run()
    mf = pbe(gto.M(atom=WATER, basis="6-31g**", verbose=0))
    stock = mf.copy().run(conv_tol=1e-10)
    ours = accelerate(mf)
    if how == "init_guess":
        ours.chkfile, ours.init_guess = small.chkfile, "chk"
        ours.run()
    else:
        ours.kernel(ours.from_chk(small.chkfile))
    assert ours.converged and abs(ours.e_tot - stock.e_tot) < 1e-8


def test_tag_with_occupied_orbitals_only():
    mf = pbe(gto.M(atom=WATER, basis="6-31g", verbose=0))
    other = scf.RHF(mf.mol).run()
    occupied = other.mo_coeff[:, other.mo_occ > 0]
    dm = lib.tag_array(other.make_rdm1(), mo_coeff=occupied, mo_occ=other.mo_occ[other.mo_occ > 0])
    ours = accelerate(mf)
    ours.kernel(dm)
    assert ours.converged and abs(ours.e_tot - mf.run(conv_tol=1e-10).e_tot) < 1e-8


def test_reset_leaves_the_solvent_of_the_original():
    mol, other = gto.M(atom=WATER, basis="sto-3g", verbose=0), gto.M(atom="N 0 0 0; N 0 0 1.1", basis="sto-3g", verbose=0)
    mf = pbe(mol).ddCOSMO()
    ours = accelerate(mf)
    ours.reset(other)
    assert mf.with_solvent.mol is mol and ours.with_solvent.mol is other


def test_settings_are_not_shared_by_copies():
    mf = accelerate(pbe(gto.M(atom=WATER, basis="sto-3g", verbose=0)))
    with pytest.raises(AttributeError):
        mf.copy().multilevel.max_inner = 3
    assert accelerate(mf, max_inner=3).multilevel.max_inner == 3 and mf.multilevel == Settings()


def test_second_order_objects_take_their_own_arguments():
    newton = pbe(gto.M(atom=WATER, basis="sto-3g", verbose=0)).newton()
    start = newton.copy().run(max_cycle=1)
    ours = accelerate(newton)
    ours.kernel(start.mo_coeff, start.mo_occ)
    assert ours.converged and ours.multilevel_report.finished_by == "newton"
    assert "second-order" in ours.multilevel_report.fallback
    assert abs(ours.e_tot - newton.run().e_tot) < 1e-8


def test_second_order_continuation_counts_each_macro_iteration_once():
    mf = accelerate(pbe(gto.M(atom=WATER, basis="sto-3g", verbose=0)))
    start = mf.undo_accelerate().run(max_cycle=1, conv_check=False)
    seen = []
    mf.callback = lambda envs: seen.append((envs["mf"] is mf, envs["cycle"]))
    mf._stock(None, (start.mo_coeff, start.mo_occ))
    assert mf.converged and seen == [(True, number) for number in range(mf.cycles)]
    assert np.linalg.norm(mf.get_grad(mf.mo_coeff, mf.mo_occ)) < 1e-4
