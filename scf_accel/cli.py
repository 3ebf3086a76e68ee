"""The command line ``scf-accel``: parses and calls; no logic. Heavy imports happen inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlip.clitools import run_guarded

app = typer.Typer(
    name="scf-accel",
    help="Label structures with DFT and accelerate PySCF's SCF.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def _root() -> None:
    """Label structures with DFT and accelerate PySCF's SCF."""


@app.command()
def label(
    structures: Annotated[Path, typer.Argument(help="SMILES list (.smi, .smiles, .txt) or any file that ASE reads.")],
    out: Annotated[Path, typer.Argument(help="HDF5 file to make; finished jobs are kept in OUT.parts.")],
    gaussian: Annotated[
        list[str] | None,
        typer.Option(help="Add a copy with Gaussian displacements, Angstrom: 0.05 or 0.03:0.12. Repeatable."),
    ] = None,
    langevin: Annotated[
        list[str] | None,
        typer.Option(help="Add a copy from a short MMFF Langevin run, K: 300 or 300:1000. Repeatable."),
    ] = None,
    langevin_steps: Annotated[int, typer.Option(min=1, help="Steps of 0.5 fs in each Langevin run.")] = 400,
    max_atoms: Annotated[int | None, typer.Option(min=1, help="Leave out structures with more atoms.")] = None,
    prefer_small: Annotated[
        float, typer.Option(min=0, help="Order molecules at random with weight atoms^-THIS; 0: no preference.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of geometries, copies and order.")] = 0,
    xc: Annotated[str, typer.Option(help="Functional, PySCF's name.")] = "pbe",
    basis: Annotated[str, typer.Option(help="Orbital basis, PySCF's name.")] = "def2-svp",
    auxbasis: Annotated[str, typer.Option(help="Fitting basis (Coulomb term and density).")] = "def2-universal-jfit",
    grid_level: Annotated[int, typer.Option(min=0, max=9, help="PySCF's integration grid level.")] = 2,
    conv_tol: Annotated[float, typer.Option(help="SCF energy threshold, Hartree.")] = 1e-9,
    max_cycle: Annotated[int, typer.Option(min=1, help="SCF cycles before the second-order solver is tried.")] = 60,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; all cores by default.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="BLAS/OpenMP threads per worker.")] = 1,
    nice: Annotated[int, typer.Option(min=0, max=19, help="Lower the workers' priority by this much.")] = 0,
    executor: Annotated[str, typer.Option(help="local or dask.")] = "local",
    scheduler: Annotated[str | None, typer.Option(help="Dask scheduler address, such as tcp://host:8786.")] = None,
    retry_failed: Annotated[bool, typer.Option(help="Try jobs again that failed in an earlier run.")] = False,
    force: Annotated[
        bool, typer.Option(help="Replace an OUT that another theory or program wrote; else its frames are kept.")
    ] = False,
    assemble_only: Annotated[bool, typer.Option(help="Only write OUT from the jobs finished so far.")] = False,
    compress: Annotated[bool, typer.Option(help="gzip the HDF5 file.")] = False,
    licence: Annotated[str, typer.Option(help="Licence to state in the file.")] = "unstated",
    dry_run: Annotated[bool, typer.Option(help="Say what would be done; write nothing.")] = False,
) -> None:
    """Label structures with DFT: energy, forces, density. Interrupt it at any time; run it again to go on."""
    from scf_accel.labelrun import LabelRequest, run_label
    from scf_accel.labels import LabelSettings
    from scf_accel.structures import Perturbations, parse_range

    run_label(
        LabelRequest(
            structures=structures,
            out=out,
            settings=LabelSettings(xc, basis, auxbasis, grid_level, conv_tol, max_cycle),
            perturbations=Perturbations(
                tuple(parse_range("--gaussian", text) for text in gaussian or ()),
                tuple(parse_range("--langevin", text) for text in langevin or ()),
                langevin_steps,
                seed,
            ),
            max_atoms=max_atoms,
            prefer_small=prefer_small,
            workers=workers,
            threads=threads,
            nice=nice,
            executor=executor,
            scheduler=scheduler,
            retry_failed=retry_failed,
            force=force,
            assemble_only=assemble_only,
            compress=compress,
            licence=licence,
            dry_run=dry_run,
        )
    )


def main() -> None:
    """Entry point: errors become one line, a log file and a non-zero exit."""
    run_guarded("scf-accel", app)


if __name__ == "__main__":
    main()
