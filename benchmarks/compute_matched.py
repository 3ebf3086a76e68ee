"""Our presets and MACE trained on the same frames for the same wall time: errors on the test sets, error against wall time.

    python benchmarks/compute_matched.py --peer-venv /path/to/venv                   # AcAc and silicon, 30 minutes a run
    python benchmarks/compute_matched.py --peer-venv /path/to/venv --sets acac --minutes 10
    python benchmarks/compute_matched.py --sets acac --alone large   # one of our presets, the same time, nothing measured beside it
    python benchmarks/compute_matched.py --table

Reads ../shared/data. All runs of a set see the same training and validation frames (split here, with a seed) and the same isolated
atoms. They run two at a time, a thread each, ours beside MACE, so that both have the same machine. Ours: the settings of
configs/acac.yaml and configs/mlearn-si.yaml with a 5 Angstrom cutoff and the preset asked for; `max_minutes` ends the run. MACE
(mace_run_train of `pip install mace-torch`): its recommended settings (weighted loss, then `--swa` from three quarters on with
energies weighted up, EMA 0.99, AMSGrad), float32; its epochs are counted beforehand, so that its schedule fits the time; a run that
is not over a minute after the time is stopped, and has no test errors; one that only writes its model then may finish.
Wall time is from the start of the process; frames per
second are those between the first and the last validation, validations included.

A pair whose rows are there is not run again; one that was cut off starts anew.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from _common import header, processor, table
from _store import COMMIT, Store

from mlip.files import atomic_path, atomic_write_text
from mlip.models import PRESETS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
DATA = ROOT.parent / "shared" / "data"
RUNS = ROOT / "runs" / "matched"
SETS: dict[str, dict[str, Any]] = {
    "acac": {
        "config": "acac",
        "train": "acac/train_300K.xyz",
        "valid": 50,
        "test": {"300K": "acac/test_MD_300K.xyz", "600K": "acac/test_MD_600K.xyz"},
        "isolated": "acac/isolated_atoms.xyz",
        "batch": 5,
    },
    "mlearn-si": {
        "config": "mlearn-si",
        "train": "mlearn/Si_train.extxyz",
        "valid": 15,
        "test": {"test": "mlearn/Si_test.extxyz"},
        "isolated": None,
        "batch": 2,
    },
}
PAIRS = (("ours medium", "mace 64x0e"), ("ours small", "mace 128x0e+128x1o"))
EPOCH = re.compile(r"^(\S+ \S+) INFO: Epoch (\d+):.*RMSE_E_per_atom= *([\d.]+) meV, RMSE_F= *([\d.]+) meV")


def split(name: str, kind: str = "ours") -> tuple[Path, Path]:
    """Training and validation file of a set; for ``mace`` with the names of labels that it asks for."""
    import numpy as np
    from ase.io import read, write

    folder = RUNS / name / "data"
    paths = folder / f"{kind}-train.xyz", folder / f"{kind}-valid.xyz"
    if all(path.is_file() for path in paths):
        return paths
    frames = read(DATA / SETS[name]["train"], ":")
    order, held = np.random.default_rng(0).permutation(len(frames)), SETS[name]["valid"]
    for atoms in frames if kind == "mace" else ():
        atoms.info |= {"REF_energy": atoms.get_potential_energy()}
        atoms.arrays["REF_forces"] = atoms.get_forces()
        atoms.calc = None
    folder.mkdir(parents=True, exist_ok=True)
    for path, places in zip(paths, (order[held:], order[:held]), strict=True):
        with atomic_path(path) as temporary:
            write(temporary, [frames[place] for place in sorted(places)], format="extxyz")
    return paths


def our_command(name: str, preset: str, folder: Path, minutes: float) -> list[str]:
    """``mlip train`` of the set's config on the split."""
    train, valid = split(name)
    config = yaml.safe_load((ROOT / "configs" / f"{SETS[name]['config']}.yaml").read_text())
    config["data"] |= {"train": str(train), "valid": str(valid), "test": None}
    if SETS[name]["isolated"]:
        config["data"]["isolated_atoms"] = str(DATA / SETS[name]["isolated"])
    config["model"] = {"preset": preset, "cutoff": 5.0}
    config["loss"].pop("stress", None)  # MACE is given none either
    config["training"] |= {"max_minutes": minutes, "threads": 1}
    config["run"] = {"dir": str(folder), "overwrite": True}
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    return [sys.executable, "-m", "mlip.cli", "train", str(path), "--restart"]


