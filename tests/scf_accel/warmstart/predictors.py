"""Perfect and bad predictors, small molecules, and the law that the tests of the warm start state: the same energy as without."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from pyscf import gto
from pyscf.lib import logger

import scf_accel
from scf_accel.fitting import auxiliary_charges
from scf_accel.predictor import ExactPredictor

ENERGY = 1e-8  # Hartree


def coarse(mf: Any, level: int = 0) -> Any:
    """``mf`` with a grid small enough for a test; PBE where there is a functional."""
    if hasattr(mf, "grids"):
        mf.grids.level = level
        mf.xc = "pbe"
    return mf


def tight(mf: Any) -> Any:
    """A copy of ``mf`` that stock PySCF has converged to 1e-11 Hartree."""
    stock = mf.copy()
    stock.conv_tol, stock.max_cycle = 1e-11, 200
    stock.kernel()
    assert stock.converged, "stock PySCF does not converge: choose another case"
    return stock


class Oracle(ExactPredictor):
    """The exact fit; counts how often it is asked. ``start`` is a mean-field object, or makes one of a molecule."""

    def __init__(self, start: Any) -> None:
        super().__init__(start if callable(start) and not hasattr(start, "mol") else lambda mol: start.copy().reset(mol))
        self.asked = 0

    def coefficients(self, mol: gto.Mole) -> np.ndarray:
        self.asked += 1
        return super().coefficients(mol)


class Bad(Oracle):
    """An oracle whose answer is spoilt: ``how`` is a function of coefficients, or an exception to raise."""

    name = "bad"

    def __init__(self, start: Any, how: Any) -> None:
        super().__init__(start)
        self.how = how

    def coefficients(self, mol: gto.Mole) -> np.ndarray:
        if isinstance(self.how, BaseException):
            raise self.how
        return self.how(super().coefficients(mol))


def noise(size: float) -> Any:
    """Each coefficient off by a random share of itself; the number of electrons too, unless it is projected."""
    return lambda c: c * (1.0 + size * np.random.default_rng(0).normal(size=len(c)))


class Polar(Oracle):
    """An oracle with errors that carry no charge: ``error(geometries so far, n)`` is added to the ``n`` coefficients of l > 0."""

    def __init__(self, start: Any, error: Any) -> None:
        super().__init__(start)
        self.error = error

    def coefficients(self, mol: gto.Mole) -> np.ndarray:
        exact = super().coefficients(mol)
        neutral = auxiliary_charges(self.auxmol(mol)) == 0
        exact = exact.copy()
        exact[neutral] += self.error(len(self._known), int(neutral.sum()))
        return exact


def logged(mf: Any) -> str:
    """Run ``mf``; returns the warnings."""
    mf.verbose, mf.stdout = logger.WARN, io.StringIO()
    mf.kernel()
    return mf.stdout.getvalue()


def warnings_in(text: str) -> int:
    """Lines of the warm start."""
    return text.count("warm start")


def agree(mf: Any, predictor: Any = None, **settings: Any) -> Any:
    """Start ``mf`` warm, run, compare the energy with stock PySCF's; returns the object."""
    stock = tight(mf)
    if predictor is None:
        predictor = Oracle(mf)
        predictor.remember(mf.mol, stock.make_rdm1())
    ours = scf_accel.warm_start(mf, predictor, **settings)
    text = logged(ours)
    assert warnings_in(text) == 0, text
    report = ours.warm_start_report
    assert report.used and report.start == "predicted" and report.fallback is None
    assert ours.converged and abs(ours.e_tot - stock.e_tot) < ENERGY
    return ours
