"""loss.density.auxiliary: densities are learned beside the energies, and the finished model predicts energies alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule
from density_toys import density_values
from safetensors.torch import load_file
from training_toys import stopped, write_config

from mlip.checkpoint import load_model, read_header
from mlip.config import TERMS
from mlip.configfile import load_config
from mlip.errors import ConfigError
from mlip.models import ModelConfig
from mlip.testing import evaluate
from mlip.training.conductor import Conductor
from mlip.training.evaluate import Evaluation
from mlip.training.metrics import ErrorSums
from mlip.training.run import train
from mlip.training.schedule import Budget


def outcome(folder: Path, auxiliary: bool, joint: bool = True, **model: object):
    """Run folder and results of a run with a loss of the density."""
    values = density_values(folder, 2, joint)
    values["model"] |= model
    values["loss"] = {"density": {"weight": 0.5, "kind": "l2", "auxiliary": auxiliary}}
    config = load_config(write_config(folder, values), [f"run.dir={folder / ('aux' if auxiliary else 'both')}"])
    return config, train(config)


@pytest.mark.parametrize("gated", [False, True])
def test_the_finished_model_has_the_same_energies_and_no_density(tmp_path, gated):
    gate = {"gate": {"sparsity": 0.5}, "l_max": 2} if gated else {}
    both, told = outcome(tmp_path, False, **gate)
    alone, results = outcome(tmp_path, True, **gate)
    one, two = load_model(both.run.dir), load_model(alone.run.dir)
    assert one.density_basis is not None and two.density_basis is None
    np.testing.assert_array_equal(*(evaluate(model, molecule("CH3OH"))["forces"] for model in (one, two)))
    assert results["errors"]["test"]["forces"] == told["errors"]["test"]["forces"]
    assert any(name.startswith("density") for name in told["errors"]["test"])
    assert not any(name.startswith("density") for name in results["errors"]["test"])
    header = read_header(alone.run.dir)
    assert header["density"] is None and header["num_parameters"] == two.num_parameters() < one.num_parameters()


def test_results_cut_off_are_written_by_the_same_command(tmp_path):
    config, results = outcome(tmp_path, True)
    for name in ("model.safetensors", "results.json"):
        (Path(config.run.dir) / name).unlink()
    assert train(config)["errors"] == results["errors"] and load_model(config.run.dir).density_basis is None


def test_interrupted_it_ends_as_uninterrupted(tmp_path, monkeypatch):
    whole, results = outcome(tmp_path, True)
    config = load_config(tmp_path / "config.yaml", [f"run.dir={tmp_path / 'again'}"])
    stopped(config, 5, monkeypatch)
    assert train(config)["errors"] == results["errors"]
    one, two = (load_file(Path(each.run.dir) / "model.safetensors") for each in (whole, config))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["model.energy=false"], r"what is learned is density; give both heads"),
        (["loss.energy.weight=0", "loss.forces.weight=0"], r"what is learned is density; give both heads"),
        (["loss.density.weight=0"], r"what is learned is energy and forces; give both heads"),
        (["training.monitor=density_rmse"], r"monitor is density_rmse, and loss.density.auxiliary takes the density head"),
    ],
)
def test_densities_that_teach_nothing_or_nobody_are_refused(tmp_path, override, message):
    values = density_values(tmp_path, 2, joint=True)
    values["loss"] = {"density": {"auxiliary": True}}
    with pytest.raises(ConfigError, match=message):
        load_config(write_config(tmp_path, values), override)


def test_the_best_weights_are_chosen_without_the_densities(tmp_path):
    counts = torch.ones(len(TERMS))
    penalties = torch.tensor([{"energy": 2.0, "density": 100.0}.get(name, 0.0) for name in TERMS])
    evaluation = Evaluation(ErrorSums([1]), penalties, counts)
    for auxiliary, expected in ((False, 52.0), (True, 2.0)):
        values = density_values(tmp_path, 2, joint=True)
        values["loss"] = {"density": {"weight": 0.5, "kind": "l2", "auxiliary": auxiliary}}
        config = load_config(write_config(tmp_path, values))
        conductor = Conductor(config, lambda _: evaluation, Budget(None), tmp_path / "training.ckpt")
        assert conductor._monitored(evaluation) == pytest.approx(expected)


def test_a_config_without_the_density_head():
    assert ModelConfig().without_density() == ModelConfig()
    gated = ModelConfig(density={}, gate={"sparsity": [0.1, 0.2, 0.3]}).without_density()
    assert gated.density is None and gated.gate.sparsity == [0.1, 0.2]
    assert ModelConfig(density={}, gate={"sparsity": 0.4}).without_density().gate.sparsity == 0.4
