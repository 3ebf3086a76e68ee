"""The PySCF side: ``mf = scf_accel.accelerate(mf)``, an object of PySCF's own kind with another SCF driver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from pyscf import df, dft, lib, scf
from pyscf.dft import numint
from pyscf.lib import logger
from pyscf.soscf import newton_ah

from scf_accel.memory import available_bytes, give_back
from scf_accel.multilevel.coarse import CoarseModelError
from scf_accel.multilevel.report import Report, Settings
from scf_accel.multilevel.solver import HandOver, Solver
from scf_accel.storednumint import StoredNumInt
from scf_accel.takeover import take_over


def unsupported(mf: Any) -> str | None:
    """Why the multilevel scheme does not apply to ``mf``; None if it does."""
    if "pyscf.pbc" in type(mf.mol).__module__:
        return "periodic systems"
    if mf.mol.nbas == 0:
        return "model Hamiltonians without a basis"
    if isinstance(mf, newton_ah._CIAH_SOSCF):
        return "second-order solvers"
    if not isinstance(mf, (scf.hf.RHF, scf.uhf.UHF)):  # ROHF and the Kohn-Sham classes derive from these
        return f"{_name(mf)} (only restricted, unrestricted and restricted open-shell ones)"
    return None


SMALL_IN_CORE = 100
_Base: Any = object  # the class of the user's object comes after the mixin


def _name(mf: Any) -> str:
    return type(mf).__name__.removeprefix(_Multilevel.__name_mixin__)


def no_gain(mf: Any) -> str | None:
    """Why a coarse Fock matrix would not be cheaper than a full one; None if it is."""
    if isinstance(mf, dft.rks.KohnShamDFT):
        return None
    if isinstance(getattr(mf, "with_df", None), df.DF):
        return "density-fitted Hartree-Fock (a full Fock matrix costs no more than a coarse one)"
    if mf.mol.nao < SMALL_IN_CORE and (mf._eri is not None or mf._is_mem_enough()):
        return f"in-core Hartree-Fock with fewer than {SMALL_IN_CORE} orbitals (a full Fock matrix costs no more than a coarse one)"
    return None


def not_asked_for(mf: Any, kwargs: dict[str, Any]) -> str | None:
    """What makes this call one for PySCF's own driver."""
    if any(base.__name__ == "HF1e" for base in type(mf).__mro__):
        return "one electron: PySCF diagonalises once"
    if mf.max_cycle <= 0:
        return "max_cycle = 0: no SCF"
    return f"keyword arguments of PySCF's driver: {', '.join(kwargs)}" if kwargs else None


class _Multilevel(_Base):
    """Mixin that replaces the SCF driver; see :func:`accelerate`."""

    __name_mixin__ = "Multilevel"
    max_cycle: int
    _keys: ClassVar[set[str]] = {"multilevel", "multilevel_report"}

    def __init__(self, mf: Any, settings: Settings) -> None:
        take_over(self, mf)
        self.multilevel = settings
        self.multilevel_report = Report()

    def undo_accelerate(self) -> Any:
        """The object without the multilevel solver."""
        obj = lib.view(self, lib.drop_class(self.__class__, _Multilevel))
        del obj.multilevel, obj.multilevel_report
        return obj

    def dump_flags(self, verbose: Any = None) -> Any:
        super().dump_flags(verbose)
        logger.info(self, "multilevel SCF: %s", self.multilevel)
        return self

    def scf(self, *args: Any, **kwargs: Any) -> float:
        """SCF main driver; ``dm0``: density matrix to start from. Returns the total energy, Hartree."""
        self.multilevel_report = report = Report()
        report.fallback = unsupported(self)
        if report.fallback is None:
            return self._accelerated(*args, **kwargs)
        report.finished_by = "newton" if isinstance(self, newton_ah._CIAH_SOSCF) else "diis"
        logger.warn(self, "multilevel SCF does not cover %s: stock PySCF runs", report.fallback)
        driver = super().kernel if report.finished_by == "newton" else super().scf  # (PySCF's kernel calls self.scf)
        return driver(*args, **kwargs)

    def _accelerated(self, dm0: Any = None, **kwargs: Any) -> float:
        report, start = self.multilevel_report, self._start(dm0)
        reason = "complex density matrices" if np.iscomplexobj(start) else None
        if reason:
            logger.warn(self, "multilevel SCF does not cover %s: stock PySCF runs", reason)
        elif not self.multilevel.always and (reason := no_gain(self)):
            logger.note(self, "multilevel SCF is left out for %s: stock PySCF runs", reason)
        report.fallback = reason or not_asked_for(self, kwargs)
        if report.fallback:
            report.finished_by = "diis"
            return super().scf(start, **kwargs)
        started = logger.process_clock(), logger.perf_counter()
        self.dump_flags()
        self.build(self.mol)
        problem: CoarseModelError | HandOver | None = None
        with stored_values(self):
            solver = Solver(self, self.multilevel, report, start)
            start = solver.dm
            try:
                result = solver.kernel()
            except (CoarseModelError, HandOver) as raised:
                problem = raised.with_traceback(None)  # the frames would keep the coarse model
            del solver
        if problem is not None:
            return self._hand_over(problem, start)
        self.converged, self.e_tot, self.mo_energy, self.mo_coeff, self.mo_occ = result
        logger.timer(self, "SCF", *started)
        self._finalize()
        return self.e_tot

    def kernel(self, *args: Any, **kwargs: Any) -> float:
        """Another name of :meth:`scf`."""
        return self.scf(*args, **kwargs)

    def nuc_grad_method(self) -> Any:
        """PySCF's gradient object, faster where :mod:`scf_accel.gradient` covers it."""
        from scf_accel.gradient.plugin import faster  # PySCF's gradients take 0.05 s to import

        return faster(super().nuc_grad_method())

    def Gradients(self) -> Any:
        """Another name of :meth:`nuc_grad_method`."""
        from scf_accel.gradient.plugin import faster

        return faster(super().Gradients())

    def _start(self, dm0: Any) -> Any:
        """What the run starts from, in PySCF's order: the argument, existing orbitals, the user's start, the guess (None)."""
        if dm0 is None and self.mo_coeff is not None and self.mo_occ is not None:
            return self.make_rdm1()
        if dm0 is None and self.multilevel.start is not None:
            start = self.multilevel.start
            return start(self) if callable(start) else start
        return dm0

    def _hand_over(self, problem: CoarseModelError | HandOver, start: Any) -> float:
        """PySCF goes on, from the best point so far or from ``start``; one warning."""
        best, orbitals = getattr(problem, "dm", None), getattr(problem, "orbitals", None)
        self.multilevel_report.fallback = str(problem)
        self.multilevel_report.finished_by = "diis" if orbitals is None else "newton"
        goes_on = "stock PySCF" if orbitals is None else "PySCF's second-order solver"
        logger.warn(self, "multilevel SCF: %s: %s goes on", problem, goes_on)
        return self._stock(start if best is None else best, orbitals)

    def _stock(self, dm0: Any, orbitals: tuple[Any, Any] | None) -> float:
        """Stock PySCF from ``dm0``, or its second-order solver from ``orbitals``, with the cycles that are left."""
        spent, limit = len(self.multilevel_report.steps), self.max_cycle
        try:
            self.max_cycle = limit - spent  # the solver hands over before its last cycle
            with stored_values(self):
                if orbitals is None:
                    super().scf(dm0)
                else:
                    self._second_order(orbitals)
        finally:
            self.max_cycle = limit
        self.cycles += spent
        return self.e_tot

    def _second_order(self, orbitals: tuple[Any, Any]) -> None:
        """PySCF's Newton solver; ``cycles`` becomes the number of its macro iterations, each worth many Coulomb matrices."""
        solver, user, spent = self.undo_accelerate().newton(), self.callback, len(self.multilevel_report.steps)
        self.cycles = 0

        def count(envs: dict[str, Any]) -> None:
            macro = envs["imacro"] + 1
            if macro == self.cycles:  # PySCF calls once more at the end
                return
            self.cycles = macro
            if callable(user):
                user({**envs, "mf": self, "cycle": spent + macro - 1})

        solver.callback = count
        solver.kernel(*orbitals)
        for name in ("converged", "e_tot", "mo_energy", "mo_coeff", "mo_occ", "scf_summary"):
            setattr(self, name, getattr(solver, name))
        if not np.allclose(self.get_occ(self.mo_energy, self.mo_coeff), self.mo_occ, atol=1e-4):
            self.multilevel_report.non_aufbau = True
            logger.warn(self, "multilevel SCF: the occupied orbitals are not the lowest ones")


