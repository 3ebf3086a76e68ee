"""The PySCF side: ``mf = scf_accel.warm_start(mf)``, an object of PySCF's own kind with a predicted initial guess."""

from __future__ import annotations

import functools
import inspect
import time
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from pyscf import dft, lib, scf
from pyscf.lib import logger

from scf_accel.auxbasis import atomic_numbers
from scf_accel.predictor import PredictionError, as_predictor
from scf_accel.takeover import take_over
from scf_accel.warmstart.check import WORTH, check_coefficients, check_density_matrix, residuals
from scf_accel.warmstart.report import Refused, Report, Settings, in_line

_Base: Any = object  # the class of the user's object comes after the mixin


def uncovered(mf: Any) -> str | None:
    """Why there is no predicted guess for an object of this kind, whatever the model; None if there may be one."""
    from scf_accel.guess import refusal

    reason = refusal(mf)
    if reason is not None:
        return reason
    if not mf.mol.has_ecp() and not np.array_equal(mf.mol.atom_charges(), atomic_numbers(mf.mol)):
        return "nuclear charges that are not those of the elements"
    return None


class _WarmStart(_Base):
    """Mixin that replaces the initial guess; see :func:`warm_start`."""

    __name_mixin__ = "WarmStart"
    _keys: ClassVar[set[str]] = {"warm_start_settings", "warm_start_report"}

    def __init__(self, mf: Any, settings: Settings) -> None:
        take_over(self, mf)
        self.warm_start_settings = settings
        self.warm_start_report = Report()
        self._warm_start_warned: frozenset[str] = frozenset()
        self._warm_start_pending: Report | None = None
        self._warm_start_coefficients: np.ndarray | None = None
        self._warm_start_fock: np.ndarray | None = None

    def copy(self) -> Any:
        """PySCF's shallow copy; the report is its own."""
        new = super().copy()
        new.warm_start_report = replace(self.warm_start_report)
        return new

    def undo_warm_start(self) -> Any:
        """The object without predicted guesses."""
        from scf_accel.warmstart.scanner import _WarmScanner

        cls = self.__class__
        for mixin in (_WarmScanner, _WarmStart):
            if issubclass(cls, mixin):
                cls = lib.drop_class(cls, mixin)
        obj = lib.view(self, cls)
        for name in [name for name in obj.__dict__ if name.startswith(("warm_start_", "_warm_start_"))]:
            del obj.__dict__[name]
        if isinstance(obj.__dict__.get("_scf"), _WarmStart):  # the object below a second-order solver
            obj._scf = obj._scf.undo_warm_start()
        return obj

    def dump_flags(self, verbose: Any = None) -> Any:
        super().dump_flags(verbose)
        logger.info(self, "warm start: model %s, %s", self._model_name, self.warm_start_settings)
        return self

    def scf(self, *args: Any, **kwargs: Any) -> Any:
        """SCF main driver; see PySCF's own."""
        self._expect_start(*args, **kwargs)
        return super().scf(*args, **kwargs)

    def kernel(self, *args: Any, **kwargs: Any) -> Any:
        """SCF main driver; see PySCF's own."""
        self._expect_start(*args, **kwargs)
        return super().kernel(*args, **kwargs)

    def _expect_start(self, *args: Any, **kwargs: Any) -> None:
        """Until a guess is asked for, what starts is the user's (or what the scanner has prepared), if anything."""
        given = any(value is not None for value in (*args, *kwargs.values(), self.mo_coeff))
        self.warm_start_report = self._warm_start_pending or Report(start="given" if given else "", model=self._model_name)

    def get_init_guess(self, mol: Any = None, key: Any = "minao", **kwargs: Any) -> Any:
        """The predicted density matrix, where ``key`` is ``self.init_guess`` and a model covers the molecule; else PySCF's.

        Any other ``key`` (and 'chk', and density matrices) gives what PySCF gives.
        """
        if not isinstance(key, str) or key.lower()[:3] == "chk" or key != self.init_guess:
            self.warm_start_report = Report(start=key if isinstance(key, str) else "given", model=self._model_name)
            return self._stock_guess(key, mol, **kwargs)
        stock_guess = functools.cache(lambda: self._stock_guess(key, mol, **kwargs))
        if mol is not None and mol is not self.mol:
            dm = self._refuse(Report(model=self._model_name), Refused("molecule", "a guess for another molecule was asked for"))
        else:
            dm = self._predicted_start(stock_guess)
        if dm is None:
            self.warm_start_report.start = key
            return stock_guess()
        return dm

    def get_fock(self, *args: Any, **kwargs: Any) -> Any:
        """Fock matrix, see PySCF's own; DIIS begins with that of a predicted start, where PySCF drops the first one.

        ``minao`` is no density that orbitals have, and its Fock matrix is hardly worth keeping; that of a predicted start often
        saves a cycle (benchmarks/diis_start.py). ``diis_start_cycle`` other than PySCF's default stays in force.
        """
        call = inspect.signature(super().get_fock).bind(*args, **kwargs)
        given = call.arguments
        if given.get("cycle") == 0 and given.get("diis_start_cycle") is None and self._extrapolate_at_once(given.get("dm")):
            given["diis_start_cycle"] = 0
        return super().get_fock(*call.args, **call.kwargs)

    def _extrapolate_at_once(self, dm: Any) -> bool:
        """Whether ``dm`` is a predicted start of Kohn-Sham orbitals, for an SCF with PySCF's default settings of DIIS."""
        plain = self.diis_start_cycle == scf.hf.SCF.diis_start_cycle and not self.damp
        predicted = self.warm_start_report.used and getattr(dm, "mo_coeff", None) is not None
        return plain and predicted and isinstance(self, dft.KohnShamDFT)

    def _stock_guess(self, key: Any, mol: Any = None, **kwargs: Any) -> Any:
        """What PySCF gives for ``key``."""
        return super().get_init_guess(mol, key, **kwargs)

    @property
    def _model_name(self) -> str:
        return _name(self.warm_start_settings.predictor)

    def _predicted_start(self, stock_guess: Any) -> Any:
        """The density matrix of the predicted density; None (and one warning) where it is not to be used."""
        report = Report(model=self._model_name)
        try:
            auxmol, coefficients = self._predict(report)
            dm = self._density_matrix(auxmol, coefficients, report)
            if self.warm_start_settings.check and not self._better(auxmol, coefficients, dm, stock_guess(), report):
                text = f"estimated energy error {report.error:.3g} Eh, that of the stock guess {report.stock_error:.3g} Eh"
                raise Refused("energy", text)
        except Refused as refused:
            return self._refuse(report, refused)
        report.used, report.start = True, "predicted"
        self.warm_start_report = report
        text = "warm start: %s, %.2f s prediction, %.2f s density matrix, %.2f s check"
        seconds = report.inference_seconds, report.guess_seconds, report.check_seconds
        logger.info(self, text, report.model, *seconds)
        return dm

    def _refuse(self, report: Report, refused: Refused) -> Any:
        """Note and say that the prediction is not used."""
        report.fallback = str(refused)
        self.warm_start_report = report
        if refused.kind not in self._warm_start_warned:
            self._warm_start_warned |= {refused.kind}
            logger.warn(self, "warm start: no predicted density: %s: the guess is %r", refused, self.init_guess)
        return None

    def _predict(self, report: Report) -> tuple[Any, np.ndarray]:
        """Auxiliary molecule and checked coefficients of the present molecule."""
        predictor, started = self.warm_start_settings.predictor, time.perf_counter()
        reason = uncovered(self)
        if reason is not None:
            raise Refused("object", reason)
        try:
            reason = predictor.refusal(self.mol)
            if reason is not None:
                raise Refused("coverage", reason)
            auxmol, raw = predictor.auxmol(self.mol), predictor.coefficients(self.mol)
        except (Refused, PredictionError) as problem:
            raise problem if isinstance(problem, Refused) else Refused("prediction", str(problem)) from problem
        except Exception as error:  # whatever a model does, the calculation goes on
            raise Refused("exception", f"the prediction failed ({in_line(error)})") from error
        coefficients, report.electrons = check_coefficients(auxmol, raw, self.mol.nelectron)
        self._warm_start_coefficients = coefficients
        report.inference_seconds = time.perf_counter() - started
        return auxmol, coefficients

    def _density_matrix(self, auxmol: Any, coefficients: np.ndarray, report: Report) -> Any:
        """The density matrix of the Fock matrix of a fitted density."""
        from scf_accel.guess import density_matrix

        started = time.perf_counter()
        try:
            dm = density_matrix(self, auxmol, coefficients, surrogate=self.warm_start_settings.surrogate)
        except Exception as error:
            raise Refused("guess", f"no density matrix can be made from it ({in_line(error)})") from error
        check_density_matrix(dm)
        report.guess_seconds += time.perf_counter() - started
        return dm

    def _better(self, auxmol: Any, coefficients: np.ndarray, dm: Any, other: Any, report: Report, worth: float = WORTH) -> bool:
        """Whether the predicted density, with its ``dm``, is better than the density matrix ``other``; notes the energies."""
        started = time.perf_counter()
        try:
            report.error, report.stock_error = ours, stock = residuals(self.mol, auxmol, coefficients, dm, other)
        except Exception as error:
            raise Refused("check", f"it cannot be compared with the stock guess ({in_line(error)})") from error
        report.check_seconds += time.perf_counter() - started
        return ours <= worth * stock

    def as_scanner(self) -> Any:
        """PySCF's scanner, with a predicted start at every geometry; see ``scanner`` in the settings."""
        from scf_accel.warmstart.scanner import make_scanner

        return self if isinstance(self, lib.SinglePointScanner) else make_scanner(super().as_scanner())

    def to_ks(self, *args: Any, **kwargs: Any) -> Any:
        """The Kohn-Sham object, with a warm start too."""
        return self._same_start(super().to_ks(*args, **kwargs))

    def to_hf(self, *args: Any, **kwargs: Any) -> Any:
        """The Hartree-Fock object, with a warm start too."""
        return self._same_start(super().to_hf(*args, **kwargs))

    def _same_start(self, mf: Any) -> Any:
        return mf if isinstance(mf, _WarmStart) else _wrapped(mf, self.warm_start_settings)


