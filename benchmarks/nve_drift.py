"""Energy drift of NVE molecular dynamics on ethanol, float32 and float64.

    python benchmarks/nve_drift.py --model runs/organics/model.safetensors

The molecule is relaxed with the model (float64), given twice the wanted temperature (half of it goes into the
potential energy) and run with velocity Verlet. The drift is the slope of a straight line through the total energy; the
fluctuation is the standard deviation about that line, which is the integrator's own and shrinks with the square of the
time step. Without --model an untrained network with screened nuclear repulsion is taken, and nothing relaxed: it shows
that the numbers come out, but its molecule is not ethanol.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from _common import header, table
from ase.build import molecule

from mlip import MLIPCalculator, build
from mlip.dynamics import MDSettings, relax, run_md
from mlip.dynamics.output import read_csv


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint or shipped model; default: an untrained small one")
    parser.add_argument("--molecule", default="CH3CH2OH", help="a name of ase.build.molecule")
    parser.add_argument("--time", type=float, default=10.0, help="ps")
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--temperature", type=float, default=300.0, help="K, of the run after the start")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def one_run(options: argparse.Namespace, dtype: str, folder: Path) -> list[str]:
    """A row of the table: dtype, drift, fluctuation, temperature, speed."""
    atoms = molecule(options.molecule)
    model = options.model or build({"channels": 16, "zbl": True}, sorted(set(atoms.numbers.tolist())), seed=0)
    if options.model:
        relax(atoms, MLIPCalculator(model, device=options.device, dtype="float64"), fmax=0.01, max_steps=1000)
    settings = MDSettings(
        steps=round(options.time * 1000 / options.timestep),
        ensemble="nve",
        timestep=options.timestep,
        temperature=2 * options.temperature,
        seed=options.seed,
        log_every=10,
        save_every=1000,
        state_every=10000,
    )
    calculator = MLIPCalculator(model, device=options.device, dtype=dtype)
    start = time.perf_counter()
    summary = run_md(atoms, calculator, settings, folder / f"{dtype}.traj")
    seconds = time.perf_counter() - start
    log = read_csv(summary.log)
    energy = 1000 * (log["etot_eV"] - log["etot_eV"][0]) / len(atoms)
    slope, offset = np.polyfit(log["time_ps"], energy, 1)
    around = np.std(energy - slope * log["time_ps"] - offset)
    return [
        dtype,
        f"{slope:+.5f}",
        f"{around:.5f}",
        f"{summary.mean_temperature:.0f}",
        f"{1000 * seconds / settings.steps:.2f}",
        f"{summary.ns_per_day:.3f}",
    ]


def main() -> None:
    """Run and print."""
    options = parse()
    title = f"NVE energy drift: {options.molecule}, {options.time:g} ps at {options.timestep:g} fs"
    print(header(title, device=options.device))
    print(f"Model: {options.model or 'untrained small model'}.\n")
    columns = ["dtype", "drift, meV/atom/ps", "fluctuation, meV/atom", "mean T, K", "ms/step", "ns/day"]
    with tempfile.TemporaryDirectory() as folder:
        rows = [one_run(options, dtype, Path(folder)) for dtype in options.dtypes]
    print(table(columns, rows))


if __name__ == "__main__":
    main()
