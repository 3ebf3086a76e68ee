"""The command line ``mlip``: parses and calls; no logic. Heavy imports happen inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlip.clitools import run_guarded
from mlip.defaults import DEFAULT_POTENTIAL

app = typer.Typer(
    name="mlip",
    help="Train an interatomic potential, evaluate it, relax structures and run molecular dynamics.\n\n"
    "Example: mlip relax datasets/structures/ethanol.xyz",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(
    help="Convert, describe and audit data sets.\n\nExample: mlip data audit datasets/organics/organics.h5",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML config; see configs/ for commented examples.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. training.lr=0.001.")
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="MODEL", help="Fine-tune this: checkpoint, run folder, or the name of a shipped model."),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Discard the run that run.dir holds, start anew.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print data audit, model size and time per epoch; write nothing.")
    ] = False,
) -> None:
    """Train a potential, an electron density, or both in one model; the same command resumes a run that was stopped.

    With --from (the key model.init_from) a trained model is fine-tuned: its architecture, elements and weights, E0 of the new data.

    Example: mlip train configs/organics-small.yaml --set training.max_minutes=10 --set run.dir=runs/longer

    mlip train my.yaml --from organics-energy
    """
    from mlip.training.commands import train_command

    code = train_command(config, set_ or [], restart, dry_run, from_)
    if code:
        raise typer.Exit(code)


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Checkpoint, run folder, or the name of a shipped model.")],
    data: Annotated[Path, typer.Argument(help="Labelled structures.")],
    out: Annotated[Path | None, typer.Option(help="Folder for tables and parity plots. Default: eval-DATASTEM.")] = None,
    no_plots: Annotated[bool, typer.Option("--no-plots", help="No plots; tables only to an --out that is given.")] = False,
    batch_size: Annotated[int | None, typer.Option(help="Frames at a time. Default: by atoms.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    energy_key: Annotated[str | None, typer.Option(help="Name of the energy in DATA.")] = None,
    forces_key: Annotated[str | None, typer.Option(help="Name of the forces in DATA.")] = None,
    stress_key: Annotated[str | None, typer.Option(help="Name of the stress in DATA.")] = None,
    units: Annotated[str | None, typer.Option(help="Units of DATA, e.g. energy=Hartree,length=Bohr.")] = None,
) -> None:
    """Print and plot the errors of a model on labelled structures, by quantity and element; of densities also by l.

    Example: mlip eval runs/organics-small/model.safetensors datasets/organics/organics.h5 --out evaluation
    """
    from mlip.training.commands import eval_command

    keys = {"energy": energy_key, "forces": forces_key, "stress": stress_key}
    eval_command(model, data, out, batch_size, device, keys, units, plots=not no_plots)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="Checkpoint, run folder, or the name of a shipped model.")],
) -> None:
    """Print what a checkpoint says about itself: elements, cutoff, theory, errors.

    Example: mlip info runs/organics-small/model.safetensors
    """
    from mlip.training.commands import info_command

    info_command(model)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Checkpoint, run folder, or the name of a shipped model.")],
    out: Annotated[Path, typer.Argument(help="The file to write; ends in .pt2.")],
    dtype: Annotated[str, typer.Option(help="float32 or float64: in what the compiled model computes.")] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing OUT.")] = False,
) -> None:
    """Compile a potential for this kind of processor and this torch (one to two minutes; needs a C++ compiler).

    OUT serves as --model of relax and md and as MLIPCalculator("OUT.pt2"). It computes with as many threads as there are now
    (OMP_NUM_THREADS, or all cores). It is native code: load only files of people you trust.

    Example: mlip export runs/organics-small/model.safetensors organics.pt2
    """
    from mlip.exporting import export_command

    export_command(model, out, dtype, overwrite)


@app.command()
def relax(
    file: Annotated[Path, typer.Argument(help="Structures in any format that ASE reads; every frame is relaxed.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Checkpoint, or the name of a shipped model.")] = DEFAULT_POTENTIAL,
    out: Annotated[Path | None, typer.Option(help="Relaxed structures. Default: FILE-relaxed.extxyz.")] = None,
    cell: Annotated[bool, typer.Option("--cell", help="Relax the cell too.")] = False,
    pressure: Annotated[float, typer.Option(help="Pressure in GPa, with --cell.")] = 0.0,
    fmax: Annotated[float, typer.Option(help="Largest force to stop at, eV/Angstrom.")] = 0.01,
    max_steps: Annotated[int, typer.Option(help="Give up after so many steps.")] = 500,
    optimizer: Annotated[str, typer.Option(help="BFGS, LBFGS, FIRE, FIRE2, or auto.")] = "auto",
    trajectory: Annotated[Path | None, typer.Option(help="Every step of a single frame, .traj or .extxyz.")] = None,
    log: Annotated[Path | None, typer.Option(help="Table of every step of a single frame, CSV.")] = None,
    dtype: Annotated[str, typer.Option(help="float64, or float32: faster, may not meet a tight --fmax.")] = "float64",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")] = False,
) -> None:
    """Relax structures to a local minimum; exit code 1 if one does not converge.

    Example: mlip relax molecule.xyz --fmax 0.005
    """
    from mlip.dynamics.commands import relax_file

    settings = {"fmax": fmax, "cell": cell, "pressure": pressure, "optimizer": optimizer, "max_steps": max_steps}
    files = {"out": out, "trajectory": trajectory, "log": log}
    if not relax_file(file, model, files, settings, dtype=dtype, device=device, overwrite=overwrite):
        raise typer.Exit(1)


@app.command()
def md(
    file: Annotated[Path, typer.Argument(help="A structure in any format that ASE reads.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Checkpoint, or the name of a shipped model.")] = DEFAULT_POTENTIAL,
    steps: Annotated[int, typer.Option(help="Steps in all; with --resume those already done count.")] = 1000,
    ensemble: Annotated[str, typer.Option(help="nve, nvt or npt (isotropic).")] = "nvt",
    timestep: Annotated[float, typer.Option(help="fs")] = 0.5,
    temperature: Annotated[float, typer.Option(help="Of the first velocities and of the thermostat, K.")] = 300.0,
    pressure: Annotated[float, typer.Option(help="GPa, for npt.")] = 0.0,
    thermostat: Annotated[str, typer.Option(help="langevin or nose-hoover, for nvt.")] = "langevin",
    damping: Annotated[float, typer.Option(help="Time constant of the thermostat, fs.")] = 100.0,
    pressure_damping: Annotated[float, typer.Option(help="Time constant of the barostat, fs.")] = 1000.0,
    keep_velocities: Annotated[bool, typer.Option("--keep-velocities", help="Start from those in FILE.")] = False,
    seed: Annotated[int, typer.Option(help="Of the first velocities and the Langevin noise.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Frames, .traj or .extxyz. Default: FILE-md.traj.")] = None,
    save_every: Annotated[int, typer.Option(help="Steps between frames.")] = 10,
    log_every: Annotated[int, typer.Option(help="Steps between rows of the table (OUT.csv).")] = 10,
    state_every: Annotated[int, typer.Option(help="Steps between states to resume from (OUT.state.npz).")] = 100,
    max_temperature: Annotated[float, typer.Option(help="Stop as exploded above this, K.")] = 20000.0,
    stop_above: Annotated[
        float | None,
        typer.Option(help="Stop where the largest forces_std of an atom is above this, eV/Angstrom; inf: only tabulate it."),
    ] = None,
    index: Annotated[int, typer.Option(help="Which frame of FILE to start from.")] = -1,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64. Default: the checkpoint's own.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")] = False,
) -> None:
    """Run molecular dynamics; it can be stopped at any moment and resumed with --resume. Exit code 3 where --stop-above ended it.

    Example: mlip md crystal.cif --model model.safetensors --ensemble npt --temperature 600 --timestep 1 --steps 20000
    """
    from mlip.dynamics.commands import md_file
    from mlip.dynamics.settings import MDSettings

    settings = MDSettings(
        steps=steps,
        ensemble=ensemble,
        timestep=timestep,
        temperature=temperature,
        pressure=pressure,
        thermostat=thermostat,
        damping=damping,
        pressure_damping=pressure_damping,
        keep_velocities=keep_velocities,
        seed=seed,
        save_every=save_every,
        log_every=log_every,
        state_every=state_every,
        max_temperature=max_temperature,
        stop_above=stop_above,
    )
    summary = md_file(
        file, model, settings, out, index=index, dtype=dtype, device=device, resume=resume, overwrite=overwrite
    )
    if summary.stopped is not None:
        raise typer.Exit(3)


EnergyKey = Annotated[str | None, typer.Option("--energy-key", help="Name of the energy in the file.")]
ForcesKey = Annotated[str | None, typer.Option("--forces-key", help="Name of the forces in the file.")]
StressKey = Annotated[str | None, typer.Option("--stress-key", help="Name of the stress or virial in the file.")]
UnitsText = Annotated[
    str, typer.Option("--units", help="e.g. energy=Hartree,length=Bohr,stress=GPa. Default: eV, Angstrom, eV/A^3.")
]


@data_app.command("convert")
def data_convert(
    files: Annotated[list[Path], typer.Argument(help="IN... OUT: one or more files to read, then the one to write.")],
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    stress_key: StressKey = None,
    units: UnitsText = "",
    attr: Annotated[list[str] | None, typer.Option("--attr", help="NAME=VALUE to record, e.g. licence=MIT.")] = None,
    float32: Annotated[bool, typer.Option("--float32", help="Forces in single precision.")] = False,
    compress: Annotated[bool, typer.Option("--compress", help="Smaller HDF5 that reads slower.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing OUT.")] = False,
) -> None:
    """Convert extended XYZ, ASE databases, VASP output or HDF5 to HDF5 (.h5) or extended XYZ (.extxyz).

    From VASP output the energy is energy(sigma->0); with smearing, the forces belong to --energy-key free_energy.

    Example: mlip data convert train.xyz more.xyz all.h5 --energy-key REF_energy --forces-key REF_forces
    """
    from mlip.data.commands import convert_command

    if len(files) < 2:
        raise typer.BadParameter("give at least one file to read, and the file to write")
    keys = (energy_key, forces_key, stress_key)
    convert_command(files[:-1], files[-1], keys, units, attr or [], float32, compress, force)


@data_app.command("stats")
def data_stats(
    file: Annotated[Path, typer.Argument(help="A readable data file.")],
    cutoff: Annotated[float, typer.Option(help="Of the neighbour statistics, Angstrom.")] = 5.0,
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    stress_key: StressKey = None,
    units: UnitsText = "",
) -> None:
    """Describe a data file: elements, sizes, neighbours, energy and force distributions, level of theory.

    Example: mlip data stats all.h5 --cutoff 6
    """
    from mlip.data.commands import stats_command

    stats_command(file, cutoff, (energy_key, forces_key, stress_key), units)


@data_app.command("audit")
def data_audit(
    file: Annotated[Path, typer.Argument(help="A readable data file.")],
    need: Annotated[list[str] | None, typer.Option("--need", help="energy, forces or stress; may be repeated.")] = None,
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    stress_key: StressKey = None,
    units: UnitsText = "",
    physics: Annotated[bool, typer.Option(help="Refuse signs and units that contradict the structures.")] = True,
) -> None:
    """Check that a data file can be trained on; exit code 1 if it is refused. Needs energy and forces by default.

    Example: mlip data audit train.xyz --need energy --need forces --need stress
    """
    from mlip.data.commands import audit_command

    audit_command(file, need or ["energy", "forces"], (energy_key, forces_key, stress_key), units, physics)


def main() -> None:
    """Entry point: errors become one line, a log file and a non-zero exit."""
    run_guarded("mlip", app)


if __name__ == "__main__":
    main()
