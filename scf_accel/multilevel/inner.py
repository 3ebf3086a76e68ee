"""The inner solve: SCF cycles of the coarse model plus the defect, at a small fraction of a full cycle's cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pyscf import lib, scf

from scf_accel.multilevel.coarse import CoarseModel, Reference, occupied
from scf_accel.multilevel.convergence import orbital_energies
from scf_accel.multilevel.descent import descend
from scf_accel.threads import serial

DIIS_SPACE = 10
SERIAL = 300  # matrices smaller than this gain nothing from threads in a diagonalisation
STALL, STALL_NEAR = 6, 3  # cycles without halving the gradient; within a few tolerances of the goal, where rounding may stop it
FAR = 1e-3  # orbital gradients above this are no solution, whatever the model's precision
SHIFT = 0.3  # level shift (Hartree) of the second attempt
DESCENT = 4  # coarse Fock matrices of the third attempt, in multiples of DIIS's


def smeared(mf: Any) -> bool:
    """Whether occupations depend on orbital energies (PySCF's smearing)."""
    return bool(getattr(mf, "sigma", None)) and bool(getattr(mf, "smearing_method", None))


@dataclass(frozen=True)
class State:
    """A density with the orbitals that make it.

    ``dms`` is ``[sets, nao, nao]``, ``exchange`` the coarse exchange matrices of it; ``mo_*`` are None for a guess.
    """

    dms: np.ndarray
    exchange: np.ndarray | None
    mo_energy: Any = None
    mo_coeff: Any = None
    mo_occ: Any = None


@dataclass(frozen=True)
class Problem:
    """What stays the same in the inner solves: a quiet copy of the user's object, its matrices, the coarse model."""

    mf: Any
    h1e: np.ndarray
    s1e: np.ndarray
    x_orth: np.ndarray
    model: CoarseModel

    @property
    def sets(self) -> int:
        return 1 if isinstance(self.mf, scf.hf.RHF) and not isinstance(self.mf, scf.rohf.ROHF) else 2

    def shaped(self, matrices: np.ndarray) -> np.ndarray:
        """``[sets, nao, nao]`` in the shape that the user's object takes."""
        return matrices[0] if self.sets == 1 else matrices

    def stacked(self, matrices: Any) -> np.ndarray:
        """The contrary of :meth:`shaped`; a total density matrix is halved where two spins are needed."""
        array = np.asarray(matrices)
        if self.sets == 1:
            return array.reshape(1, *array.shape[-2:]) if array.ndim == 2 else array.sum(axis=0)[None]
        return array if array.ndim == 3 else np.stack([0.5 * array, 0.5 * array])

    def state(self, mo_energy: Any, mo_coeff: Any, mo_occ: Any) -> State:
        """The density of these orbitals."""
        dms = self.stacked(self.mf.make_rdm1(mo_coeff, mo_occ))
        return State(dms, self.model.exchange(occupied(mo_coeff, mo_occ, self.sets)), mo_energy, mo_coeff, mo_occ)

    def fock(self, potential: np.ndarray, state: State, cycle: int = -1, diis: Any = None, last: Any = None) -> Any:
        """The object's own Fock matrix of an effective potential ``[sets, nao, nao]`` (which holds a solvent's already)."""
        vhf = lib.tag_array(self.shaped(potential), v_solvent=0.0, e_solvent=0.0)
        return self.mf.get_fock(self.h1e, self.s1e, vhf, self.shaped(state.dms), cycle, diis, fock_last=last)

    def gradient(self, state: State, fock: Any) -> float:
        """Norm of the orbital gradient, PySCF's measure."""
        return float(np.linalg.norm(self.mf.get_grad(state.mo_coeff, state.mo_occ, fock)))


@dataclass(frozen=True)
class Solution:
    """The best state that an inner solve reached, its gradient in the model, and the coarse Fock builds spent."""

    state: State
    gradient: float
    builds: int


def solve(
    problem: Problem,
    base: np.ndarray,
    reference: Reference,
    state: State,
    tol: float,
    cycles: int,
    descent: bool = True,
) -> Solution:
    """Solve ``F = h + base + V_coarse[D] - V_coarse[reference]`` from ``state`` to an orbital gradient of ``tol``.

    Commutator DIIS (Pulay 1982); if it fails, once more with a level shift; if that fails and ``descent`` is allowed,
    second-order descent. Returns the best state met.
    """
    with serial(len(problem.s1e) < SERIAL):
        return _solve(problem, base, reference, state, tol, cycles, descent)


def _solve(
    problem: Problem, base: np.ndarray, reference: Reference, state: State, tol: float, cycles: int, descent: bool
) -> Solution:
    best = _diis(problem, base, reference, state, tol, cycles)
    enough = max(2.0 * tol, 0.0 if problem.model.exact else FAR)  # rounding may stop a model in single precision
    if smeared(problem.mf):  # a shift would move smeared occupations, and descent keeps them
        return best
    if best.state is state and problem.model.exact:  # nothing better than the start: the full operator would tell nothing new
        tol, enough = min(tol, 0.3 * best.gradient), 0.0
    if best.gradient <= enough:
        return best
    if best.gradient > FAR:
        best = _better(best, _shifted(problem, base, reference, best.state, tol, cycles))
    if descent and best.gradient > enough and best.state.mo_coeff is not None:
        best = _better(best, _descent(problem, base, reference, best.state, tol, DESCENT * cycles))
    return best


def _better(first: Solution, second: Solution) -> Solution:
    best = second if second.gradient < first.gradient else first
    return Solution(best.state, best.gradient, first.builds + second.builds)


def _shifted(problem: Problem, base: np.ndarray, reference: Reference, state: State, tol: float, cycles: int) -> Solution:
    level_shift = problem.mf.level_shift
    try:
        problem.mf.level_shift = SHIFT
        return _diis(problem, base, reference, state, tol, cycles)
    finally:
        problem.mf.level_shift = level_shift


def _descent(problem: Problem, base: np.ndarray, reference: Reference, state: State, tol: float, budget: int) -> Solution:
    def evaluate(mo_coeff: Any) -> tuple[np.ndarray, np.ndarray]:
        turned = problem.state(None, mo_coeff, state.mo_occ)
        fock = problem.fock(base + problem.model.increment(turned.dms, turned.exchange, reference), turned)
        return np.asarray(problem.mf.get_grad(mo_coeff, state.mo_occ, fock)), orbital_energies(mo_coeff, fock)

    found = descend(evaluate, state.mo_coeff, state.mo_occ, problem.sets == 1, tol, budget)
    return Solution(problem.state(None, found[0], state.mo_occ), found[1], found[2])


def _diis(problem: Problem, base: np.ndarray, reference: Reference, state: State, tol: float, cycles: int) -> Solution:
    mf = problem.mf
    diis = scf.diis.CDIIS(mf, Corth=problem.x_orth)
    diis.space, diis.verbose = DIIS_SPACE, 0
    best = Solution(state, np.inf, 0)
    last, stalled, mark, builds = None, 0, np.inf, 0
    for cycle in range(cycles):
        potential = base + problem.model.increment(state.dms, state.exchange, reference)
        builds += 1
        if not np.isfinite(potential).all():
            break
        if state.mo_coeff is not None:
            gradient = problem.gradient(state, problem.fock(potential, state))
            if gradient < best.gradient:
                best = Solution(state, gradient, 0)
            mark, stalled = (gradient, 0) if gradient < 0.5 * mark else (mark, stalled + 1)
            patience = STALL_NEAR if best.gradient < 4.0 * tol else STALL
            if gradient < tol or (stalled >= patience and best.gradient < max(1e-4, 4.0 * tol)):
                break
        last = problem.fock(potential, state, cycle, diis, last)
        mo_energy, mo_coeff = mf.eig(last, problem.s1e, x=problem.x_orth)
        state = problem.state(mo_energy, mo_coeff, mf.get_occ(mo_energy, mo_coeff))
    return Solution(best.state if np.isfinite(best.gradient) else state, best.gradient, builds)
