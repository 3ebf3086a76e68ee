"""What benchmarks/scf_guess.py makes of its rows: RIC, ERIC, wall ratio, their means, and the targets.

A row holds the runs of one molecule and method from several guesses; all are compared with that row's own run from ``minao``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = dict[str, Any]
REFERENCE = "minao"
SAME_ENERGY = 1e-6  # Hartree: SCF solutions further apart are different ones
# Largest RIC and ERIC of the larger molecules, and the most cycles that a guess may cost beyond those of minao
RIC, ERIC, EXTRA_CYCLES = 0.66, 0.75, 1
NAN = float("nan")


@dataclass(frozen=True)
class Comparison:
    """A guess beside ``minao`` for one molecule and method.

    Attributes:
        about: molecule, group, functional, basis, density fitting.
        guess: its name.
        run, reference: numbers of the two runs; ``run`` has only ``error`` where it raised one.
    """

    about: Row
    guess: str
    run: Row
    reference: Row

    @property
    def converged(self) -> bool:
        return "error" not in self.run and bool(self.run["converged"])

    @property
    def compares(self) -> bool:
        """Whether both runs converged; else there are no ratios."""
        return self.converged and bool(self.reference["converged"])

    def _ratio(self, name: str) -> float:
        return self.run[name] / self.reference[name] if self.compares else NAN

    @property
    def ric(self) -> float:
        """SCF cycles / those from ``minao``."""
        return self._ratio("cycles")

    @property
    def eric(self) -> float:
        """Full-cost Fock matrices, that of the guess among them, / those from ``minao``."""
        return self._ratio("builds")

    @property
    def wall_ratio(self) -> float:
        """Wall seconds from ``minao`` / those with the guess, everything included."""
        return 1.0 / self._ratio("seconds")

    @property
    def extra_cycles(self) -> float:
        """Cycles more than from ``minao``."""
        return self.run["cycles"] - self.reference["cycles"] if self.compares else NAN

    @property
    def energy_difference(self) -> float:
        """Energy minus that from ``minao``, Hartree."""
        return self.run["energy"] - self.reference["energy"] if self.compares else NAN


def comparisons(rows: Iterable[Row]) -> list[Comparison]:
    """Every guess of every row whose ``minao`` converged; of several of one case and guess the last counts."""
    found: dict[tuple[str, str], Comparison] = {}
    for row in rows:
        reference = row.get("arms", {}).get(REFERENCE, {})
        if "error" in reference or not reference.get("converged"):
            continue
        for guess, run in row["arms"].items():
            found[row["case"], guess] = Comparison(row, guess, run, reference)
    return list(found.values())


def without_reference(rows: Iterable[Row]) -> list[Row]:
    """Rows in which ``minao`` failed or did not converge, so that nothing can be compared."""
    return [row for row in rows if not row.get("arms", {}).get(REFERENCE, {}).get("converged")]


@dataclass(frozen=True)
class Summary:
    """Statistics of one guess over molecules.

    Attributes:
        count, converged: molecules; those whose run converged.
        cycles: mean of the converged runs.
        ric, eric, wall: ``(mean, median)`` over the molecules where both runs converged.
        most_extra: most cycles beyond those of ``minao``. slow: molecules with more than ``EXTRA_CYCLES``.
        energy: largest absolute energy difference among runs of the same solution, Hartree.
        other_solutions: runs whose energy is further than ``SAME_ENERGY`` from that of ``minao``; their ratios count as well.
        fallbacks: runs in which the prediction was not used. errors: runs that raised one.
    """

    count: int
    converged: int
    cycles: float
    ric: tuple[float, float]
    eric: tuple[float, float]
    wall: tuple[float, float]
    most_extra: float
    slow: int
    energy: float
    other_solutions: int
    fallbacks: int
    errors: int


def summarise(members: Sequence[Comparison]) -> Summary:
    """Statistics of comparisons of one guess; NaN where nothing converged."""
    differences = [abs(c.energy_difference) for c in members if c.compares]
    same = [value for value in differences if value <= SAME_ENERGY]
    extra = [c.extra_cycles for c in members if c.compares]
    return Summary(
        count=len(members),
        converged=sum(c.converged for c in members),
        cycles=mean_median([c.run["cycles"] for c in members if c.converged])[0],
        ric=mean_median([c.ric for c in members]),
        eric=mean_median([c.eric for c in members]),
        wall=mean_median([c.wall_ratio for c in members]),
        most_extra=max(extra, default=NAN),
        slow=sum(value > EXTRA_CYCLES for value in extra),
        energy=max(same, default=NAN),
        other_solutions=len(differences) - len(same),
        fallbacks=sum(c.run.get("fallback") is not None for c in members),
        errors=sum("error" in c.run for c in members),
    )


def mean_median(values: Iterable[float]) -> tuple[float, float]:
    """Of the finite values; NaN where there is none."""
    finite = [value for value in values if np.isfinite(value)]
    return (float(np.mean(finite)), float(np.median(finite))) if finite else (NAN, NAN)


def by_guess(members: Iterable[Comparison]) -> dict[str, list[Comparison]]:
    """Comparisons of each guess."""
    out: dict[str, list[Comparison]] = {}
    for comparison in members:
        out.setdefault(comparison.guess, []).append(comparison)
    return out


@dataclass(frozen=True)
class Target:
    """A claim, the value that was measured, and whether it holds; None where nothing was measured."""

    claim: str
    value: str
    met: bool | None


def targets(large: Sequence[Comparison], everything: Sequence[Comparison]) -> list[Target]:
    """The targets of one guess.

    Args:
        large: its runs of 26 to 60 atoms.
        everything: all its runs.
    """
    part, whole = summarise(large), summarise(everything)
    ric, eric = part.ric[0], part.eric[0]
    size = f"26 to 60 atoms (n = {part.count})"
    at_most_one = None if np.isnan(whole.most_extra) else whole.slow == 0
    return [
        Target(f"mean RIC of {size} at most {RIC:.0%}", percent(ric), _holds(ric, ric <= RIC)),
        Target(f"mean ERIC of {size} below {ERIC:.0%}", percent(eric), _holds(eric, eric < ERIC)),
        Target(
            f"all converge (n = {whole.count})",
            f"{whole.converged} of {whole.count}",
            whole.converged == whole.count if whole.count else None,
        ),
        Target(
            f"none slower than minao by more than one cycle (n = {whole.count})",
            "-" if at_most_one is None else f"{whole.slow} slower; at most {whole.most_extra:+.0f} cycles",
            at_most_one,
        ),
    ]


def _holds(value: float, condition: bool) -> bool | None:
    return None if np.isnan(value) else bool(condition)


def percent(value: float, digits: int = 1) -> str:
    """``0.638`` -> ``63.8 %``."""
    return "-" if not np.isfinite(value) else f"{100 * value:.{digits}f} %"
