"""loss.density.auxiliary: densities are learned beside the energies, and the finished model predicts energies alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from density_toys import density_values
from training_toys import write_config

from mlip.checkpoint import load_model, read_header
from mlip.configfile import load_config
from mlip.errors import ConfigError
from mlip.models import ModelConfig
from mlip.testing import evaluate
from mlip.training.run import train


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


def test_it_needs_both_heads(tmp_path):
    with pytest.raises(ConfigError, match=r"auxiliary is true, and the model has only one head \(density\)"):
        outcome(tmp_path, True, joint=False)


def test_a_config_without_the_density_head():
    assert ModelConfig().without_density() == ModelConfig()
    gated = ModelConfig(density={}, gate={"sparsity": [0.1, 0.2, 0.3]}).without_density()
    assert gated.density is None and gated.gate.sparsity == [0.1, 0.2]
    assert ModelConfig(density={}, gate={"sparsity": 0.4}).without_density().gate.sparsity == 0.4
