"""A model of densities gets an energy head: its backbone stays, the head begins as untrained, and the run resumes exactly."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule
from density_toys import density_frames, density_values, write_toys
from rich.console import Console
from safetensors.torch import load_file
from training_toys import stopped, write_config

from mlip.checkpoint import load_model, read_header, save_model
from mlip.configfile import load_config
from mlip.data.frame import Frame
from mlip.errors import ConfigError
from mlip.initfrom import with_energy_head, without_heads
from mlip.models import ModelConfig, build
from mlip.testing import evaluate_density
from mlip.training.prepare import new_model, prepare
from mlip.training.report import describe_data
from mlip.training.run import train

ELEMENTS = {"H": 1, "C": 6, "O": 8}


def values_from_densities(folder: Path, elements=(1, 6, 8), joint: bool = False, paths=None, **training: object) -> dict:
    """A run of energies (``joint``: and densities) from an untrained model of densities in ``folder/source``."""
    alone = density_values(folder, 1, joint=False)
    reference = prepare(load_config(write_config(folder, alone))).density
    model = build({**alone["model"], "paths": paths}, elements, density=reference.subset(elements), dtype="float64", seed=5)
    save_model(model, folder / "source" / "model.safetensors")
    values = density_values(folder, 2, joint=True, **training)
    values["model"] = {"init_from": str(folder / "source"), "energy": True} | ({} if joint else {"density": None})
    return values


def begun(values: dict, folder: Path):
    config = load_config(write_config(folder, values))
    data = prepare(config)
    text = io.StringIO()
    model = new_model(config, data)
    describe_data(Console(file=text, width=1000), data, model)
    return model, data, text.getvalue()


@pytest.mark.parametrize("joint", [False, True])
def test_the_backbone_stays_and_the_energies_begin_as_untrained(tmp_path, joint):
    model, data, said = begun(values_from_densities(tmp_path, joint=joint), tmp_path)
    before = load_model(tmp_path / "source", dtype="float64")
    own = model.state_dict()
    for name, tensor in before.state_dict().items():
        if joint or name.startswith("backbone."):
            assert torch.equal(own[name], tensor), name
    assert (model.density_basis is None) is not joint
    assert float(model.head.energy_scale) == pytest.approx(data.force_rms) and data.force_rms != 1.0
    scratch = values_from_densities(tmp_path, joint=joint)
    scratch["model"] = {"channels": 4, "l_max": 1, "num_layers": 1, "cutoff": 3.0, "gate": None}
    fresh, other, _ = begun(scratch, tmp_path)
    assert data.e0 == other.e0
    torch.testing.assert_close(model.head.bias, fresh.head.bias)
    assert "source has no energies: the energy head is new" in said and "kept, as its weights were trained with it: 16.0" in said
    if joint:
        np.testing.assert_array_equal(*(evaluate_density(one, molecule("CH4"))[0] for one in (model, before)))


def test_a_new_element_and_one_that_only_the_source_knows(tmp_path):
    model, _, _ = begun(values_from_densities(tmp_path / "new", elements=(1, 6)), tmp_path / "new")
    assert model.elements == [1, 6, 8]
    values = values_from_densities(tmp_path / "old")
    methane = [frame for frame in density_frames(24, 0) if 8 not in frame.atomic_numbers]
    values["data"] |= {"train": str(write_toys(tmp_path / "methane.h5", methane)), "valid": 0.3, "test": None}
    model, _, said = begun(values, tmp_path / "old")
    assert model.elements == [1, 6, 8] and model.e0[8] == 0.0
    assert "O, which source knows, are in no training frame: their energies mean nothing" in said


@pytest.mark.parametrize("element_data", ["isolated", "given"])
def test_known_energies_of_atoms_that_only_the_source_knows_stay(tmp_path, element_data):
    energies = {"H": -13.6, "C": -1030.0, "O": -2040.0}
    values = values_from_densities(tmp_path)
    frames = [frame for frame in density_frames(24, 0) if 8 not in frame.atomic_numbers]
    if element_data == "given":
        values["data"]["e0"] = energies
    else:
        frames += [Frame(np.array([number]), np.zeros((1, 3)), energy=energies[symbol]) for symbol, number in ELEMENTS.items()]
    values["data"] |= {"train": str(write_toys(tmp_path / "methane.h5", frames)), "valid": 0.3, "test": None}
    model, _, said = begun(values, tmp_path)
    assert model.e0 == pytest.approx({ELEMENTS[symbol]: energy for symbol, energy in energies.items()})
    assert "O, which source knows, are in no training frame" in said


def test_an_element_without_energies_cannot_be_tested(tmp_path):
    """The source knows oxygen, but nothing of its energy."""
    values = values_from_densities(tmp_path)
    methane = [frame for frame in density_frames(24, 0) if 8 not in frame.atomic_numbers]
    values["data"] |= {"train": str(write_toys(tmp_path / "methane.h5", methane)), "test": None}
    with pytest.raises(ConfigError, match=r"data.valid holds O, which no training frame has"):
        prepare(load_config(write_config(tmp_path, values)))


@pytest.mark.parametrize("pruned", [False, True])
def test_interrupted_it_ends_as_uninterrupted(tmp_path, monkeypatch, pruned):
    paths = [[(0, 0, 0)], [(0, 0, 0), (1, 1, 0), (0, 1, 1)]] if pruned else None
    values = values_from_densities(tmp_path, paths=paths)
    whole = load_config(write_config(tmp_path, values))
    errors = train(whole)["errors"]
    again = load_config(write_config(tmp_path, values), [f"run.dir={tmp_path / 'again'}"])
    stopped(again, 5, monkeypatch)
    (tmp_path / "source" / "model.safetensors").unlink()
    assert train(again)["errors"] == errors
    one, two = (load_file(Path(config.run.dir) / "model.safetensors") for config in (whole, again))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    header = read_header(whole.run.dir)
    assert header["metadata"]["fine_tuned_from"]["name"] == "source" and header["model"]["density"] is None
    assert header["energy_scale"] != 1.0
    assert header["model"]["paths"] == (None if paths is None else [[list(path) for path in paths[0]]])


def test_fields_of_the_new_head():
    alone = ModelConfig(energy=False, density={}).model_dump(mode="json")
    assert with_energy_head(alone, {}) == alone == with_energy_head(alone, {"energy": False})
    both = with_energy_head(alone, {"energy": True, "zbl": True, "readout_hidden": 7})
    assert both["energy"] and both["zbl"] and both["readout_hidden"] == 7 and both["density"] == alone["density"]
    paths = [[[0, 0, 0]], [[0, 0, 0], [1, 1, 0]], [[0, 0, 0]]]
    pruned = ModelConfig(energy=False, density={}, paths=paths).model_dump(mode="json")
    given = {"energy": True, "density": None}
    assert ModelConfig(**without_heads(with_energy_head(pruned, given), given)).paths == [[tuple(p) for p in x] for x in paths[:2]]
    potential = ModelConfig().model_dump(mode="json")
    assert with_energy_head(potential, {"energy": True}) == potential


def test_a_potential_gets_no_density_head(tmp_path):
    values = values_from_densities(tmp_path)
    save_model(build({"channels": 4, "l_max": 1, "num_layers": 1}, ["H", "C", "O"]), tmp_path / "source" / "model.safetensors")
    values["model"] = {"init_from": str(tmp_path / "source"), "density": {}}
    with pytest.raises(ConfigError, match=r"model.density is {}, and .* has None: fine-tuning keeps the architecture"):
        load_config(write_config(tmp_path, values))
