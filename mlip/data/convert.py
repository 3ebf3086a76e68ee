"""Converting data files, frame by frame, so that a file larger than memory converts too."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlip.data.frame import Frame
from mlip.data.hdf5 import HDF5Frames, write_frames
from mlip.data.readers import file_format, iter_frames, to_atoms
from mlip.data.schema import ROOT_ATTRIBUTES
from mlip.data.units import LabelKeys, Units
from mlip.errors import DataError
from mlip.files import atomic_path

_LABELS = ("energy", "forces", "stress", "density_coefficients")


@dataclass
class ConversionSummary:
    """What was converted: counts of frames, atoms, labels and of labels lost on the way."""

    frames: int = 0
    atoms: int = 0
    labels: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_LABELS, 0))
    not_finite: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def convert_files(
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    keys: LabelKeys | None = None,
    units: Units | None = None,
    attrs: Mapping[str, Any] | None = None,
    float32: Collection[str] = (),
    compression: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int], object] | None = None,
) -> ConversionSummary:
    """Write the frames of ``inputs``, one file after the other, to one HDF5 or extended XYZ file.

    Args:
        inputs: readable files; ``keys`` and ``units`` apply to each.
        output: ``.h5``/``.hdf5`` or ``.xyz``/``.extxyz``; appears only when it is complete.
        attrs: root attributes of an HDF5 file (level of theory, licence), over those that HDF5 inputs agree on.
        float32, compression: see :func:`mlip.data.writer.write_frames`.
        overwrite: replace an existing ``output``.
        progress: called with the number of frames done.

    Raises:
        DataError: unreadable input, an existing output, or a format that cannot be written.
    """
    paths, output = [Path(path) for path in inputs], Path(output)
    kind = file_format(output)
    if kind not in ("hdf5", "extxyz"):
        raise DataError(f"{output}: cannot write this format; name the output .h5 or .extxyz")
    if not paths:
        raise DataError("nothing to convert; name at least one input file")
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        if output.exists() and path.samefile(output):
            raise DataError(f"{output} is an input as well; give the output another name")
    if output.exists() and not overwrite:
        raise DataError(f"{output} exists already; choose another name, or overwrite it with --force")
    summary = ConversionSummary()
    frames = _counted(_renamed(paths, keys, units), summary, progress)
    if kind == "hdf5":
        inherited = _common_attributes(paths)
        write_frames(output, frames, {**inherited, **(attrs or {})}, float32=float32, compression=compression)
    else:
        _write_extxyz(output, frames)
        if summary.labels["density_coefficients"]:
            summary.notes.append("extended XYZ holds no density coefficients; they are left out")
    for label, count in summary.not_finite.items():
        summary.notes.append(f"{label}: not finite in {count} frames; NaN stands for 'missing'")
    return summary


def _renamed(paths: Sequence[Path], keys: LabelKeys | None, units: Units | None) -> Iterator[Frame]:
    """All frames with ids that are unique over the files."""
    used: set[str] = set()
    for path in paths:
        for number, frame in enumerate(iter_frames(path, keys, units)):
            name = frame.id or str(number)
            if len(paths) > 1 and name == str(number):
                name = f"{path.stem}:{number}"
            frame.id = name
            copies = 1
            while frame.id in used:
                copies += 1
                frame.id = f"{name}#{copies}"
            used.add(frame.id)
            yield frame


def _counted(
    frames: Iterable[Frame], summary: ConversionSummary, progress: Callable[[int], object] | None
) -> Iterator[Frame]:
    for frame in frames:
        summary.frames += 1
        summary.atoms += len(frame)
        for label in _LABELS:
            value = getattr(frame, label)
            if value is not None:
                summary.labels[label] += 1
                if not np.isfinite(value).all():
                    summary.not_finite[label] = summary.not_finite.get(label, 0) + 1
        if progress is not None and summary.frames % 50 == 0:
            progress(summary.frames)
        yield frame
    if not summary.frames:
        raise DataError("the input has no frames; there is nothing to convert")
    if progress is not None:
        progress(summary.frames)


def _common_attributes(paths: Sequence[Path]) -> dict[str, Any]:
    """Root attributes on which all inputs agree; none unless all are HDF5."""
    if any(file_format(path) != "hdf5" for path in paths):
        return {}
    attrs = [HDF5Frames(path).attrs for path in paths]
    return {
        name: value
        for name, value in attrs[0].items()
        if name not in ROOT_ATTRIBUTES and all(other.get(name) == value for other in attrs[1:])
    }


def _write_extxyz(path: Path, frames: Iterable[Frame]) -> None:
    from ase.io.extxyz import write_xyz

    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for frame in frames:
            write_xyz(file, [to_atoms(frame)])
