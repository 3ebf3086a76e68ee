"""A run from config to table; killed and resumed it ends with the same weights; two processes end where one does."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from training_toys import toy_config, toy_values, write_config
from typer.testing import CliRunner

from mlip.checkpoint import load_model, read_header
from mlip.cli import app
from mlip.configfile import load_config
from mlip.data.readers import open_frames
from mlip.errors import CheckpointError, ConfigError, DataError, UserError
from mlip.training import conductor as conductor_module
from mlip.training.prepare import new_model, prepare
from mlip.training.report import describe_data, evaluate_frames
from mlip.training.run import train
from mlip.training.state import read_checkpoint

EPOCHS = 4


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted run: its config, its table, and its folder."""
    folder = tmp_path_factory.mktemp("straight")
    config = toy_config(folder, EPOCHS)
    return config, train(config), Path(config.run.dir)


def same_weights(first: Path, second: Path, tolerance: float = 0.0) -> bool:
    one, two = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert one.keys() == two.keys()
    return all(torch.allclose(one[name], two[name], rtol=0.0, atol=tolerance) for name in one)


def test_it_learns_and_leaves_everything(straight):
    _, results, folder = straight
    rows = np.genfromtxt(folder / "log.csv", delimiter=",", names=True)
    assert len(rows) == EPOCHS + 1
    assert rows["valid_loss"][-1] < 0.7 * rows["valid_loss"][0]
    assert results["steps"] == EPOCHS * 4  # 11 frames in batches of 3
    assert results["skipped_steps"] == 0  # frames without a cell have no stress, and a gradient all the same
    written = {path.name for path in folder.iterdir()}
    assert written >= {"config.yaml", "environment.json", "log.csv", "results.txt", "results.json", "model.safetensors"}
    assert not [name for name in written if "lightning" in name or name.endswith(".tmp")]
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["torch"] and environment["command"]
    assert json.loads((folder / "results.json").read_text())["errors"] == results["errors"]
    assert "forces on Au" in (folder / "results.txt").read_text()


def test_the_model_that_is_shipped_is_the_one_in_the_table(straight):
    config, results, folder = straight
    model = load_model(folder / "model.safetensors")
    again = evaluate_frames(model, open_frames(config.data.test), batch_size=2).errors.report()
    for quantity, numbers in results["errors"]["test"].items():
        assert again[quantity] == pytest.approx(numbers, rel=1e-9), quantity
    header = read_header(folder / "model.safetensors")
    assert header["metadata"]["errors"]["test"]["forces"]["mae"] == pytest.approx(again["forces"]["mae"])
    assert len(header["metadata"]["training_data"]["sha256"]) == 64


def test_eval_and_info_print_the_same_table(straight, tmp_path):
    config, results, folder = straight
    outcome = CliRunner().invoke(app, ["eval", str(folder), config.data.test, "--out", str(tmp_path / "out"), "--no-plots"])
    assert outcome.exit_code == 0, outcome.output
    written = json.loads((tmp_path / "out" / "results.json").read_text())["errors"]["test"]
    for quantity, numbers in results["errors"]["test"].items():
        assert written[quantity] == pytest.approx(numbers, rel=1e-9)
        assert f"{numbers['mae']:.4g}" in outcome.output or numbers["mae"] >= 1000
    assert not list((tmp_path / "out").glob("*.png"))
    assert header_charges(folder) == ([0], [0])
    shown = CliRunner().invoke(app, ["info", str(folder)])
    assert shown.exit_code == 0 and "Cu Au" in shown.output and "forces on Au" in shown.output


def header_charges(folder):
    metadata = read_header(folder / "model.safetensors")["metadata"]
    return metadata["charges"], metadata["spins"]


def test_eval_plots_without_being_asked(straight, tmp_path, monkeypatch):
    config, _, folder = straight
    monkeypatch.chdir(tmp_path)
    outcome = CliRunner().invoke(app, ["eval", str(folder), config.data.valid])
    assert outcome.exit_code == 0 and "eval-valid" in outcome.output
    assert {p.name for p in (tmp_path / "eval-valid").iterdir()} == {
        "parity_energy.png", "parity_forces.png", "parity_stress.png", "results.txt", "results.json",
    }  # fmt: skip


def test_a_device_that_is_not_there_is_one_clear_line(straight):
    for name in ("cuda:77", "abacus"):
        with pytest.raises(ConfigError, match=f"device {name} cannot be used .* available here: cpu"):
            load_model(straight[2] / "model.safetensors", device=name)


