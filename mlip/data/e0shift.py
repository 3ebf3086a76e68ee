"""Corrections of reference energies: what a trained model lacks to the energies of another level of theory, element by element."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mlip.data.frame import Frame

NOISE = 0.01
"""Spread of a model's error in eV an atom, where there are too few frames to see it."""
TINY = 1e-9
"""Singular values below this share of the largest are 0."""


def counts_of(frames: Sequence[Frame], elements: Sequence[int]) -> np.ndarray:
    """``[frames, elements]``: atoms of each element."""
    return np.array([[np.count_nonzero(frame.atomic_numbers == z) for z in elements] for frame in frames], dtype=np.float64)


def labelled_over_compositions(frames: Sequence[Frame], count: int, seed: int = 0) -> list[int]:
    """Indices of at most ``count`` frames with an energy: of every composition one, then of every one another, ... ; ascending."""
    seen: Counter[bytes] = Counter()
    rounds = []
    for index in np.random.default_rng(seed).permutation(len(frames)).tolist():
        frame = frames[index]
        if frame.energy is not None and np.isfinite(frame.energy):
            key = np.sort(frame.atomic_numbers).tobytes()
            rounds.append((seen[key], index))
            seen[key] += 1
    return sorted(index for _, index in sorted(rounds)[:count])


def fit_shift(counts: np.ndarray, missing: np.ndarray, new: np.ndarray, known_too: bool) -> np.ndarray:
    """Corrections c of the elements' energies so that ``counts @ c`` is about ``missing``.

    What a model predicts for elements that are new to it means nothing yet, and must not move the known ones: these are corrected
    by the frames that hold known elements alone. Then what is still missing goes to the new ones and, where ``known_too``, to
    known ones that no such frame holds.

    Args:
        counts: ``[frames, elements]`` atoms. missing: ``[frames]`` eV.
        new: ``[elements]`` bool: those that the model does not know.
        known_too: see above; a change of E0 may be thousands of eV, one of bonding energies is small.

    Returns:
        ``[elements]`` eV.
    """
    shift = np.zeros(counts.shape[1])
    plain = ~(counts[:, new] > 0).any(axis=1)
    held = (counts[plain] > 0).any(axis=0)
    shift[held] = penalised_fit(counts[plain][:, held], missing[plain], new[held])
    rest = new | (~held & known_too)
    shift[rest] = penalised_fit(counts[:, rest], missing - counts @ shift, new[rest])
    return shift


def penalised_fit(counts: np.ndarray, missing: np.ndarray, new: np.ndarray) -> np.ndarray:
    """``[elements]`` c that minimises ``|missing - counts c|^2 + lambda |c_known|^2``, of least ``|c_known|`` where that is open.

    The penalty keeps a known element where the frames say little about it: lambda is the variance of the error over the mean square
    of the known elements' corrections, both of the fit without a penalty. Labels that differ by a constant an element give this
    constant exactly. New elements bear no penalty.
    """
    if not counts.size:
        return np.zeros(counts.shape[1])
    free = counts[:, new]
    inverse = np.linalg.pinv(free, rcond=TINY)
    rest, wanted = counts[:, ~new], missing
    if new.any():
        rest, wanted = rest - free @ (inverse @ rest), missing - free @ (inverse @ missing)
    left, values, right = np.linalg.svd(rest, full_matrices=False)
    seen = values > TINY * np.linalg.norm(counts, 2)
    left, values, right = left[:, seen], values[seen], right[seen]
    along = left.T @ wanted
    plain = right.T @ (along / values)
    size = float(np.mean(plain**2)) if plain.size else 0.0
    ridge = error_variance(counts, wanted - rest @ plain) / size if size > 0 else 0.0
    shift = np.zeros(counts.shape[1])
    shift[~new] = right.T @ (values * along / (values**2 + ridge))
    shift[new] = inverse @ (missing - counts[:, ~new] @ shift[~new])
    return shift


def rank_of(counts: np.ndarray) -> int:
    """How many combinations of elements the compositions determine."""
    return int(np.linalg.matrix_rank(counts, tol=TINY * np.linalg.norm(counts, 2))) if counts.size else 0


def error_variance(counts: np.ndarray, residuals: np.ndarray) -> float:
    """Variance of a frame's error about a fit, eV^2: between compositions (frames of one share most of it), else within them."""
    compositions, place = np.unique(counts, axis=0, return_inverse=True)
    number, rank = np.bincount(place.ravel()), rank_of(counts)
    means = np.bincount(place.ravel(), residuals) / number
    if len(compositions) > rank:
        return float(number @ means**2) / (len(compositions) - rank)
    if len(residuals) > len(compositions):
        return float(np.sum((residuals - means[place.ravel()]) ** 2)) / (len(residuals) - len(compositions))
    return float(np.mean((NOISE * counts.sum(axis=1)) ** 2))
