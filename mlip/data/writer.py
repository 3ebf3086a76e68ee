"""Writing the project's data file in a stream: memory stays bounded however many frames there are."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mlip.data.frame import Frame, wrong_coordinates, wrong_elements
from mlip.data.schema import MISSING_INT, ROOT_ATTRIBUTES, SCHEMA, encode_attribute
from mlip.errors import DataError
from mlip.files import atomic_path

_BLOCK_FRAMES = 512
_BLOCK_VALUES = 1_000_000  # flush after this many buffered numbers (8 MB)
ROOM = 2**20
"""Bytes that are free beside what is to be written: attributes, indices."""
_TEXT = h5py.string_dtype()


def write_frames(
    path: str | Path,
    frames: Iterable[Frame],
    attrs: Mapping[str, Any] | None = None,
    *,
    float32: Collection[str] = (),
    compression: str | None = None,
) -> int:
    """Write ``frames`` to ``path`` atomically and in a stream; return how many.

    Args:
        path: the HDF5 file to make; replaced if it exists, once the new one is complete.
        frames: any iterable; a frame's ``extras`` become datasets ``[N]``.
        attrs: root attributes beside the format's own: ``level_of_theory`` (dict), ``licence``, ...
        float32: which of ``forces`` and ``density_coefficients`` to store in single precision.
        compression: ``"gzip"`` for smaller files that read slower.

    Raises:
        DataError: a frame is inconsistent, or an id is not unique.
        OSError: the disk is full.
    """
    options: dict[str, Any] = {"float32": float32, "compression": compression}
    with atomic_path(path) as temporary, FrameWriter(temporary, attrs, **options) as writer:
        for frame in frames:
            writer.append(frame)
    return writer.count


class FrameWriter:
    """Appends frames to a new HDF5 file; a context manager. ``write_frames`` is the usual way in."""

    def __init__(
        self,
        path: str | Path,
        attrs: Mapping[str, Any] | None = None,
        *,
        float32: Collection[str] = (),
        compression: str | None = None,
    ):
        wrong = set(float32) - {"forces", "density_coefficients"}
        if wrong:
            raise DataError(f"{sorted(wrong)} cannot be stored as float32; forces and density_coefficients can")
        self.count = 0
        self._float32 = set(float32)
        self._compression = compression
        self._ids: set[str] = set()
        self._buffer: list[Frame] = []
        self._buffered = 0
        self.path = Path(path)
        self._check_room()
        self._file = h5py.File(path, "w")
        for name, value in {**(attrs or {}), **ROOT_ATTRIBUTES}.items():
            self._file.attrs[name] = encode_attribute(value)
        for name, (kind, _) in SCHEMA.items():
            self._create(name)
            if kind == "pointer":
                _extend(self._file[name], np.zeros(1, dtype=np.int64))

    def __enter__(self) -> FrameWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None:
            self.flush()
        self._file.close()

    def _check_room(self) -> None:
        """Raise OSError while HDF5 has written nothing of the buffer: after a write that failed it cannot even close its file.

        The room is reserved for a moment in a file beside it, which also meets quotas and limits of the process.
        """
        size = self.path.stat().st_size if self.path.exists() else 0
        with tempfile.TemporaryFile(dir=self.path.parent) as probe:
            try:
                os.posix_fallocate(probe.fileno(), size, 16 * self._buffered + ROOM)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that cannot reserve
                    raise OSError(error.errno, error.strerror, str(self.path.parent)) from error

    def _create(self, name: str, dtype: Any = None) -> None:
        kind, shape = SCHEMA.get(name, ("frame", ()))
        if dtype is None:
            integers = {"atomic_numbers": np.int16, "charge": np.int32, "spin": np.int32, "pbc": np.bool_, "id": _TEXT}
            dtype = np.int64 if kind == "pointer" else integers.get(name, np.float64)
            if name in self._float32:
                dtype = np.float32
        rows = 256 if kind == "frame" else 4096
        self._file.create_dataset(
            name,
            shape=(0, *shape),
            maxshape=(None, *shape),
            chunks=(rows, *shape),
            dtype=dtype,
            compression=self._compression,
            shuffle=self._compression is not None,
        )

    def append(self, frame: Frame) -> None:
        """Add one frame; an empty id becomes the frame's number."""
        number = self.count
        _check_frame(frame, number)
        name = frame.id or str(number)
        if name in self._ids:
            raise DataError(f"frame {number}: the id '{name}' occurs twice; ids must be unique in a file")
        self._ids.add(name)
        self._buffer.append(frame)
        self.count += 1
        coefficients = 0 if frame.density_coefficients is None else len(frame.density_coefficients)
        self._buffered += 7 * len(frame) + coefficients + 20
        if len(self._buffer) >= _BLOCK_FRAMES or self._buffered > _BLOCK_VALUES:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered; the file is consistent afterwards."""
        frames = self._buffer
        if not frames:
            return
        self._check_room()
        first = self.count - len(frames)
        counts = np.array([len(frame) for frame in frames], dtype=np.int64)
        sizes = np.array([0 if f.density_coefficients is None else len(f.density_coefficients) for f in frames])
        nan3, nan6 = np.full(3, np.nan), np.full(6, np.nan)
        no_density = np.zeros(0)
        blocks: dict[str, Any] = {
            "atomic_numbers": np.concatenate([f.atomic_numbers for f in frames]),
            "positions": np.concatenate([np.asarray(f.positions, dtype=np.float64) for f in frames]),
            "forces": np.concatenate(
                [np.broadcast_to(nan3, (len(f), 3)) if f.forces is None else f.forces for f in frames]
            ),
            "cell": np.stack([f.cell for f in frames]),
            "pbc": np.stack([f.pbc for f in frames]),
            "charge": np.array([f.charge for f in frames]),
            "spin": np.array([f.spin for f in frames]),
            "energy": np.array([np.nan if f.energy is None else f.energy for f in frames]),
            "stress": np.stack([nan6 if f.stress is None else f.stress for f in frames]),
            "id": np.array([f.id or str(first + k) for k, f in enumerate(frames)], dtype=object),
            "density_coefficients": np.concatenate(
                [no_density if f.density_coefficients is None else f.density_coefficients for f in frames]
            ),
            "atom_ptr": self._file["atom_ptr"][-1] + np.cumsum(counts),
            "density_ptr": self._file["density_ptr"][-1] + np.cumsum(sizes),
        }
        for name, values in blocks.items():
            _extend(self._file[name], values)
        self._write_extras(frames, first)
        self._file.flush()
        self._buffer, self._buffered = [], 0

    def _write_extras(self, frames: list[Frame], first: int) -> None:
        """Extras of the buffered frames; a dataset that appears late, or turns out wider, is made anew."""
        names = {name for frame in frames for name in frame.extras} | (set(self._file) - set(SCHEMA))
        for name in sorted(names):
            if name in SCHEMA or "/" in name:
                raise DataError(f"an extra cannot be named '{name}'")
            values = [frame.extras.get(name) for frame in frames]
            kind = max((_kind_of(value, name) for value in values if value is not None), default=0)
            old: list[Any] = [None] * first
            if name in self._file:
                stored = {np.dtype(np.int64): 0, np.dtype(np.float64): 1}.get(self._file[name].dtype, 2)
                if stored >= kind:
                    _extend(self._file[name], _extra_array(values, stored))
                    continue
                dataset = self._file[name].asstr() if stored == 2 else self._file[name]
                old = [None if value == MISSING_INT or value != value else value for value in dataset[:].tolist()]
                del self._file[name]
            self._create(name, (np.int64, np.float64, _TEXT)[kind])
            _extend(self._file[name], _extra_array(old + values, kind))


def _check_frame(frame: Frame, number: int) -> None:
    """Raise DataError unless the arrays of ``frame`` fit together and its positions are finite."""
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
        "positions": (np.shape(frame.positions), (len(frame), 3)),
        "cell": (np.shape(frame.cell), (3, 3)),
        "pbc": (np.shape(frame.pbc), (3,)),
    }
    if frame.forces is not None:
        shapes["forces"] = (np.shape(frame.forces), (len(frame), 3))
    if frame.stress is not None:
        shapes["stress"] = (np.shape(frame.stress), (6,))
    for name, (found, expected) in shapes.items():
        if found != expected:
            raise DataError(f"frame {number} '{frame.id}': {name} has shape {found}, {expected} expected")
    if any("\0" in text for text in (frame.id, *frame.extras.values()) if isinstance(text, str)):
        raise DataError(f"frame {number}: a text of it has a NUL character, which HDF5 cannot hold; remove it")
    wrong = wrong_elements(frame.atomic_numbers) or wrong_coordinates(frame.positions, frame.cell)
    if wrong:
        raise DataError(f"frame {number} '{frame.id}': {wrong}")


def _kind_of(value: Any, name: str) -> int:
    if isinstance(value, (bool, int, np.integer, np.bool_)):
        return 0
    if isinstance(value, (float, np.floating)):
        return 1
    if isinstance(value, str):
        return 2
    raise DataError(f"the extra '{name}' is a {type(value).__name__}; a number or a string is allowed")


def _extra_array(values: list[Any], kind: int) -> np.ndarray:
    if kind == 2:
        return np.array(["" if value is None else str(value) for value in values], dtype=object)
    missing, dtype = ((MISSING_INT, np.int64), (np.nan, np.float64))[kind]
    return np.array([missing if value is None else value for value in values], dtype=dtype)


def _extend(dataset: h5py.Dataset, values: np.ndarray) -> None:
    """Append rows."""
    if len(values):
        dataset.resize(len(dataset) + len(values), axis=0)
        dataset[-len(values) :] = values
