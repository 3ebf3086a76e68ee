"""What the scheme does not cover, and what goes wrong on purpose, ends in stock PySCF's result with one warning."""

from __future__ import annotations

import io

import numpy as np
import pytest
from agreement import accelerate, coarse_grid, radical, tight
from pyscf import dft, scf
from pyscf.lib import logger
from pyscf.pbc import gto as pbcgto
from pyscf.pbc import scf as pbcscf
from small_molecules import molecule

import scf_accel
from scf_accel.multilevel.coarse import CoarseModel


def run(ours):
    """Run; returns the text of the log at the level of warnings."""
    ours.verbose, ours.stdout = logger.WARN, io.StringIO()
    ours.kernel()
    return ours.stdout.getvalue()


def warned_once(text):
    return text.count("multilevel SCF") == 1  # PySCF has warnings of its own


UNCOVERED = {
    "ghf": lambda: scf.GHF(radical()),
    "gks": lambda: coarse_grid(dft.GKS(molecule("H 0 0 0", spin=1), xc="lda,vwn")),
    "dirac": lambda: scf.DHF(molecule("He 0 0 0")),
    "x2c": lambda: scf.GHF(molecule("hydroxyl", "sto-3g", spin=1)).x2c1e(),
    "newton": lambda: scf.RHF(molecule()).newton(),
    "newton_ks": lambda: coarse_grid(dft.UKS(radical(), xc="pbe")).newton(),
}


@pytest.mark.parametrize("name", UNCOVERED)
def test_methods_that_are_not_covered(name):
    mf = UNCOVERED[name]()
    ours = scf_accel.accelerate(mf)
    text = run(ours)
    assert ours.multilevel_report.fallback and ours.multilevel_report.fine_builds == 0
    assert "Multilevel" not in text
    assert warned_once(text), text
    stock = mf.copy()
    stock.kernel()
    assert ours.converged and abs(ours.e_tot - stock.e_tot) < 1e-9
    assert type(ours.undo_accelerate()) is type(mf)


@pytest.mark.parametrize("fitted", [False, True])
def test_hartree_fock_that_would_not_gain(fitted):
    """In-core and density-fitted Hartree-Fock: a full Fock matrix is as cheap as a coarse one."""
    mf = scf.RHF(molecule())
    mf = mf.density_fit() if fitted else mf
    converged = tight(mf)
    ours = scf_accel.accelerate(mf, start=converged.make_rdm1())
    assert run(ours) == ""
    assert "costs no more" in ours.multilevel_report.fallback
    assert ours.converged and abs(ours.e_tot - converged.e_tot) < 1e-8
    assert ours.cycles == 1, "the given start is used"
    assert accelerate(mf).run().multilevel_report.fallback is None


@pytest.mark.parametrize("name", ["gamma", "points"])
def test_periodic_systems(name):
    cell = pbcgto.M(atom="H 0 0 0; H 0 0 0.74", a=np.eye(3) * 4.0, basis="sto-3g", verbose=0, precision=1e-4)
    mf = {
        "gamma": lambda: pbcscf.RHF(cell),
        "points": lambda: pbcscf.KRHF(cell, cell.make_kpts([2, 1, 1])).density_fit(),
    }[name]()
    ours = accelerate(mf)
    text = run(ours)
    assert ours.multilevel_report.fallback == "periodic systems"
    assert warned_once(text), text
    assert ours.converged and abs(ours.e_tot - mf.copy().run().e_tot) < 1e-8


@pytest.mark.parametrize("method", [dft.RKS, scf.UHF])
def test_too_little_memory(method):
    mf = coarse_grid(method(molecule()))
    ours = accelerate(mf)
    ours.max_memory = 1
    text = run(ours)
    assert "max_memory" in ours.multilevel_report.fallback and warned_once(text), text
    assert ours.converged and abs(ours.e_tot - tight(mf).e_tot) < 1e-8
    ours.max_memory = 4000
    ours.mo_coeff = None
    assert run(ours) == "" and ours.multilevel_report.fallback is None


def spoil(monkeypatch, change):
    """Let the coarse increments be ``change(increment)``."""
    right = CoarseModel.increment
    monkeypatch.setattr(CoarseModel, "increment", lambda self, *args: change(right(self, *args)))


