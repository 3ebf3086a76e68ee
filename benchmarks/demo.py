"""The main job on real input, as a user would run it (`make demo`): train, relax, run MD, show where everything is.

    python benchmarks/demo.py --run-dir runs/demo

Trains a small potential on datasets/organics (real PBE/def2-SVP labels), relaxes a distorted ethanol molecule, runs 1 ps of MD with
the relaxed one. Every step is an `mlip` command that is printed before it runs.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str) -> None:
    """Print an ``mlip`` command and run it; stop the demo if it fails."""
    print(f"\n$ mlip {shlex.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "mlip.cli", *arguments], cwd=ROOT).returncode
    if code:
        sys.exit(f"demo: `mlip {arguments[0]}` ended with exit code {code}; its message stands above")


def plot_md(log: Path, picture: Path) -> None:
    """Energies and temperature of the MD run against time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with log.open() as file:
        rows = list(csv.DictReader(file))
    columns = {name: [float(row[name]) for row in rows] for name in ("time_ps", "epot_eV", "etot_eV", "temperature_K")}
    time = columns["time_ps"]
    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for name, label in (("epot_eV", "potential"), ("etot_eV", "total")):
        upper.plot(time, [1000 * (value - columns[name][0]) for value in columns[name]], label=label)
    lower.plot(time, columns["temperature_K"], color="tab:red")
    upper.set(ylabel="energy change (meV)", title="MD of ethanol, 300 K at the start, NVE")
    upper.legend()
    lower.set(xlabel="time (ps)", ylabel="temperature (K)")
    figure.savefig(picture, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/demo"))
    parser.add_argument("--minutes", type=float, help="training budget (default: the config's)")
    arguments = parser.parse_args()
    folder: Path = arguments.run_dir
    budget = ["--set", f"training.max_minutes={arguments.minutes}"] if arguments.minutes else []
    run("train", "configs/organics-small.yaml", "--set", f"run.dir={folder}", "--restart", *budget)
    model, relaxed, movie = (str(folder / name) for name in ("model.safetensors", "ethanol-relaxed.extxyz", "ethanol-md.extxyz"))
    run("relax", "datasets/structures/ethanol.xyz", "--model", model, "--out", relaxed, "--fmax", "0.05", "--overwrite")
    run(
        "md", relaxed, "--model", model, "--ensemble", "nve", "--temperature", "300", "--steps", "2000",
        "--out", movie, "--overwrite",
    )  # fmt: skip
    plot_md((ROOT / movie).with_suffix(".csv"), ROOT / folder / "md.png")
    print(f"\nEverything is in {folder}:")
    for path in sorted((ROOT / folder).iterdir()):
        if not path.name.startswith("."):
            print(f"  {path.name:28s} {path.stat().st_size / 1024:9.1f} kB")


if __name__ == "__main__":
    main()
