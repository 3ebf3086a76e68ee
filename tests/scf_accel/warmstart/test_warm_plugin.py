"""An object of PySCF's own kind: what goes before the prediction, what is shared, and the way back."""

from __future__ import annotations

import dataclasses
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
from predictors import Oracle, coarse, logged, tight
from pyscf import df, dft, scf, solvent
from pyscf.lib import logger
from small_molecules import molecule

import scf_accel
from mlip.errors import StructureError
from scf_accel.warmstart.plugin import _WarmStart


def warm(method=dft.RKS, **settings):
    mf = coarse(method(molecule()))
    return scf_accel.warm_start(mf, Oracle(mf), **settings)


def test_a_given_density_matrix_goes_before():
    mf = warm()
    mf.kernel(tight(mf.undo_warm_start()).make_rdm1())
    assert mf.cycles <= 2 and mf.warm_start_settings.predictor.asked == 0
    assert mf.warm_start_report.start == "given" and not mf.warm_start_report.used


def test_existing_orbitals_go_before():
    mf = warm().run()
    mf.kernel()
    assert mf.cycles == 1 and mf.warm_start_settings.predictor.asked == 1 and mf.warm_start_report.start == "given"


def test_a_checkpoint_goes_before(tmp_path):
    mf = warm()
    stock = mf.undo_warm_start().set(chkfile=str(tmp_path / "scf.chk")).run()
    mf.set(chkfile=stock.chkfile, init_guess="chkfile").run()
    assert mf.cycles <= 2 and mf.warm_start_settings.predictor.asked == 0 and mf.warm_start_report.start == "chkfile"


def test_one_electron_needs_no_guess():
    mf = scf.UHF(molecule("H 0 0 0", spin=1))
    ours = scf_accel.warm_start(mf, Oracle(mf)).run()
    assert not ours.warm_start_report.used and abs(ours.e_tot - mf.run().e_tot) < 1e-10


def test_another_guess_by_name_is_pyscfs():
    mf = warm()
    stock = mf.undo_warm_start()
    for key in ("atom", "huckel", "1e"):
        np.testing.assert_allclose(mf.get_init_guess(key=key), stock.get_init_guess(key=key), atol=1e-12)
    assert mf.warm_start_settings.predictor.asked == 0
    given = np.eye(mf.mol.nao)
    assert mf.get_init_guess(key=given) is given
    mf.get_init_guess()
    assert mf.warm_start_report.start == "predicted"


@pytest.mark.parametrize("method", [dft.RKS, dft.UKS, dft.ROKS])
def test_extrapolation_begins_with_a_predicted_start(method):
    """Fock matrices that DIIS has seen after two cycles: PySCF leaves the first one out."""

    def seen(mf, **settings):
        mf.set(max_cycle=2, diis=scf.diis.CDIIS(mf), verbose=0, **settings).kernel()
        return mf.diis.get_num_vec()

    mf = warm(method)
    assert seen(mf) == 2 and mf.warm_start_report.used
    assert seen(mf.undo_warm_start()) == 1
    assert seen(mf, mo_coeff=None, diis_start_cycle=2) == 0, "the user's own setting stays in force"
    assert seen(warm(method), init_guess="atom", damp=0.2) == 1, "damping starts DIIS where PySCF does"


@pytest.mark.parametrize("method", [scf.RHF, scf.ROHF, dft.UKS])
def test_undo(method):
    plain = coarse(method(molecule()))
    mf = scf_accel.warm_start(plain, Oracle(plain))
    for obj in (mf, mf.run(), mf.copy()):
        back = obj.undo_warm_start()
        assert type(back) is type(plain)
        assert not [name for name in vars(back) if "warm_start" in name]
    fitted = mf.density_fit().undo_warm_start()
    assert isinstance(fitted.with_df, df.DF) and not isinstance(fitted, _WarmStart)
    assert abs(fitted.kernel() - tight(plain.density_fit()).e_tot) < 1e-8


def test_undo_below_other_layers():
    mf = warm()
    for obj in (mf.newton(), mf.as_scanner(), mf.density_fit().newton(), scf_accel.accelerate(mf)):
        back = obj.undo_warm_start()
        assert not isinstance(back, _WarmStart) and not isinstance(getattr(back, "_scf", None), _WarmStart)
        assert not [name for name in vars(back) if "warm_start" in name]
    assert abs(mf.newton().undo_warm_start().kernel() - tight(mf.undo_warm_start()).e_tot) < 1e-8
    assert isinstance(mf.newton().undo_soscf(), _WarmStart)


