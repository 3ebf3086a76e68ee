"""What a run says: its data and model before, its errors after; and the evaluation of a model on any file."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols
from rich.console import Console
from rich.table import Table
from torch import nn

from mlip.config import RunConfig
from mlip.data.frame import Frame, count_atoms
from mlip.models import Potential
from mlip.training.evaluate import Evaluation, evaluate
from mlip.training.gating import paths_of
from mlip.training.graphs import TrainingGraphs, available_metrics
from mlip.training.loader import evaluation_batches, load_batches, to_device
from mlip.training.plots import learning_curve, parity_plots
from mlip.training.prepare import Prepared
from mlip.training.prepare_density import usable_reference
from mlip.training.results import clock, results_table, write_results
from mlip.training.runfolder import RunFolder
from mlip.training.state import Progress
from mlip.training.uncertainty import fit_uncertainty


def describe_data(
    console: Console, data: Prepared, model: Potential, folder: RunFolder | None = None, resumed: bool = False
) -> None:
    """Print the sets, E0, scales and the model's size."""
    sets = {"train": data.train, "valid": data.valid, **data.tests}
    counts = ", ".join(f"{len(frames)} {name}" for name, frames in sets.items())
    console.print(f"frames: {counts}", highlight=False)
    for line in data.start.lines(data.level_of_theory) if data.start is not None else []:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if model.has_energy:
        energies = "  ".join(f"{chemical_symbols[z]} {data.e0[z]:.4f}" for z in data.elements)
        console.print(f"{data.e0_note} (eV): {energies}", highlight=False, soft_wrap=True)
    if data.density is not None:
        basis = data.density.basis
        functions = "  ".join(f"{chemical_symbols[z]} {basis.num_functions(z)}" for z in data.elements)
        text = f"density in {basis.name}, l up to {basis.l_max}; functions: {functions}"
        console.print(text, highlight=False, soft_wrap=True)
        lacking = len(data.train) - data.labelled
        if lacking:
            text = f"train: {lacking} of {len(data.train)} frames have no density; the loss leaves them out"
            console.print(text, style="yellow", highlight=False, soft_wrap=True)
    for name, report in data.audits.items():
        for warning in report.warnings:
            console.print(f"{name}: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    for what, values in (("charge", data.charges), ("spin", data.spins)):
        if len(values) > 1:
            console.print(
                f"train: total {what}s {', '.join(map(str, values))} occur; the network has no input for it and cannot "
                "tell such frames apart",
                style="yellow", markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip
    scale = f"force RMS {data.force_rms:.3f} eV/A, " if model.has_energy else ""
    console.print(
        f"{scale}{model.avg_num_neighbors:.1f} neighbours within {model.cutoff:g} A; "
        f"model: {model.num_parameters():,} parameters",
        highlight=False,
    )
    if folder is not None:
        console.print(f"{'resuming' if resumed else 'writing to'} {folder.path}", highlight=False, markup=False)


def parameter_table(model: nn.Module) -> Table:
    """Trainable numbers by part of the model, two levels deep."""
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[".".join(name.split(".")[:-1][:3]) or name] += parameter.numel()
    table = Table(title="Model", title_justify="left")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    table.add_row("total", f"{sum(counts.values()):,}", style="bold")
    return table


def evaluate_frames(
    model: Potential, frames: Sequence[Frame], batch_size: int | None = None, collect: bool = True, max_atoms: int = 512
) -> Evaluation:
    """Errors (and parity data) of a model on any frames; metric errors of densities where PySCF is installed."""
    reference = usable_reference(frames, model.density_reference)
    graphs = TrainingGraphs(frames, model.cutoff, 0, reference, available_metrics())
    batches = evaluation_batches(count_atoms(frames).tolist(), batch_size, max_atoms)
    device = next(model.parameters()).device
    loaded = (to_device(graph, device) for graph in load_batches(graphs, batches))
    return evaluate(model, loaded, model.elements, collect=collect)


def finish(
    config: RunConfig,
    data: Prepared,
    model: Potential,
    progress: Progress,
    folder: RunFolder,
    console: Console,
    save_model: Callable[..., Any],
) -> dict[str, Any]:
    """Write the model, evaluate it on all sets, write tables and plots; returns the content of ``results.json``."""
    about: dict[str, Any] = {
        "stopped": progress.finished,
        "steps": progress.step,
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "skipped_steps": progress.skipped,
        "training_seconds": round(progress.elapsed, 1),
        "parameters": model.num_parameters(),
    }
    if model.has_energy:
        about["e0"] = data.e0_note
    if data.density is not None:
        about["density_basis"] = data.density.basis.name
    if config.training.gate is not None:
        about["paths"] = paths_of(model)
    metadata = {"level_of_theory": data.level_of_theory or "not stated by the data file"}
    names = ", ".join(Path(file).name for file in config.data.train_files)
    metadata |= {"training": about, "training_data": {"file": names, "sha256": data.fingerprint, "split": data.split}}
    metadata |= {"charges": data.charges, "spins": data.spins, "spins_fit": data.spins_fit}
    if data.start is not None:
        metadata["fine_tuned_from"] = data.start.source.record()
    save_model(model, folder.model, metadata)
    start = time.monotonic()
    note = fit_uncertainty(model, data.train, data.valid)
    outcomes = {}
    for name, frames in data.sets().items():
        outcomes[name] = evaluate_frames(model, frames, config.data.valid_batch_size, config.run.plots)
    reports = {name: outcome.errors.report() for name, outcome in outcomes.items()}
    frames_of = {name: len(frames) for name, frames in data.sets().items()}
    metadata |= {"errors": reports, "frames": frames_of}
    save_model(model, folder.model, metadata)
    folder.write_log(progress.history)
    if config.run.plots:
        learning_curve(progress.history, folder.path / "learning_curve.png")
        parity_plots({name: o.parity for name, o in outcomes.items() if o.parity is not None}, folder.path)
    about["evaluation_seconds"] = round(time.monotonic() - start, 1)
    write_results(folder.path, reports, frames_of, about)
    say_results(console, reports, frames_of)
    warn_of_skipped(console, progress)
    if note:
        console.print(note, highlight=False, soft_wrap=True)
    console.print(
        f"{progress.finished}: {progress.epoch} epochs, {progress.step} steps in {clock(progress.elapsed)}; "
        f"best at epoch {progress.best_epoch}\nmodel, tables and plots: {folder.path}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    return {"errors": reports, "frames": frames_of, **about}


def warn_of_skipped(console: Console, progress: Progress) -> None:
    """Say how many steps were left out for a gradient that was not finite, if any were."""
    if progress.skipped:
        console.print(
            f"warning: {progress.skipped} of {progress.step} steps were left out: the gradient was not finite; "
            "look for broken labels with `mlip data audit`, or lower training.lr",
            style="yellow", markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip


def table_width(table: Table) -> int:
    """Characters that a table needs to stand unfolded."""
    return Console(width=1000).measure(table).maximum


def say_results(console: Console, reports: dict[str, Any], frames: dict[str, int]) -> None:
    """Print the table of errors; one set after the other where they do not fit side by side."""
    table = results_table(reports, frames)
    if console.is_terminal and table_width(table) > console.width:
        for name, report in reports.items():
            console.print(results_table({name: report}, frames))
        return
    console.print(table, width=max(console.width, table_width(table)), no_wrap=True, crop=False, overflow="ignore")
