"""How far the forces and energies of GFN1-xTB and GFN2-xTB are from the labels of datasets/organics, and what one of them takes.

    pip install -e '.[label,xtb]'
    python benchmarks/xtb_labels.py

Frames drawn with a fixed seed, isolated atoms apart. Energies: what is left per atom after a fit by elements.
datasets/organics/make_xtb.py labels with the one whose forces are nearer.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from _common import header, table

from mlip.data.frame import Frame
from mlip.data.hdf5 import HDF5Frames
from mlip.files import atomic_write_text

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "datasets" / "organics"))
import make_xtb  # noqa: E402

METHODS = ("GFN1-xTB", "GFN2-xTB")
COUNT = 250


def row(method: str, frames: list[Frame]) -> list[str]:
    """One line of the table."""
    started = time.process_time()
    labels = [make_xtb.label(frame.atomic_numbers, frame.positions, frame.spin, method) for frame in frames]
    each = (time.process_time() - started) / len(frames)
    off = np.concatenate([(forces - frame.forces).ravel() for frame, (_, forces) in zip(frames, labels, strict=True)])
    elements = sorted({int(z) for frame in frames for z in frame.atomic_numbers})
    counts = np.array([[np.sum(frame.atomic_numbers == z) for z in elements] for frame in frames], dtype=float)
    sizes = counts.sum(axis=1)
    missing = np.array([frame.energy - energy for frame, (energy, _) in zip(frames, labels, strict=True)])
    fit = np.linalg.lstsq(counts / sizes[:, None], missing / sizes, rcond=None)[0]
    left = np.abs((missing - counts @ fit) / sizes)
    numbers = (1000 * np.abs(off).mean(), 1000 * np.sqrt((off**2).mean()), 1000 * left.mean())
    return [method, *(f"{number:.0f}" for number in numbers), f"{1000 * each:.0f}"]


def main() -> None:
    """Measure, then write the table."""
    everything = HDF5Frames(HERE.parent / "datasets" / "organics" / "organics.h5", load_density=False)
    order = np.random.default_rng(0).permutation(len(everything))
    frames = [frame for frame in (everything[int(k)] for k in order[: COUNT + 8]) if len(frame) > 1][:COUNT]
    size = 1000 * np.abs(np.concatenate([frame.forces.ravel() for frame in frames])).mean()
    columns = ["method", "force MAE, meV/A", "force RMSE", "energy MAE, meV/atom", "ms of processor time"]
    text = "\n".join([
        header("Tight binding against the labels of datasets/organics", ("tblite", "numpy")),
        f"{len(frames)} frames; a force component of theirs is {size:.0f} meV/A in the mean.\n",
        table(columns, [row(method, frames) for method in METHODS]),
    ])  # fmt: skip
    atomic_write_text(HERE / "results" / "xtb_labels.md", text)
    print(text)


if __name__ == "__main__":
    main()
