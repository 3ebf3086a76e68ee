"""Reading the project's data file (see :mod:`mlip.data.schema`) lazily; writing lies in :mod:`mlip.data.writer`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mlip.data.frame import Frame, FrameSequence, wrong_elements
from mlip.data.schema import FORMAT, FORMAT_VERSION, REQUIRED, ROOT_ATTRIBUTES, SCHEMA, decode_attribute, holds, is_missing
from mlip.data.writer import FrameWriter, write_frames
from mlip.errors import DataError
from mlip.memory import available_memory

__all__ = ["FrameWriter", "HDF5Frames", "write_frames"]

_BLOCK = 256
_LARGE = 10**9  # bytes from which on it matters whether they are free


class HDF5Frames(FrameSequence):
    """The frames of an HDF5 file, read when asked for, and only the slices that are asked for.

    Memory stays at the offsets (16 bytes a frame) plus what the caller keeps. The file is opened once per process, so
    an instance may be pickled or forked into data-loader workers.

    Args:
        path: a file of this format.
        load_density: read the density coefficients too; off, every frame's are ``None``.

    Raises:
        DataError: the file is missing, truncated, not of this format, of a newer version, or inconsistent.
    """

    def __init__(self, path: str | Path, load_density: bool = True):
        self.path = Path(path)
        self.load_density = load_density
        self._file: h5py.File | None = None
        self._pid = -1
        self._datasets: dict[str, Any] = {}
        try:
            self._check_schema()
        except (OSError, KeyError, RuntimeError, ValueError, TypeError, MemoryError) as error:
            raise DataError(f"{self.path}: cannot be read as HDF5 (truncated or damaged?): {error}") from error

    def _check_schema(self) -> None:
        file = self._open()
        self.attrs = {name: decode_attribute(value) for name, value in file.attrs.items()}
        if self.attrs.get("format") != FORMAT:
            raise DataError(f"{self.path}: an HDF5 file, but not of the format '{FORMAT}'; convert it first")
        version = int(self.attrs.get("format_version", 0))
        if version > FORMAT_VERSION:
            raise DataError(
                f"{self.path}: format version {version}, this mlip reads up to {FORMAT_VERSION}; upgrade mlip"
            )
        for name in ("length_unit", "energy_unit", "stress_convention"):
            found, known = self.attrs.get(name, ROOT_ATTRIBUTES[name]), ROOT_ATTRIBUTES[name]
            if found != known:
                raise DataError(f"{self.path}: {name} is {found!r}, only {known!r} is allowed; convert the numbers and say so")
        absent = [name for name in REQUIRED if name not in file]
        if absent:
            raise DataError(f"{self.path}: the dataset {', '.join(absent)} is missing; write the file again")
        self._atom_ptr = _pointer(file, "atom_ptr")
        self._density_ptr = _pointer(file, "density_ptr") if "density_ptr" in file else None
        rows = {
            "frame": len(self._atom_ptr) - 1,
            "pointer": len(self._atom_ptr),
            "atom": int(self._atom_ptr[-1]),
            "coefficient": 0 if self._density_ptr is None else int(self._density_ptr[-1]),
        }
        for name, dataset in file.items():
            kind, shape = SCHEMA.get(name, ("frame", ()))
            if not isinstance(dataset, h5py.Dataset) or dataset.shape != (rows[kind], *shape):
                found = getattr(dataset, "shape", "a group")
                raise DataError(f"{self.path}: dataset {name} is {found}, {(rows[kind], *shape)} expected")
            if not holds(name, dataset.dtype):
                raise DataError(f"{self.path}: dataset {name} holds {dataset.dtype}, which cannot stand there; write it again")
        for pointer in (self._atom_ptr, self._density_ptr):
            if pointer is not None and (pointer[0] != 0 or np.any(np.diff(pointer) < 0)):
                raise DataError(f"{self.path}: the offsets do not start at 0 or decrease; write the file again")
        self.labels = {name for name in ("energy", "forces", "stress", "density_coefficients") if name in file}
        self.extra_names = [name for name in file if name not in SCHEMA]

    def _open(self) -> h5py.File:
        if self._file is None or self._pid != os.getpid():  # a forked handle must not be shared
            if not self.path.is_file():
                raise DataError(f"{self.path}: no such file")
            self._file = h5py.File(self.path, "r", locking="best-effort")
            self._pid = os.getpid()
            self._datasets = dict(self._file.items())
        return self._file

    def close(self) -> None:
        """Close this process's handle; it reopens when a frame is asked for."""
        if self._file is not None and self._pid == os.getpid():
            self._file.close()
        self._file, self._datasets = None, {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_pid": -1, "_datasets": {}}

    @property
    def num_atoms(self) -> np.ndarray:
        """Atoms in each frame, ``[N]``."""
        return np.diff(self._atom_ptr)

    def frame_extra(self, name: str) -> np.ndarray:
        """The whole extra dataset ``name`` as ``[N]`` (numbers, or an object array of ``str``)."""
        if name not in self.extra_names:
            raise DataError(f"{self.path}: no extra '{name}'; there are: {', '.join(self.extra_names) or 'none'}")
        return _read_rows(self._open()[name], 0, len(self))

    def __len__(self) -> int:
        return len(self._atom_ptr) - 1

    def _at(self, place: int) -> Frame:
        return self._read(place, place + 1)[0]

    def __iter__(self) -> Iterator[Frame]:
        for start in range(0, len(self), _BLOCK):
            yield from self._read(start, min(start + _BLOCK, len(self)))

    def _read(self, start: int, stop: int) -> list[Frame]:
        try:
            return self._slice(start, stop)
        except (OSError, KeyError, RuntimeError, ValueError, MemoryError) as error:
            raise DataError(f"{self.path}: frames {start} to {stop - 1} cannot be read (damaged?): {error}") from error

    def _slice(self, start: int, stop: int) -> list[Frame]:
        """Frames ``start:stop`` by one slice of each dataset."""
        self._open()
        bounds = {"frame": (start, stop), "atom": (int(self._atom_ptr[start]), int(self._atom_ptr[stop]))}
        if self._density_ptr is not None and self.load_density:
            bounds["coefficient"] = (int(self._density_ptr[start]), int(self._density_ptr[stop]))
        rows = {}
        for name, dataset in self._datasets.items():
            kind = SCHEMA.get(name, ("frame", ()))[0]
            if kind in bounds:
                rows[name] = _read_rows(dataset, *bounds[kind])
        if wrong := wrong_elements(rows["atomic_numbers"]):
            raise DataError(f"{self.path}: frames {start} to {stop - 1}: {wrong}")
        return [self._frame(rows, index, start) for index in range(start, stop)]

    def _frame(self, rows: Mapping[str, np.ndarray], index: int, start: int) -> Frame:
        """Frame ``index`` out of the rows that were read from frame ``start`` on."""
        row = index - start
        atoms = slice(*(self._atom_ptr[index : index + 2] - self._atom_ptr[start]))
        frame = Frame(
            atomic_numbers=rows["atomic_numbers"][atoms].astype(np.int64),
            positions=rows["positions"][atoms].astype(np.float64),
            energy=None if "energy" not in rows or np.isnan(rows["energy"][row]) else float(rows["energy"][row]),
            forces=_label(rows["forces"][atoms]) if "forces" in rows else None,
            stress=_label(rows["stress"][row]) if "stress" in rows else None,
            charge=int(rows["charge"][row]) if "charge" in rows else 0,
            spin=int(rows["spin"][row]) if "spin" in rows else 0,
            id=rows["id"][row] if "id" in rows else str(index),
            extras={name: rows[name][row].item() if rows[name].dtype != object else rows[name][row]
                    for name in self.extra_names if not is_missing(rows[name][row])},
        )
        if "cell" in rows:
            frame.cell = rows["cell"][row].astype(np.float64)
        if "pbc" in rows:
            frame.pbc = rows["pbc"][row].astype(bool)
        if "density_coefficients" in rows and self._density_ptr is not None:
            part = slice(*(self._density_ptr[index : index + 2] - self._density_ptr[start]))
            frame.density_coefficients = _label(rows["density_coefficients"][part])
        return frame


def _pointer(file: h5py.File, name: str) -> np.ndarray:
    """Offsets ``[N+1]``."""
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1 or not len(dataset) or not holds(name, dataset.dtype):
        raise DataError(f"{file.filename}: {name} is no list of whole numbers with at least one entry; write the file again")
    return _read_rows(dataset, 0, len(dataset)).astype(np.int64)


def _read_rows(dataset: h5py.Dataset, start: int, stop: int) -> np.ndarray:
    size = (stop - start) * dataset.dtype.itemsize * math.prod(dataset.shape[1:])
    if size > _LARGE and size > (available_memory() or size):
        what = f"{dataset.file.filename}: {dataset.name[1:]}"
        raise DataError(f"{what} has {size / 1e9:.0f} GB to read at once, more than is free here")
    if h5py.check_string_dtype(dataset.dtype) is not None:
        return np.asarray(dataset.asstr()[start:stop], dtype=object)
    return dataset[start:stop]


def _label(values: np.ndarray) -> np.ndarray | None:
    """``None`` where nothing was stored. Partly NaN stays as it is: that is damage, which the audit reports."""
    if values.size == 0 or np.isnan(values).all():
        return None
    return values.astype(np.float64)
