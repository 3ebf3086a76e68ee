"""Checkpoints: exact round trips, old formats, damaged files, no code execution."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule
from densities import density_model
from safetensors.torch import save_file

from mlip.checkpoint import FORMAT_VERSION, load_model, read_header, save_model
from mlip.errors import CheckpointError
from mlip.models import build
from mlip.testing import evaluate, evaluate_density, graph_of

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def model():
    built = build({"channels": 8, "zbl": True}, ["H", "C", "O"], e0={1: -13.6, 6: -1029.0, 8: -2041.0}, seed=0)
    built.metadata = {"level_of_theory": {"xc": "pbe"}}
    return built


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip_is_exact(model, dtype, tmp_path):
    notes = {"note": "x", "missing": float("nan")}
    path = save_model(model.to(getattr(torch, dtype)), tmp_path / "m.safetensors", notes)
    loaded = load_model(path)
    atoms = molecule("CH3CHO")
    for key, value in evaluate(model, atoms).items():
        np.testing.assert_array_equal(value, evaluate(loaded, atoms)[key])
    assert loaded.metadata == {"level_of_theory": {"xc": "pbe"}, "note": "x", "missing": None}
    assert loaded.e0 == model.e0 and not loaded.training


def test_dtype_override_is_one_word(model, tmp_path):
    path = save_model(model, tmp_path / "m.safetensors")
    atoms = molecule("CH3CHO")
    double, single = evaluate(load_model(path, "float64"), atoms), evaluate(load_model(path), atoms)
    assert load_model(path, dtype="float64").dtype == torch.float64
    np.testing.assert_allclose(double["forces"], single["forces"], atol=1e-4)


def test_a_run_folder_is_a_model(model, tmp_path):
    save_model(model, tmp_path / "model.safetensors")
    assert load_model(tmp_path).elements == [1, 6, 8]


def test_truncated_file(model, tmp_path):
    path = save_model(model, tmp_path / "m.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"m\.safetensors.*truncated"):
        load_model(path)


def test_foreign_safetensors(tmp_path):
    save_file({"x": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="without an mlip header"):
        read_header(tmp_path / "other.safetensors")


def test_missing_file_names_what_exists():
    with pytest.raises(CheckpointError, match="neither a file nor a shipped model"):
        load_model("no-such-model")


def test_newer_format_says_upgrade(tmp_path):
    header = {"format_version": FORMAT_VERSION + 1}
    save_file({"x": torch.zeros(3)}, tmp_path / "new.safetensors", metadata={"mlip": json.dumps(header)})
    with pytest.raises(CheckpointError, match="upgrade"):
        read_header(tmp_path / "new.safetensors")


def test_header_and_weights_that_do_not_fit(model, tmp_path):
    path = save_model(model, tmp_path / "m.safetensors")
    header = read_header(path)
    header["model"]["channels"] = 16
    save_file(model.state_dict(), tmp_path / "bad.safetensors", metadata={"mlip": json.dumps(header)})
    with pytest.raises(CheckpointError, match="do not fit"):
        load_model(tmp_path / "bad.safetensors")


def test_a_header_without_neighbours_is_refused(model, tmp_path):
    header = read_header(save_model(model, tmp_path / "m.safetensors"))
    for value in (0, -1.0, float("nan")):
        header["avg_num_neighbors"] = value
        save_file(model.state_dict(), tmp_path / "bad.safetensors", metadata={"mlip": json.dumps(header)})
        with pytest.raises(CheckpointError, match=r"bad\.safetensors: .*avg_num_neighbors is .* above 0"):
            load_model(tmp_path / "bad.safetensors")


def test_a_pickle_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "evil.safetensors")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_every_old_format_still_loads(version):
    """One file a format version; its energies (and densities) were written beside it when it was made."""
    wanted = json.loads((FIXTURES / f"format-{version}.json").read_text())
    model = load_model(FIXTURES / f"format-{version}.safetensors", dtype="float64")
    assert evaluate(model, molecule("CH3CHO"))["energy"][0] == pytest.approx(wanted["energy"], abs=1e-9)
    assert (model.density_basis is not None) == ("density" in wanted)
    assert (model.uncertainty is not None) == ("forces_std" in wanted)
    if "forces_std" in wanted:
        out = model(graph_of(molecule("CH3CHO"), model.cutoff), compute_uncertainty=True)
        for name in ("energy_std", "forces_std"):
            np.testing.assert_allclose(out[name], wanted[name], rtol=1e-9)
    if "density" in wanted:
        np.testing.assert_allclose(evaluate_density(model, molecule("CH3CHO"))[0], wanted["density"], atol=1e-9)


@pytest.mark.parametrize("energy", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip_of_a_density_model_is_exact(energy, dtype, tmp_path):
    atoms = molecule("CH3CHO")
    model = density_model(atoms, dtype, energy=energy)
    loaded = load_model(save_model(model, tmp_path / "m.safetensors"))
    assert loaded.density_reference == model.density_reference and loaded.has_energy == energy
    np.testing.assert_array_equal(evaluate_density(loaded, atoms)[0], evaluate_density(model, atoms)[0])
    header = read_header(tmp_path / "m.safetensors")
    assert set(header["density"]) == {"basis", "baseline", "scales", "metric", "charges", "electrons", "modes"}


def test_a_damaged_density_header_is_named(tmp_path):
    model = density_model(molecule("CH3CHO"))
    path = save_model(model, tmp_path / "m.safetensors")
    header = read_header(path)
    header["density"]["basis"] = {"name": "?"}
    save_file(model.state_dict(), tmp_path / "bad.safetensors", metadata={"mlip": json.dumps(header)})
    with pytest.raises(CheckpointError, match="do not fit"):
        load_model(tmp_path / "bad.safetensors")
