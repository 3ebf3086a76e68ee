"""The pair gate in training: it comes to its sparsity, the share let through is logged and reported, and runs resume exactly."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
import torch
from density_toys import density_values
from rich.console import Console
from safetensors.torch import load_file
from training_toys import stopped, write_config
from typer.testing import CliRunner

from mlip.checkpoint import load_model
from mlip.cli import app
from mlip.config import RunConfig
from mlip.configfile import apply_overrides, load_config, parse_config
from mlip.data.hdf5 import HDF5Frames
from mlip.errors import ConfigError
from mlip.models import PairGateConfig
from mlip.training.loader import load_batches
from mlip.training.losses import pair_penalty
from mlip.training.metrics import ErrorSums
from mlip.training.predict import pair_gate_of, predict
from mlip.training.prepare import new_model, prepare, training_graphs
from mlip.training.report import evaluate_frames
from mlip.training.results import results_table, short
from mlip.training.run import train

EPOCHS = 3


def gated_values(folder: Path, epochs: int = EPOCHS, **gate: float) -> dict:
    """The toy run of a density with a pair gate; its loss needs no metric, and no PySCF."""
    values = density_values(folder, epochs, lr=0.05)
    values["model"]["density"] = {"pair_gate": gate}
    values["loss"] = {"density": {"kind": "l2"}}
    return values


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted run: config, results, what it said."""
    folder = tmp_path_factory.mktemp("pairs")
    config = load_config(write_config(folder, gated_values(folder, sparsity=0.6, strength=50.0, ramp=0.2)))
    console = Console(file=io.StringIO(), width=200)
    return config, train(config, console=console), console.file.getvalue()