def mace_command(name: str, irreps: str, folder: Path, venv: Path, epochs: int) -> list[str]:
    """``mace_run_train`` with its recommended settings."""
    train, valid = split(name, "mace")
    isolated = SETS[name]["isolated"]
    e0 = "average"
    if isolated:
        from ase.io import read

        atoms = read(DATA / isolated, ":")
        e0 = str({int(one.numbers[0]): float(one.get_potential_energy()) for one in atoms})
    options = {
        "name": "m", "work_dir": folder, "seed": 0, "device": "cpu", "default_dtype": "float32", "model": "MACE", "r_max": 5.0,
        "hidden_irreps": irreps, "train_file": train, "valid_file": valid, "energy_key": "REF_energy", "forces_key": "REF_forces",
        "E0s": e0, "batch_size": SETS[name]["batch"], "valid_batch_size": 10, "max_num_epochs": epochs, "ema_decay": 0.99,
        "start_swa": max(1, 3 * epochs // 4), "error_table": "PerAtomRMSE", "plot": "False", "eval_interval": 1,
    }  # fmt: skip
    words = [f"--{key}={value}" for key, value in options.items()]
    return [str(venv / "bin" / "mace_run_train"), *words, "--ema", "--amsgrad", "--swa"]


def start(command: list[str], log: Path) -> subprocess.Popen[str]:
    """A process with one thread that writes to ``log``."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    if "mace_run_train" in command[0]:
        environment.pop("PYTHONPATH", None)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT)


def count_frames(path: Path) -> int:
    """Frames in a file."""
    from ase.io import read

    return len(read(path, ":"))


def mace_curve(log: Path, begin: datetime) -> list[tuple[float, float, float]]:
    """Seconds, energy and force RMSE (meV/atom, meV/A) of every validation in a log of MACE."""
    found = (EPOCH.match(line) for line in log.read_text(errors="replace").splitlines())
    rows = []
    for match in found:
        if match:
            when = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S.%f")
            rows.append(((when - begin).total_seconds(), float(match[3]), float(match[4])))
    return rows


def our_curve(folder: Path) -> tuple[list[tuple[float, float, float]], int]:
    """The same of a run of ours, and its epochs."""
    with (folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    curve = [(float(r["seconds"]), float(r["valid_energy_per_atom_rmse"]), float(r["valid_forces_rmse"])) for r in rows]
    return curve, int(float(rows[-1]["epoch"]))


def count_epochs(name: str, irreps: str, venv: Path, minutes: float) -> int:
    """Epochs of MACE that fit into the time, from two of them, alone on the machine."""
    folder = RUNS / name / f"probe-{irreps}"
    shutil.rmtree(folder, ignore_errors=True)
    begin = datetime.now()
    process = start(mace_command(name, irreps, folder, venv, 3), folder / "log.txt")
    process.wait()
    times = [seconds for seconds, _, _ in mace_curve(folder / "log.txt", begin)]
    if len(times) < 3:
        raise SystemExit(f"MACE did not train; its log: {folder / 'log.txt'}")
    each = (times[-1] - times[0]) / (len(times) - 1)
    around = (datetime.now() - begin).total_seconds() - (times[-1] - times[0])  # reading, compiling and evaluating count too
    return max(2, int((60 * minutes - around) / each))


def run_pair(name: str, pair: tuple[str, str], arguments: argparse.Namespace, store: Store) -> None:
    """Train both side by side, evaluate both."""
    (_, preset), (_, irreps) = (contestant.split() for contestant in pair)
    venv, minutes = arguments.peer_venv, arguments.minutes
    epochs = count_epochs(name, irreps, venv, minutes)
    ours, mace = (RUNS / name / f"{contestant.replace(' ', '-')}-{minutes:g}min" for contestant in pair)
    shutil.rmtree(mace, ignore_errors=True)
    begin = datetime.now()
    processes = [
        start(our_command(name, preset, ours, minutes), ours.with_suffix(".log")),
        start(mace_command(name, irreps, mace, venv, epochs), mace.with_suffix(".log")),
    ]
    end = time.time() + 60 * minutes
    for process in processes:
        try:
            process.wait(timeout=max(1.0, end + 60 - time.time()))
        except subprocess.TimeoutExpired:
            trained = "Training complete" in mace.with_suffix(".log").read_text(errors="replace")
            if not (process is processes[1] and trained):
                process.terminate()
            process.wait()
    models = [path for path in (mace / "m_stagetwo.model", mace / "m.model") if path.is_file()]
    theirs = mace_curve(mace.with_suffix(".log"), begin)
    found = (
        ("ours", sys.executable, ours / "model.safetensors", *our_curve(ours)),
        ("mace", str(venv / "bin" / "python"), models[0] if models else None, theirs, len(theirs)),
    )
    for contestant, (kind, python, model, curve, done) in zip(pair, found, strict=True):
        tests = {} if model is None else test_errors(name, kind, python, model)
        keep(name, contestant, minutes, tests, curve, done, pair, begin, store)


def run_alone(name: str, preset: str, minutes: float, store: Store) -> None:
    """Train a preset of ours with no other contestant beside it, evaluate it."""
    folder, begin = RUNS / name / f"ours-{preset}-{minutes:g}min", datetime.now()
    if start(our_command(name, preset, folder, minutes), folder.with_suffix(".log")).wait():
        raise SystemExit(f"the training failed; its log: {folder.with_suffix('.log')}")
    tests = test_errors(name, "ours", sys.executable, folder / "model.safetensors")
    keep(name, f"ours {preset}", minutes, tests, *our_curve(folder), (f"ours {preset}",), begin, store)


def keep(
    name: str, contestant: str, minutes: float, tests: dict[str, Any], curve: list[tuple[float, float, float]], epochs: int,
    beside: tuple[str, ...], begin: datetime, store: Store,
) -> None:  # fmt: skip
    """A contestant's row, into the store."""
    spent = curve[-1][0] - curve[0][0] if len(curve) > 1 else 0.0
    between = epochs - contestant.startswith("mace")  # its first validation comes after an epoch, ours before
    row = {
        "key": f"{name} {contestant} {minutes:g}", "set": name, "contestant": contestant, "minutes": minutes,
        "tests": tests, "curve": curve, "epochs": epochs,
        "frames_per_s": count_frames(split(name)[0]) * between / spent if spent else None, "beside": beside,
        "machine": processor(), "commit": COMMIT, "date": f"{begin:%Y-%m-%d %H:%M}", "load": os.getloadavg()[0],
    }  # fmt: skip
    store.append(row)
    print(f"{row['key']}: {row['tests']}", flush=True)


def test_errors(name: str, kind: str, python: str, model: Path) -> dict[str, Any]:
    """Of a model on each test file of a set."""
    tests = {}
    for test, path in SETS[name]["test"].items():
        command = [python, str(HERE / "_matchedworker.py"), kind, str(model), str(DATA / path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        tests[test] = json.loads(done.stdout.strip().splitlines()[-1])
    return tests


def seconds_to(curve: list[list[float]], error: float) -> float | None:
    """Wall time at which the force error of a validation first falls to ``error``."""
    return next((row[0] for row in curve if row[2] <= error), None)


def text_of(rows: list[dict[str, Any]]) -> str:
    """Test errors, and the wall times to MACE's best force error on the validation frames."""
    columns = [
        "set",
        "contestant",
        "minutes",
        "epochs",
        "training frames/s",
        "test",
        "energy RMSE, meV/atom",
        "force RMSE, meV/A",
        "energy MAE",
        "force MAE",
    ]
    lines = [
        [
            row["set"], row["contestant"], f"{row['minutes']:g}", str(row["epochs"]), f"{row['frames_per_s'] or 0:.1f}", test,
            f"{errors['energy']['rmse']:.2f}",
            f"{errors['forces']['rmse']:.1f}", f"{errors['energy']['mae']:.2f}", f"{errors['forces']['mae']:.1f}",
        ]
        for row in rows
        for test, errors in row["tests"].items()
    ]  # fmt: skip
    equal = []
    for row in rows:
        for other in rows:
            if not (row["contestant"].startswith("mace") and other["contestant"].startswith("ours") and row["curve"]):
                continue
            if (row["set"], row["minutes"]) != (other["set"], other["minutes"]) or other["contestant"] not in row["beside"]:
                continue
            best = min(row["curve"], key=lambda point: point[2])
            mine = seconds_to(other["curve"], best[2])
            ratio = "not reached" if mine is None else f"{mine:.0f} s, {100 * mine / best[0]:.0f} %"
            equal.append([row["set"], row["contestant"], f"{best[2]:.1f}", f"{best[0]:.0f}", other["contestant"], ratio])
    heads = [
        "set",
        "MACE",
        "its least force RMSE (validation), meV/A",
        "after, s",
        "ours",
        "same error after, share of MACE's time",
    ]
    notes = "\n".join(
        f"- {row['key']} minutes: {row['date']}, {row['machine']}, {row['commit']}, load {row['load']:.1f}"
        + ("; alone" if len(row["beside"]) == 1 else "")
        + (f"; {row['note']}" if "note" in row else "")
        for row in rows
    )
    return f"{header('The same frames, the same wall time')}\n{table(columns, lines)}\n{table(heads, equal)}\n{notes}\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Validation force RMSE against wall time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sets = sorted({row["set"] for row in rows})
    figure = Figure(figsize=(5 * len(sets), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        for row in rows:
            if row["set"] == name and row["curve"]:
                seconds, _, forces = zip(*row["curve"], strict=True)
                style = "-" if row["contestant"].startswith("ours") else "--"
                alone = " (alone)" if len(row["beside"]) == 1 else ""
                axes.plot([t / 60 for t in seconds], forces, style, label=row["contestant"] + alone)
        axes.set(yscale="log", xlabel="wall time, minutes", ylabel="force RMSE (validation), meV/A", title=name)
        axes.legend(frameon=False)
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def main() -> None:
    """Train what is missing, write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--minutes", type=float, default=30.0, help="of every training run")
    parser.add_argument("--pairs", nargs="+", type=int, choices=range(len(PAIRS)), default=list(range(len(PAIRS))))
    parser.add_argument("--alone", nargs="+", choices=PRESETS, help="only these presets of ours, one after the other")
    parser.add_argument("--peer-venv", type=Path, help="environment with mace-torch")
    parser.add_argument("--table", action="store_true", help="only table and plot of what is there")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    store = Store(arguments.output / "compute_matched.jsonl")
    if arguments.alone:
        for name in arguments.sets:
            for preset in arguments.alone:
                if f"{name} ours {preset} {arguments.minutes:g}" not in store:
                    run_alone(name, preset, arguments.minutes, store)
    elif not arguments.table:
        if arguments.peer_venv is None or not (arguments.peer_venv / "bin" / "mace_run_train").is_file():
            parser.error("--peer-venv: give an environment that has mace_run_train (pip install mace-torch)")
        arguments.peer_venv = arguments.peer_venv.resolve()
        for name in arguments.sets:
            for pair in (PAIRS[place] for place in arguments.pairs):
                if not all(f"{name} {contestant} {arguments.minutes:g}" in store for contestant in pair):
                    run_pair(name, pair, arguments, store)
    atomic_write_text(arguments.output / "compute_matched.md", text_of(store.rows))
    if store.rows:
        plot(store.rows, arguments.output / "compute_matched.png")
    print(text_of(store.rows))


if __name__ == "__main__":
    main()
