"""Fine-tuning: it starts at the model that it is given, with the energies of the new level of theory, and resumes exactly."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from density_toys import BASIS, density_frames, density_values, write_toys
from finetune_toys import E0, fine_tune_config, fine_tune_values, write_shifted, write_source
from rich.console import Console
from safetensors.torch import load_file
from training_toys import emt_structures, stopped, write_config
from typer.testing import CliRunner

from mlip.checkpoint import load_model, read_header, save_model
from mlip.cli import app
from mlip.configfile import load_config
from mlip.data.density import DensityBasis
from mlip.errors import ConfigError
from mlip.models import build, compact
from mlip.testing import evaluate, evaluate_density
from mlip.training.prepare import new_model, prepare
from mlip.training.report import describe_data
from mlip.training.run import train


def begun(config):
    """What a run begins with, and what it says."""
    data = prepare(config)
    text = io.StringIO()
    model = new_model(config, data)
    describe_data(Console(file=text, width=1000), data, model)
    return model, data, text.getvalue()


def shifted(folder: Path, shift: dict[str, float], alike: bool = False, **data: object):
    """A run on frames that carry the source's energies plus a constant an element."""
    values = fine_tune_values(folder)
    write_shifted(folder / "train.extxyz", folder / "source", shift, alike)
    values["data"] |= {"valid": 0.3, "test": None, **data}
    values["loss"] = {}
    return load_config(write_config(folder, values))


# ------------------------------------------------------------------------------------------------ where it starts


def test_at_a_rate_of_zero_forces_stay_exactly_and_the_header_says_where_from(tmp_path):
    config = fine_tune_config(tmp_path, 1, lr=1e-300, min_lr=0.0)
    train(config)
    source, tuned = load_model(tmp_path / "source"), load_model(config.run.dir)
    for atoms in [*emt_structures(3, seed=5), Atoms("AlCu", [[0, 0, 0], [0, 0, 2.5]])]:
        np.testing.assert_array_equal(evaluate(tuned, atoms)["forces"], evaluate(source, atoms)["forces"])
    assert tuned.elements == [13, 29, 79] and tuned.e0[13] == E0[13] and tuned.e0[29] != E0[29]
    metadata = read_header(config.run.dir)["metadata"]
    assert metadata["level_of_theory"] == "not stated by the data file"
    record = metadata["fine_tuned_from"]
    assert record["name"] == "source" and len(record["sha256"]) == 64 and record["level_of_theory"] == {"xc": "pbe"}
    again = fine_tune_config(tmp_path / "again", 1, config.run.dir, lr=1e-300, min_lr=0.0)
    assert prepare(again).start.source.record()["fine_tuned_from"] == record


def test_a_constant_an_element_goes_into_e0(tmp_path):
    _, data, text = begun(shifted(tmp_path, {"Cu": 3.0, "Au": -50.0}))
    assert data.e0 == pytest.approx({13: E0[13], 29: E0[29] + 3.0, 79: E0[79] - 50.0}, abs=1e-6)
    assert "Al stay in the model with E0 of source's level of theory" in text and "E0 of source; E0 corrected" in text
    assert "knows Al Cu Au; no new ones" in text
    assert "level of theory: pbe -> not stated by the data file" in text and "energy scale 2.000 eV and 9.0 neighbours" in text


def test_of_one_composition_the_sum_is_right(tmp_path):
    config = shifted(tmp_path, {"Cu": 3.0, "Au": -50.0}, alike=True)
    model, data, text = begun(config)
    frame = data.train[0]
    crystal = Atoms(frame.atomic_numbers, frame.positions, cell=frame.cell, pbc=True)
    assert evaluate(model, crystal)["energy"][0] == pytest.approx(frame.energy)
    assert "rank 1 of 2 elements (NOT determined one by one" in text