def test_a_malformed_header_is_a_checkpoint_error(straight, tmp_path):
    from safetensors.torch import save_file

    good = read_header(straight[2] / "model.safetensors")
    for key, value in (("model", 3), ("e0", None), ("elements", None), ("metadata", None)):
        save_file({"x": torch.zeros(1)}, tmp_path / "bad.safetensors", metadata={"mlip": json.dumps({**good, key: value})})
        with pytest.raises(CheckpointError, match="do not fit together"):
            load_model(tmp_path / "bad.safetensors")


def test_the_best_weights_are_kept_not_the_last(straight):
    _, _, folder = straight
    content = read_checkpoint(folder / "training.ckpt")
    losses = [row["valid_loss"] for row in content["progress"]["history"]]
    assert content["progress"]["best_value"] == min(losses)
    model = load_file(folder / "model.safetensors")
    assert all(torch.equal(model[name], tensor) for name, tensor in content["best"].items())


def test_a_finished_run_is_not_trained_over(straight):
    with pytest.raises(ConfigError, match="finished run"):
        train(straight[0])


def test_killed_at_any_moment_it_resumes_to_the_same_weights(straight, tmp_path):
    """SIGKILL within an epoch, then the same command again: bit for bit the uninterrupted run."""
    values = toy_values(tmp_path, EPOCHS)
    path = write_config(tmp_path, values)
    slow = (  # a checkpoint after every step, and time to be killed between two
        "import time, sys; import mlip.training.conductor as c; c.SAVE_EVERY = 0.0\n"
        "old = c.Conductor.on_train_batch_end\n"
        "def slower(*a): old(*a); time.sleep(0.3)\n"
        "c.Conductor.on_train_batch_end = slower\n"
        "from mlip.cli import main; main()"
    )
    checkpoint = Path(values["run"]["dir"]) / "training.ckpt"
    with subprocess.Popen([sys.executable, "-c", slow, "train", str(path)], stdout=subprocess.DEVNULL) as process:
        for _ in range(1200):
            if checkpoint.exists() and read_checkpoint(checkpoint)["progress"]["step"] >= 6:
                break
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    place = read_checkpoint(checkpoint)["progress"]
    assert 6 <= place["step"] < EPOCHS * 4
    assert not (checkpoint.parent / "results.json").exists()
    config = load_config(path)
    results = train(config)
    assert results["steps"] == EPOCHS * 4
    assert same_weights(straight[2], Path(config.run.dir))
    assert results["errors"] == straight[1]["errors"]
    resumed, whole = (read_checkpoint(f / "training.ckpt") for f in (Path(config.run.dir), straight[2]))
    for one, two in zip(resumed["progress"]["history"], whole["progress"]["history"], strict=True):
        clock = ("seconds", "validation_seconds")
        assert {k: v for k, v in one.items() if k not in clock} == {k: v for k, v in two.items() if k not in clock}


def test_killed_after_training_only_the_results_are_redone(straight, tmp_path, monkeypatch):
    config = toy_config(tmp_path, EPOCHS)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mlip.training.run.finish", killed)
        train(config)
    monkeypatch.setattr(conductor_module.Conductor, "on_train_batch_start", killed)  # no step may be taken
    assert train(config)["errors"] == straight[1]["errors"]


