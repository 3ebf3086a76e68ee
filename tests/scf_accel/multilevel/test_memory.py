"""What a run keeps of its memory, and which coarse model it makes of what there is."""

from __future__ import annotations

import gc
import tracemalloc
import weakref

import numpy as np
import pytest
from pyscf import dft, scf
from small_molecules import molecule

import scf_accel
from scf_accel.memory import available_bytes
from scf_accel.multilevel import Settings
from scf_accel.multilevel.coarse import CoarseModel, fitting_bases, is_large

CASES = {
    "converged": {},
    "handed over": {"max_outer": 1, "always": True},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("fit", [True, False], ids=["fitted", "exact"])
def test_a_run_leaves_nothing_behind(name, fit):
    """No reference cycle keeps the coarse model or the stored orbital values until the next garbage collection."""

    def run():
        mf = dft.RKS(molecule(basis="def2-svp"), xc="b3lyp")
        mf = scf_accel.accelerate(mf.density_fit() if fit else mf, **CASES[name]).run()
        assert (mf.multilevel_report.fallback is None) == (name == "converged")

    run()  # caches of PySCF and NumPy
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        run()
        kept = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert kept[1] > 5e6 and kept[0] < 0.03 * kept[1], kept


def test_the_coarse_model_is_gone_when_stock_pyscf_goes_on(monkeypatch):
    models, alive = [], []
    make = CoarseModel.__init__

    def remembered(self, *args, **kwargs):
        models.append(weakref.ref(self))
        make(self, *args, **kwargs)

    monkeypatch.setattr(CoarseModel, "__init__", remembered)
    mf = scf_accel.accelerate(dft.RKS(molecule(), xc="pbe"), max_outer=1, always=True)
    gc.collect()
    gc.disable()
    try:
        mf._stock = lambda *_: alive.extend(model() is not None for model in models) or 0.0
        mf.kernel()
    finally:
        gc.enable()
    assert alive and not any(alive)


def test_all_coarse_orbital_values_are_kept_where_there_is_room():
    mf = dft.RKS(molecule(basis="def2-tzvp"), xc="pbe")
    model = CoarseModel(mf, Settings(), 1e9)
    model.reference(np.eye(mf.mol.nao)[None], None)
    assert sum(block.stop - block.start for block in model.orbitals._kept.values()) == model.orbitals.points


def test_labelled_heavy_atoms_get_their_fitting_basis():
    plain, labelled = (molecule(f"{name} 0 0 0; H 0 0.96 0.93; H 0 -0.96 0.93") for name in ("S", "S1"))
    sizes = [len(CoarseModel(scf.RHF(mol), Settings(), 1e9).fit.integrals) for mol in (plain, labelled)]
    assert sizes[0] == sizes[1]


def test_a_finished_object_holds_no_orbital_values():
    mf = scf_accel.accelerate(dft.RKS(molecule(), xc="pbe")).run()
    assert type(mf._numint) is dft.numint.NumInt


def test_available_memory_follows_the_limit():
    mf = scf.RHF(molecule())
    mf.max_memory = 0
    assert available_bytes(mf) == 0
    mf.max_memory = 1e6
    assert 9e11 < available_bytes(mf) < 1e12


def test_large_orbital_bases_get_a_better_model():
    large, small = molecule(basis="def2-tzvpp"), molecule(basis="def2-svp")
    assert is_large(large) and not is_large(small)
    assert [len(fitting_bases(mf)) for mf in (dft.RKS(large), dft.RKS(small), dft.RKS(large).density_fit())] == [2, 1, 1]
    exact, plain = (CoarseModel(dft.RKS(mol, xc="pbe"), Settings(), 1e9) for mol in (large, small))
    per_atom = [len(model.orbitals.weights) / 3 for model in (exact, plain)]
    assert per_atom[0] > 1.2 * per_atom[1]
    assert len(exact.fit.integrals) > 1.3 * len(plain.fit.integrals)


def test_the_smaller_fitting_basis_where_the_larger_has_no_room():
    mf = scf.RHF(molecule(basis="def2-tzvpp"))
    sizes = [len(CoarseModel(mf, Settings(auxbasis=basis), 1e9).fit.integrals) for basis in fitting_bases(mf)]
    room = 4 * (mf.mol.nao * (mf.mol.nao + 1) // 2) * (sizes[1] + 1)
    assert sizes[0] > sizes[1] == len(CoarseModel(mf, Settings(), room).fit.integrals)
