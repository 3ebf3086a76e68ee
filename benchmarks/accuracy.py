"""Errors on published sets, one config each, against published numbers.

    python benchmarks/accuracy.py mlearn-si mlearn-cu acac            # train what is not trained yet (runs/NAME), print the table
    python benchmarks/accuracy.py acac --minutes 40 --threads 1

Reads ../shared/data; a run that was stopped goes on, a finished one is only read. Published numbers: Zuo et al. 2020 by way of the
ACEpotentials documentation (mlearn), MACE paper table 3 (AcAc, RMSE).
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

from _common import header, table

ROOT = Path(__file__).resolve().parents[1]
# set -> test name -> (quantity, statistic, unit, published)
PUBLISHED = {
    "mlearn-si": {
        "test": [("energy_per_atom", "mae", "meV/atom", "GAP 2.91, MTP 2.21"), ("forces", "mae", "meV/A", "GAP 70, MTP 60")]
    },
    "mlearn-cu": {
        "test": [("energy_per_atom", "mae", "meV/atom", "GAP 0.46, MTP 0.41"), ("forces", "mae", "meV/A", "GAP 10, MTP 10")]
    },
    "acac": {
        "300K": [
            ("energy", "rmse", "meV", "NequIP 0.81, MACE 0.9"),
            ("forces", "rmse", "meV/A", "NequIP 5.90, MACE 5.1"),
        ],
        "600K": [
            ("energy", "rmse", "meV", "NequIP 6.04, MACE 4.6"),
            ("forces", "rmse", "meV/A", "NequIP 27.8, MACE 22.4"),
        ],
    },
}


def train(name: str, minutes: float | None, threads: int | None) -> Path:
    """Train ``configs/NAME.yaml`` unless it is finished; return the run folder."""
    folder = ROOT / "runs" / name
    if (folder / "results.json").exists():
        return folder
    command = [sys.executable, "-m", "mlip.cli", "train", str(ROOT / "configs" / f"{name}.yaml"), "--set", f"run.dir={folder}"]
    if minutes is not None:
        command += ["--set", f"training.max_minutes={minutes}"]
    if threads is not None:
        command += ["--set", f"training.threads={threads}"]
    subprocess.run(command, check=True, cwd=ROOT)
    return folder


def rows(name: str, folder: Path) -> list[list[str]]:
    """Ours beside the published numbers."""
    results = json.loads((folder / "results.json").read_text())
    with (folder / "log.csv").open() as file:
        log = list(csv.DictReader(file))
    minutes = float(log[-1]["seconds"]) / 60
    out = []
    for test, quantities in PUBLISHED[name].items():
        errors = results["errors"][test]
        for quantity, statistic, unit, published in quantities:
            found = errors[quantity][statistic]
            label = f"{'energy' if quantity.startswith('energy') else 'forces'} {statistic.upper()}, {unit}"
            out.append([name, test, label, f"{found:.3g}", published, str(results["parameters"]), f"{minutes:.0f}"])
        if "stress_GPa" in errors:
            out.append([name, test, "stress MAE, GPa", f"{errors['stress_GPa']['mae']:.3g}", "-", "", ""])
    return out


def plot(folders: dict[str, Path], path: Path) -> None:
    """Validation force error against wall time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, folder in folders.items():
        with (folder / "log.csv").open() as file:
            log = [row for row in csv.DictReader(file) if row.get("valid_forces_mae")]
        axes.plot([float(r["seconds"]) / 60 for r in log], [float(r["valid_forces_mae"]) for r in log], label=name)
    axes.set(xlabel="wall time (minutes)", ylabel="validation force MAE (meV/A)", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default=list(PUBLISHED), help=f"of {', '.join(PUBLISHED)}")
    parser.add_argument("--minutes", type=float, help="wall-clock budget of each training (default: the config's)")
    parser.add_argument("--threads", type=int, help="CPU threads of each training")
    arguments = parser.parse_args()
    unknown = set(arguments.sets) - set(PUBLISHED)
    if unknown:
        parser.error(f"unknown set {', '.join(sorted(unknown))}; allowed: {', '.join(PUBLISHED)}")
    if not (ROOT.parent / "shared" / "data").is_dir():
        sys.exit("benchmarks/accuracy.py: ../shared/data is absent: the published sets are not part of the project")
    folders = {name: train(name, arguments.minutes, arguments.threads) for name in arguments.sets}
    print(header("Accuracy on published sets", packages=("torch", "lightning", "ase")))
    columns = ["set", "test", "quantity", "ours", "published", "parameters", "minutes"]
    print(table(columns, [row for name, folder in folders.items() for row in rows(name, folder)]))
    picture = ROOT / "runs" / "accuracy-learning-curves.png"
    plot(folders, picture)
    print(f"learning curves: {picture}")


if __name__ == "__main__":
    main()
