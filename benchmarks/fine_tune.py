"""What fine-tuning saves: acetylacetone from 10, 50 and 450 frames, from scratch and from a trained model.

    python benchmarks/fine_tune.py --from organics-energy --steps 3000      # trains what is missing, then table and plot
    python benchmarks/fine_tune.py --from runs/organics-small --sizes 10 50 --total 60
    python benchmarks/fine_tune.py --from organics-energy --sizes 50 --arms fine-tuned --lr 0.01     # another learning rate
    python benchmarks/fine_tune.py --table                                  # the table of what is there

Each row is a training of as many steps of 5 frames (configs/fine-tune.yaml; ../shared/data), tested on MD frames at 300 and 600 K.
`scratch`: the model's architecture with random weights and the learning rate of configs/acac.yaml. `fine-tuned`: from the model's
weights, with energies of isolated atoms of the new level of theory. `fine-tuned-fitted-e0`: without these. N training frames and a
ninth as many for validation (at least 2) are drawn from the 500 at 300 K; the smaller draws are parts of the larger.

The table of energies shows what the change of the level of theory does before any training: total energies of test frames by
the model as it is, and after its correction on N frames (`mlip.training.finetune`), for AcAc (PBE-D3/def2-SVP) and 3BPA
(wB97X/6-31G(d)).

A row is kept in fine_tune.jsonl as soon as it is measured, a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from _common import processor
from _finetunetables import write_report
from _store import COMMIT, Budget, Store

from mlip.checkpoint import load_model
from mlip.configfile import load_config, parse_config
from mlip.data.frame import FrameSubset, count_atoms
from mlip.data.readers import open_frames
from mlip.models import ModelConfig
from mlip.training.finetune import predicted_energies
from mlip.training.prepare import new_model, prepare
from mlip.training.source import Source

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
SHARED = ROOT.parent / "shared" / "data"
CONFIG = ROOT / "configs" / "fine-tune.yaml"
BATCH, VALIDATIONS = 5, 60
ARMS = ("scratch", "fine-tuned", "fine-tuned-fitted-e0")
SCRATCH_RATE = 0.02
STEP_SECONDS = 0.15
"""Of a small model on an idle core; the budget learns what the machine really takes."""
TEST_FRAMES = 100
"""Frames of the table of energies."""


@dataclass(frozen=True)
class Set:
    """Published frames of one molecule: level of theory, files of frames and of isolated atoms."""

    theory: str
    train: Path
    test: Path
    atoms: Path


SETS = {
    "acac": Set(
        "PBE-D3/def2-SVP", *(SHARED / "acac" / name for name in ("train_300K.xyz", "test_MD_300K.xyz", "isolated_atoms.xyz"))
    ),
    "3bpa": Set("wB97X/6-31G(d)", *(SHARED / "3bpa" / name for name in ("train_300K.xyz", "test_300K.extxyz", "iso_atoms.xyz"))),
}


@dataclass(frozen=True)
class Row:
    """One training of the table; ``source`` is the model, ``digest`` its hash, ``rate`` the learning rate (``None``: the usual)."""

    arm: str
    size: int
    seed: int
    steps: int
    source: str
    digest: str
    rate: float | None = None

    @property
    def key(self) -> str:
        """Of its row in the store and its run folder."""
        rate = "" if self.rate is None else f"-lr{self.rate:g}"
        return f"{self.arm}-{self.size}frames-seed{self.seed}-{self.steps}steps{rate}-{self.digest[:8]}"

    @property
    def epochs(self) -> int:
        """As many as have about ``steps`` steps."""
        return max(1, round(self.steps / -(-self.size // BATCH)))


def draw(name: str, size: int, folder: Path) -> tuple[Path, Path]:
    """Files of ``size`` training frames of a set and of those for validation, made where they are absent."""
    files = folder / f"{name}-train-{size}.xyz", folder / f"{name}-valid-{size}.xyz"
    if not all(file.exists() for file in files):
        frames = ase.io.read(SETS[name].train, ":")
        order = np.random.default_rng(0).permutation(len(frames))
        held = max(2, round(size / 9))
        if size + held > len(frames):
            raise SystemExit(f"{size} frames and {held} for validation are more than the {len(frames)} that there are")
        folder.mkdir(parents=True, exist_ok=True)
        parts = order[:size], order[len(order) - held :]
        for file, indices in zip(files, parts, strict=True):
            ase.io.write(file, [frames[i] for i in indices])
    return files


def train_words(row: Row, folder: Path, threads: int) -> list[str]:
    """The arguments of ``mlip`` that train a row."""
    train, valid = draw("acac", row.size, folder.parent / "data")
    settings: dict[str, Any] = {
        "data.train": str(train),
        "data.valid": str(valid),
        "training.max_epochs": row.epochs,
        "training.max_minutes": None,
        "training.validate_every": max(1, row.epochs // VALIDATIONS),
        "training.seed": row.seed,
        "training.threads": threads,
        "run.plots": False,
        "run.dir": str(folder),
    }
    words, rate = ["--from", row.source], row.rate
    if row.arm == "scratch":
        settings["model"] = {"preset": None, **architecture(row.source)}
        words, rate = [], rate or SCRATCH_RATE
    if rate is not None:
        settings["training.lr"] = rate
    if row.arm == ARMS[2]:
        settings["data.isolated_atoms"] = None
    return ["train", str(CONFIG), *words, *(part for k, v in settings.items() for part in ("--set", f"{k}={json.dumps(v)}"))]


def architecture(source: str) -> dict[str, Any]:
    """The fields of a model's config."""
    return ModelConfig(**Source.read(source).header["model"]).model_dump(mode="json")