def noise(size):
    generator = np.random.default_rng(1)

    def change(matrices):
        extra = generator.normal(scale=size, size=matrices.shape)
        return matrices + extra + extra.transpose(0, 2, 1)

    return change


BAD = {
    "half": lambda v: 0.5 * v,
    "double": lambda v: 2.0 * v,
    "wrong sign": lambda v: -v,
    "noise": noise(0.1),
    "huge": lambda v: 100.0 * v,
}


@pytest.mark.parametrize(("name", "method"), [(name, dft.RKS) for name in BAD] + [("wrong sign", dft.UKS)])
def test_bad_coarse_model_costs_little(monkeypatch, name, method):
    mf = coarse_grid(method(molecule(basis="sto-3g"), xc="pbe"))
    stock = tight(mf)
    cycles = mf.copy().run().cycles
    spoil(monkeypatch, BAD[name])
    ours = accelerate(mf)
    text = run(ours)
    assert ours.converged and abs(ours.e_tot - stock.e_tot) < 1e-8
    if ours.multilevel_report.fallback is None:
        assert text == ""
    else:
        assert warned_once(text), text
        assert ours.multilevel_report.fallback in text
    assert ours.cycles <= cycles + 10
    assert ours.max_cycle == mf.max_cycle and type(ours._numint) is type(mf._numint)


def test_coarse_model_that_is_not_a_number(monkeypatch):
    mf = coarse_grid(dft.RKS(molecule(basis="sto-3g"), xc="pbe"))
    spoil(monkeypatch, lambda v: v * np.nan)
    ours = accelerate(mf)
    text = run(ours)
    assert warned_once(text) and ours.converged and abs(ours.e_tot - tight(mf).e_tot) < 1e-8


def test_slightly_bad_coarse_model_is_no_reason_to_give_up(monkeypatch):
    """DIIS over the outer steps repairs a model that is wrong by a third."""
    mf = coarse_grid(dft.RKS(molecule(), xc="pbe"))
    spoil(monkeypatch, lambda v: 0.7 * v)
    ours = accelerate(mf)
    assert run(ours) == "" and ours.multilevel_report.fallback is None
    assert abs(ours.e_tot - tight(mf).e_tot) < 1e-8


def test_coarse_model_of_another_functional(monkeypatch):
    """PBE increments below a hybrid without exact exchange: slower, not wrong."""
    mf = coarse_grid(dft.RKS(molecule(), xc="pbe0"))
    monkeypatch.setattr("scf_accel.multilevel.coarse.exchange_terms", lambda mf: [])
    ours = accelerate(mf).run()
    assert ours.multilevel_report.fallback is None and abs(ours.e_tot - tight(mf).e_tot) < 1e-8


def test_handing_over_counts_every_build(monkeypatch):
    mf = coarse_grid(dft.RKS(molecule(), xc="pbe"))
    spoil(monkeypatch, BAD["wrong sign"])
    ours, builds = accelerate(mf), []
    right = type(ours).get_veff
    monkeypatch.setattr(type(ours), "get_veff", lambda self, *a, **k: builds.append(1) or right(self, *a, **k), raising=False)
    run(ours)
    assert ours.multilevel_report.fallback
    assert ours.cycles <= len(builds) <= ours.cycles + 2  # stock's initial and last ones are not counted as cycles


@pytest.mark.parametrize("max_cycle", [4, 6])
def test_max_cycle_holds_across_the_hand_over(monkeypatch, max_cycle):
    mf = coarse_grid(dft.RKS(molecule(), xc="pbe"))
    mf.max_cycle = max_cycle
    spoil(monkeypatch, BAD["wrong sign"])
    ours = accelerate(mf)
    run(ours)
    assert ours.cycles == ours.max_cycle == max_cycle and not ours.converged


def test_elements_without_a_fitting_basis():
    ours = accelerate(coarse_grid(dft.RKS(molecule(), xc="pbe")), auxbasis="weigend").run()
    assert ours.multilevel_report.fallback is None and ours.converged
    mf = coarse_grid(dft.RKS(molecule("He 0 0 0"), xc="pbe"))
    ours = accelerate(mf, auxbasis={"H": "weigend"}).run()
    assert ours.converged and abs(ours.e_tot - tight(mf).e_tot) < 1e-8
