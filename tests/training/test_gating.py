"""Path gates through a run: three phases, frozen networks that are smaller, and resumed runs that end where others do."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase.build import molecule
from density_toys import density_values
from safetensors.torch import load_file
from training_toys import stopped, toy_values, write_config

from mlip.checkpoint import load_model, read_header
from mlip.config import GateSchedule, TrainingSection
from mlip.configfile import apply_overrides, load_config, parse_config
from mlip.data.readers import open_frames
from mlip.errors import ConfigError
from mlip.models import build
from mlip.models.compaction import choose_strongest, compact, interaction_layers
from mlip.testing import evaluate, graph_of
from mlip.training.ema import WeightAverage
from mlip.training.gating import Gating, follow, reduce_as_before
from mlip.training.optimizer import make_optimizer
from mlip.training.report import evaluate_frames
from mlip.training.run import train
from mlip.training.runfolder import dump_config
from mlip.training.state import read_checkpoint

EPOCHS, STEPS = 4, 16  # 11 frames in batches of 3
RANDOM, ADAPTIVE = 5, 4
GATE = {"unit": "steps", "random": RANDOM, "adaptive": ADAPTIVE}


def gated_values(folder: Path, epochs: int = EPOCHS, gate: dict | None = GATE, **training: object) -> dict:
    """The toy run with gates on two layers: 3 paths of which all are needed, and 11 of which 6 stay."""
    values = toy_values(folder, epochs, **training)
    values["model"] |= {"l_max": 2, "num_layers": 2, "gate": {"sparsity": 0.5}}
    if gate is not None:
        values["training"]["gate"] = gate
    return values


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted run: its config, its results, and its folder."""
    folder = tmp_path_factory.mktemp("gated")
    config = load_config(write_config(folder, gated_values(folder)))
    return config, train(config), Path(config.run.dir)


def test_a_run_ships_the_compact_network(straight):
    config, results, folder = straight
    assert results["steps"] == STEPS and results["skipped_steps"] == 0 and results["paths"] == [3, 6]
    model = load_model(folder)
    assert [len(paths) for paths in model.config.paths] == [3, 6] and model.config.gate is None
    assert all(layer.gate is None for layer in interaction_layers(model))
    dense = build({**config.model.resolve().model_dump(), "gate": None}, model.elements)
    assert results["parameters"] == model.num_parameters() == dense.num_parameters() - 5 * 8 * 4  # paths, functions, channels
    assert not [name for name in load_file(folder / "model.safetensors") if name.endswith("gate.scale")]
    again = evaluate_frames(model, open_frames(config.data.test), batch_size=2).errors.report()
    for quantity, numbers in results["errors"]["test"].items():
        assert again[quantity] == pytest.approx(numbers, rel=1e-9), quantity
    assert read_header(folder)["metadata"]["training"]["paths"] == [3, 6]


def test_it_learns_and_only_frozen_networks_compete(straight):
    _, results, folder = straight
    rows = np.genfromtxt(folder / "log.csv", delimiter=",", names=True)
    assert len(rows) == EPOCHS + 1 and rows["valid_loss"][-1] < rows["valid_loss"][0]
    progress = read_checkpoint(folder / "training.ckpt")["progress"]
    frozen = rows["valid_loss"][rows["step"] > RANDOM + ADAPTIVE]
    assert len(frozen) == 2 and progress["best_value"] == pytest.approx(min(frozen), rel=1e-5)
    assert results["best_epoch"] in (3, 4)


@pytest.mark.parametrize(
    ("step", "phase"),
    [(3, "random"), (RANDOM + 2, "adaptive"), (RANDOM + ADAPTIVE, "adaptive"), (RANDOM + ADAPTIVE + 1, "frozen"), (13, "frozen")],
)
def test_resumed_in_any_phase_it_ends_with_the_same_weights(straight, tmp_path, monkeypatch, step, phase):
    """Bit for bit; the third is stopped just before the freezing step, the fourth just after."""
    config = load_config(write_config(tmp_path, gated_values(tmp_path)))
    content = stopped(config, step, monkeypatch)
    assert content["progress"]["step"] == step and content["gate"]["phase"] == phase
    assert (content["gate"]["paths"] is not None) == (phase == "frozen")
    results = train(config)
    one, two = (load_file(folder / "model.safetensors") for folder in (straight[2], Path(config.run.dir)))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert results["errors"] == straight[1]["errors"]
    states = [read_checkpoint(folder / "training.ckpt")["optimizer"]["state"] for folder in (straight[2], Path(config.run.dir))]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(a[name], states[1][k][name]) for k, a in states[0].items() for name in a)


