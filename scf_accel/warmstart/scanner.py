"""Starts of later geometries from what the last one converged to and what a model predicts.

``"fock"``: the converged Fock matrix plus the predicted change of the Fock matrix of :mod:`scf_accel.guess`,

    F_new = F_old,converged + (F_model(new) - F_model(old)),

in which the errors of auxiliary basis, grid and surrogate functional cancel as those of the prediction do; matrix elements
move with their atoms. ``"change"``: the same for densities, in coefficients of the auxiliary functions,

    rho_new = rho_old,converged + (rho_model(new) - rho_model(old)),

with the converged density fitted to them and a Fock matrix made from the sum. ``"predicted"``: ``rho_model(new)``, as at a first
geometry. ``"last"``: the last occupied orbitals, moved with their atoms and made orthonormal again. With ``check`` the latter
start too wherever they are better than the others (:mod:`scf_accel.warmstart.check`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyscf import gto, lib
from pyscf.lib import logger

from scf_accel.fitting import fit_density
from scf_accel.guess import guess_fock
from scf_accel.guess import refusal as guess_refusal
from scf_accel.guess.start import quiet_copy
from scf_accel.warmstart.check import check_coefficients, check_density_matrix, unbroken
from scf_accel.warmstart.report import Refused, Report, in_line

SAME_SPINS = 1e-4  # elements of (D_alpha - D_beta) S
_Base: Any = object


@dataclass(frozen=True)
class Last:
    """A converged geometry.

    Attributes:
        mol, mo_energy, mo_coeff, mo_occ: the molecule there and its orbitals.
        predicted: coefficients that the model gives there; None where it has not been asked.
        model_fock: ``[nao, nao]`` Fock matrix of ``predicted``; None where it was not made.
    """

    mol: gto.Mole
    mo_energy: Any
    mo_coeff: Any
    mo_occ: Any
    predicted: np.ndarray | None = None
    model_fock: np.ndarray | None = None

    def fits(self, mol: gto.Mole) -> bool:
        """Whether ``mol`` is the same molecule with the same basis, at some geometry."""
        same = mol.natm == self.mol.natm and mol.nelec == self.mol.nelec and np.array_equal(mol.ao_loc, self.mol.ao_loc)
        return same and all(mol.atom_symbol(atom) == self.mol.atom_symbol(atom) for atom in range(mol.natm))

    def fock(self, overlap: np.ndarray) -> np.ndarray | None:
        """``S C e C^T S``, the converged Fock matrix (a set for each spin); None where the orbitals are not a full set."""
        energies, orbitals = np.asarray(self.mo_energy), np.asarray(self.mo_coeff)
        if orbitals.shape[-1] != orbitals.shape[-2] or energies.shape != np.asarray(self.mo_occ).shape:
            return None
        carried = overlap @ orbitals
        return (carried * energies[..., None, :]) @ np.swapaxes(carried, -1, -2)


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
    _warm_start_fock: np.ndarray | None
    _warm_start_prepared: gto.Mole | None

    def reset(self, mol: Any = None) -> Any:
        """As PySCF's; but what a start was just prepared with (the integrals of a density fitting) its SCF uses too."""
        prepared, self._warm_start_prepared = self._warm_start_prepared, None
        return self if prepared is not None and mol is prepared else super().reset(mol)

    def __call__(self, mol_or_geom: Any, **kwargs: Any) -> float:
        mol = mol_or_geom
        if not isinstance(mol, gto.MoleBase):
            mol = self.mol.set_geom_(mol_or_geom, inplace=False)
        self._warm_start_coefficients = self._warm_start_fock = None
        if "dm0" not in kwargs:
            self.reset(mol)
            start = self._next_start()
            if start is not None:
                kwargs["dm0"] = start
            self._warm_start_prepared = mol
        try:
            energy = super().__call__(mol, **kwargs)
        finally:
            self._warm_start_pending = self._warm_start_prepared = None
        self._remember()
        return energy

    def _remember(self) -> None:
        """Keep what the next geometry starts from. (At its start the molecule may be moved already, by its owner.)"""
        self._warm_start_last = None
        if not self.converged or self.mo_coeff is None or guess_refusal(self) or np.iscomplexobj(self.mo_coeff):
            return
        if self.warm_start_settings.scanner == "fock" and self._warm_start_fock is None:
            try:
                auxmol, coefficients = self._predict(Report())
                self._model_fock(auxmol, coefficients, Report())
            except Refused:  # the next start says so
                self._warm_start_fock = None
        orbitals = self.mo_energy, self.mo_coeff, self.mo_occ
        self._warm_start_last = Last(self.mol.copy(), *orbitals, self._warm_start_coefficients, self._warm_start_fock)

    def _next_start(self) -> Any:
        """The density matrix to start this geometry from; None leaves it to PySCF's scanner."""
        last = self._warm_start_last
        wanted = isinstance(self.init_guess, str) and self.init_guess[:3].lower() != "chk"
        if self.mo_coeff is None or not wanted or guess_refusal(self):
            return None  # the guess, or the last density matrix, as in PySCF
        if last is None or not last.fits(self.mol):
            start = self._predicted_start(lambda: self._stock_guess(self.init_guess))
            self._warm_start_pending = self.warm_start_report
            if start is None:
                self.warm_start_report.start = "last"
            return start
        self.warm_start_report = self._warm_start_pending = report = Report(model=self._model_name, start="last")
        carried = projected(self, last)
        if not np.isfinite(carried).all():  # orbitals that have become one: atoms on top of each other
            return None
        if self.warm_start_settings.scanner == "last":
            return carried
        try:
            return self._moved_start(last, carried, report)
        except Refused as refused:
            self._refuse(report, refused)
            return carried

    def _moved_start(self, last: Last, carried: np.ndarray, report: Report) -> Any:
        """The start with a prediction, or the last density ``carried`` along where that is better."""
        kind, settings = self.warm_start_settings.scanner, self.warm_start_settings
        auxmol, coefficients = self._predict(report)
        fock = self._fock_start(last, auxmol, coefficients, report) if kind == "fock" else None
        kind = "change" if kind == "fock" and fock is None else kind
        spins = symmetric_spins(last.mo_coeff, last.mo_occ, last.mol.intor_symmetric("int1e_ovlp"))
        if kind != "fock" and spins is False:
            return carried  # a broken-symmetry state would be lost
        if kind == "change" or (kind == "fock" and settings.check):
            started = time.perf_counter()
            before = np.asarray(self.make_rdm1(last.mo_coeff, last.mo_occ))
            coefficients = coefficients + self._correction(last, before)
            report.inference_seconds += time.perf_counter() - started
        dm = self._density_matrix(auxmol, coefficients, report) if fock is None else fock
        if settings.check and not self._better(auxmol, coefficients, dm, carried, report, 1.0):
            text = "warm start: estimated error %.2g Eh, that of the last density %.2g Eh: the latter starts"
            logger.info(self, text, report.error, report.stock_error)
            return carried
        report.used, report.start = True, kind
        return np.stack([0.5 * unbroken(dm)] * 2) if spins and fock is None else dm

    def _model_fock(self, auxmol: Any, coefficients: np.ndarray, report: Report) -> np.ndarray:
        """``[nao, nao]`` Fock matrix of a predicted density; kept for the next geometry."""
        started = time.perf_counter()
        try:
            fock = guess_fock(self, auxmol, coefficients, surrogate=self.warm_start_settings.surrogate)
        except Exception as error:
            raise Refused("guess", f"no Fock matrix can be made from it ({in_line(error)})") from error
        report.guess_seconds += time.perf_counter() - started
        self._warm_start_fock = fock
        return fock

    def _fock_start(self, last: Last, auxmol: Any, coefficients: np.ndarray, report: Report) -> Any:
        """Density matrix of the last Fock matrix plus its predicted change; None where there is nothing to change."""
        fock = self._model_fock(auxmol, coefficients, report)
        old = last.fock(last.mol.intor_symmetric("int1e_ovlp"))
        if old is None or last.model_fock is None:
            return None
        started, quiet = time.perf_counter(), quiet_copy(self)
        try:
            overlap = quiet.get_ovlp()
            energies, orbitals = quiet.eig(old + (fock - last.model_fock), overlap, x=quiet.check_linear_dependency(overlap))
            dm = quiet.make_rdm1(orbitals, quiet.get_occ(energies, orbitals))
        except Exception as error:
            raise Refused("guess", f"its Fock matrix has no orbitals ({in_line(error)})") from error
        check_density_matrix(dm)
        report.guess_seconds += time.perf_counter() - started
        return dm

    def _correction(self, last: Last, before: np.ndarray) -> np.ndarray:
        """``[naux]`` fitted converged density of the last geometry minus the predicted one."""
        predictor = self.warm_start_settings.predictor
        try:
            auxmol = predictor.auxmol(last.mol)
            predicted = predictor.coefficients(last.mol) if last.predicted is None else last.predicted
            fitted = fit_density(last.mol, auxmol, before)
        except Exception as error:
            raise Refused("exception", f"the prediction of the last geometry failed ({in_line(error)})") from error
        return fitted - check_coefficients(auxmol, predicted, last.mol.nelectron)[0]


def make_scanner(scanner: Any) -> Any:
    """PySCF's ``scanner`` of an object with a warm start, with the starts of this module."""
    scanner._warm_start_coefficients = scanner._warm_start_fock = scanner._warm_start_prepared = None
    out = lib.set_class(scanner, (_WarmScanner, scanner.__class__), scanner.__class__.__name__)
    out._remember()
    return out
