"""The accelerated object behaves as PySCF's own: thresholds, hooks, checkpoints, log, conversions."""

from __future__ import annotations

import io
import itertools

import h5py
import numpy as np
import pytest
from agreement import accelerate, coarse_grid, radical, tight
from pyscf import dft, lib, scf
from pyscf.lib import logger
from small_molecules import molecule

CLOSED = [scf.RHF, dft.RKS, dft.UKS]
KEYS = {"cycle", "e_tot", "last_hf_e", "norm_gorb", "norm_ddm", "mo_energy", "mo_coeff", "mo_occ", "dm", "fock", "vhf"}
KEYS |= {"mf", "mol", "h1e", "s1e", "conv_tol", "conv_tol_grad", "scf_conv", "step"}


def plain(method=dft.RKS):
    """Water, with PBE where there is a functional."""
    mf = method(molecule(basis="sto-3g"))
    if hasattr(mf, "xc"):
        mf.xc = "pbe"
    return coarse_grid(mf)


def test_original_is_untouched_and_undo_gives_its_class_back():
    mf = plain()
    before = dict(mf.__dict__)
    ours = accelerate(mf)
    assert isinstance(ours, dft.rks.RKS) and isinstance(ours, type(mf)) and ours is not mf
    ours.run()
    assert mf.mo_coeff is None and mf.__dict__ == before
    undone = ours.undo_accelerate()
    assert type(undone) is type(mf) and set(undone.__dict__) == set(plain().run().__dict__)
    assert undone.e_tot == ours.e_tot and type(undone._numint) is type(mf._numint)
    assert abs(undone.kernel() - ours.e_tot) < 1e-8
    assert not hasattr(undone, "multilevel")


def test_undo_below_other_features():
    ours = accelerate(plain()).density_fit()
    undone = ours.undo_accelerate()
    assert type(undone) is type(plain().density_fit())


def test_accelerate_twice_updates_the_settings():
    once = accelerate(plain(), max_inner=17)
    twice = accelerate(once, max_outer=5)
    assert type(twice) is type(once)
    assert (twice.multilevel.max_inner, twice.multilevel.max_outer) == (17, 5)
    assert once.multilevel.max_outer != 5
    assert twice.run().converged


def test_unknown_setting():
    with pytest.raises(TypeError, match="max_iner"):
        accelerate(plain(), max_iner=3)


@pytest.mark.parametrize("method", CLOSED)
def test_copy_is_independent(method):
    ours = accelerate(plain(method))
    other = ours.copy()
    other.run()
    assert ours.mo_coeff is None and not ours.multilevel_report.steps
    assert other.converged and other.multilevel_report.fallback is None


@pytest.mark.parametrize(("conv_tol", "conv_tol_grad"), [(1e-6, None), (1e-9, None), (1e-12, None), (1e-9, 1e-7), (1e-12, 1e-3)])
def test_thresholds(conv_tol, conv_tol_grad):
    mf = plain()
    mf.conv_tol, mf.conv_tol_grad = conv_tol, conv_tol_grad
    ours = accelerate(mf).run()
    stock = mf.copy().run(conv_tol=1e-13, conv_tol_grad=1e-7)
    last = ours.multilevel_report.steps[-1]
    assert ours.converged and ours.multilevel_report.fallback is None
    assert last.gradient < (conv_tol_grad or np.sqrt(conv_tol))
    assert abs(ours.e_tot - stock.e_tot) < max(conv_tol, 1e-12)


@pytest.mark.parametrize("max_cycle", [1, 2])
def test_too_few_cycles(max_cycle):
    mf = plain(dft.UKS)
    mf.max_cycle, mf.conv_tol = max_cycle, 1e-13
    ours = accelerate(mf).run()
    assert not ours.converged
    assert ours.cycles == max_cycle == ours.multilevel_report.fine_builds
    assert ours.mo_coeff.shape == (2, mf.mol.nao, mf.mol.nao) and ours.mo_energy.shape == (2, mf.mol.nao)
    energy = ours.energy_tot(ours.make_rdm1())
    assert abs(energy - ours.e_tot) < 1e-9  # the orbitals are those of the energy
    assert abs(ours.e_tot - tight(plain(dft.UKS)).e_tot) < 1e-3
    assert abs(ours.run(max_cycle=50).e_tot - tight(plain(dft.UKS)).e_tot) < 1e-8 and ours.converged


@pytest.mark.parametrize("max_cycle", [0, -1])
def test_no_cycles(max_cycle):
    mf = plain()
    mf.max_cycle = max_cycle
    stock, ours = mf.copy().run(), accelerate(mf).run()
    assert ours.converged == stock.converged is False
    assert ours.e_tot == pytest.approx(stock.e_tot, abs=1e-9)
    np.testing.assert_allclose(ours.mo_energy, stock.mo_energy, atol=1e-8)


def test_no_cycles_keeps_the_orbitals():
    ours = accelerate(plain()).run()
    orbitals, energy = ours.mo_coeff.copy(), ours.e_tot
    ours.run(max_cycle=0)
    np.testing.assert_array_equal(ours.mo_coeff, orbitals)
    assert abs(ours.e_tot - energy) < 1e-9


