"""Settings of a warm start and the account of what it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from mlip.errors import ConfigError

ScannerStart = Literal["last", "predicted", "change", "fock"]
SCANNER_STARTS = ("last", "predicted", "change", "fock")


@dataclass(frozen=True)
class Settings:
    """Settings of a warm start; the defaults are meant to be left alone.

    Attributes:
        predictor: what predicts the density, see :class:`scf_accel.predictor.Predictor`.
        check: compare the predicted density with the stock guess, and use the better one.
        scanner: start of a later geometry of a scanner or optimiser: ``"last"``, ``"predicted"``, ``"change"`` or ``"fock"``, see
            :mod:`scf_accel.warmstart.scanner`; the default needs the fewest cycles (benchmarks/scf_scanner.py).
        surrogate: functional of the guess for those that need more than a density and its gradient.
    """

    predictor: Any = field(repr=False)
    check: bool = True
    scanner: ScannerStart = "fock"
    surrogate: str = "pbe"

    def __post_init__(self) -> None:
        if self.scanner not in SCANNER_STARTS:
            raise ConfigError(f"scanner is {self.scanner!r}; choose {', '.join(SCANNER_STARTS)}")


@dataclass
class Report:
    """What the last start of an SCF was.

    Attributes:
        used: whether a predicted density (or density change) made it.
        start: ``"predicted"``, ``"change"``, ``"fock"``, ``"last"``, ``"given"`` (density matrix or orbitals of the user's) or the
            name of a stock guess; empty where none was asked for.
        fallback: why the prediction was not used, or None.
        model: name of what predicts.
        inference_seconds, guess_seconds, check_seconds: wall times of the prediction, of the density matrix made from it, and
            of the comparison with the stock guess (which is made for it).
        electrons: integral of the predicted density.
        error, stock_error: estimated energy (Hartree) of what the predicted density, and that of the start it was compared
            with, still have to change; see :mod:`scf_accel.warmstart.check`.
    """

    used: bool = False
    start: str = ""
    fallback: str | None = None
    model: str = ""
    inference_seconds: float = 0.0
    guess_seconds: float = 0.0
    check_seconds: float = 0.0
    electrons: float | None = None
    error: float | None = None
    stock_error: float | None = None

    @property
    def seconds(self) -> float:
        """All that the warm start cost."""
        return self.inference_seconds + self.guess_seconds + self.check_seconds


class Refused(Exception):
    """The prediction is not used.

    Args:
        kind: one word for the kind of reason; a warning is printed once for each.
        text: the reason.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def in_line(error: BaseException) -> str:
    """Type and message of an error on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
