"""Converged orbitals that the object itself would occupy in another way: what to do about them."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from scf_accel.multilevel.anchors import Anchors
from scf_accel.multilevel.inner import State

if TYPE_CHECKING:
    from scf_accel.multilevel.solver import Point, Solver


class Doubt:
    """Occupations in doubt: a stationary point at which ``mf.get_occ`` chooses other orbitals.

    The first such point is refused, and the run goes on from the object's own choice, as PySCF's would. If that finds no point
    of lower energy whose occupations the object itself chooses, the refused point is the answer, as it is of second-order
    solvers: one warning says so.

    Attributes:
        refused: the point, None while there is none.
        choice: state to go on from, where it is not the present one.
        fresh: the last anchor belongs to other occupations; it serves once, as the reference.
    """

    def __init__(self, solver: Solver) -> None:
        self.solver = weakref.proxy(solver)  # a cycle would keep the coarse model until the next garbage collection
        self.refused: Point | None = None
        self.choice: State | None = None
        self.fresh = False
        self._back = self._going_back = False

    def settled(self, point: Point) -> bool:
        """Whether the occupations of a converged point are final."""
        mf = self.solver.mf
        chosen = mf.get_occ(point.mo_energy, point.mo_coeff)
        if np.allclose(np.asarray(chosen), np.asarray(point.mo_occ), atol=1e-4):
            return True
        if self.refused is None:
            self.solver.log.info("multilevel SCF: the occupations change; going on")
            self.refused = point
            self.choice = self.solver.problem.state(point.mo_energy, point.mo_coeff, chosen)
            return False
        if self._back or point.e_tot < self.refused.e_tot + self.solver.conv_tol:
            self.solver.log.warn("multilevel SCF: the occupied orbitals are not the lowest ones of their Fock matrix")
            self.solver.report.non_aufbau = True
            return True
        self.go_back()
        return False

    def go_back(self) -> bool:
        """Return to the refused point; False if that was done before."""
        if self._back or self.refused is None:
            return False
        self._back = self._going_back = True
        self.choice = self.solver.restated(self.refused)
        return True

    def turn(self, point: Point, state: State, anchors: Anchors) -> tuple[Any, State]:
        """The last point and the state to go on from."""
        self.fresh = self.choice is not None and not self._going_back
        if self.choice is None:
            return point, state
        state, self.choice = self.choice, None
        if self._going_back and self.refused is not None:
            self._going_back = False
            anchors.points[:] = [self.solver.anchor(self.refused, state)]
            return self.refused, state
        return point, state