@pytest.mark.slow  # test_train_and_resume has the law without gates
def test_two_processes_match_one(straight, tmp_path):
    """Both draw the same subsets, and their gradients are summed before and after the network became smaller."""
    path = write_config(tmp_path, gated_values(tmp_path, devices=2))
    command = [sys.executable, "-m", "mlip.cli", "train", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "path gates frozen: 3, 6 paths stay" in done.stdout
    one, two = (load_file(folder / "model.safetensors") for folder in (straight[2], tmp_path / "run"))
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], rtol=0.0, atol=1e-8) for name in one)


def test_a_run_that_ends_before_is_frozen_at_its_end(tmp_path):
    values = gated_values(tmp_path, epochs=1, gate={"unit": "steps", "random": 50, "adaptive": 50})
    config = load_config(write_config(tmp_path, values))
    assert train(config)["paths"] == [3, 6]
    assert load_model(config.run.dir).config.gate is None


def test_early_stopping_freezes_open_gates_and_counts_anew(tmp_path):
    values = gated_values(tmp_path, 20, {"unit": "epochs", "random": 4, "adaptive": 10})
    values["training"]["early_stopping"] = {"patience": 2, "min_delta": 1e9}
    config = load_config(write_config(tmp_path, values))
    results = train(config)
    assert results["stopped"].startswith("no improvement in 2") and results["paths"] == [3, 6]
    progress = read_checkpoint(Path(config.run.dir) / "training.ckpt")["progress"]
    # lost after 2 validations: frozen; the next is the first of the compact network, 2 more lose the patience again
    assert results["epochs"] == 5 and progress["best_epoch"] > 2


@pytest.mark.parametrize("step", [3, 7])
def test_gates_of_the_density_heads_layer(tmp_path, monkeypatch, step):
    """A run with both heads, stopped in the adaptive and in the frozen phase, ends as an uninterrupted one."""
    pytest.importorskip("pyscf")
    configs = []
    for name in ("whole", "parts"):
        values = density_values(tmp_path / name, 2, joint=True, gate={"unit": "steps", "random": 2, "adaptive": 3})
        values["model"]["gate"] = {"sparsity": 0.5}
        configs.append(load_config(write_config(tmp_path / name, values)))
    whole = train(configs[0])
    stopped(configs[1], step, monkeypatch)
    assert train(configs[1])["errors"] == whole["errors"]
    model = load_model(configs[0].run.dir)
    assert [len(layer.conv.paths) for layer in interaction_layers(model)] == whole["paths"] == [2, 4]


def small_model(seed: int = 0):
    fields = {"channels": 4, "l_max": 2, "gate": {"sparsity": 0.5}}
    model = build(fields, ["H", "O"], avg_num_neighbors=2.0, dtype="float64", seed=seed)
    for layer in interaction_layers(model):
        torch.manual_seed(seed)
        with torch.no_grad():
            layer.gate.scale.normal_()
    return model


