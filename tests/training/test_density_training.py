"""Runs of densities, alone and with energies: they learn, resume exactly, and report; configs that cannot work say why."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from density_toys import BASIS, density_config, density_frames, density_values, write_toys
from rich.console import Console
from safetensors.torch import load_file
from training_toys import stopped, write_config
from typer.testing import CliRunner

from mlip.checkpoint import load_model, read_header
from mlip.cli import app
from mlip.configfile import apply_overrides, load_config, parse_config
from mlip.data.density import DensityBasis, real_harmonics
from mlip.data.frame import Frame, FrameChain, frame_extra
from mlip.data.hdf5 import HDF5Frames
from mlip.data.readers import open_files
from mlip.data.writer import write_frames
from mlip.errors import ConfigError, DataError
from mlip.training import graphs as graphs_module
from mlip.training.loader import bytes_of, load_batches
from mlip.training.prepare import new_model, prepare, training_graphs, validation_graphs
from mlip.training.report import describe_data, evaluate_frames
from mlip.training.run import Validator, train
from mlip.training.runfolder import dump_config
from mlip.training.state import read_checkpoint

pytest.importorskip("pyscf")
EPOCHS = 3


@pytest.fixture(scope="module", params=["density", "joint"])
def straight(request, tmp_path_factory):
    """An uninterrupted run of either kind: its config, its results, whether it is joint."""
    joint = request.param == "joint"
    folder = tmp_path_factory.mktemp(request.param)
    extra = {"early_stopping": {"patience": 40}, "monitor": "density_coulomb", "stage_two": {"start": 0.5, "density": 3.0}}
    config = density_config(folder, EPOCHS, joint, **extra)
    return config, train(config), joint


def test_it_learns_and_leaves_everything(straight):
    config, results, joint = straight
    folder = Path(config.run.dir)
    rows = np.genfromtxt(folder / "log.csv", delimiter=",", names=True)
    assert len(rows) == EPOCHS + 1 and results["skipped_steps"] == 0 and results["density_basis"] == "toy"
    assert rows["valid_density_coulomb_mae"][-1] < 0.9 * rows["valid_density_coulomb_mae"][0]
    assert np.isfinite(rows["train_density_coulomb_mae"][1:]).all()
    quantities = set(results["errors"]["test"])
    density = {"density_coulomb", "density_overlap", "density_electrons", "density"}
    density |= {f"density/{name}" for name in ("H", "C", "O", "l=0", "l=1", "l=2")}
    assert quantities >= density
    assert ({"energy", "forces"} <= quantities) == joint and (quantities == density) == (not joint)
    text = (folder / "results.txt").read_text()
    assert "density, Coulomb" in text and "coefficients of l=2" in text and "mHa/e" in text
    assert ("E0" in text) == ("e0" in results) == joint


def test_the_best_weights_are_those_of_the_monitored_error(straight):
    config, results, _ = straight
    progress = read_checkpoint(Path(config.run.dir) / "training.ckpt")["progress"]
    errors = [row["valid_density_coulomb_mae"] for row in progress["history"]]
    assert progress["best_value"] == min(errors)
    assert results["errors"]["valid"]["density_coulomb"]["mae"] == pytest.approx(min(errors), rel=1e-9)


def test_the_model_in_the_file_gives_the_table(straight, tmp_path):
    config, results, joint = straight
    model = load_model(config.run.dir)
    assert model.has_energy is joint and model.density_basis.shells == BASIS.shells
    again = evaluate_frames(model, HDF5Frames(config.data.test), batch_size=2).errors.report()
    out = tmp_path / "out"
    outcome = CliRunner().invoke(app, ["eval", config.run.dir, config.data.test, "--out", str(out)])
    assert outcome.exit_code == 0, outcome.output
    written = json.loads((out / "results.json").read_text())
    for quantity, numbers in results["errors"]["test"].items():
        assert again[quantity] == pytest.approx(numbers, rel=1e-9), quantity
        assert written["errors"]["test"][quantity] == pytest.approx(numbers, rel=1e-9), quantity
    assert written["units"]["density_coulomb"] == "mHa/e"
    assert {path.name for path in out.glob("*.png")} == {"parity_density.png"} | (
        {"parity_energy.png", "parity_forces.png"} if joint else set()
    )
    shown = CliRunner().invoke(app, ["info", config.run.dir])
    assert shown.exit_code == 0 and "density.basis" in shown.output and "coefficients on O" in shown.output
    header = read_header(config.run.dir)
    assert header["metadata"]["errors"]["test"]["density_overlap"] == pytest.approx(again["density_overlap"])


def test_stopped_within_an_epoch_it_resumes_to_the_same_weights(straight, tmp_path, monkeypatch):
    config, results, _ = straight
    values = json.loads(config.model_dump_json())
    values["run"]["dir"] = str(tmp_path / "run")
    again = load_config(write_config(tmp_path, values))
    assert stopped(again, 6, monkeypatch)["progress"]["step"] == 6
    assert train(again)["errors"] == results["errors"]
    one, two = (load_file(Path(folder) / "model.safetensors") for folder in (config.run.dir, tmp_path / "run"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_resolved_config_reads_back_equal(straight, tmp_path):
    config, _, _ = straight
    path = tmp_path / "again.yaml"
    path.write_text(dump_config(config))
    assert dump_config(load_config(path)) == dump_config(config)


def test_one_switch_makes_it_joint(tmp_path):
    values = density_values(tmp_path)
    alone = parse_config(values)
    assert alone.active_terms == ("density",) and alone.loss.energy.weight == alone.loss.forces.weight == 0.0
    assert parse_config(apply_overrides(values, ["model.energy=true"])).active_terms == ("energy", "forces", "density")
    assert parse_config(apply_overrides(values, ["model={channels: 4}"])).active_terms == ("energy", "forces")


@pytest.mark.parametrize("kind", ["overlap", "l1", "l2"])
def test_other_losses_learn_too(tmp_path, kind):
    values = density_values(tmp_path, 2)
    values["loss"] = {"density": {"kind": kind}}
    values["data"]["weights"] = {"origin": {"mmff": 2.0}}
    del values["data"]["test"]
    config = load_config(write_config(tmp_path, values))
    train(config)
    rows = np.genfromtxt(Path(config.run.dir) / "log.csv", delimiter=",", names=True)
    assert rows["valid_loss"][-1] < rows["valid_loss"][0]


def test_it_begins_near_the_baseline(tmp_path):
    config = density_config(tmp_path)
    data = prepare(config)
    model = new_model(config, data)
    start = evaluate_frames(model, data.valid).errors.report()["density_coulomb"]["mae"]
    with torch.no_grad():
        for weight in model.density_head.readout.weight:
            weight.zero_()
    assert start == pytest.approx(evaluate_frames(model, data.valid).errors.report()["density_coulomb"]["mae"], rel=0.1)


def test_a_dry_run_says_what_is_learned_and_writes_nothing(tmp_path):
    path = write_config(tmp_path, density_values(tmp_path))
    before = sorted(p.name for p in tmp_path.rglob("*"))
    outcome = CliRunner().invoke(app, ["train", str(path), "--dry-run"])
    assert outcome.exit_code == 0, outcome.output
    assert "density in toy, l up to 2; functions: H 4  C 10  O 10" in outcome.output and "s an epoch" in outcome.output
    assert "E0" not in outcome.output.splitlines()[-20:] and sorted(p.name for p in tmp_path.rglob("*")) == before


def test_only_the_metric_of_the_loss_is_carried_in_training(tmp_path):
    config = density_config(tmp_path)
    data = prepare(config)
    graph = training_graphs(config, data, 3.0)[0]
    assert "density_factor_coulomb" in graph and "density_factor_overlap" not in graph and "weight" not in graph


def test_frames_without_a_density_train_the_energy_alone(tmp_path):
    values = density_values(tmp_path, 1, joint=True)
    write_toys(tmp_path / "train.h5", density_frames(6, 0) + renamed(density_frames(5, 1, density=False)))
    config = load_config(write_config(tmp_path, values))
    results = train(config)
    assert results["errors"]["train"]["density_coulomb"]["count"] == 6 and results["errors"]["train"]["energy"]["count"] == 11
    console = Console(file=io.StringIO(), width=200)
    data = prepare(config)
    describe_data(console, data, new_model(config, data))
    assert "5 of 11 frames have no density" in console.file.getvalue()


def renamed(frames):
    for frame in frames:
        frame.id = f"more-{frame.id}"
    return frames


OTHER = DensityBasis("other", {z: BASIS.shells[z][::-1] for z in BASIS.elements})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": density_frames(4, 0, density=False)}, r"no frame of data\.train .*; label with `scf-accel label`$"),
        ({"train": (density_frames(4, 0), None)}, r"data\.train: .*train\.h5 has density_coefficients but no .* density_basis"),
        ({"valid": (density_frames(4, 1), OTHER)}, r"data\.valid: the density basis other, where data\.train has toy"),
        ({"test": (density_frames(4, 1), None)}, r"data\.test: no density_basis, where data\.train has toy"),
        ({"valid": density_frames(4, 1, density=False)}, r"data\.valid: no frame has density_coefficients"),
    ],
)
def test_data_that_cannot_be_learned_from_say_why(tmp_path, change, message):
    values = density_values(tmp_path)
    for name, content in change.items():
        write_toys(tmp_path / f"{name}.h5", *(content if isinstance(content, tuple) else (content,)))
    with pytest.raises(ConfigError, match=message):
        prepare(load_config(write_config(tmp_path, values)))


def test_worker_processes_and_a_loss_in_a_metric_exclude_each_other(tmp_path):
    values = density_values(tmp_path)
    values["data"]["num_workers"] = 2
    with pytest.raises(ConfigError, match=r"data\.num_workers is 2, and must be 0 .*metric \(loss\.density\.kind: coulomb\)"):
        prepare(parse_config(values))
    prepare(parse_config(apply_overrides(values, ["loss={density: {kind: l2}}"])))


def test_a_joint_run_needs_both_labels(tmp_path):
    values = density_values(tmp_path, joint=True)
    write_toys(tmp_path / "train.h5", density_frames(4, 0, energy=False))
    with pytest.raises(DataError, match="energy: missing in all 4 frames"):
        prepare(load_config(write_config(tmp_path, values)))
    write_toys(tmp_path / "train.h5", density_frames(4, 0, density=False))
    with pytest.raises(ConfigError, match=r"no frame of data\.train .*has density_coefficients .*or leave out model\.density"):
        prepare(load_config(write_config(tmp_path, values)))


def test_broken_coefficients_are_refused(tmp_path):
    values = density_values(tmp_path)
    for spoil, message in ((lambda c: c[:-1], "coefficients; toy has"), (lambda c: np.where(c == c[3], np.nan, c), "not finite")):
        frames = density_frames(5, 0)
        frames[2].density_coefficients = spoil(frames[2].density_coefficients)
        write_toys(tmp_path / "train.h5", frames)
        with pytest.raises(DataError, match=f"density_coefficients of frame 2 '2': .*{message}"):
            prepare(load_config(write_config(tmp_path, values)))


def not_axial(frame):
    """CO with a quadrupole across its axis, as a singlet with one of two equal orbitals filled has; the electrons are the same."""
    axis = np.linalg.svd(frame.positions - frame.positions.mean(axis=0))[2][0]
    across = np.cross(axis, [0.0, 0.6, 0.8])
    c = frame.density_coefficients.copy()
    start = BASIS.offsets(frame.atomic_numbers)[list(frame.atomic_numbers).index(6)] + 5  # carbon's d shell: s p s d
    c[start : start + 5] += 3.0 * real_harmonics(2, (across / np.linalg.norm(across))[None])[0]
    frame.density_coefficients = c


def test_frames_that_no_model_can_give_are_left_out_and_named(tmp_path, caplog):
    values, train, valid = density_values(tmp_path), density_frames(11, 0), density_frames(4, 1)
    kept = prepare(load_config(write_config(tmp_path, values)))
    assert len(kept.train) == 11 and not caplog.records  # CO is linear, and its density axial
    for frame in (train[6], valid[2]):
        not_axial(frame)
    write_toys(tmp_path / "train.h5", train)
    write_toys(tmp_path / "valid.h5", valid)
    data = prepare(load_config(write_config(tmp_path, values)))
    assert [frame.id for frame in data.train] == [str(index) for index in range(11) if index != 6]
    assert data.labelled == 10 and len(data.valid) == 4
    first, second = [record.getMessage() for record in caplog.records]
    assert "data.train: 1 frame CO (6): left out" in first and "data.valid: 1 frame CO (2): their errors cannot vanish" in second


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_validation_batches_are_kept_within_the_byte_budget(tmp_path, monkeypatch, share):
    values = density_values(tmp_path)
    values["data"]["valid_batch_size"] = 1
    config = load_config(write_config(tmp_path, values))
    data = prepare(config)
    model = new_model(config, data)
    sizes = [bytes_of(graph) for graph in load_batches(validation_graphs(config, data, model.cutoff), [[0], [1], [2], [3]])]
    budget = share * sum(sizes)
    config.data.cache_mb = (budget + 0.5) / 2**20 if share else 0.0
    validator, made = Validator(config, data, model.cutoff), []
    plain = graphs_module.metric_factor
    monkeypatch.setattr(graphs_module, "metric_factor", lambda *a: (made.append(1), plain(*a))[1])
    first = validator(model).errors.report()
    made.clear()
    assert validator(model).errors.report() == first and validator.metric_seconds > 0
    fits = int(np.searchsorted(np.cumsum(sizes), budget + 0.5, side="right"))
    assert len(made) == 2 * (4 - fits) and (fits == 4 if share == 1.0 else fits < 4)
    assert not validator.graphs._cache


def test_densities_of_periodic_frames_are_refused(tmp_path):
    values, frames = density_values(tmp_path), density_frames(5, 0)
    frames[3].cell, frames[3].pbc = 9 * np.eye(3), np.array([True, True, False])
    write_toys(tmp_path / "train.h5", frames)
    with pytest.raises(DataError, match=r"data\.train: frame 3 '3' is periodic and has density_coefficients"):
        prepare(load_config(write_config(tmp_path, values)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.energy.weight=1"], r"loss\.energy\.weight is 1, and the model has no energy head; give model\.energy: true"),
        (["training.stage_two={forces: 2}"], r"training\.stage_two\.forces is given, and the model has no energy head"),
        (["training.monitor=forces_mae"], r"training\.monitor is forces_mae, and the model has no energy head"),
        (
            ["model={channels: 4}", "training.monitor=density_coulomb"],
            "monitor is density_coulomb, and the model has no density head",
        ),
        (
            ["model={channels: 4}", "loss.density.weight=1"],
            r"loss\.density\.weight is 1, .* no density head; give model\.density: \{\}",
        ),
        (["loss.density.weight=0"], r"nothing to learn for the model's head \(density\): give loss\.density a weight"),
        (["loss.density.kind=huber"], r"loss\.density\.kind: .*'coulomb', 'overlap', 'l1' or 'l2'"),
        (["loss.density.delta=1"], r"loss\.density\.delta: unknown key"),
        (["model.density.l_maxx=2"], r"model\.density\.l_maxx: unknown key; did you mean model\.density\.l_max\?"),
        (["model.density=null"], r"a model needs a head"),
        (["data.weights={origin: {mmff: 0}}"], r"data\.weights\.origin\.mmff: .*greater than 0"),
    ],
)
def test_configs_that_cannot_work_name_the_key(tmp_path, overrides, message):
    values = density_values(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(apply_overrides(values, overrides))
    assert "\n" not in str(caught.value)


def test_eval_on_other_labels(straight, tmp_path):
    """Of another basis or without a density: not compared, said so; with nothing left to compare, an error."""
    config, _, joint = straight
    shutil.copy(Path(config.run.dir) / "model.safetensors", tmp_path / "model.safetensors")
    for name, content in (("other", (density_frames(3, 4), OTHER)), ("none", (density_frames(3, 4, density=False),))):
        path = write_toys(tmp_path / f"{name}.h5", *content)
        outcome = CliRunner().invoke(app, ["eval", str(tmp_path / "model.safetensors"), str(path), "--no-plots"])
        assert (outcome.exit_code == 0) == joint, outcome.output
        assert "density, Coulomb" not in outcome.output


def test_several_files_are_as_one(tmp_path):
    frames = density_frames(12, 0)
    write_toys(tmp_path / "both.h5", frames)
    write_toys(tmp_path / "first.h5", frames[:5])
    write_toys(tmp_path / "second.h5", renamed(frames[5:]))
    values = density_values(tmp_path)
    values["data"] |= {"train": "both.h5", "valid": 0.25}
    one = prepare(load_config(write_config(tmp_path, values)))
    values["data"]["train"] = ["first.h5", "second.h5"]
    config = load_config(write_config(tmp_path, values))
    several = prepare(config)
    assert config.data.train == [str(tmp_path / "first.h5"), str(tmp_path / "second.h5")]
    for ours, theirs in ((several.train, one.train), (several.valid, one.valid)):
        assert [frame.id.removeprefix("more-") for frame in ours] == [frame.id for frame in theirs]
        assert all(np.array_equal(a.positions, b.positions) for a, b in zip(ours, theirs, strict=True))
    assert several.density == one.density and several.fingerprint != one.fingerprint
    np.testing.assert_array_equal(training_graphs(config, several, 4.0).num_atoms, training_graphs(config, one, 4.0).num_atoms)
    write_toys(tmp_path / "second.h5", frames[5:], OTHER)
    with pytest.raises(DataError, match=r"second\.h5: its densities are in other functions than those of .*first\.h5"):
        prepare(config)


def test_levels_of_theory_that_differ_are_both_recorded(tmp_path, caplog):
    for name, grid, metric in (("a", 2, "coulomb"), ("b", 0, "coulomb"), ("c", 0, "overlap")):
        theory = {"functional": "PBE", "grid_level": grid, "density_metric": metric}
        write_frames(tmp_path / f"{name}.h5", density_frames(2, 0), {"level_of_theory": theory, "density_basis": BASIS.to_dict()})
    frames = open_files([str(tmp_path / "a.h5"), str(tmp_path / "b.h5")])
    assert frames.attrs["level_of_theory"] == {"functional": "PBE", "grid_level": [2, 0], "density_metric": "coulomb"}
    assert "grid_level is 2, 0" in caplog.text and "functional" not in caplog.text
    assert [frames[-1].id, *(frame.id for frame in frames[1:3])] == ["1", "1", "0"]
    with pytest.raises(IndexError, match="frame 4 of 4"):
        frames[4]
    assert frame_extra(frames, "molecule").tolist() == [frame.extras["molecule"] for frame in frames]
    mixed = FrameChain([frames[:1], [Frame(np.array([1]), np.zeros((1, 3)))]])
    assert frame_extra(mixed, "origin").tolist() == ["mmff", ""] and frame_extra(mixed, "absent") is None
    with pytest.raises(DataError, match="different metrics"):
        open_files([str(tmp_path / "a.h5"), str(tmp_path / "c.h5")])
