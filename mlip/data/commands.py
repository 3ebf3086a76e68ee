"""What ``mlip data ...`` does: call the modules beside this one and print."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mlip.data.audit import collect_audit
from mlip.data.convert import convert_files
from mlip.data.readers import open_frames
from mlip.data.schema import ROOT_ATTRIBUTES
from mlip.data.stats import data_statistics
from mlip.data.units import LabelKeys, Units
from mlip.errors import DataError

MAX_CUTOFF = 20.0
"""Of the neighbour statistics, Angstrom; no model has a longer one."""


def _meaning(energy: str | None, forces: str | None, stress: str | None, units: str) -> tuple[LabelKeys, Units]:
    return LabelKeys(energy=energy, forces=forces, stress=stress), Units.parse(units)


def convert_command(
    inputs: Sequence[Path],
    output: Path,
    keys: tuple[str | None, str | None, str | None] = (None, None, None),
    units: str = "",
    attributes: Sequence[str] = (),
    float32: bool = False,
    compress: bool = False,
    force: bool = False,
) -> None:
    """Convert, with a progress bar, and say what was written."""
    label_keys, label_units = _meaning(*keys, units)
    attrs = {}
    for text in attributes:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise DataError(f"--attr '{text}' is not NAME=VALUE, e.g. --attr licence=CC-BY-4.0")
        if name in attrs:
            raise DataError(f"--attr {name} is given twice; keep one")
        if name in ROOT_ATTRIBUTES:
            raise DataError(f"--attr {name} is fixed by the format to {ROOT_ATTRIBUTES[name]!r}; leave it away")
        attrs[name] = value
    columns = (TextColumn("converting"), BarColumn(), MofNCompleteColumn(), TextColumn("frames"), TimeElapsedColumn())
    with Progress(*columns, transient=True, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)
        summary = convert_files(
            inputs,
            output,
            keys=label_keys,
            units=label_units,
            attrs=attrs,
            float32=("forces", "density_coefficients") if float32 else (),
            compression="gzip" if compress else None,
            overwrite=force,
            progress=lambda done: bar.update(task, completed=done),
        )
    labels = ", ".join(f"{name} in {count}" for name, count in summary.labels.items() if count) or "no labels"
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{output}: {summary.frames} frames, {summary.atoms} atoms; {labels}", markup=False)
    for note in summary.notes:
        console.print(f"note: {note}", markup=False)


def stats_command(
    file: Path, cutoff: float, keys: tuple[str | None, str | None, str | None] = (None, None, None), units: str = ""
) -> None:
    """Print the statistics of a file."""
    if not 0 < cutoff <= MAX_CUTOFF:
        raise DataError(f"--cutoff {cutoff:g}: give a distance up to {MAX_CUTOFF:g} Angstrom")
    frames = open_frames(file, *_meaning(*keys, units))
    if not len(frames):
        raise DataError(f"{file}: no frames in it")
    Console(highlight=False).print(data_statistics(frames, cutoff))


def audit_command(
    file: Path,
    needed: Collection[str],
    keys: tuple[str | None, str | None, str | None] = (None, None, None),
    units: str = "",
    physics: bool = True,
) -> None:
    """Print the audit of a file, then raise DataError if it is refused."""
    report = collect_audit(open_frames(file, *_meaning(*keys, units)), needed, physics)
    Console(highlight=False).print(report)
    report.raise_refusals(str(file))