@pytest.mark.parametrize("method", CLOSED)
def test_callback(method):
    seen, ours = [], accelerate(plain(method))

    def callback(envs):
        assert set(envs) >= KEYS
        assert envs["mf"] is ours and envs["mol"] is ours.mol
        assert envs["fock"].shape == envs["dm"].shape == envs["mo_coeff"].shape
        seen.append((envs["cycle"], envs["e_tot"], envs["last_hf_e"], envs["step"], envs["scf_conv"], envs["norm_gorb"]))

    ours.callback = callback
    ours.run()
    assert [entry[0] for entry in seen] == list(range(ours.cycles))
    assert [entry[3] for entry in seen] == ours.multilevel_report.steps
    assert [entry[4] for entry in seen] == [False] * (ours.cycles - 1) + [True]
    for before, after in itertools.pairwise(seen):
        assert after[2] == pytest.approx(before[1], abs=1e-12)
    assert seen[-1][1] == ours.e_tot
    assert all(entry[5] == entry[3].gradient and entry[1] == entry[3].energy for entry in seen)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_integrator_is_put_back_after_an_exception(error):
    ours = accelerate(plain())
    integrator = ours._numint

    def callback(envs):
        raise error("stop")

    ours.callback = callback
    with pytest.raises(error, match="stop"):
        ours.run()
    assert ours._numint is integrator
    ours.callback = None
    assert ours.run().converged and ours._numint is integrator


def test_check_convergence_hook_decides():
    mf = plain()
    mf.check_convergence = lambda envs: envs["norm_gorb"] < 1e-7 and abs(envs["e_tot"] - envs["last_hf_e"]) < 1e-3
    ours = accelerate(mf).run()
    assert ours.converged and ours.multilevel_report.steps[-1].gradient < 1e-7
    mf.check_convergence = lambda envs: envs["cycle"] == 0
    assert accelerate(mf).run().cycles == 1


def test_hooks_before_and_after_the_run():
    called, mf = [], plain()
    mf.pre_kernel = lambda envs: called.append(("pre", "mo_coeff" in envs and envs["mo_coeff"] is not None))
    mf.post_kernel = lambda envs: called.append(("post", envs["scf_conv"]))
    accelerate(mf).run()
    assert called == [("pre", False), ("post", True)]


