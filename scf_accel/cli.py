"""The command line ``scf-accel``: parses and calls; no logic. Heavy imports happen inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlip.clitools import run_guarded

app = typer.Typer(
    name="scf-accel",
    help="Label structures with DFT and accelerate PySCF's SCF.\n\n"
    "Example: scf-accel run datasets/structures/ethanol.xyz",
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
    stretch: Annotated[
        list[str] | None,
        typer.Option(help="Add a copy with a random bond outside rings this much longer: 1.3 or 1.1:1.5. Repeatable."),
    ] = None,
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
    solver: Annotated[str, typer.Option(help="multilevel (scf_accel.accelerate) or diis (stock PySCF).")] = "multilevel",
    forces: Annotated[
        bool, typer.Option("--forces/--no-forces", help="Forces too; without them a label takes 40 to 60 % of the time.")
    ] = True,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; all cores by default.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="BLAS/OpenMP threads per worker.")] = 1,
    nice: Annotated[int, typer.Option(min=0, max=19, help="Lower the workers' priority by this much.")] = 0,
    executor: Annotated[str, typer.Option(help="local or dask.")] = "local",
    scheduler: Annotated[str | None, typer.Option(help="Dask scheduler address, such as tcp://host:8786.")] = None,
    retry_failed: Annotated[bool, typer.Option(help="Try jobs again that failed in an earlier run.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an OUT that another theory or program wrote; else its frames are kept.")
    ] = False,
    assemble_only: Annotated[bool, typer.Option(help="Only write OUT from the jobs finished so far.")] = False,
    compress: Annotated[bool, typer.Option(help="gzip the HDF5 file.")] = False,
    licence: Annotated[str, typer.Option(help="Licence to state in the file.")] = "unstated",
    dry_run: Annotated[bool, typer.Option(help="Say what would be done; write nothing.")] = False,
) -> None:
    """Label structures with DFT: energy, forces, density. Interrupt it at any time; run it again to go on.

    Example: scf-accel label molecules.smi out.h5 --gaussian 0.02:0.1 --langevin 300:600 --workers 4
    """
    from scf_accel.labelrun import LabelRequest, run_label
    from scf_accel.labels import LabelSettings
    from scf_accel.structures import Perturbations, parse_range

    run_label(
        LabelRequest(
            structures=structures,
            out=out,
            settings=LabelSettings(xc, basis, auxbasis, grid_level, conv_tol, max_cycle, solver, forces),
            perturbations=Perturbations(
                tuple(parse_range("--gaussian", text) for text in gaussian or ()),
                tuple(parse_range("--langevin", text) for text in langevin or ()),
                langevin_steps,
                seed,
                tuple(parse_range("--stretch", text) for text in stretch or ()),
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


@app.command()
def run(
    structure: Annotated[Path, typer.Argument(help="Molecule: any file that ASE reads (.xyz, ...), or this package's .h5.")],
    xc: Annotated[str, typer.Option(help="Functional, PySCF's name; hf: Hartree-Fock.")] = "pbe",
    basis: Annotated[str, typer.Option(help="Orbital basis, PySCF's name; with its core potentials, if any.")] = "def2-svp",
    charge: Annotated[int | None, typer.Option(help="Total charge. Default: as the file says, else 0.")] = None,
    spin: Annotated[
        int | None,
        typer.Option(min=0, help="Unpaired electrons. Default: as the file says, else lowest possible (atoms: Hund)."),
    ] = None,
    index: Annotated[int, typer.Option(help="Frame of the file, from 0; negative: from the end.")] = -1,
    density_fit: Annotated[
        bool | None, typer.Option("--density-fit/--no-density-fit", help="Fit the integrals. Default: with --auxbasis only.")
    ] = None,
    auxbasis: Annotated[str | None, typer.Option(help="Fitting basis. Default: PySCF's choice.")] = None,
    grid_level: Annotated[int | None, typer.Option(min=0, max=9, help="PySCF's integration grid level. Default: 3.")] = None,
    conv_tol: Annotated[float, typer.Option(help="SCF energy threshold, Hartree.")] = 1e-9,
    max_cycle: Annotated[int, typer.Option(min=1, help="Full-cost SCF cycles at most.")] = 50,
    forces: Annotated[bool, typer.Option("--forces", help="Calculate the forces too.")] = False,
    stock: Annotated[bool, typer.Option("--stock", help="Run plain PySCF, for comparison.")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write all results to this JSON file.")] = None,
    chkfile: Annotated[Path | None, typer.Option(help="Keep the orbitals in this PySCF checkpoint (HDF5).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads. Default: OMP_NUM_THREADS, else all cores.")] = None,
    max_memory: Annotated[int | None, typer.Option(min=1, help="Memory to use, MB. Default: PySCF's.")] = None,
) -> None:
    """Run one SCF calculation with a live table: energy, orbitals, dipole, forces. Needs no choice but the file.

    The multilevel solver (scf_accel.accelerate) is the default; it reaches stock PySCF's energy. --stock leaves it out.

    Example: scf-accel run molecule.xyz --xc b3lyp --basis def2-tzvp --density-fit --forces --json result.json
    """
    from scf_accel.runscf import RunRequest, run_command

    theory = {
        "xc": xc,
        "basis": basis,
        "density_fit": density_fit,
        "auxbasis": auxbasis,
        "grid_level": grid_level,
        "conv_tol": conv_tol,
        "max_cycle": max_cycle,
        "max_memory": max_memory,
    }
    request = RunRequest(structure, index, charge, spin, stock, forces, chkfile, json_out, overwrite, threads)
    code = run_command(request, theory)
    if code:
        raise typer.Exit(code)


@app.command()
def bench(
    structures: Annotated[list[Path], typer.Argument(help="Molecules: files that ASE reads (.xyz, ...), or this package's .h5.")],
    guesses: Annotated[
        str, typer.Option(help="Comma-separated: minao, atom, huckel, mod_huckel, vsap, sap, 1e, ours, oracle. minao always runs.")
    ] = "minao,atom,huckel,vsap,ours,oracle",
    model: Annotated[
        str | None, typer.Option(help="Density model of 'ours': path or name. Default: the one in the package.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats of every calculation; the order alternates.")] = 1,
    xc: Annotated[str, typer.Option(help="Functional, PySCF's name; hf: Hartree-Fock.")] = "pbe",
    basis: Annotated[str, typer.Option(help="Orbital basis, PySCF's name; with its core potentials, if any.")] = "def2-svp",
    charge: Annotated[int | None, typer.Option(help="Total charge of all. Default: as the files say, else 0.")] = None,
    spin: Annotated[int | None, typer.Option(min=0, help="Unpaired electrons of all. Default: as for run.")] = None,
    index: Annotated[int, typer.Option(help="Frame of the files, from 0; negative: from the end.")] = -1,
    density_fit: Annotated[
        bool | None, typer.Option("--density-fit/--no-density-fit", help="Fit the integrals. Default: with --auxbasis only.")
    ] = None,
    auxbasis: Annotated[str | None, typer.Option(help="Fitting basis. Default: PySCF's choice.")] = None,
    grid_level: Annotated[int | None, typer.Option(min=0, max=9, help="PySCF's integration grid level. Default: 3.")] = None,
    conv_tol: Annotated[float, typer.Option(help="SCF energy threshold, Hartree.")] = 1e-9,
    max_cycle: Annotated[int, typer.Option(min=1, help="SCF cycles at most.")] = 50,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write all results to this JSON file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a plot to this file (.png, .pdf, .svg).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads. Default: OMP_NUM_THREADS, else all cores.")] = None,
    max_memory: Annotated[int | None, typer.Option(min=1, help="Memory to use, MB. Default: PySCF's.")] = None,
) -> None:
    """Compare initial guesses: SCF cycles (RIC), full-cost Fock matrices (ERIC) and wall time relative to PySCF's minao.

    'ours' is scf_accel.warm_start with a density model, 'oracle' the same with the exact fitted density.

    Example: scf-accel bench a.xyz b.xyz --xc b3lyp --guesses minao,vsap,ours --json bench.json --plot bench.png
    """
    from scf_accel.benchmark import BenchRequest, bench_command

    theory = {
        "xc": xc,
        "basis": basis,
        "density_fit": density_fit,
        "auxbasis": auxbasis,
        "grid_level": grid_level,
        "conv_tol": conv_tol,
        "max_cycle": max_cycle,
        "max_memory": max_memory,
    }
    request = BenchRequest(structures, guesses, model, repeats, index, charge, spin, json_out, plot, overwrite, threads)
    code = bench_command(request, theory)
    if code:
        raise typer.Exit(code)


def main() -> None:
    """Entry point: errors become one line, a log file and a non-zero exit."""
    run_guarded("scf-accel", app)


if __name__ == "__main__":
    main()
