"""mlip train fits the standard deviations at its end; mlip eval tabulates and plots them."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
from in_process import command
from training_toys import emt_structures, toy_config

from mlip import MLIPCalculator
from mlip.checkpoint import load_model
from mlip.training.evaluate import Parity
from mlip.training.plots import calibration_bins, calibration_plot
from mlip.training.run import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("uncertain")
    ase.io.write(place / "valid.extxyz", emt_structures(7, 1))
    train(toy_config(place, epochs=1))
    return place


def test_a_trained_model_has_it(folder):
    about = load_model(folder / "run").uncertainty.about
    assert about["train_frames"] == 11 and about["valid_frames"] == 7
    atoms = emt_structures(1, 5)[0]
    atoms.calc = MLIPCalculator(folder / "run", uncertainty=True)
    atoms.get_stress()
    assert atoms.calc.results["energy_std"] > 0 and atoms.calc.results["forces_std"].shape == (len(atoms),)
    assert "energy_std (predicted)" in (folder / "run" / "results.txt").read_text()


def test_eval_and_info_show_it(folder):
    done = command("mlip", "eval", "run", "test.extxyz", "--no-plots", cwd=folder)
    assert done.returncode == 0 and "forces_std (predicted)" in done.stdout
    assert "uncertainty.valid_frames" in command("mlip", "info", "run", cwd=folder).stdout


def test_right_standard_deviations_lie_on_the_diagonal(tmp_path):
    rng = np.random.default_rng(0)
    std = rng.uniform(0.1, 1.0, 20_000)
    errors = np.abs(rng.normal(scale=std))
    predicted, found = calibration_bins(errors, std)
    assert len(found) == 12 and np.all(np.diff(predicted) > 0)
    np.testing.assert_allclose(found, predicted, rtol=0.08)  # 1667 a bin: 1.7 % each
    assert calibration_bins(errors[:5], std[:5]).shape == (2, 1)
    parity = Parity(energy_std=[np.stack([errors, std])], forces_std=[np.stack([errors, std])])
    assert calibration_plot({"test": parity}, tmp_path / "calibration.png").stat().st_size > 1000
