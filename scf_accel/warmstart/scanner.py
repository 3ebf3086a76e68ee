"""Starts of later geometries: the last converged density, the predicted one, or the last one plus the predicted change.

    rho_new = rho_old,converged + (rho_model(new) - rho_model(old))

in coefficients of the auxiliary functions, which move with their atoms; the converged density is fitted to them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyscf import gto, lib
from pyscf.lib import logger

from scf_accel.fitting import fit_density
from scf_accel.guess import refusal as guess_refusal
from scf_accel.warmstart.check import check_coefficients, unmixed
from scf_accel.warmstart.report import Refused, Report

SAME_SPINS = 1e-4  # elements of (D_alpha - D_beta) S
_Base: Any = object


@dataclass(frozen=True)
class Last:
    """A converged geometry; ``predicted`` are the coefficients that the model gives there, None where it has not been asked."""

    mol: gto.Mole
    mo_coeff: Any
    mo_occ: Any
    predicted: np.ndarray | None = None

    def fits(self, mol: gto.Mole) -> bool:
        """Whether ``mol`` is the same molecule with the same basis, at some geometry."""
        same = mol.natm == self.mol.natm and mol.nelec == self.mol.nelec and np.array_equal(mol.ao_loc, self.mol.ao_loc)
        return same and all(mol.atom_symbol(atom) == self.mol.atom_symbol(atom) for atom in range(mol.natm))


def projected(mf: Any, last: Last) -> np.ndarray:
    """Density matrix of the last occupied orbitals, carried along by their atoms and made orthonormal again (Lowdin)."""
    overlap = mf.get_ovlp()

    def orthonormal(orbitals: np.ndarray, occupations: np.ndarray) -> np.ndarray:
        chosen = occupations > 1e-10
        filled = orbitals[:, chosen]
        values, vectors = np.linalg.eigh(filled.T @ overlap @ filled)
        out = np.zeros_like(orbitals)
        out[:, chosen] = filled @ (vectors / np.sqrt(values)) @ vectors.T
        return out

    orbitals, occupations = np.asarray(last.mo_coeff), np.asarray(last.mo_occ)
    if orbitals.ndim == 2:
        moved = orthonormal(orbitals, occupations)
    else:
        moved = np.stack([orthonormal(*spin) for spin in zip(orbitals, occupations, strict=True)])
    return np.asarray(mf.make_rdm1(moved, occupations))


def symmetric_spins(orbitals: Any, occupations: Any, overlap: np.ndarray) -> bool | None:
    """Whether alpha and beta have the same density; None where they have different numbers of electrons, or one set."""
    coefficients, occupied = np.asarray(orbitals), np.asarray(occupations)
    if coefficients.ndim < 3 or not np.isclose(occupied[0].sum(), occupied[1].sum()):
        return None
    alpha, beta = ((c * n) @ c.T for c, n in zip(coefficients, occupied, strict=True))
    return bool(np.abs((alpha - beta) @ overlap).max() < SAME_SPINS)


class _WarmScanner(_Base):
    """Mixin of a scanner whose object has a warm start."""

    warm_start_report: Report
    _warm_start_pending: Report | None
    _warm_start_last: Last | None

    def __call__(self, mol_or_geom: Any, **kwargs: Any) -> float:
        mol = mol_or_geom
        if not isinstance(mol, gto.MoleBase):
            mol = self.mol.set_geom_(mol_or_geom, inplace=False)
        self._warm_start_coefficients = None
        if "dm0" not in kwargs:
            self.reset(mol)
            start = self._next_start()
            if start is not None:
                kwargs["dm0"] = start
        try:
            energy = super().__call__(mol, **kwargs)
        finally:
            self._warm_start_pending = None
        self._remember()
        return energy

    def _remember(self) -> None:
        self._warm_start_last = None
        if self.converged and self.mo_coeff is not None:
            self._warm_start_last = Last(self.mol.copy(), self.mo_coeff, self.mo_occ, self._warm_start_coefficients)

    def _next_start(self) -> Any:
        """The density matrix to start this geometry from; None leaves it to PySCF's scanner."""
        last = self._warm_start_last
        if self.mo_coeff is None or str(self.init_guess)[:3].lower() == "chk" or guess_refusal(self):
            return None  # the guess, or the last density matrix, as in PySCF
        if last is None or not last.fits(self.mol):
            start = self._predicted_start(lambda: self._stock_guess(self.init_guess))
            self._warm_start_pending = self.warm_start_report
            if start is None:
                self.warm_start_report.start = "last"
            return start
        before = np.asarray(self.make_rdm1(last.mo_coeff, last.mo_occ))
        if np.iscomplexobj(before):
            return None
        report = self._warm_start_pending = Report(model=self._model_name, start="last")
        self.warm_start_report = report
        carried, spins = projected(self, last), symmetric_spins(last.mo_coeff, last.mo_occ, last.mol.intor("int1e_ovlp"))
        if self.warm_start_settings.scanner == "last" or spins is False:  # a broken-symmetry state would be lost
            return carried
        try:
            start = self._changed_start(last, before, carried, report)
        except Refused as refused:
            self._refuse(report, refused)
            return carried
        return np.stack([0.5 * unmixed(start, self.mol)] * 2) if spins and report.used else start

    def _changed_start(self, last: Last, before: np.ndarray, carried: np.ndarray, report: Report) -> Any:
        """The start with a prediction, or the last density carried along where that is better."""
        auxmol, coefficients = self._predict(report)
        change = self.warm_start_settings.scanner == "change"
        if change:
            started = time.perf_counter()
            coefficients = coefficients + self._correction(last, before)
            report.inference_seconds += time.perf_counter() - started
        dm = self._density_matrix(auxmol, coefficients, report)
        if self.warm_start_settings.check and not self._better(auxmol, coefficients, dm, carried, report):
            text = "warm start: estimated error %.2g Eh, that of the last density %.2g Eh: the latter starts"
            logger.info(self, text, report.error, report.stock_error)
            return carried
        report.used, report.start = True, "change" if change else "predicted"
        return dm

    def _correction(self, last: Last, before: np.ndarray) -> np.ndarray:
        """``[naux]`` fitted converged density of the last geometry minus the predicted one."""
        predictor = self.warm_start_settings.predictor
        try:
            auxmol = predictor.auxmol(last.mol)
            predicted = predictor.coefficients(last.mol) if last.predicted is None else last.predicted
        except Exception as error:
            raise Refused("exception", f"the prediction of the last geometry failed ({error})") from error
        predicted, _ = check_coefficients(auxmol, predicted, last.mol.nelectron)
        return fit_density(last.mol, auxmol, before) - predicted


def make_scanner(scanner: Any) -> Any:
    """PySCF's ``scanner`` of an object with a warm start, with the starts of this module."""
    scanner._warm_start_last, scanner._warm_start_coefficients = None, None
    out = lib.set_class(scanner, (_WarmScanner, scanner.__class__), scanner.__class__.__name__)
    out._remember()
    return out