def train(row: Row, folder: Path, threads: int) -> None:
    """Train unless that is done; go on with a run that was stopped."""
    if not (folder / "results.json").exists():
        subprocess.run([sys.executable, "-m", "mlip.cli", *train_words(row, folder, threads)], check=True, cwd=ROOT)


def measure_run(folder: Path) -> dict[str, Any]:
    """Errors of a finished run and what it says about itself."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    tests = {name: errors for name, errors in results["errors"].items() if name not in ("train", "valid")}
    errors = {f"{name} {quantity}": tests[name][quantity]["rmse"] for name in tests for quantity in ("energy", "forces")}
    lr = load_config(folder / "config.yaml").training.lr
    kept = {name: results[name] for name in ("parameters", "steps", "epochs", "best_epoch", "training_seconds", "e0")}
    return {"errors": errors, "lr": lr, **kept}


# ------------------------------------------------------------------------------------------------ energies before training


@dataclass(frozen=True)
class Offset:
    """One line of the table of energies: which frames, how many, and whether energies of isolated atoms are given."""

    name: str
    size: int
    isolated: bool
    source: str
    digest: str

    @property
    def key(self) -> str:
        """Of its row in the store."""
        return f"E0-{self.name}-{self.size}frames-{'isolated' if self.isolated else 'fitted'}-{self.digest[:8]}"


def measure_offset(row: Offset, folder: Path) -> dict[str, Any]:
    """Errors (predicted less label, eV) of test energies by the model as it is, and after its correction."""
    files, (train, valid) = SETS[row.name], draw(row.name, row.size, folder)
    atoms = str(files.atoms) if row.isolated else None
    values = {"data": {"train": str(train), "valid": str(valid), "isolated_atoms": atoms}, "model": {"init_from": row.source}}
    config = parse_config(values)
    data = prepare(config)
    test = open_frames(files.test)
    test = FrameSubset(test, np.linspace(0, len(test) - 1, min(TEST_FRAMES, len(test))).astype(np.int64))
    labels, sizes = np.array([frame.energy for frame in test]), count_atoms(test)
    out: dict[str, Any] = {"theory": files.theory, "e0": data.e0_note, "test_frames": len(test)}
    for when, model in (("before", load_model(row.source)), ("after", new_model(config, data))):
        error = predicted_energies(model, test) - labels
        out[when] = {"mean_per_atom": float((error / sizes).mean()), "rmse": float(np.sqrt((error**2).mean()))}
    return out


# ------------------------------------------------------------------------------------------------ all rows


def rows_of(arguments: argparse.Namespace) -> Iterator[Row | Offset]:
    """All that is asked for: energies first, then few frames before many."""
    source, digest = arguments.source, Source.read(arguments.source).digest
    for name in SETS:
        for size in arguments.sizes:
            for isolated in (True, False):
                yield Offset(name, size, isolated, source, digest)
    for size in arguments.sizes:
        for seed in arguments.seeds:
            for arm in arguments.arms:
                yield Row(arm, size, seed, arguments.steps, source, digest, arguments.lr)


def measure(row: Row | Offset, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train where that is needed, and measure."""
    folder = arguments.runs.resolve()
    if isinstance(row, Offset):
        return measure_offset(row, folder / "data")
    train(row, folder / row.key, arguments.threads)
    return measure_run(folder / row.key)