def test_energies_of_atoms_are_e0_and_bonding_energies_take_the_rest(tmp_path):
    """The frames lie 1 eV an atom above what the new E0 and the old bonding energies say."""
    given = {"Cu": E0[29] + 2.0, "Au": E0[79] - 51.0}
    model, data, text = begun(shifted(tmp_path, {"Cu": 3.0, "Au": -50.0}, e0=given))
    assert data.e0 == {13: E0[13], 29: given["Cu"], 79: given["Au"]}
    bias = load_model(tmp_path / "source").head.bias
    assert (model.head.bias - bias).tolist() == pytest.approx([0.0, 0.5, 0.5], abs=1e-2)  # in units of the energy scale
    assert "E0 as given in the config; bonding energies of the elements corrected" in text


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_isolated_atoms(tmp_path, shift):
    """At the old E0 they show the same level of theory; the others are of the new one."""
    atoms = [Atoms(symbol) for symbol in ("Cu", "Au")]
    for atom in atoms:
        atom.calc = SinglePointCalculator(atom, energy=E0[int(atom.numbers[0])] + shift)
    ase.io.write(tmp_path / "atoms.extxyz", atoms)
    config = shifted(tmp_path, {"Cu": shift, "Au": shift}, isolated_atoms=str(tmp_path / "atoms.extxyz"))
    model, data, text = begun(config)
    assert data.e0 == {13: E0[13], 29: E0[29] + shift, 79: E0[79] + shift}
    assert ("the same level of theory, nothing to correct" in text) == (shift == 0.0) == ("Al stay" not in text)
    assert torch.equal(model.head.bias, load_model(tmp_path / "source").head.bias) or shift


# ------------------------------------------------------------------------------------------------ new elements


def test_a_new_element_leaves_the_old_ones_as_they_were(tmp_path):
    write_source(tmp_path / "source", elements=(13, 29))
    values = fine_tune_values(tmp_path, 1, tmp_path / "source", lr=1e-300, min_lr=0.0)
    config = load_config(write_config(tmp_path, values))
    model, _, text = begun(config)
    assert "knows Al Cu; new: Au (random weights)" in text and model.elements == [13, 29, 79]
    errors = train(config)["errors"]
    source, tuned = load_model(tmp_path / "source"), load_model(config.run.dir)
    copper = Atoms("AlCu2", [[0, 0, 0], [0, 0, 2.4], [0, 2.1, 0]])
    np.testing.assert_array_equal(evaluate(tuned, copper)["forces"], evaluate(source, copper)["forces"])
    assert "forces/Au" in errors["test"] and "forces/Al" not in errors["test"]


def test_frames_to_compare_with_may_hold_what_only_the_source_knows(tmp_path):
    values = fine_tune_values(tmp_path)
    frames = emt_structures(3, seed=1)
    frames[0].symbols[0] = "Al"
    ase.io.write(values["data"]["test"], frames)
    assert prepare(load_config(write_config(tmp_path, values))).elements == [13, 29, 79]


def density_source(folder: Path, joint: bool, elements=(1, 6, 8)):
    """The values of a run of densities (and energies), and an untrained model for it in ``folder/source``."""
    values = density_values(folder, 1, joint, lr=1e-300, min_lr=0.0)
    reference = prepare(load_config(write_config(folder, values))).density
    e0 = dict.fromkeys(elements, 0.0)
    model = build(values["model"], elements, e0=e0, density=reference.subset(elements), dtype="float64", seed=0)
    save_model(model, folder / "source" / "model.safetensors")
    values["model"] = {"init_from": str(folder / "source")}
    return values, load_model(folder / "source")


