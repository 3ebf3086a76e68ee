"""Files that a run writes as it goes: frames, a CSV table and the state to resume from.

All can be cut back to where the state was written, and continued.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from mlip.errors import FORBIDDEN, FULL, ConfigError, UserError
from mlip.files import atomic_path

_STATE_FORMAT = 1
FRAME_SUFFIXES = (".traj", ".xyz", ".extxyz")


class SimulationError(UserError):
    """A run went wrong: it exploded, or cannot be started or resumed as asked."""


def check_frame_suffix(path: Path) -> None:
    """Raise :class:`ConfigError` unless frames can be written to a file of this name."""
    if path.suffix not in FRAME_SUFFIXES:
        allowed = ", ".join(FRAME_SUFFIXES)
        raise ConfigError(f"{path} has the suffix {path.suffix!r}; frames are written to one of {allowed}")


def refuse_existing(paths: Iterable[Path], hint: str) -> None:
    """Raise :class:`SimulationError` if an output exists. An empty file, such as a start that failed leaves, is none."""
    existing = [path for path in paths if path.exists() and path.stat().st_size]
    if existing:
        raise SimulationError(f"{', '.join(map(str, existing))} exists already; {hint}")


def snapshot(atoms: Atoms, **info: float | int) -> Atoms:
    """A copy with the results that are already there (nothing is computed) and ``info`` added."""
    frame = atoms.copy()
    frame.info.update(info)
    calculator = atoms.calc
    results = {}
    for name in ("energy", "forces", "stress", "free_energy"):
        if calculator is not None and name in calculator.implemented_properties:
            value = calculator.get_property(name, atoms, allow_calculation=False)
            if value is not None:
                results[name] = value
    frame.calc = SinglePointCalculator(frame, **results)
    return frame


class FrameWriter:
    """Frames appended to an ASE ``.traj`` or an extended XYZ file, on disk after every call.

    Args:
        path: where; the suffix says the format.
        resume: the ``mark`` to continue from; frames after it are removed. ``None`` starts a new file.
    """

    def __init__(self, path: Path, resume: dict[str, int] | None = None) -> None:
        check_frame_suffix(path)
        self.path = path
        self.frames = 0 if resume is None else resume["frames"]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._text: IO[str] | None = None
        self._trajectory: Any = None
        if path.suffix == ".traj":
            from ase.io.trajectory import TrajectoryWriter

            if resume is not None:
                _cut_trajectory(path, resume["frames"])
            self._trajectory = TrajectoryWriter(str(path), mode="w" if resume is None else "a")
        else:
            self._text = _open_text(path, None if resume is None else resume["bytes"])

    @property
    def mark(self) -> dict[str, int]:
        """How much is written so far."""
        return {"frames": self.frames, "bytes": 0 if self._text is None else self._text.tell()}

    def write(self, atoms: Atoms) -> None:
        """Append one frame."""
        if self._text is not None:
            from ase.io.extxyz import write_extxyz

            write_extxyz(self._text, [atoms])
            self._text.flush()
        else:
            self._trajectory.write(atoms)
        self.frames += 1

    def close(self) -> None:
        """Close the file."""
        if self._text is not None:
            self._text.close()
        if self._trajectory is not None:
            self._trajectory.close()


class CsvLog:
    """A CSV table that grows by one flushed line a row.

    Args:
        path: where.
        columns: the header; a file that is gone on with keeps its own.
        resume: size in bytes to cut the file back to; ``None`` starts a new file.
        optional: columns that a file which is gone on with may have or lack.

    Raises:
        SimulationError: the file to go on with has another header.
    """

    def __init__(self, path: Path, columns: Sequence[str], resume: int | None = None, optional: Sequence[str] = ()) -> None:
        self.path = path
        self.columns = list(columns)
        if resume is not None and path.is_file():
            with path.open(encoding="utf-8", errors="replace") as file:
                found = file.readline(1000).rstrip("\n").split(",")
            if [name for name in found if name not in optional] != [name for name in columns if name not in optional]:
                raise SimulationError(f"{path} is not the table of this run; it was changed")
            self.columns = found
        self._file = _open_text(path, resume)
        if resume is None:
            self._line(self.columns)

    @property
    def mark(self) -> int:
        """Size so far, bytes."""
        return self._file.tell()

    def write(self, row: dict[str, str]) -> None:
        """Append one row; a column that is missing stays empty."""
        self._line([row.get(column, "") for column in self.columns])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _line(self, cells: Sequence[str]) -> None:
        self._file.write(",".join(cells) + "\n")
        self._file.flush()


def read_csv(path: Path) -> dict[str, np.ndarray]:
    """The numeric columns of a :class:`CsvLog`; empty cells are NaN."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [line.split(",") for line in lines[1:]]
        columns = lines[0].split(",")
        return {c: np.array([float(row[k]) if row[k] else np.nan for row in rows]) for k, c in enumerate(columns)}
    except (ValueError, IndexError) as error:
        raise SimulationError(f"{path} is not a table of numbers ({error}); it was changed") from error


def write_state(path: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Write arrays and a JSON record atomically, without pickle."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        everything: dict[str, Any] = {**arrays, "meta": np.array(json.dumps({"format": _STATE_FORMAT, **meta}))}
        np.savez(file, **everything)


def read_state(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What :func:`write_state` wrote.

    Raises:
        SimulationError: the file is damaged or not ours.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(str(arrays.pop("meta")))
        if meta["format"] != _STATE_FORMAT:
            raise ValueError(f"format {meta['format']}, this version reads {_STATE_FORMAT}")
    except Exception as error:
        why = str(error).partition(". ")[0]  # what NumPy says next is how to run a stranger's code
        raise SimulationError(f"{path} is not a state to resume from ({why}); start anew with --overwrite") from error
    return arrays, meta


def _open_text(path: Path, size: int | None) -> IO[str]:
    """A text file to append to; cut back to ``size`` bytes, or new where that is ``None``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if size is None:
        return path.open("w", encoding="utf-8", newline="\n")
    found = path.stat().st_size if path.exists() else 0
    if found < size:
        raise SimulationError(f"{path} has {found} bytes but the state to resume from knows of {size}; it was changed")
    with path.open("r+b") as file:
        file.truncate(size)
    return path.open("a", encoding="utf-8", newline="\n")


def _cut_trajectory(path: Path, frames: int) -> None:
    """Keep the first ``frames`` frames of a ``.traj`` file."""
    from ase.io.trajectory import TrajectoryReader, TrajectoryWriter

    try:
        with TrajectoryReader(str(path)) as reader:
            found = len(reader)
            if frames:
                reader[min(found, frames) - 1]  # to see that it is there
            if found == frames:
                return
            if found > frames:
                with atomic_path(path) as temporary, TrajectoryWriter(str(temporary), mode="w") as writer:
                    for k in range(frames):
                        writer.write(reader[k])
                return
    except (OSError, ValueError, EOFError, KeyError, IndexError) as error:
        if isinstance(error, OSError) and error.errno in (*FULL, *FORBIDDEN):
            raise  # nothing is wrong with the file
        raise SimulationError(f"{path} cannot be continued: {error}; start anew with --overwrite") from error
    raise SimulationError(f"{path} has {found} frames but the state to resume from knows of {frames}; it was changed")
