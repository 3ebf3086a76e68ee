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

from scf_accel.multilevel import inner
from scf_accel.multilevel.anchors import Anchor, Anchors
from scf_accel.multilevel.coarse import CoarseModel, CoarseModelError, available_bytes, determinant, factors
from scf_accel.multilevel.convergence import energy_left, fractional, orbital_energies
from scf_accel.multilevel.report import Report, Settings, Step

SAFETY = 2.0  # factor on the energy estimate before it is compared with conv_tol
TIGHT = 1e-5  # gradient thresholds below this need a double-precision model
USEFUL = 0.5  # densities with a larger orbital gradient are no better start than the guess
NEAR = 1e-2  # orbital gradients below this belong to a stationary point, if only a saddle point
PATIENCE = 3  # outer steps that neither halve the gradient nor, near a stationary point, lower the energy


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

    Raises:
        CoarseModelError: no coarse model for this object.
    """

    def __init__(self, mf: Any, settings: Settings, report: Report, dm0: Any = None) -> None:
        started = time.perf_counter()
        self.mf, self.mol, self.settings, self.report = mf, mf.mol, settings, report
        self.log = logger.new_logger(mf)
        self.conv_tol = mf.conv_tol
        self.conv_tol_grad = np.sqrt(mf.conv_tol) if mf.conv_tol_grad is None else mf.conv_tol_grad
        self.s1e, self.h1e = mf.get_ovlp(self.mol), mf.get_hcore(self.mol)
        self.x_orth = mf.check_linear_dependency(self.s1e, self.log)
        dm = mf.get_init_guess(self.mol, mf.init_guess, s1e=self.s1e) if dm0 is None else dm0
        self.reoccupied: inner.State | None = None
        self.refused: Point | None = None
        self._build_fitting()
        report.start_seconds = time.perf_counter() - started
        exact = self.conv_tol_grad < TIGHT or inner.smeared(mf)  # then the energy is of first order in the gradient
        self._build_model(np.float64 if exact else np.float32)
        orbitals = dm0 is not None or getattr(dm, "mo_coeff", None) is not None  # of a start worth the trust, not of minao
        self.state = self._first_state(dm, orbitals)
        report.setup_seconds = time.perf_counter() - started - report.start_seconds
        self.log.info("multilevel SCF: start %.2f s, coarse model %.2f s", report.start_seconds, report.setup_seconds)

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
        """Whether these orbitals make the density matrices and are orthonormal at this geometry."""
        if mo_occ is None or mo_coeff.shape[-2] != self.mol.nao or not self._electrons_fit(mo_occ):
            return False
        made = self.problem.stacked(self.mf.make_rdm1(mo_coeff, mo_occ))
        norms = np.einsum("...pi,pq,...qi->...i", mo_coeff, self.s1e, mo_coeff, optimize=True)
        return made.shape == dms.shape and np.allclose(made, dms, atol=1e-8) and np.allclose(norms, 1.0, atol=1e-8)

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
            HandOver: stock PySCF should continue.
        """
        mf, anchors = self.mf, Anchors()
        if mf.chkfile:
            chkfile.save_mol(self.mol, mf.chkfile)
        mf.pre_kernel(self._environment())
        last, best, slow, tol, fresh, lowest = None, None, 0, np.inf, False, np.inf
        for cycle in range(mf.max_cycle):
            started = time.perf_counter()
            solution = self._first_solution() if last is None else self._next_solution(anchors, tol, slow == 0)
            rounding = solution.gradient > 2.0 * tol or solution.state is self.state
            if last is not None and self.refinable and rounding and self._refine_model():
                anchors = Anchors([self._anchor(last, self._restated(last))])
                self.state = self._restated(solution.state)
                again = self._next_solution(anchors, tol, slow == 0)
                solution = replace(again, builds=solution.builds + again.builds)
            if solution.state.mo_coeff is None:
                raise HandOver("the coarse model gives no finite potential", None)
            self.state = solution.state
            middle = time.perf_counter()
            point = self._full(last)
            seconds = middle - started, time.perf_counter() - middle
            step = Step(point.e_tot, point.norm_gorb, solution.builds, *seconds, point.energy_left)
            converged, point = self._finish_step(cycle, point, last, step)
            if converged:
                break
            if self.reoccupied is not None:
                best, slow = None, 0
            lower = point.norm_gorb < NEAR and point.e_tot < lowest - self.conv_tol
            lowest = min(lowest, point.e_tot)
            slow = 0 if best is None or lower or point.norm_gorb < 0.5 * best.norm_gorb else slow + 1
            best = point if best is None or point.norm_gorb < best.norm_gorb else best
            hopeless = not np.isfinite(point.e_tot) or slow >= PATIENCE or cycle + 1 >= self.settings.max_outer
            if hopeless and self.refused is not None:
                converged, point = True, self._accept(self.refused)
                break
            if hopeless and cycle + 1 < mf.max_cycle:
                reason = f"orbital gradient {best.norm_gorb:.2g} after {cycle + 1} full Fock matrices"
                soft = best.norm_gorb < NEAR and np.isnan(best.energy_left) and not fractional(best.mo_occ)
                orbitals = (best.mo_coeff, best.mo_occ) if soft else None
                raise HandOver(reason, best.dm if best.norm_gorb < USEFUL else None, orbitals)
            if fresh or (lower and last is not None and point.norm_gorb > last.norm_gorb):  # leaves a saddle point
                anchors = Anchors()
            anchors.add(self._anchor(point, self.state))
            fresh = self.reoccupied is not None  # the point of other occupations serves once, as the reference
            if self.reoccupied is not None:
                self.state, self.reoccupied = self.reoccupied, None
            tol = max(min(0.25 * self.conv_tol_grad, 0.1 * point.norm_gorb), 1e-3 * point.norm_gorb)
            last = point
        if not converged:
            point = self._canonical(point)
        mf.post_kernel(self._environment(point, cycle=cycle, scf_conv=converged))
        return converged, point.e_tot, point.mo_energy, point.mo_coeff, point.mo_occ

    def _next_solution(self, anchors: Anchors, tol: float, useful: bool) -> inner.Solution:
        """The coarse solution around the extrapolated anchors, from the present state; ``useful``: the last one brought gain."""
        start = anchors.extrapolate()
        reference = self.problem.model.reference(start.dms, start.exchange)
        return inner.solve(self.problem, start.potential, reference, self.state, tol, self.settings.max_inner, useful)

    def _restated(self, point: Point | inner.State) -> inner.State:
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
            converged = self._occupations_hold(point)
            if not converged and self.refused is not None and point.e_tot > self.refused.e_tot - self.conv_tol:
                converged, point, self.reoccupied = True, self._accept(self.refused), None
            elif not converged:
                self.refused = point
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

    def _occupations_hold(self, point: Point) -> bool:
        """Whether the object would occupy the orbitals of the full Fock matrix as they are; if not, go on from its choice."""
        chosen = self.mf.get_occ(point.mo_energy, point.mo_coeff)
        if np.allclose(np.asarray(chosen), np.asarray(point.mo_occ), atol=1e-4):
            return True
        self.log.info("multilevel SCF: the occupations change; going on")
        self.reoccupied = self.problem.state(point.mo_energy, point.mo_coeff, chosen)
        return False

    def _accept(self, point: Point) -> Point:
        """A stationary point that the object's own occupations do not lead back to, as second-order solvers accept it."""
        self.log.warn("the occupied orbitals are not the lowest ones: no other occupation converges to a lower energy")
        return point

    def _anchor(self, point: Point, state: inner.State) -> Anchor:
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