def _name(predictor: Any) -> str:
    return str(getattr(predictor, "name", type(predictor).__name__))


def _wrapped(mf: Any, settings: Settings) -> Any:
    return lib.set_class(_WarmStart(mf, settings), (_WarmStart, mf.__class__))


def warm_start(mf: Any, model: Any = None, *, device: str = "cpu", dtype: str | None = None, **settings: Any) -> Any:
    """``mf`` with an initial guess from a predicted electron density: the same energy in fewer SCF cycles.

        mf = scf_accel.warm_start(dft.RKS(mol, xc="pbe")).run()

    A new object of PySCF's kind (``mf`` stays as it is): ``density_fit``, ``newton``, gradients, scanners and so on follow as
    always, and so does ``scf_accel.accelerate``. A density matrix or orbitals that are there, and ``init_guess = "chk"``, go
    before the prediction. ``mf.warm_start_report`` says what the last run started from; ``mf.undo_warm_start()`` gives the
    plain object back.

    What the model does not cover (its elements and total charges; core potentials; periodic, generalised or relativistic
    spinor objects) and what looks wrong (number of electrons, an energy worse than that of the stock guess) starts from
    ``mf.init_guess`` as if nothing were here, with one warning of PySCF's logger.

    Args:
        mf: PySCF mean-field object.
        model: path or name of a checkpoint with a density head, a model, anything with the methods of
            :class:`scf_accel.predictor.Predictor`, or None: the model that the package ships.
        device, dtype: of the model.
        **settings: other fields of :class:`scf_accel.warmstart.Settings`.

    Raises:
        CheckpointError: there is no such model.
        ConfigError: an impossible setting.
    """
    if not isinstance(mf, scf.hf.SCF):
        raise TypeError(f"warm_start takes a PySCF mean-field object such as dft.RKS(mol), not {type(mf).__name__}")
    if isinstance(mf, _WarmStart):
        old = mf.warm_start_settings
        predictor = old.predictor if model is None else as_predictor(model, device, dtype)
        return lib.view(_WarmStart(mf, replace(old, predictor=predictor, **settings)), mf.__class__)
    return _wrapped(mf, Settings(as_predictor(model, device, dtype), **settings))