def steps(model, optimizer, count: int = 3) -> None:
    """Steps of an optimiser on forces."""
    model.train()
    for k in range(count):
        atoms = molecule("H2O")
        atoms.rattle(0.1, seed=k)
        model(graph_of(atoms, model.cutoff))["forces"].square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_moments_are_those_of_an_optimiser_that_knew_only_the_compact_network():
    """At a rate of 0, so that both see the same gradients."""
    states = []
    for compact_first in (True, False):
        model = small_model()
        choose_strongest(model)
        if compact_first:
            compact(model)
        optimizer = make_optimizer(model, TrainingSection(max_epochs=1))
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        steps(model, optimizer)
        if not compact_first:
            follow(optimizer, compact(model))
        order = [p for group in optimizer.param_groups for p in group["params"]]
        assert {id(p) for p in order} == {id(p) for p in model.parameters()}
        states.append([optimizer.state[p] for p in order])
    for one, two in zip(*states, strict=True):
        for name in ("step", "exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(one[name], two[name], rtol=1e-9, atol=1e-30)


def test_freezing_leaves_weights_and_average_with_the_outputs_they_had():
    atoms, model = molecule("H2O"), small_model()
    optimizer, average = make_optimizer(model, TrainingSection(max_epochs=1)), WeightAverage(model, 0.5)
    gating = Gating(GateSchedule(random=0.0), seed=0)
    for k in range(3):
        assert not gating.before_step(model, 0.1, 1.0, k)
        steps(model, optimizer, 1)
        average.update()
    choose_strongest(model)

    def forces():
        own = evaluate(model.eval(), atoms)["forces"]
        with average.applied():
            return own, evaluate(model, atoms)["forces"]

    before = forces()
    gating.freeze(model, optimizer, average)
    for one, two in zip(before, forces(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-9 * np.abs(one).max())
    steps(model, optimizer, 2)  # and the optimiser goes on
    average.update()


def test_a_weight_multiplied_by_zero_has_no_moments():
    model = small_model()
    gate = model.backbone.layers[1].gate
    optimizer = make_optimizer(model, TrainingSection(max_epochs=1))
    steps(model, optimizer, 1)
    with torch.no_grad():
        gate.scale[0] = 0.0
    gate.selected = [0, 1, 2, 3, 4, 5]
    replaced = compact(model)
    follow(optimizer, replaced)
    new = replaced[1].new
    assert torch.isfinite(optimizer.state[new]["exp_avg"]).all() and (optimizer.state[new]["exp_avg"][:, 0] == 0).all()


def test_a_checkpoint_gives_a_new_model_its_paths():
    model, fresh = small_model(), small_model(1)
    twin = copy.deepcopy(fresh)
    compact(model)
    reduce_as_before(fresh, {"gate": {"phase": "frozen", "paths": model.config.paths}})
    assert fresh.config == model.config
    fresh.load_state_dict(model.state_dict())
    for content in ({}, {"gate": {"phase": "adaptive", "paths": None}}):
        reduce_as_before(twin, content)
        assert twin.config.gate is not None


@pytest.mark.parametrize(
    ("unit", "place"), [("share", (0.35, 0.0, 0)), ("epochs", (0.0, 0.35, 0)), ("steps", (0.0, 0.0, 35))]
)
def test_phases_come_in_order_in_every_unit(unit, place):
    length = 30 if unit == "steps" else 0.3
    schedule = GateSchedule(unit=unit, random=length, adaptive=length)
    phases = [schedule.phase(*(factor * part for part in place)) for factor in (0, 0.8, 1, 1.6, 1.8, 2.5)]
    assert phases == ["random", "random", "adaptive", "adaptive", "frozen", "frozen"]


def test_the_phase_never_goes_back():
    """The share of a time budget shrinks when the validation turns out faster than thought."""
    model, gating = small_model(), Gating(GateSchedule(random=0.2, adaptive=0.3), seed=0)
    seen = []
    for share in (0.19, 0.21, 0.19, 0.4):
        assert not gating.before_step(model, share, 0.0, 0)
        seen.append(gating.phase)
    assert seen == ["random", "adaptive", "adaptive", "adaptive"]
    assert gating.before_step(model, 0.51, 0.0, 0)


def test_gates_have_their_phases_by_default_and_a_run_folder_knows_them():
    values = {"data": {"train": "a.h5"}, "model": {"gate": {}}}
    config = parse_config(values)
    assert config.training.gate == GateSchedule()
    assert parse_config(yaml.safe_load(dump_config(config))).training.gate == GateSchedule()
    assert parse_config({"data": {"train": "a.h5"}}).training.gate == GateSchedule()  # the presets have gates
    assert parse_config({"data": {"train": "a.h5"}, "model": {"gate": None}}).training.gate is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.gate={random: 0.6, adaptive: 0.5}", "model.gate={}"], r"training\.gate: .* are 1\.1 of the run together"),
        (["training.gate={unit: epochs, random: 3}", "model.gate={}"], r"training\.gate: unit is epochs: give both"),
        (
            ["training={max_epochs: 5, gate: {unit: epochs, random: 3, adaptive: 2}}", "model.gate={}"],
            r"random and adaptive are 5 epochs together.*max_epochs 5",
        ),
        (["training.gate.radnom=0.1", "model.gate={}"], r"training\.gate\.radnom: unknown .* training\.gate\.random\?"),
        (["training.gate={}", "model.gate=null"], r"training\.gate is given, and the model has no path gates; give model\.gate"),
        (["model.gate.sparsity=1.5"], r"model\.gate\.sparsity: a share of paths that go .* below 1 \(found 1\.5\)"),
        (["model.gate.sparsity=half"], r"model\.gate\.sparsity: .*valid number.*'half'.*; model\.gate\.sparsity: .*valid list"),
        (["model.gate.sparsity=[0.1, half]"], r"model\.gate\.sparsity\.1: .*valid number"),
        (["model.gate.sparsity=[0.1]"], r"gate\.sparsity has 1 entries; one is needed for each of 2 layers"),
        (["model.gate.sparsty=0.1"], r"model\.gate\.sparsty: unknown key; did you mean model\.gate\.sparsity"),
    ],
)
def test_a_bad_key_or_value_is_named(overrides, message):
    base = {"data": {"train": "a.h5"}, "training": {"max_epochs": 9}}
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(apply_overrides(json.loads(json.dumps(base)), overrides))
    assert "\n" not in str(caught.value)