@contextmanager
def stored_values(mf: Any) -> Iterator[None]:
    """Within, a stock numerical integrator of ``mf`` is replaced by one that keeps the orbital values."""
    stock: Any = getattr(mf, "_numint", None)
    if type(stock) is not numint.NumInt:
        yield
        return

    def budget() -> float:
        """Bytes for the orbital values: leaves room for in-core integrals where PySCF would make them."""
        in_core = getattr(mf, "with_df", None) is None and mf._eri is None and mf._is_mem_enough()
        return max(0.0, 0.7 * (available_bytes(mf) - (1.1 * mf.mol.nao**4 if in_core else 0.0)))

    stored = StoredNumInt(budget)
    stored.__dict__.update({key: value for key, value in stock.__dict__.items() if key not in stored.__dict__})
    stored.omega = stock.omega
    try:
        mf._numint = stored
        yield
    finally:
        mf._numint = stock
        stored.clear()
        give_back()


def accelerate(mf: Any, **settings: Any) -> Any:
    """``mf`` with the multilevel SCF solver: the same energy and orbitals, usually from two or three full-cost Fock matrices.

        mf = scf_accel.accelerate(dft.RKS(mol, xc="pbe").density_fit()).run()

    A new object of PySCF's kind (``mf`` stays as it is): convergence thresholds, callback, chkfile, gradients, scanners and
    so on behave as always. ``mf.cycles`` counts full-cost Fock matrices; ``mf.multilevel_report`` says what was done.
    Restricted, unrestricted and restricted open-shell Hartree-Fock and Kohn-Sham objects of molecules are covered; any
    other runs as stock PySCF with one warning, and so does, with a note, Hartree-Fock where its Fock matrix is cheap
    already (density-fitted, or in-core and small). ``mf.undo_accelerate()`` gives the plain object back.

    Convergence: the orbital gradient is below ``conv_tol_grad``, and either twice the second-order estimate of the energy left
    to gain is below ``conv_tol`` or, as in PySCF, the last change of the energy is. Where the highest occupied and the lowest
    empty orbital all but meet, the run may end at orbitals that are not the lowest ones, with a warning
    (``multilevel_report.non_aufbau``); where it does not converge, PySCF goes on, by DIIS or with its second-order solver.

    Without effect here: ``diis``, ``DIIS``, ``diis_space``, ``diis_damp`` (the coarse solves use commutator DIIS) and
    ``conv_check`` (the full gradient belongs to the very density that is returned).

    Args:
        mf: PySCF mean-field object.
        **settings: fields of :class:`scf_accel.multilevel.Settings`.
    """
    if isinstance(mf, _Multilevel):
        return lib.view(_Multilevel(mf, replace(mf.multilevel, **settings)), mf.__class__)
    return lib.set_class(_Multilevel(mf, Settings(**settings)), (_Multilevel, mf.__class__))