def test_the_original_stays_as_it_is():
    mf = coarse(dft.RKS(molecule())).density_fit()
    before = set(vars(mf))
    ours = scf_accel.warm_start(mf, Oracle(mf)).run()
    assert set(vars(mf)) == before and mf.mo_coeff is None and not isinstance(mf, _WarmStart)
    assert ours.with_df is not mf.with_df and ours.grids is not mf.grids
    copy = ours.copy()
    copy.warm_start_report.start = "x"
    assert ours.warm_start_report.start == "predicted"
    copy.mo_coeff = None
    copy.run(init_guess="1e", max_cycle=1)
    assert ours.warm_start_report.used and ours.init_guess == "minao"
    with pytest.raises(dataclasses.FrozenInstanceError):
        copy.warm_start_settings.check = False
    again = scf_accel.warm_start(ours, check=False)
    assert type(again) is type(ours) and again.warm_start_settings.predictor is ours.warm_start_settings.predictor
    assert not again.warm_start_settings.check and ours.warm_start_settings.check


def test_the_solvent_of_the_original_does_not_move():
    mf, moved = solvent.PCM(scf.RHF(molecule(basis="sto-3g"))), molecule("stretched", "sto-3g")
    mf.with_solvent.lebedev_order = 7
    here, there = tight(mf).e_tot, tight(mf.copy().set(with_solvent=mf.with_solvent.copy()).reset(moved)).e_tot
    ours = scf_accel.warm_start(mf, Oracle(scf.RHF)).reset(moved)
    assert mf.with_solvent.mol is mf.mol and ours.with_solvent.mol is moved
    assert abs(ours.kernel() - there) < 1e-8 and ours.warm_start_report.used
    assert abs(mf.kernel() - here) < 1e-8


def test_conversions_keep_it():
    restricted = warm(scf.RHF)
    for mf in (restricted.to_uks("pbe"), restricted.to_rks("pbe"), restricted.to_uhf(), warm().to_uks(), warm().to_hf()):
        assert isinstance(mf, _WarmStart)
        coarse(mf).mo_coeff = None
        assert logged(mf) == "" and mf.warm_start_report.used
        assert abs(mf.e_tot - tight(mf.undo_warm_start()).e_tot) < 1e-8


def test_names_and_attributes_are_known_to_pyscf():
    mf = warm()
    assert type(mf).__name__ == "WarmStartRKS"
    mf.verbose, mf.stdout = logger.INFO, io.StringIO()
    mf.check_sanity()
    mf.kernel()
    text = mf.stdout.getvalue()
    assert "not available" not in text and "warm start: model exact fit" in text and "s prediction" in text


def test_gradients():
    ours, stock = warm().run(), tight(coarse(dft.RKS(molecule())))
    np.testing.assert_allclose(ours.nuc_grad_method().kernel(), stock.nuc_grad_method().kernel(), atol=1e-5)


def test_response_and_stability():
    ours = warm(scf.RHF).run()
    assert ours.stability(return_status=True)[2]
    np.testing.assert_allclose(ours.TDA().run(nstates=1).e, tight(scf.RHF(molecule())).TDA().run(nstates=1).e, atol=1e-4)


def test_pickle():
    mf = scf_accel.warm_start(coarse(dft.RKS(molecule())))
    predictor = pickle.loads(pickle.dumps(mf.warm_start_settings.predictor))
    assert predictor.name == "organics-density"


def test_plain_functions():
    mf = coarse(dft.RKS(molecule()))
    predictor = Oracle(mf)
    density = scf_accel.predict_density(mf.mol, predictor)
    mf.grids.build()
    assert density(mf.grids.coords) @ mf.grids.weights == pytest.approx(10, abs=0.02)
    dm = scf_accel.guess_density_matrix(mf, predictor)
    plain = mf.copy().run().cycles
    mf.kernel(dm)
    assert mf.cycles < plain
    with pytest.raises(StructureError, match="no predicted density"):
        scf_accel.guess_density_matrix(scf.GHF(molecule()), predictor)
    predictor._known = {key: 2.0 * value for key, value in predictor._known.items()}
    with pytest.raises(StructureError, match="electrons instead of 10"):
        scf_accel.predict_density(mf.mol, predictor)


def test_plain_import_loads_neither_pyscf_nor_torch():
    code = "import sys, scf_accel; print([name for name in ('pyscf', 'torch', 'lightning') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
