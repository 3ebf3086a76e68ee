"""Splitting a set in two, reproducibly, so that nothing in one part was seen in the other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from mlip.data.frame import Frame, FrameSubset, frame_extra
from mlip.errors import DataError


def split_indices(
    count: int, fraction: float, seed: int = 0, groups: Sequence[object] | np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the larger part and of the part held out, both ascending.

    Args:
        count: number of frames.
        fraction: share to hold out, between 0 and 1; at least one frame (or group) stays on either side.
        seed: the same seed gives the same split.
        groups: ``[count]`` labels; frames of one group stay together, and groups are drawn until they hold the share
            of the frames. Their order is that of hashes of seed and label: a set that grows, or another one with the same groups,
            is split alike, but for the groups at the border.

    Raises:
        DataError: the fraction is impossible, or there are fewer than two frames or groups.
    """
    if not 0 < fraction < 1:
        raise DataError(f"a fraction of {fraction} cannot be held out; give a number between 0 and 1")
    if groups is None:
        names, members = np.arange(count), np.arange(count)
    else:
        names, members = np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)
    if len(names) < 2:
        what = "frames" if groups is None else "groups"
        raise DataError(f"{len(names)} {what} cannot be split in two; give a separate file for validation")
    sizes = np.bincount(members, minlength=len(names))
    if groups is None:
        order = np.random.default_rng(seed).permutation(len(names))
    else:
        order = np.argsort([hashlib.sha256(f"{seed} {name}".encode()).hexdigest() for name in names])
    wanted = fraction * count
    taken = 1 + int(np.searchsorted(np.cumsum(sizes[order]), wanted - 0.5 * sizes.mean()))
    held = np.zeros(len(names), dtype=bool)
    held[order[: min(taken, len(names) - 1)]] = True
    return np.flatnonzero(~held[members]), np.flatnonzero(held[members])


def split_digest(*held_out: Sequence[Frame]) -> str:
    """16 hexadecimal digits of which frames are held out: SHA-256 of their places in the set that they are parts of."""
    digest = hashlib.sha256()
    for part in held_out:
        digest.update(_places(part).astype("<i8").tobytes() + b"|")
    return digest.hexdigest()[:16]


def _places(frames: Sequence[Frame]) -> np.ndarray:
    return _places(frames.frames)[frames.indices] if isinstance(frames, FrameSubset) else np.arange(len(frames))


def split_frames(
    frames: Sequence[Frame], fraction: float, seed: int = 0, by: Literal["frame", "molecule"] | str = "frame"
) -> tuple[FrameSubset, FrameSubset]:
    """Two lazy parts of ``frames``: training, and ``fraction`` held out.

    Args:
        frames: the set.
        fraction: share to hold out.
        seed: the same seed gives the same split.
        by: ``frame``, or the name of an extra such as ``molecule``: frames that share its value stay together.

    Raises:
        DataError: see :func:`split_indices`; or no frame has the extra.
    """
    groups = None
    if by != "frame":
        groups = frame_extra(frames, by)
        if groups is None:
            raise DataError(f"cannot split by '{by}': the frames have no such extra; split by frame")
    kept, held = split_indices(len(frames), fraction, seed, groups)
    return FrameSubset(frames, kept), FrameSubset(frames, held)
