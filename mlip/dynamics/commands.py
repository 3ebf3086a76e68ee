"""``mlip relax`` and ``mlip md``: files in, files and a summary on the screen out.

torch is loaded only once the input is read, so that a mistyped file name is answered at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from mlip.data.frame import wrong_coordinates, wrong_elements
from mlip.dynamics.md import MDSummary, run_md
from mlip.dynamics.output import FrameWriter, check_frame_suffix, refuse_existing, snapshot
from mlip.dynamics.relax import RelaxResult, relax
from mlip.dynamics.settings import MDSettings
from mlip.errors import ConfigError, StructureError
from mlip.files import check_writable, locked


def read_structures(path: Path) -> list[Atoms]:
    """All frames of a file that ASE can read.

    Raises:
        StructureError: no such file, not a format of ASE's, no frame in it, or one with impossible elements or positions.
    """
    if not path.is_file():
        raise StructureError(f"{path} does not exist; give a file with structures")
    try:
        frames = ase.io.read(path, index=":")
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise StructureError(f"{path} cannot be read by ASE ({why}); give xyz, cif, ...") from error
    if not frames:
        raise StructureError(f"{path} has no structure in it")
    for number, atoms in enumerate(frames):
        if wrong := wrong_elements(atoms.numbers) or wrong_coordinates(atoms.positions, atoms.cell.array):
            raise StructureError(f"{path}: frame {number}: {wrong}")
    return list(frames)


def relax_file(
    path: Path,
    model: str,
    files: dict[str, Path | None],
    settings: dict[str, Any],
    *,
    dtype: str,
    device: str,
    overwrite: bool,
    console: Console | None = None,
) -> bool:
    """Relax every frame of ``path``, write them as they finish, print a table; whether all converged.

    ``files``: ``out`` (default beside ``path``), ``trajectory`` and ``log`` (single frame only). ``settings``: of
    :func:`mlip.dynamics.relax`.
    """
    console = console or Console(markup=False)
    frames = read_structures(path)
    out = files.get("out") or path.with_name(f"{path.stem}-relaxed.extxyz")
    extra: dict[str, Any] = {key: files[key] for key in ("trajectory", "log") if files.get(key)}
    check_frame_suffix(out)
    check_frame_suffix(extra.get("trajectory", out))
    if extra and len(frames) > 1:
        raise ConfigError(f"{path} has {len(frames)} frames; --trajectory and --log follow one, leave them out")
    hint = "replace with --overwrite, or choose another --out"
    if not overwrite:
        refuse_existing([out, *extra.values()], hint)
    calculator = _load(model, device, dtype)
    for file in (out, *extra.values()):
        check_writable(file)
    results: list[RelaxResult] = []
    with _progress(console) as progress, ExitStack() as open_files:
        task = progress.add_task(f"relax {path.name}", total=len(frames), note="")
        writer: FrameWriter | None = None
        for atoms in frames:

            def show(step: int, energy: float, largest: float) -> None:
                progress.start()
                progress.update(task, note=f"step {step}, {energy:.4f} eV, fmax {largest:.4f} eV/A")

            result = relax(atoms, calculator, report=show, **settings, **extra)
            results.append(result)
            if writer is None:  # only now: a run that comes to nothing replaces nothing
                if not overwrite:
                    refuse_existing([out], hint)
                open_files.enter_context(locked(out))
                writer = FrameWriter(out)
                open_files.callback(writer.close)
            writer.write(snapshot(result.atoms))
            progress.advance(task)
    console.print(_relax_table(results))
    converged = all(result.converged for result in results)
    if not converged:
        bad = sum(not result.converged for result in results)
        hint = "" if dtype == "float64" else " or --dtype float64"
        console.print(f"{bad} of {len(results)} did not reach fmax {settings['fmax']} eV/A: raise --max-steps{hint}")
    console.print(f"relaxed structures: {out}" + "".join(f"\n{key}: {file}" for key, file in extra.items()))
    return converged


def md_file(
    path: Path,
    model: str,
    settings: MDSettings,
    out: Path | None,
    *,
    index: int,
    dtype: str | None,
    device: str,
    resume: bool,
    overwrite: bool,
    console: Console | None = None,
) -> MDSummary:
    """Run MD from one frame of ``path`` with a progress bar and print a summary."""
    console = console or Console(markup=False)
    frames = read_structures(path)
    if not -len(frames) <= index < len(frames):
        raise ConfigError(f"{path} has {len(frames)} frames; --index {index} is not one of them")
    out = out or path.with_name(f"{path.stem}-md.traj")
    check_frame_suffix(out)
    calculator = _load(model, device, dtype, uncertainty=settings.stop_above is not None)
    with _progress(console) as progress:
        task = progress.add_task(f"{settings.ensemble} {path.name}", total=settings.steps, note="")

        def show(step: int, temperature: float, energy: float) -> None:
            progress.start()
            progress.update(task, completed=step, note=f"{temperature:.0f} K, {energy:.3f} eV")

        summary = run_md(frames[index], calculator, settings, out, resume=resume, overwrite=overwrite, report=show)
        progress.update(task, completed=summary.steps)
    console.print(_md_table(summary, settings))
    if summary.stopped is not None:
        console.print(
            f"stopped at step {summary.steps}: forces_std is {summary.stopped:.3f} eV/A, above --stop-above "
            f"{settings.stop_above:g}; label the last frame and train on it, or go on with --resume and a higher limit",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    return summary


def _load(model: str, device: str, dtype: str | None, uncertainty: bool = False) -> Any:
    from mlip.calculator import MLIPCalculator

    return MLIPCalculator(model, device=device, dtype=dtype, uncertainty=uncertainty)


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    """A bar with a note, the share done, time spent and time left; it is not seen before it is started."""
    times = (TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    texts = (TextColumn("{task.description}", markup=False), TextColumn("{task.fields[note]}"))
    progress = Progress(texts[0], BarColumn(), *times, texts[1], console=console, refresh_per_second=4)
    try:
        yield progress
    finally:
        if progress.live.is_started:
            progress.stop()


def _relax_table(results: list[RelaxResult]) -> Table:
    table = Table("frame", "formula", "steps", "energy change, eV", "fmax, eV/A")
    with_cell = any(result.stress_max is not None for result in results)
    if with_cell:
        table.add_column("max stress, GPa")
    table.add_column("converged")
    for k, result in enumerate(results):
        row = [str(k), result.atoms.get_chemical_formula(), str(result.steps)]
        row += [f"{result.energy_after - result.energy_before:.4f}", f"{result.fmax:.5f}"]
        if with_cell:
            row.append("" if result.stress_max is None else f"{result.stress_max:.4f}")
        table.add_row(*row, "yes" if result.converged else "NO")
    return table


def _md_table(summary: MDSummary, settings: MDSettings) -> Table:
    table = Table(show_header=False)
    steps = f"{summary.steps} ({summary.steps * settings.timestep * 1e-3:.4g} ps)"
    if summary.resumed_from is not None:
        steps += f", resumed from step {summary.resumed_from}"
    table.add_row("steps", steps)
    table.add_row("mean temperature, second half", f"{summary.mean_temperature:.1f} K")
    if summary.mean_pressure is not None:
        table.add_row("mean pressure, second half", f"{summary.mean_pressure:.4f} GPa")
    if summary.drift is not None:
        table.add_row("drift of the conserved energy", f"{summary.drift:.4g} meV/atom/ps")
    if summary.ns_per_day is not None:
        table.add_row("speed", f"{summary.ns_per_day:.4g} ns/day")
    table.add_row("trajectory", f"{summary.trajectory} ({summary.frames} frames)")
    table.add_row("log", str(summary.log))
    table.add_row("state for --resume", str(summary.state))
    return table
