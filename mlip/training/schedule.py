"""How far a run has come, and the learning rate that belongs to it."""

from __future__ import annotations

import math
import time

from mlip.config import TrainingSection


def learning_rate(progress: float, config: TrainingSection) -> float:
    """Linear warm-up to ``lr``, then half a cosine (or nothing) down to ``min_lr``; ``progress`` runs from 0 to 1."""
    progress = min(max(progress, 0.0), 1.0)
    if progress < config.warmup:
        return config.lr * max(progress / config.warmup, 1e-3)
    if config.schedule == "constant":
        return config.lr
    share = (progress - config.warmup) / (1.0 - config.warmup)
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1.0 + math.cos(math.pi * share))


class Budget:
    """A wall-clock budget that goes on where a resumed run left off.

    Args:
        seconds: the whole budget; ``None`` is unlimited.
        spent: seconds used by earlier parts of the run.
    """

    def __init__(self, seconds: float | None, spent: float = 0.0):
        self.seconds = seconds
        self.reserve = 0.0
        self._spent = spent
        self._start = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds used so far, earlier parts of a resumed run included."""
        return self._spent + time.monotonic() - self._start

    def resume(self, spent: float) -> None:
        """Go on from ``spent`` seconds; what this process needed to start up is counted too."""
        self._spent += spent

    @property
    def usable(self) -> float | None:
        """Seconds for training: the budget less what is reserved for the final evaluation (at most half of it)."""
        return None if self.seconds is None else self.seconds - min(self.reserve, 0.5 * self.seconds)

    def progress(self, elapsed: float) -> float:
        """Share of the usable budget that is used; 0 where there is no budget."""
        return 0.0 if self.usable is None else elapsed / max(self.usable, 1e-9)
