"""What the commands ``train``, ``eval`` and ``info`` do, behind the command line.

torch and Lightning are loaded only once the options are known to be good.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from mlip.clitools import printable
from mlip.configfile import load_config
from mlip.errors import CheckpointError, UserError

if TYPE_CHECKING:
    from mlip.data.frame import Frame
    from mlip.models import Potential

UNIT_FRAMES = 500
"""Frames of an evaluation whose energies are looked at for their unit."""


def train_command(config_file: Path, overrides: Sequence[str], restart: bool, dry_run: bool, source: str | None = None) -> int:
    """Train, fine-tune ``source``, resume or dry-run; returns the exit code (130 after Ctrl-C)."""
    started = time.monotonic()
    start = [] if source is None else [f"model.init_from={json.dumps(source)}"]
    config = load_config(config_file, [*overrides, *start])
    from mlip.training.run import train
    from mlip.training.runfolder import RunFolder

    console = Console(markup=dry_run)  # the audit's tables are markup; names of files are not
    if dry_run:
        from mlip.training.dryrun import dry_run as show

        show(config, console)
        return 0
    try:
        train(config, restart=restart, console=console, started=started)
    except KeyboardInterrupt:
        folder = RunFolder(config.run.dir)
        if folder.results.exists():
            text = f"the finished run in {folder.path} stays"
        elif folder.checkpoint.exists():
            text = f"{folder.path} stays, run the same command again{', without --restart,' if restart else ''} to resume"
        else:
            text = "nothing was saved yet, the same command starts anew"
        print(f"mlip: interrupted; {text}", file=sys.stderr, flush=True)
        return 130
    except Exception as error:
        if Path(config.run.dir).is_dir():
            error.trace_folder = config.run.dir  # type: ignore[attr-defined]
        raise
    return 0


def eval_command(
    model_name: str, data: Path, out: Path | None, batch_size: int | None, device: str, keys: dict[str, str | None],
    units: str | None, plots: bool = True,
) -> None:  # fmt: skip
    """Print, write and plot the errors of a model on a file; into ``out``, or ``eval-DATASTEM`` in the working directory.

    Without ``plots`` nothing is plotted, and tables are written only to an ``out`` that was given.
    """
    from mlip.checkpoint import find_model, load_model
    from mlip.data.readers import open_frames
    from mlip.data.units import LabelKeys, Units
    from mlip.memory import keep_freed_memory
    from mlip.training.plots import parity_plots
    from mlip.training.prepare import without_isolated_atoms
    from mlip.training.report import evaluate_frames, say_results
    from mlip.training.results import write_results
    from mlip.training.runfolder import RunFolder

    keep_freed_memory()
    if out is None and plots:
        out = Path(f"eval-{data.stem}")
    if out is not None and RunFolder(out).holds_a_run():
        raise UserError(f"--out {out}: a training run lies there, whose results would be replaced; choose another folder")
    label_keys = LabelKeys(**keys) if any(keys.values()) else None
    frames = without_isolated_atoms(open_frames(data, label_keys, Units.parse(units) if units else None))
    model = load_model(model_name, device=device)
    outcome = evaluate_frames(model, frames, batch_size, collect=plots)
    reports, counts = {data.stem: outcome.errors.report()}, {data.stem: len(frames)}
    if not reports[data.stem]:
        raise UserError(f"{data}: {_nothing_to_compare(model)}")
    console = Console(markup=False)
    say_results(console, reports, counts)
    if not units and "energy" in reports[data.stem] and (note := _unit_note(frames)):
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    if out is not None:
        write_results(out, reports, counts, {"model": str(find_model(model_name)), "data": str(data)})
        if outcome.parity is not None:
            parity_plots({data.stem: outcome.parity}, out)
        console.print(f"{'tables and plots' if plots else 'tables'}: {out}", highlight=False, soft_wrap=True)


def _unit_note(frames: Sequence[Frame]) -> str | None:
    """What seems to be wrong with the unit of the energies."""
    from mlip.data.allelectron import read_as_ev, unit_text
    from mlip.data.e0 import CompositionSums
    from mlip.training.prepare import subset

    sums = CompositionSums()
    for frame in subset(frames, UNIT_FRAMES):  # enough to tell, and the file is not read twice
        sums.add(frame)
    found = read_as_ev(sums)
    return unit_text(found[0]) if found else None


def _nothing_to_compare(model: Potential) -> str:
    if model.density_basis is None:
        return "no energy, forces or stress in it to compare with; name them with --energy-key ..."
    basis = f"density_coefficients with the file's density_basis, which the model has as {model.density_basis.name}"
    if not model.has_energy:
        return f"no density in it to compare with: the model predicts {basis}; label it with `scf-accel label`"
    return f"no energy, forces, stress or density in it to compare with ({basis}); name labels with --energy-key ..."


def info_command(model_name: str) -> None:
    """Print a checkpoint's header."""
    from mlip.checkpoint import find_model, read_header

    header = read_header(model_name)
    try:
        _print_header(model_name, header)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{find_model(model_name)}: its mlip header is damaged ({error!r}); get the file again") from error


def _print_header(model_name: str, header: dict[str, Any]) -> None:
    from ase.data import chemical_symbols

    from mlip.checkpoint import find_model
    from mlip.models import DensityReference

    metadata = dict(header.pop("metadata", None) or {})
    errors, frames = metadata.pop("errors", None), metadata.pop("frames", {})
    density = header.pop("density", None)
    if density:
        reference = DensityReference.from_dict(density)
        header["density"] = {
            "basis": reference.basis.name, "l_max": reference.basis.l_max, "metric": reference.metric,
            "charges": " ".join(map(str, reference.charges)),
        }  # fmt: skip
    header["elements"] = " ".join(chemical_symbols[int(z)] for z in header["elements"])
    header["e0"] = {chemical_symbols[int(z)]: energy for z, energy in header["e0"].items()}
    table = Table(title=str(find_model(model_name)), title_justify="left", show_header=False)
    table.add_column("key")
    table.add_column("value", overflow="fold")
    for key, value in {**header, **metadata}.items():
        for name, leaf in _leaves(key, value):
            table.add_row(printable(name), f"{leaf:.6g}" if isinstance(leaf, float) else printable(str(leaf)))
    console = Console(markup=False)
    console.print(table)
    if errors:
        from mlip.training.report import say_results

        say_results(console, errors, {name: frames.get(name, 0) for name in errors})


def _leaves(key: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(key, value)]
    return [pair for name, part in value.items() for pair in _leaves(f"{key}.{name}", part)]
