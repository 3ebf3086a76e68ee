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


def fit_shift(counts: np.ndarray, missing: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, int]:
    """Corrections c of the elements' energies so that ``counts @ c`` is about ``missing``.

    Minimises ``|missing - counts c|^2 + lambda |c_old|^2``. The penalty keeps a known element where the frames say little about it:
    lambda is the variance of the frames about the fit over the mean square of the known elements' corrections, both taken from the
    fit without a penalty (the evidence's own estimate to first order); so labels that differ by a constant an element give this
    constant exactly. Where the compositions do not determine c, the known elements' share is the one of least norm. New elements
    bear no penalty: nothing is known about them.

    Args:
        counts: ``[frames, elements]`` atoms. missing: ``[frames]`` eV.
        new: ``[elements]`` bool, those without a value to stay near.

    Returns:
        ``[elements]`` eV, and the rank of ``counts``.
    """
    rank = int(np.linalg.matrix_rank(counts, tol=TINY * np.linalg.norm(counts, 2)))
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
    freedom = len(missing) - rank
    squares = float(np.sum((wanted - rest @ plain) ** 2))
    noise = squares / freedom if freedom > 0 else float(np.mean((NOISE * counts.sum(axis=1)) ** 2))
    size = float(np.mean(plain**2)) if plain.size else 0.0
    ridge = noise / size if size > 0 else 0.0
    shift = np.zeros(counts.shape[1])
    shift[~new] = right.T @ (values * along / (values**2 + ridge))
    shift[new] = inverse @ (missing - counts[:, ~new] @ shift[~new])
    return shift, rank
