"""Numbers that say what a standard deviation is worth."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def auroc(base: np.ndarray, other: np.ndarray) -> float:
    """Probability that a number of ``other`` is above one of ``base``."""
    ranks = rankdata(np.concatenate([base, other]))[len(base) :]
    return float((ranks.sum() - len(other) * (len(other) + 1) / 2) / (len(base) * len(other)))


def worst_bin(bins: np.ndarray) -> float:
    """Largest factor between the rows of :func:`mlip.training.plots.calibration_bins`: root mean squares of std and of error."""
    predicted, found = bins
    return float(np.exp(np.abs(np.log(found / predicted)).max()))
