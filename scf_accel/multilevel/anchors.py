"""Densities at which the full operator is known, and the extrapolation between them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

HISTORY = 5
LARGEST_WEIGHT = 10.0


@dataclass(frozen=True)
class Anchor:
    """``dms``, full effective ``potential`` and coarse ``exchange`` are ``[sets, nao, nao]``; ``residual`` is a vector."""

    dms: np.ndarray
    potential: np.ndarray
    exchange: np.ndarray | None
    residual: np.ndarray


@dataclass
class Anchors:
    """The last few anchors."""

    points: list[Anchor] = field(default_factory=list)

    def add(self, point: Anchor) -> None:
        self.points.append(point)
        del self.points[:-HISTORY]

    def weights(self) -> np.ndarray:
        """Affine weights that minimise the norm of the combined residual (Pulay 1980); the last point alone if ill-posed."""
        last = np.zeros(len(self.points))
        last[-1] = 1.0
        if len(self.points) == 1:
            return last
        rows = np.stack([point.residual for point in self.points])
        bordered = np.ones((len(rows) + 1, len(rows) + 1))
        bordered[-1, -1] = 0.0
        bordered[:-1, :-1] = rows @ rows.T / max(np.linalg.norm(rows[-1]) ** 2, 1e-300)
        solution = np.linalg.lstsq(bordered, np.append(np.zeros(len(rows)), 1.0), rcond=1e-14)[0][:-1]
        if not np.all(np.isfinite(solution)) or np.abs(solution).max() > LARGEST_WEIGHT or abs(solution.sum() - 1) > 1e-3:
            return last
        return solution / solution.sum()

    def extrapolate(self) -> Anchor:
        """The affine combination by :meth:`weights`; potentials are taken as linear in between."""
        weights = self.weights()

        def combine(name: str) -> np.ndarray:
            return np.tensordot(weights, np.stack([getattr(point, name) for point in self.points]), 1)

        exchange = None if self.points[-1].exchange is None else combine("exchange")
        return Anchor(combine("dms"), combine("potential"), exchange, combine("residual"))