def run(arguments: argparse.Namespace, store: Store) -> None:
    """Measure the rows that the store lacks or has as errors, as far as ``--total`` minutes go."""
    budget = Budget(arguments.total)
    for row in rows_of(arguments):
        if row.key in store and not store.failed(row.key):
            continue
        estimate = 20.0 if isinstance(row, Offset) else 60.0 + STEP_SECONDS * row.steps
        if not budget.allows(estimate):
            print(f"{row.key}: left for lack of time", flush=True)
            continue
        start, load = time.perf_counter(), os.getloadavg()[0]
        try:
            outcome = measure(row, arguments)
        except Exception as error:  # the other rows shall still be measured
            outcome = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        budget.note(estimate, time.perf_counter() - start)
        where = {"date": f"{datetime.now():%Y-%m-%d %H:%M}", "machine": processor(), "load": round(load, 2), "commit": COMMIT}
        kind = "energies" if isinstance(row, Offset) else "training"
        store.append({"key": row.key, "kind": kind, **vars(row), "source": Source.read(row.source).name, **where, **outcome})
        print(f"{row.key}: {outcome.get('error') or outcome.get('errors') or outcome['after']}", flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", metavar="MODEL", help="checkpoint, run folder or name of a shipped model")
    parser.add_argument("--sizes", nargs="+", type=int, default=[10, 50, 450], help="training frames")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=3000, help=f"optimiser steps of each training, {BATCH} frames each")
    parser.add_argument("--lr", type=float, help=f"peak learning rate (default: {SCRATCH_RATE} from scratch, else that of any run)")
    parser.add_argument("--total", type=float, help="minutes for all rows; what does not fit is left for the next call")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--table", action="store_true", help="only write table and plot of the rows that are there")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of fine_tune.jsonl, .md and .png")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "fine_tune", help="folder of the run folders")
    parsed = parser.parse_args(arguments)
    if parsed.source is None and not parsed.table:
        parser.error("give --from MODEL, or --table")
    return parsed


def main(arguments: argparse.Namespace) -> None:
    """Run what the command line asks for; write table and plot."""
    store = Store(arguments.output / "fine_tune.jsonl")
    if not arguments.table:
        absent = [files.train for files in SETS.values() if not files.train.exists()]
        if absent:
            sys.exit(f"benchmarks/fine_tune.py: {absent[0]} is absent: the published sets are not part of the project")
        torch.set_num_threads(arguments.threads)
        if Path(arguments.source).exists():
            arguments.source = str(Path(arguments.source).resolve())
        run(arguments, store)
    write_report(store, arguments.output, (__doc__ or "").split("\n\n", 2)[2].split("\n\nA row is kept")[0])


if __name__ == "__main__":
    main(parse())
