"""Do the outer steps still gain, and which of their points is worth going on from?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scf_accel.multilevel.solver import Point

NEAR = 1e-2  # orbital gradients below this belong to a stationary point, if only a saddle point
PATIENCE = 3  # outer steps that neither halve the gradient nor, near a stationary point, lower the energy


@dataclass
class Progress:
    """The outer steps of one run.

    Attributes:
        limit: outer steps in all.
        conv_tol: energies that differ by less are equal, Hartree.
        best: near a stationary point the point of lowest energy, else that of smallest gradient.
        leaves_saddle: the last step lowered the energy and raised the gradient.
    """

    limit: int
    conv_tol: float
    best: Point | None = None
    leaves_saddle: bool = False
    _steps: int = 0
    _slow: int = 0
    _lowest: float = np.inf
    _smallest: float = np.inf
    _last: float = np.inf

    def add(self, point: Point) -> None:
        """Take note of a step."""
        self._steps += 1
        size = point.norm_gorb
        lower = size < NEAR and point.e_tot < self._lowest - self.conv_tol
        self.leaves_saddle = lower and size > self._last
        self._slow = 0 if lower or size < 0.5 * self._smallest else self._slow + 1
        if self.best is None or self._better(point, self.best):
            self.best = point
        self._lowest, self._smallest, self._last = min(self._lowest, point.e_tot), min(self._smallest, size), size

    def _better(self, point: Point, other: Point) -> bool:
        near = point.norm_gorb < NEAR and other.norm_gorb < NEAR
        if near and abs(point.e_tot - other.e_tot) > self.conv_tol:
            return point.e_tot < other.e_tot
        return point.norm_gorb < other.norm_gorb

    def restart(self) -> None:
        """Other occupations start anew; they get as many steps as it takes to see whether they gain."""
        self._slow, self._smallest, self._last = 0, np.inf, np.inf
        self.limit = max(self.limit, self._steps + PATIENCE + 2)

    @property
    def useful(self) -> bool:
        """Whether the last step gained."""
        return self._slow == 0

    def reached(self, energy: float) -> bool:
        """Whether no point so far lies below ``energy``."""
        return self._lowest > energy - self.conv_tol

    def hopeless(self, point: Point) -> bool:
        """Whether to give up after ``point``."""
        return not np.isfinite(point.e_tot) or self._slow >= PATIENCE or self._steps >= self.limit