def test_two_processes_match_one(straight, tmp_path):
    """11 frames in batches of 3 leave a process with none in some steps; the gradients are the same all the same."""
    path = write_config(tmp_path, toy_values(tmp_path, EPOCHS, devices=2))
    command = [sys.executable, "-m", "mlip.cli", "train", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["steps"] == EPOCHS * 4
    assert same_weights(straight[2], tmp_path / "run", tolerance=1e-9)
    one, two = (np.genfromtxt(f / "log.csv", delimiter=",", names=True) for f in (straight[2], tmp_path / "run"))
    for name in ("train_forces_mae", "valid_forces_mae", "valid_loss"):
        assert np.allclose(one[name], two[name], rtol=1e-5, equal_nan=True)


def test_a_dry_run_writes_nothing(tmp_path):
    path = write_config(tmp_path, toy_values(tmp_path))
    before = sorted(p.name for p in tmp_path.rglob("*"))
    outcome = CliRunner().invoke(app, ["train", str(path), "--dry-run"])
    assert outcome.exit_code == 0, outcome.output
    assert "s an epoch" in outcome.output and "parameters" in outcome.output and "E0" in outcome.output
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_a_budget_of_time_is_kept(tmp_path):
    values = toy_values(tmp_path, max_minutes=5 / 60)
    values["training"]["max_epochs"] = None
    config = load_config(write_config(tmp_path, values))
    start = time.monotonic()
    results = train(config)
    assert results["training_seconds"] < 5.0 and time.monotonic() - start < 16.0  # generous: machines stall
    assert results["stopped"] == "the time is up"
    content = read_checkpoint(Path(config.run.dir) / "training.ckpt")
    assert content["progress"]["lr"] < 0.05 * config.training.lr  # the cosine came to its end


def test_early_stopping(tmp_path):
    values = toy_values(tmp_path, 50, early_stopping={"patience": 2, "min_delta": 1e9})
    values["model"]["gate"] = None  # with gates: test_gating.py
    results = train(load_config(write_config(tmp_path, values)))
    assert results["stopped"].startswith("no improvement in 2") and results["epochs"] == 2
    assert results["best_epoch"] > 0  # better by less than min_delta is better all the same


def test_labels_that_are_missing_or_broken_are_refused(tmp_path):
    values = toy_values(tmp_path)
    text = Path(values["data"]["train"]).read_text()
    Path(values["data"]["train"]).write_text(text.replace("stress=", "other="))
    with pytest.raises(DataError, match="stress"):
        train(load_config(write_config(tmp_path, values)))


def test_a_label_that_counts_in_stage_two_only_is_needed_from_the_start(tmp_path):
    values = toy_values(tmp_path, stage_two={"stress": 1.0})
    del values["loss"]
    for name in ("train", "valid", "test"):
        path = Path(values["data"][name])
        path.write_text(path.read_text().replace("stress=", "other="))
    with pytest.raises(DataError, match="stress: missing in all"):
        prepare(load_config(write_config(tmp_path, values)))


@pytest.mark.parametrize(("monitor", "key"), [("energy_mae", "energy="), ("forces_rmse", "forces:R:3")])
def test_a_monitored_label_must_be_there(tmp_path, monitor, key):
    values = toy_values(tmp_path, monitor=monitor)
    label = monitor.partition("_")[0]
    values["loss"] = {label: {"weight": 0.0}}
    valid = Path(values["data"]["valid"])
    valid.write_text(valid.read_text().replace(key, key.replace(label, "other")))
    with pytest.raises(ConfigError, match=rf"training\.monitor is {monitor}, and no validation frame has a label {label}"):
        prepare(load_config(write_config(tmp_path, values)))


def test_charges_and_spins_of_the_training_set_are_known_and_told(tmp_path):
    values = toy_values(tmp_path)
    frames = ase.io.read(values["data"]["train"], ":")
    frames[3].info["charge"], frames[5].info["charge"], frames[5].info["spin"] = 1, -1, 2
    ase.io.write(values["data"]["train"], frames)
    config = load_config(write_config(tmp_path, values))
    data = prepare(config)
    assert (data.charges, data.spins, data.spins_fit) == ([-1, 0, 1], [0, 2], False)  # a crystal's electrons are not counted
    console = Console(file=io.StringIO(), width=200)
    describe_data(console, data, new_model(config, data))
    assert "total charges -1, 0, 1 occur" in console.file.getvalue()


def test_weights_that_blow_up_are_an_error_not_a_model(tmp_path, monkeypatch):
    from mlip.models import Potential

    forward = Potential.forward

    def broken(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        return {name: value * float("nan") for name, value in out.items()} if self.training else out

    monkeypatch.setattr(Potential, "forward", broken)
    config = toy_config(tmp_path, 9)
    with pytest.raises(UserError, match=r"not finite in 10 steps .* lower training\.lr"):
        train(config)
    assert not (Path(config.run.dir) / "model.safetensors").exists()


def test_isolated_atoms_give_e0_and_are_not_trained_on(tmp_path, capsys):
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    values = toy_values(tmp_path)
    frames = ase.io.read(values["data"]["train"], ":")
    for symbol, energy in (("Cu", 3.5), ("Au", 3.8)):
        atom = Atoms(symbol)
        atom.calc = SinglePointCalculator(atom, energy=energy, forces=np.zeros((1, 3)))
        frames.append(atom)
    ase.io.write(values["data"]["train"], frames)
    config = load_config(write_config(tmp_path, values))
    prepared = prepare(config)
    assert prepared.e0 == {29: 3.5, 79: 3.8} and "isolated" in prepared.e0_note and len(prepared.train) == 11
    given = load_config(tmp_path / "config.yaml", ["data.e0={Cu: 1.0, Au: 2.0}"])
    assert prepare(given).e0 == {29: 1.0, 79: 2.0}
    with pytest.raises(ConfigError, match="no value for Cu"):
        prepare(load_config(tmp_path / "config.yaml", ["data.e0={Au: 2.0}"]))