@pytest.mark.parametrize("joint", [False, True])
def test_densities_with_a_new_element(tmp_path, joint):
    """A model of H and C is fine-tuned on frames with O, whose functions it learns of; or its energies alone."""
    values, before = density_source(tmp_path, joint, (1, 6))
    config = load_config(write_config(tmp_path, values))
    model, _, _ = begun(config)
    if joint:
        pytest.importorskip("pyscf")
        train(config)
        model = load_model(config.run.dir)
        alone = begun(load_config(tmp_path / "config.yaml", ["model.density=null"]))[0]
        assert alone.density_basis is None
        np.testing.assert_array_equal(*(evaluate(one, molecule("CH4"))["forces"] for one in (alone, before)))
    assert model.elements == [1, 6, 8] and model.density_basis.shells == BASIS.shells
    assert model.density_reference.subset([1, 6]) == before.density_reference
    np.testing.assert_allclose(*(evaluate_density(one, molecule("CH4"))[0] for one in (model, before)), atol=1e-12)


def test_densities_in_another_basis_are_refused(tmp_path):
    values, _ = density_source(tmp_path, joint=False)
    other = DensityBasis("toy", {**BASIS.shells, 1: BASIS.shells[1][::-1]})
    frames = density_frames(6, 0)
    for frame in frames:
        hydrogens = [place for place, z in zip(BASIS.offsets(frame.atomic_numbers), frame.atomic_numbers, strict=False) if z == 1]
        for place in hydrogens:
            frame.density_coefficients[place : place + 4] = np.roll(frame.density_coefficients[place : place + 4], 3)
    values["data"] |= {"train": str(write_toys(tmp_path / "other.h5", frames, other)), "valid": 0.5, "test": None}
    with pytest.raises(ConfigError, match=r"densities are in toy, and source predicts toy \(of the same name, with other func"):
        prepare(load_config(write_config(tmp_path, values)))


# ------------------------------------------------------------------------------------------------ how it goes on


def test_interrupted_it_ends_as_uninterrupted_whatever_became_of_the_source(tmp_path, monkeypatch):
    whole = fine_tune_config(tmp_path / "whole")
    errors = train(whole)["errors"]
    for name in ("gone", "changed"):
        values = fine_tune_values(tmp_path / "whole", source=write_source(tmp_path / name))
        path = write_config(tmp_path / "whole", values, f"{name}.yaml")
        override = [f"run.dir={tmp_path / 'runs' / name}"]
        config = load_config(path, override)
        stopped(config, 5, monkeypatch)
        if name == "gone":
            shutil.rmtree(tmp_path / name)
        if name == "changed":
            with torch.no_grad():
                model = load_model(tmp_path / name)
                model.head.bias += 1.0
            save_model(model, tmp_path / name / "model.safetensors")
        text = io.StringIO()
        config = load_config(path, override)
        assert train(config, console=Console(file=text, width=1000))["errors"] == errors
        assert (f"{tmp_path / name} is gone since: this run goes on" in text.getvalue()) == (name == "gone")
        assert (f"{tmp_path / name} has changed since: this run goes on" in text.getvalue()) == (name == "changed")
        one, two = (load_file(Path(folder) / "model.safetensors") for folder in (whole.run.dir, config.run.dir))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_a_pruned_model_stays_pruned(tmp_path):
    fields = {"channels": 4, "l_max": 2, "cutoff": 4.0, "gate": {"sparsity": 0.5}}
    pruned = build(fields, ["Cu", "Au"], e0=E0, dtype="float64", seed=0)
    compact(pruned)
    save_model(pruned, tmp_path / "source" / "model.safetensors")
    config = fine_tune_config(tmp_path, 1, tmp_path / "source")
    assert config.training.gate is None and begun(config)[0].config.paths == pruned.config.paths


def test_a_dry_run_shows_it_and_writes_nothing(tmp_path):
    values = fine_tune_values(tmp_path)
    del values["model"], values["training"]["lr"]
    path = write_config(tmp_path, values)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    outcome = CliRunner().invoke(app, ["train", str(path), "--from", str(tmp_path / "source"), "--dry-run"])
    assert outcome.exit_code == 0, outcome.output
    for word in ("fine-tuning", "knows Al Cu Au", "E0 of source; E0 corrected", "s an epoch", "learning rate 0.005"):
        assert word in outcome.output, word
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