def contents(path):
    """Names, shapes and types in a file."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: (item.shape, str(item.dtype))} if hasattr(item, "shape") else {}))
        found["scf/e_tot"] = float(file["scf/e_tot"][()])
    return found


@pytest.mark.parametrize("method", CLOSED)
def test_checkpoint(method, tmp_path):
    ours, stock = accelerate(plain(method)), plain(method)
    ours.chkfile, stock.chkfile = str(tmp_path / "ours.chk"), str(tmp_path / "stock.chk")
    ours.run(), stock.run()
    a, b = contents(ours.chkfile), contents(stock.chkfile)
    assert a.pop("scf/e_tot") == pytest.approx(b.pop("scf/e_tot"), abs=1e-8)
    assert a == b
    mol, data = scf.chkfile.load_scf(ours.chkfile)
    assert mol.natm == ours.mol.natm and data["e_tot"] == ours.e_tot
    np.testing.assert_allclose(data["mo_coeff"], ours.mo_coeff)
    np.testing.assert_allclose(data["mo_energy"], ours.mo_energy)

    loaded = accelerate(plain(method)).update_from_chk(ours.chkfile)
    np.testing.assert_allclose(loaded.mo_coeff, ours.mo_coeff)

    restarted = accelerate(plain(method))
    restarted.chkfile, restarted.init_guess = ours.chkfile, "chkfile"
    assert restarted.run().cycles <= 2 and abs(restarted.e_tot - ours.e_tot) < 1e-9
    fresh = accelerate(plain(method))
    assert fresh.kernel(fresh.from_chk(stock.chkfile)) == pytest.approx(stock.e_tot, abs=1e-8) and fresh.cycles <= 2


def test_no_checkpoint_is_wanted():
    ours = accelerate(plain())
    ours.chkfile = None
    assert ours.run().converged


@pytest.mark.parametrize("method", CLOSED)
def test_restart_from_orbitals_takes_one_build(method):
    ours = accelerate(plain(method)).run()
    energy = ours.e_tot
    assert abs(ours.kernel() - energy) < 1e-9
    assert ours.cycles == 1 and ours.converged
    again = accelerate(plain(method))
    assert abs(again.kernel(ours.make_rdm1()) - energy) < 1e-9 and again.cycles == 1


def test_plain_density_matrix_as_start():
    converged = tight(plain())
    ours = accelerate(plain())
    assert abs(ours.kernel(np.array(converged.make_rdm1())) - converged.e_tot) < 1e-8
    assert ours.cycles <= 3


def test_restricted_density_starts_an_unrestricted_run():
    dm = np.array(tight(plain()).make_rdm1())
    ours = accelerate(plain(dft.UKS))
    assert abs(ours.kernel(np.array([dm / 2, dm / 2])) - tight(plain(dft.UKS)).e_tot) < 1e-8


def test_start_setting():
    converged = tight(plain())
    calls = []

    def start(mf):
        calls.append(mf)
        return converged.make_rdm1()

    ours = accelerate(plain(), start=start).run()
    assert calls == [ours] and ours.cycles == 1 and abs(ours.e_tot - converged.e_tot) < 1e-8
    ours = accelerate(plain(), start=converged.make_rdm1()).run()
    assert ours.cycles == 1


@pytest.mark.parametrize("guess", ["atom", "1e", "huckel", "vsap"])
def test_guesses(guess):
    mf = plain()
    mf.init_guess = guess
    ours = accelerate(mf).run()
    assert ours.multilevel_report.fallback is None and abs(ours.e_tot - tight(plain()).e_tot) < 1e-8


def test_log_has_one_line_a_step():
    ours = accelerate(plain())
    ours.verbose, ours.stdout = logger.INFO, io.StringIO()
    ours.run()
    text = ours.stdout.getvalue()
    assert text.count("multilevel step") == ours.cycles
    assert "converged SCF energy" in text and "multilevel SCF: Settings(" in text
    assert "cycle= " not in text


@pytest.mark.parametrize("verbose", [logger.QUIET, logger.WARN, logger.NOTE])
def test_little_is_said(verbose):
    ours = accelerate(plain())
    ours.verbose, ours.stdout = verbose, io.StringIO()
    ours.run()
    text = ours.stdout.getvalue()
    assert text == ("" if verbose < logger.NOTE else f"converged SCF energy = {ours.e_tot:.15g}\n")


def test_summary():
    ours, stock = accelerate(plain()).run(), tight(plain())
    assert set(ours.scf_summary) == set(stock.scf_summary)
    for key, value in stock.scf_summary.items():
        assert ours.scf_summary[key] == pytest.approx(value, abs=2e-3), key
    total = ours.scf_summary["e1"] + ours.scf_summary["e2"] + ours.scf_summary["nuc"]
    assert total == pytest.approx(ours.e_tot, abs=1e-10)


@pytest.mark.parametrize("shift", [{"level_shift": 0.2}, {"damp": 0.3}, {"diis": False}, {"diis_space": 3}, {"conv_check": False}])
@pytest.mark.parametrize("method", [dft.UKS])
def test_the_users_convergence_aids(method, shift):
    stock = tight(plain(method))
    mf = plain(method).set(**shift)
    ours = accelerate(mf).run()
    assert abs(ours.e_tot - stock.e_tot) < 1e-8
    np.testing.assert_allclose(ours.mo_energy, stock.mo_energy, atol=3e-5)  # no shift is left in them
    for key, value in shift.items():
        assert getattr(ours, key) == value


def test_reset_to_another_molecule():
    ours = accelerate(plain()).run()
    ours.reset(molecule("formaldehyde", "sto-3g"))
    ours.mo_coeff = None  # stock PySCF keeps the orbitals of the other molecule and fails
    ours.run()
    mf = coarse_grid(dft.RKS(molecule("formaldehyde", "sto-3g"), xc="pbe"))
    assert abs(ours.e_tot - tight(mf).e_tot) < 1e-8


def test_attributes_may_change_between_runs():
    ours = accelerate(plain()).run()
    ours.xc = "b3lyp"
    ours.run()
    mf = plain()
    mf.xc = "b3lyp"
    assert abs(ours.e_tot - tight(mf).e_tot) < 1e-8
    ours.grids.level = 1
    ours.grids.build()
    ours.run()
    mf.grids.level = 1
    mf.grids.build()
    assert abs(ours.e_tot - tight(mf).e_tot) < 1e-8


@pytest.mark.parametrize("target", ["to_uks", "to_uhf", "to_hf"])
def test_conversions(target):
    ours, stock = accelerate(plain()).run(), plain().run()
    wanted, got = getattr(stock, target)(), getattr(ours, target)()
    assert isinstance(got, type(wanted))
    np.testing.assert_allclose(np.sort(got.mo_energy), np.sort(wanted.mo_energy), atol=3e-5)
    assert abs(got.run().e_tot - wanted.run().e_tot) < 1e-8


def test_two_objects_share_nothing():
    mf = plain().density_fit()
    a, b = accelerate(mf), accelerate(mf)
    a.xc = "b3lyp"
    a.run(), b.run()
    assert abs(a.e_tot - b.e_tot) > 1e-3 and abs(b.e_tot - tight(plain().density_fit()).e_tot) < 1e-8


def test_open_shell_run_repeats_bitwise():
    mf = coarse_grid(dft.UKS(radical("sto-3g"), xc="pbe"))
    with lib.with_omp_threads(1):
        energies = {accelerate(mf).run().e_tot for _ in range(2)}
    assert max(energies) - min(energies) < 1e-12
