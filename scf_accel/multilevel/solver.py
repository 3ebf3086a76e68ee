"""Multilevel SCF: defect correction between the user's Fock operator and a coarse model of it.

At the density ``D_k`` the full operator is evaluated once; the model ``F_k + V_coarse[D] - V_coarse[D_k]`` agrees with it
there and follows it nearby, and is solved at small cost for ``D_(k+1)`` (the full approximation scheme of nonlinear
multigrid, Brandt, Math. Comp. 31, 333 (1977), with two levels). From the second step on, the point ``D_k`` is
extrapolated by DIIS over the orbital gradients of the full operator (Pulay 1980), which helps where the model is poor.
The converged state is that of the full operator alone: the coarse model has no influence on it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pyscf import df, scf
from pyscf.lib import logger
from pyscf.scf import chkfile

from scf_accel.memory import available_bytes
from scf_accel.multilevel import inner
from scf_accel.multilevel.anchors import Anchor, Anchors
from scf_accel.multilevel.coarse import CoarseModel, CoarseModelError, determinant, factors
from scf_accel.multilevel.convergence import energy_left, fractional, orbital_energies
from scf_accel.multilevel.doubt import Doubt
from scf_accel.multilevel.progress import NEAR, Progress
from scf_accel.multilevel.report import Report, Settings, Step

SAFETY = 2.0  # factor on the energy estimate before it is compared with conv_tol
TIGHT = 1e-5  # gradient thresholds below this need a double-precision model
USEFUL = 0.5  # densities with a larger orbital gradient are no better start than the guess


class HandOver(Exception):
    """The scheme does not converge; ``dm`` is the best density matrix so far, None if it is worth nothing.

    ``orbitals``: coefficients and occupations near a stationary point whose gap is too small for DIIS, else None.
    """

    def __init__(self, reason: str, dm: Any, orbitals: tuple[Any, Any] | None = None) -> None:
        super().__init__(reason)
        self.dm, self.orbitals = dm, orbitals


@dataclass(frozen=True)
class Point:
    """The full operator at one density: what ``pyscf.scf.hf.kernel`` calls by the same names."""

    dm: Any
    vhf: Any
    fock: Any
    e_tot: float
    norm_gorb: float
    energy_left: float
    mo_energy: Any
    mo_coeff: Any
    mo_occ: Any


class Solver:
    """One run of the multilevel scheme on ``mf``; calls the same hooks of it as ``pyscf.scf.hf.kernel``.

    The settings of ``mf`` that matter: ``conv_tol``, ``conv_tol_grad``, ``max_cycle`` (of full Fock matrices),
    ``level_shift`` (in the coarse solves), ``callback``, ``check_convergence``, ``chkfile``, ``max_memory``.

    Args:
        mf: the mean-field object.
        settings: of the scheme.
        report: is filled in.
        dm0: density matrix to start from; None: ``mf``'s own guess.

    Attributes:
        dm: the start.
    """

    def __init__(self, mf: Any, settings: Settings, report: Report, dm0: Any = None) -> None:
        started = time.perf_counter()
        self.mf, self.mol, self.settings, self.report = mf, mf.mol, settings, report
        self.log = logger.new_logger(mf)
        self.conv_tol = mf.conv_tol
        self.conv_tol_grad = np.sqrt(mf.conv_tol) if mf.conv_tol_grad is None else mf.conv_tol_grad
        self.s1e, self.h1e = mf.get_ovlp(self.mol), mf.get_hcore(self.mol)
        self.x_orth = mf.check_linear_dependency(self.s1e, self.log)
        self.dm = mf.get_init_guess(self.mol, mf.init_guess, s1e=self.s1e) if dm0 is None else dm0
        self.given = dm0 is not None or getattr(self.dm, "mo_coeff", None) is not None
        self.doubt = Doubt(self)
        self._build_fitting()
        report.start_seconds = time.perf_counter() - started

    def prepare(self) -> None:
        """Make the coarse model and the state of the start.

        Raises:
            CoarseModelError: no coarse model for this object.
        """
        started = time.perf_counter()
        exact = self.conv_tol_grad < TIGHT or inner.smeared(self.mf)  # then the energy is of first order in the gradient
        self._build_model(np.float64 if exact else np.float32)
        self.state = self._first_state(self.dm, self.given)
        self.report.setup_seconds = time.perf_counter() - started
        seconds = self.report.start_seconds, self.report.setup_seconds
        self.log.info("multilevel SCF: start %.2f s, coarse model %.2f s (%s)", *seconds, self.problem.model.size)

    def _build_fitting(self) -> None:
        """Stock PySCF computes the fitted integrals of J anew in each cycle; here they are kept if they fit."""
        with_df = getattr(self.mf, "with_df", None)
        if not isinstance(with_df, df.DF) or with_df._cderi is not None:
            return
        pairs = self.mol.nao * (self.mol.nao + 1) // 2
        if 8 * with_df.get_naoaux() * pairs < 0.5 * available_bytes(self.mf):
            with_df.build()

    def _build_model(self, dtype: type) -> None:
        quiet = self.mf.copy()
        quiet.verbose = 0
        if inner.smeared(quiet):
            quiet.level_shift = 0.0  # it would move the occupations
        model = CoarseModel(self.mf, self.settings, 0.6 * available_bytes(self.mf), dtype)
        self.problem = inner.Problem(quiet, self.h1e, self.s1e, self.x_orth, model)
        self.refinable = dtype is np.float32

    def _refine_model(self) -> bool:
        """Rounding errors stop the inner solves (a nearly dependent basis amplifies them): go on in double precision."""
        self.refinable = False
        try:
            self._build_model(np.float64)
        except CoarseModelError as problem:
            self.log.info("multilevel SCF: the coarse model stays in single precision: %s", problem)
            return False
        self.log.info("multilevel SCF: the coarse model goes on in double precision")
        return True

    def _first_state(self, dm: Any, given: bool) -> inner.State:
        """The state of the guess; with orbitals where a given ``dm`` brings some that belong to this geometry."""
        dms = self.problem.stacked(dm)
        if given:
            mo_coeff, mo_occ = getattr(dm, "mo_coeff", None), getattr(dm, "mo_occ", None)
            if isinstance(mo_coeff, np.ndarray) and self._belong(mo_coeff, mo_occ, dms):
                return self.problem.state(None, mo_coeff, mo_occ)
        values, vectors = np.linalg.eigh(self.s1e)
        values = np.maximum(values, 1e-12)
        half, inverse = (vectors * np.sqrt(values)) @ vectors.T, (vectors / np.sqrt(values)) @ vectors.T
        plain = not (isinstance(self.mf, scf.rohf.ROHF) or self.mol.symmetry or inner.smeared(self.mf))
        orbitals = determinant(dms, half, inverse) if given and plain and self.x_orth.shape[1] == self.mol.nao else None
        if orbitals is not None:
            mo_coeff, mo_occ = map(self.problem.shaped, orbitals)
            if self._electrons_fit(mo_occ):
                return self.problem.state(None, mo_coeff, mo_occ)
        exchange = self.problem.model.exchange(factors(dms, half, inverse)) if self.problem.model.terms else None
        return inner.State(dms, exchange)

    def _belong(self, mo_coeff: np.ndarray, mo_occ: Any, dms: np.ndarray) -> bool:
        """Whether these are all orbitals of this basis, orthonormal at this geometry, and make the density matrices."""
        whole = (self.mol.nao, self.x_orth.shape[1])  # fewer (a projection, a guess) would hide a part of the gradient
        if mo_occ is None or mo_coeff.shape[-2:] != whole or not self._electrons_fit(mo_occ):
            return False
        made = self.problem.stacked(self.mf.make_rdm1(mo_coeff, mo_occ))
        if made.shape != dms.shape or not np.allclose(made, dms, atol=1e-8):
            return False
        overlaps = np.swapaxes(mo_coeff, -1, -2) @ self.s1e @ mo_coeff
        return np.allclose(overlaps, np.eye(mo_coeff.shape[-1]), atol=1e-8)

    def _electrons_fit(self, mo_occ: np.ndarray) -> bool:
        """Whether the occupations are those of this molecule's charge and spin."""
        occupations = np.asarray(mo_occ)
        if self.problem.sets == 1:
            return bool(np.isclose(occupations.sum(), self.mol.nelectron))
        if occupations.ndim == 1:
            occupations = np.stack([occupations > 0, occupations == 2])
        return np.allclose(occupations.sum(axis=1), self.mf.nelec)

    def kernel(self) -> tuple[Any, ...]:
        """Converge; returns what ``pyscf.scf.hf.kernel`` returns.

        Raises:
            CoarseModelError: no coarse model for this object.
            HandOver: stock PySCF should continue.
        """
        mf, anchors = self.mf, Anchors()
        progress = Progress(self.settings.max_outer, self.conv_tol)
        self.prepare()
        if mf.chkfile:
            chkfile.save_mol(self.mol, mf.chkfile)
        mf.pre_kernel(self._environment())
        last, tol = None, np.inf
        for cycle in range(mf.max_cycle):
            started = time.perf_counter()
            solution, anchors = self._coarse(anchors, last, tol, progress.useful)
            self.state = solution.state
            middle = time.perf_counter()
            point = self._full(last)
            seconds = middle - started, time.perf_counter() - middle
            step = Step(point.e_tot, point.norm_gorb, solution.builds, *seconds, point.energy_left)
            converged, point = self._finish_step(cycle, point, last, step)
            if converged:
                break
            progress.add(point)
            here = self.anchor(point, self.state)
            if self.doubt.choice is not None:
                progress.restart()
            elif progress.hopeless(point) and cycle + 1 < mf.max_cycle:
                self._give_up(progress, progress.best or point)
            anchors = Anchors() if self.doubt.fresh or progress.leaves_saddle else anchors
            anchors.add(here)
            last, self.state = self.doubt.turn(point, self.state, anchors)
            tol = max(min(0.25 * self.conv_tol_grad, 0.1 * last.norm_gorb), 1e-3 * last.norm_gorb)
        if not converged and np.isfinite(point.e_tot):
            point = self._canonical(point)
        mf.post_kernel(self._environment(point, cycle=cycle, scf_conv=converged))
        return converged, point.e_tot, point.mo_energy, point.mo_coeff, point.mo_occ

    def _coarse(self, anchors: Anchors, last: Point | None, tol: float, useful: bool) -> tuple[inner.Solution, Anchors]:
        """The next coarse solution, and the anchors that it is made from; in double precision where single does not do."""
        solution = self._first_solution() if last is None else self._next_solution(anchors, tol, useful)
        rounding = solution.gradient > 2.0 * tol or solution.state is self.state
        if last is not None and self.refinable and rounding and self._refine_model():
            anchors = Anchors([self.anchor(last, self.restated(last))])
            self.state = self.restated(solution.state)
            again = self._next_solution(anchors, tol, useful)
            solution = replace(again, builds=solution.builds + again.builds)
        if solution.state.mo_coeff is None:
            raise HandOver("the coarse model gives no finite potential", None)
        return solution, anchors

    def _give_up(self, progress: Progress, best: Point) -> None:
        """Go back to a refused point if none lies below it, else hand over from ``best``."""
        if self.doubt.refused is not None and progress.reached(self.doubt.refused.e_tot) and self.doubt.go_back():
            progress.restart()
            return
        reason = f"orbital gradient {best.norm_gorb:.2g} after {len(self.report.steps)} full Fock matrices"
        soft = best.norm_gorb < NEAR and np.isnan(best.energy_left) and not fractional(best.mo_occ)
        soft = soft and not self.mol.symmetry  # Newton's solver keeps the occupations of irreps
        orbitals = (best.mo_coeff, best.mo_occ) if soft else None
        raise HandOver(reason, best.dm if best.norm_gorb < USEFUL else None, orbitals)

    def _next_solution(self, anchors: Anchors, tol: float, useful: bool) -> inner.Solution:
        """The coarse solution around the extrapolated anchors, from the present state; ``useful``: the last one brought gain."""
        start = anchors.extrapolate()
        reference = self.problem.model.reference(start.dms, start.exchange)
        return inner.solve(self.problem, start.potential, reference, self.state, tol, self.settings.max_inner, useful)

    def restated(self, point: Point | inner.State) -> inner.State:
        """The orbitals of ``point`` as a state of the present model."""
        return self.problem.state(point.mo_energy, point.mo_coeff, point.mo_occ)

    def _first_solution(self) -> inner.Solution:
        """The coarse solution, before anything full; the guess itself if it is as good as the coarse model could make it."""
        state, model = self.state, self.problem.model
        potential = model.increment(state.dms, state.exchange, None)
        if state.mo_coeff is not None:
            gradient = self.problem.gradient(state, self.problem.fock(potential, state))
            if gradient < self.settings.skip_first:
                return inner.Solution(state, gradient, 1)
        tol = max(self.settings.first_tol, self.conv_tol_grad)
        reference = model.reference(state.dms, state.exchange)  # increments from the guess: little for rounding to spoil
        return inner.solve(self.problem, potential, reference, state, tol, self.settings.max_inner)

    def _full(self, last: Point | None) -> Point:
        """The full operator at the present state."""
        mf, state = self.mf, self.state
        mo_energy, mo_coeff, mo_occ = state.mo_energy, state.mo_coeff, state.mo_occ
        if mo_energy is not None:  # the object reports on occupations and keeps what belongs to them (entropy ...)
            mo_occ = mf.get_occ(mo_energy, mo_coeff)
        dm = mf.make_rdm1(mo_coeff, mo_occ)
        vhf = mf.get_veff(self.mol, dm) if last is None else mf.get_veff(self.mol, dm, last.dm, last.vhf)
        e_tot = mf.energy_tot(dm, self.h1e, vhf)
        fock = mf.get_fock(self.h1e, self.s1e, vhf, dm)
        gradient = np.asarray(mf.get_grad(mo_coeff, mo_occ, fock))
        left = energy_left(mf, mo_coeff, mo_occ, fock, gradient)
        if mo_energy is None:
            mo_energy = orbital_energies(mo_coeff, fock)
        return Point(dm, vhf, fock, float(e_tot), float(np.linalg.norm(gradient)), left, mo_energy, mo_coeff, mo_occ)

    def _finish_step(self, cycle: int, point: Point, last: Point | None, step: Step) -> tuple[bool, Point]:
        """Log, test for convergence, call the hooks."""
        mf = self.mf
        mf.cycles = cycle + 1
        self.report.steps.append(step)
        change = point.e_tot if last is None else point.e_tot - last.e_tot
        norm_ddm = float(np.linalg.norm(np.asarray(point.dm) - (0 if last is None else np.asarray(last.dm))))
        self.log.info(
            "multilevel step %d  E= %.15g  delta_E= %4.3g  |g|= %4.3g  |ddm|= %4.3g  coarse: %d builds %.2f s  full: %.2f s",
            *(cycle + 1, point.e_tot, change, point.norm_gorb, norm_ddm),
            *(step.coarse_builds, step.coarse_seconds, step.fine_seconds),
        )
        # a change of energy says something only if the density moved or has no way left to go
        moved = last is not None and point.norm_gorb < max(0.5 * last.norm_gorb, 0.1 * self.conv_tol_grad)
        settled = SAFETY * point.energy_left < self.conv_tol or (moved and abs(change) < self.conv_tol)
        converged = bool(settled and point.norm_gorb < self.conv_tol_grad)
        extra = {"cycle": cycle, "step": step, "norm_ddm": norm_ddm, "last_hf_e": point.e_tot - change}
        if callable(mf.check_convergence):
            converged = bool(mf.check_convergence(self._environment(point, scf_conv=converged, **extra)))
        if converged:
            point = self._canonical(point)
            converged = self.doubt.settled(point)
        envs = self._environment(point, scf_conv=converged, **extra)
        if mf.chkfile:
            mf.dump_chk(envs)
        if callable(mf.callback):
            mf.callback(envs)
        return converged, point

    def _canonical(self, point: Point) -> Point:
        """Canonical orbitals of the full Fock matrix, the density unchanged."""
        if fractional(point.mo_occ):
            return replace(point, mo_energy=orbital_energies(point.mo_coeff, point.fock))
        mo_energy, mo_coeff = self.mf.canonicalize(point.mo_coeff, point.mo_occ, point.fock)
        return replace(point, mo_energy=mo_energy, mo_coeff=mo_coeff)

    def anchor(self, point: Point, state: inner.State) -> Anchor:
        """The full operator at ``point``; the residual is the commutator of its Fock matrix in an orthonormal basis."""
        fock = point.fock
        if getattr(fock, "focka", None) is not None:
            potential = np.stack([np.asarray(fock.focka), np.asarray(fock.fockb)]) - self.h1e
            dm = state.dms.sum(axis=0)
        else:
            potential = np.asarray(fock).reshape(state.dms.shape) - self.h1e
            dm = self.problem.shaped(state.dms)
        residual = scf.diis.get_err_vec(self.s1e, dm, np.asarray(fock), self.x_orth)
        return Anchor(state.dms, potential, state.exchange, residual)

    def _environment(self, point: Point | None = None, **extra: Any) -> dict[str, Any]:
        """The local variables of PySCF's kernel that hooks read."""
        names: dict[str, Any] = {"mf": self.mf, "mol": self.mol, "h1e": self.h1e, "s1e": self.s1e, "log": self.log}
        names |= {"conv_tol": self.conv_tol, "conv_tol_grad": self.conv_tol_grad}
        if point is not None:
            names |= {key: getattr(point, key) for key in point.__dataclass_fields__}
        return names | extra
