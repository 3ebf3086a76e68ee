"""Radial bases (bspline, bessel, mlp) with grid mixing on and off, each trained for the same wall time.

    python benchmarks/radial_ablation.py --minutes 4

Trains on AcAc at 300 K (../shared/data), tests at 300 K and 600 K; small preset. A finished run (runs/ablation) is only read.
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
GRIDS = {
    "product": ["model.grid.activation=product"],
    "silu": ["model.grid.activation=silu"],
    "off": ["model.grid.enabled=false"],
}
VARIANTS = [
    ("bspline", "product"),
    ("bspline", "silu"),
    ("bspline", "off"),
    ("bessel", "product"),
    ("bessel", "off"),
    ("mlp", "product"),
    ("mlp", "off"),
]


def train(kind: str, grid: str, minutes: float, threads: int) -> Path:
    """Train one variant unless it is there."""
    folder = ROOT / "runs" / "ablation" / f"{kind}-{grid}-{minutes:g}min"
    if (folder / "results.json").exists():
        return folder
    settings = [
        "model.preset=small",
        f"model.radial.kind={kind}",
        *GRIDS[grid],
        f"training.max_minutes={minutes}",
        f"training.threads={threads}",
        "run.plots=false",
        f"run.dir={folder}",
    ]
    command = [sys.executable, "-m", "mlip.cli", "train", str(ROOT / "configs" / "acac.yaml"), "--restart"]
    subprocess.run([*command, *(part for s in settings for part in ("--set", s))], check=True, cwd=ROOT)
    return folder


def row(kind: str, grid: str, folder: Path) -> list[str]:
    """Errors, parameters and time per epoch of one variant."""
    results = json.loads((folder / "results.json").read_text())
    with (folder / "log.csv").open() as file:
        log = list(csv.DictReader(file))
    per_epoch = float(log[-1]["seconds"]) / float(log[-1]["epoch"])
    cells = [kind, grid, str(results["parameters"]), f"{per_epoch:.1f}", log[-1]["epoch"]]
    for test in ("300K", "600K"):
        errors = results["errors"][test]
        cells += [f"{errors['energy']['rmse']:.3g}", f"{errors['forces']['rmse']:.3g}"]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="wall time of each training")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each training")
    arguments = parser.parse_args()
    if not (ROOT.parent / "shared" / "data").is_dir():
        sys.exit("benchmarks/radial_ablation.py: ../shared/data is absent: the published sets are not part of the project")
    rows = [row(kind, grid, train(kind, grid, arguments.minutes, arguments.threads)) for kind, grid in VARIANTS]
    print(header(f"Radial bases and grid mixing, {arguments.minutes:g} minutes each", packages=("torch", "lightning")))
    columns = ["radial", "grid", "parameters", "s/epoch", "epochs"]
    columns += [f"{t} {q}" for t in ("300 K", "600 K") for q in ("E RMSE meV", "F RMSE meV/A")]
    print(table(columns, rows))


if __name__ == "__main__":
    main()
