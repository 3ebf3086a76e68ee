"""Settings of the multilevel solver and the account of what it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Settings:
    """Settings of the multilevel solver; the defaults are meant to be left alone.

    Attributes:
        grid: coarse integration grid: ``(radial, angular)`` points per atom before pruning, or a PySCF level; None: (25, 86),
            or (30, 110) for an orbital basis with f functions.
        auxbasis: fitting basis of the coarse Coulomb and exchange matrices, where ``mf`` has no integrals to share; None:
            def2-universal-jfit, but def2-universal-jkfit beyond neon, and for an orbital basis with f functions where
            memory allows.
        first_tol: orbital gradient (Hartree) at which the first coarse solution is good enough.
        skip_first: a start that brings its orbitals is used as it is if its coarse orbital gradient is below this.
        max_inner: coarse iterations per outer step.
        max_outer: outer steps before stock PySCF takes over.
        always: use the scheme also where it is not expected to be faster.
        start: density matrix, or function of ``mf`` that returns one, to start from in place of ``mf.init_guess``.
    """

    grid: tuple[int, int] | int | None = None
    auxbasis: Any = None
    first_tol: float = 5e-4
    skip_first: float = 3e-2
    max_inner: int = 40
    max_outer: int = 10
    always: bool = False
    start: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class Step:
    """One outer step: a coarse solution, then one full-cost Fock matrix at its density.

    Attributes:
        energy: total energy at the density, Hartree.
        gradient: norm of the orbital gradient of the full-cost Fock matrix, PySCF's measure.
        coarse_builds: coarse Fock matrices of the solution.
        coarse_seconds, fine_seconds: wall time of each part.
        error_estimate: second-order estimate of the energy above the minimum, Hartree; nan where there is none.
    """

    energy: float
    gradient: float
    coarse_builds: int
    coarse_seconds: float
    fine_seconds: float
    error_estimate: float = float("nan")


@dataclass
class Report:
    """What one run of the solver cost.

    Attributes:
        steps: the outer steps.
        start_seconds: core Hamiltonian, overlap, guess; the object's own fitting integrals, if it fits.
        setup_seconds: the coarse model: grid, orbital values, fitting integrals.
        fallback: why stock PySCF did (the rest of) the work, or None.
        finished_by: the solver that ended the run: "multilevel", "diis" (PySCF's own) or "newton" (PySCF's second-order one).
        non_aufbau: the occupied orbitals are not the lowest ones of their Fock matrix.
    """

    steps: list[Step] = field(default_factory=list)
    start_seconds: float = 0.0
    setup_seconds: float = 0.0
    fallback: str | None = None
    finished_by: str = "multilevel"
    non_aufbau: bool = False

    @property
    def fine_builds(self) -> int:
        """Full-cost Fock matrices (those of a stock continuation not included)."""
        return len(self.steps)

    @property
    def coarse_builds(self) -> int:
        return sum(step.coarse_builds for step in self.steps)

    @property
    def coarse_seconds(self) -> float:
        return sum(step.coarse_seconds for step in self.steps)

    @property
    def fine_seconds(self) -> float:
        return sum(step.fine_seconds for step in self.steps)