def log_of(config: RunConfig) -> list[dict[str, str]]:
    with (Path(config.run.dir) / "log.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_share_let_through_is_logged_and_reported(straight, tmp_path):
    config, results, said = straight
    rows = log_of(config)
    assert re.search(r"train D .* pairs \d+\.\d %  valid D .* pairs \d+\.\d %", said) and "pairs let through" in said
    assert float(rows[0]["valid_density_pairs_mean"]) == 100.0 and rows[0]["train_density_pairs_mean"] == ""
    assert all(0 < float(row["train_density_pairs_mean"]) <= 100 for row in rows[1:])
    assert float(rows[-1]["train_density_pairs_mean"]) < 90 and float(rows[-1]["valid_density_pairs_mean"]) < 90
    frames = HDF5Frames(config.data.test)
    model = load_model(config.run.dir)
    found = evaluate_frames(model, frames, batch_size=2).errors.report()["density_pairs"]
    pairs = sum(len(frame.atomic_numbers) * (len(frame.atomic_numbers) - 1) for frame in frames)  # all are within the cutoff
    assert found == results["errors"]["test"]["density_pairs"] and found["count"] == pairs and set(found) == {"mean", "count"}
    outcome = CliRunner().invoke(app, ["eval", config.run.dir, config.data.test, "--out", str(tmp_path / "out")])
    assert outcome.exit_code == 0, outcome.output
    assert "pairs let through" in outcome.output and "pairs let through" in (tmp_path / "out" / "results.txt").read_text()
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["errors"]["test"]["density_pairs"] == found and written["units"]["density_pairs"] == "%"


def test_stopped_within_an_epoch_it_resumes_to_the_same_weights(straight, tmp_path, monkeypatch):
    config, results, _ = straight
    values = json.loads(config.model_dump_json())
    values["run"]["dir"] = str(tmp_path / "run")
    again = load_config(write_config(tmp_path, values))
    stopped(again, 6, monkeypatch)
    assert train(again)["errors"] == results["errors"]
    one, two = (load_file(Path(folder) / "model.safetensors") for folder in (config.run.dir, tmp_path / "run"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    times = {"seconds", "validation_seconds"}
    assert [{k: v for k, v in row.items() if k not in times} for row in log_of(again)] == [
        {k: v for k, v in row.items() if k not in times} for row in log_of(config)
    ]


def test_without_a_gate_nothing_is_logged(tmp_path):
    values = gated_values(tmp_path, 1)
    values["model"]["density"] = {}
    config = load_config(write_config(tmp_path, values))
    results = train(config)
    assert not [name for name in log_of(config)[0] if "pairs" in name] and "density_pairs" not in results["errors"]["test"]
    assert "pairs" not in (Path(config.run.dir) / "results.txt").read_text()


@pytest.mark.parametrize(("start", "sparsity"), [(0.0, 0.6), (-2.0, 0.3)])
def test_it_comes_to_the_sparsity_asked_for(tmp_path, start, sparsity):
    """From an open gate, and from one that lets nothing through: both ways."""
    config = load_config(write_config(tmp_path, gated_values(tmp_path, sparsity=sparsity, strength=20.0)))
    data = prepare(config)
    model = new_model(config, data).train()
    with torch.no_grad():
        model.density_head.pair_gate.bias.fill_(start)
    (graph,) = load_batches(training_graphs(config, data, model.cutoff), [list(range(8))])
    optimizer = torch.optim.Adam(model.density_head.pair_gate.parameters(), lr=0.02)
    gone = []
    for _ in range(150):
        prediction = predict(model, graph)
        gone.append(1 - float(prediction["density_pairs_kept"].sum() / prediction["density_pairs"].sum()))
        pair_penalty(prediction, pair_gate_of(model)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert gone[0] == (0.0 if start == 0.0 else 1.0)
    assert sum(gone[-20:]) / 20 == pytest.approx(sparsity, abs=0.1)


def counts(kept: float, pairs: float, soft: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a model says of a batch."""
    double = {"density_pairs_kept": kept, "density_pairs": pairs}
    return {**{name: torch.tensor([value], dtype=torch.float64) for name, value in double.items()}, "density_pairs_soft": soft}


def test_the_penalty_has_the_value_of_the_true_share_and_the_slope_of_the_soft_one():
    soft = torch.tensor([55.0], requires_grad=True)
    loss = pair_penalty(counts(60, 100, soft), PairGateConfig(sparsity=0.5, strength=3.0))
    assert loss.item() == pytest.approx(3.0 * 0.1**2)
    loss.backward()
    assert float(soft.grad) == pytest.approx(3.0 * 2 * 0.1 / 100)  # opening is punished where too few are shut
    nothing = pair_penalty(counts(0, 0, torch.zeros(1)), PairGateConfig(sparsity=0.0))
    assert float(nothing) == 10.0


def test_the_aim_rises_with_the_run():
    gate = PairGateConfig(sparsity=0.6, ramp=0.5)
    assert [gate.aim(done) for done in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.0, 0.3, 0.6, 0.6])
    assert PairGateConfig(sparsity=0.6, ramp=0.0).aim(0.0) == 0.6
    assert float(pair_penalty(counts(100, 100, torch.zeros(1)), gate, 0.0)) == 0.0
    assert float(pair_penalty(counts(100, 100, torch.zeros(1)), gate)) == pytest.approx(3.6)


def test_processes_have_the_penalty_of_the_whole_batch():
    """The mean over processes of the gradients is that of one process with all pairs."""
    parts = [(10.0, 40.0), (50.0, 60.0)]
    gate, slopes = PairGateConfig(sparsity=0.7, strength=2.0), []
    total = torch.tensor([60.0, 100.0], dtype=torch.float64)
    for kept, pairs in parts:
        soft = torch.tensor([kept], requires_grad=True)
        loss = pair_penalty(counts(kept, pairs, soft), gate, 1.0, 2, lambda _: total)
        assert loss.item() == pytest.approx(2.0 * (0.4 - 0.7) ** 2)
        slopes.append(float(torch.autograd.grad(loss, soft)[0]))
    whole = torch.tensor([60.0], requires_grad=True)
    expected = float(torch.autograd.grad(pair_penalty(counts(60, 100, whole), gate), whole)[0])
    assert slopes == pytest.approx([2 * expected] * 2)  # halved by averaging


def test_pairs_are_counted_over_batches_and_shown_beside_errors():
    sums = ErrorSums([1], [0], pairs=True)
    for kept in (10.0, 50.0):
        sums.add(counts(kept, 100, torch.zeros(1)), {})
    report = sums.report()
    assert report == {"density_pairs": {"mean": 30.0, "count": 200}}
    table = results_table({"test": {**report, "density": {"mae": 1.0, "rmse": 2.0, "count": 3}}}, {"test": 2})
    assert list(table.columns[0].cells) == ["coefficients", "pairs let through (mean)"]
    assert list(table.columns[2].cells) == ["1", "30"] and list(table.columns[3].cells) == ["2", ""]
    assert short(report, "mae") == "pairs 30 %"
    assert "density_pairs" not in ErrorSums([1], [0]).names and sums.empty().names == sums.names


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.density.pair_gate.sparsity=1.5", r"model\.density\.pair_gate\.sparsity: .*less than 1"),
        ("model.density.pair_gate.sparsty=0.5", r"pair_gate\.sparsty: unknown key; did you mean .*pair_gate\.sparsity"),
    ],
)
def test_a_bad_key_or_value_is_named(override, message):
    base = {"data": {"train": "a.h5"}, "training": {"max_epochs": 9}, "model": {"energy": False, "density": {}}}
    with pytest.raises(ConfigError, match=message):
        parse_config(apply_overrides(base, [override]))
