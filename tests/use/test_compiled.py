"""Compiled and exported models give the model's own numbers; a file that cannot be trusted to is met with one clear line."""

from __future__ import annotations

import json
import logging
import pickle
import zipfile

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from toy_potential import ToyPotential

from mlip import MLIPCalculator, build
from mlip.checkpoint import save_model
from mlip.errors import CheckpointError, ConfigError
from mlip.exported import ExportedPotential, cache_path, export_model, fingerprint_of, machine


@pytest.fixture
def model():
    return build({"channels": 4, "l_max": 1, "zbl": True}, ["H", "C", "O"], e0={6: -1000.0}, seed=0, dtype="float64")


def fake(path, **changes):
    """A file with the header of an export and no code."""
    header = {
        "format": "mlip-export", "format_version": 1, "torch": torch.__version__, "machine": machine(), "cutoff": 5.0,
        "elements": [6], "dtype": "float32", "metadata": {}, "fingerprint": "x", "check": {},
    }  # fmt: skip
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mlip.json", json.dumps(header | changes))
    return path


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"torch": "1.0"}, "compiled by torch 1.0"),
        ({"machine": machine() | {"processor": "z80"}}, "for processor z80"),
        ({"machine": machine() | {"features": ["avx9000"]}}, "with avx9000"),
        ({"format_version": 99}, "export format 99"),
        ({"format": "other"}, "not a model of `mlip export`"),
        ({}, "cannot be loaded"),
    ],
)
def test_files_of_another_kind_are_refused_in_one_line(tmp_path, changes, line):
    with pytest.raises(CheckpointError, match=line) as caught:
        MLIPCalculator(fake(tmp_path / "model.pt2", **changes))
    assert "\n" not in str(caught.value)


def test_another_number_of_threads_is_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "mlip"), pytest.raises(CheckpointError):
        MLIPCalculator(fake(tmp_path / "model.pt2", threads=torch.get_num_threads() + 7))
    assert f"compiled for {torch.get_num_threads() + 7} threads, torch has {torch.get_num_threads()} now" in caplog.text
    caplog.clear()
    for threads in ({}, {"threads": torch.get_num_threads()}):
        with pytest.raises(CheckpointError):
            MLIPCalculator(fake(tmp_path / "model.pt2", **threads))
    assert not caplog.records


def test_the_cache_keeps_one_for_each_number_of_threads(model):
    before = torch.get_num_threads()
    one = cache_path(model)
    try:
        torch.set_num_threads(before + 1)
        assert cache_path(model) != one
    finally:
        torch.set_num_threads(before)


def test_no_file_and_no_archive(tmp_path):
    with pytest.raises(CheckpointError, match="mlip export"):
        MLIPCalculator(str(tmp_path / "absent.pt2"))
    (tmp_path / "text.pt2").write_text("hello")
    with pytest.raises(CheckpointError, match="damaged"):
        MLIPCalculator(tmp_path / "text.pt2")


def test_export_without_a_compiler_and_by_another_suffix(tmp_path, model, monkeypatch):
    with pytest.raises(ConfigError, match="ends in"):
        export_model(model, tmp_path / "model.so")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="no C\\+\\+ compiler"):
        export_model(model, tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_auto_without_a_compiler_runs_on_and_says_so_once(model, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("MLIP_CACHE", str(tmp_path))
    atoms, plain = molecule("CH3CH2OH"), MLIPCalculator(model)
    with caplog.at_level(logging.INFO, "mlip"):
        calculator = MLIPCalculator(model, compile="auto")
        for _ in range(2):
            atoms.rattle(0.01)
            assert calculator.get_potential_energy(atoms) == plain.get_potential_energy(atoms)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("compile: running uncompiled: no C++ compiler found; install one")
    with pytest.raises(ConfigError, match="compile is True: no C"):
        MLIPCalculator(model, compile=True).get_potential_energy(atoms)


def test_what_cannot_be_compiled(model):
    with pytest.raises(ConfigError, match="ToyPotential"):
        MLIPCalculator(ToyPotential(), compile=True)
    with pytest.raises(ConfigError, match='"auto"'):
        MLIPCalculator(model, compile="yes")


def test_models_that_differ_in_more_than_weights_are_compiled_apart(model):
    other = build(model.config.model_copy(update={"cutoff": 4.0}), model.elements, e0={6: -1000.0}, seed=0, dtype="float64")
    assert MLIPCalculator(other).fingerprint() == MLIPCalculator(model).fingerprint()  # the same weights
    twin = MLIPCalculator(model).model
    assert fingerprint_of(other) != fingerprint_of(model) == fingerprint_of(twin) != fingerprint_of(twin.float())


def same(calculator, plain, atoms, tolerance):
    for name in ("energy", "forces", "stress") if atoms.pbc.all() else ("energy", "forces"):
        wanted = plain.get_property(name, atoms)
        np.testing.assert_allclose(calculator.get_property(name, atoms), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.timeout(3600)  # the compiler takes its time on a busy machine
def test_compiled_equals_eager_for_every_size_and_is_compiled_once(model, monkeypatch, tmp_path):
    monkeypatch.setenv("MLIP_CACHE", str(tmp_path))
    plain, calculator = MLIPCalculator(model), MLIPCalculator(model, compile=True)
    diamond = bulk("C", cubic=True) * (2, 1, 1)
    diamond.rattle(0.05, seed=0)
    apart = Atoms("C2", [[0, 0, 0], [20, 0, 0]])
    for atoms in (molecule("CH3CH2OH"), diamond, Atoms("O"), molecule("CO"), molecule("H2O"), apart):
        same(calculator, plain, atoms, 1e-10)
    twin = pickle.loads(pickle.dumps(calculator))
    monkeypatch.setenv("CXX", "no-such-compiler")  # from the cache
    for other in (twin, MLIPCalculator(model, compile=True)):
        same(other, plain, diamond, 1e-10)


@pytest.mark.slow
@pytest.mark.timeout(3600)  # the compiler takes its time on a busy machine
def test_exported_equals_eager_and_damage_is_noticed(tmp_path, model):
    from typer.testing import CliRunner

    from mlip.cli import app

    checkpoint, out = save_model(model, tmp_path / "model.safetensors"), tmp_path / "model.pt2"
    result = CliRunner().invoke(app, ["export", str(checkpoint), str(out), "--dtype", "float32"])
    assert result.exit_code == 0 and "checked against" in result.output
    exported, plain = MLIPCalculator(out), MLIPCalculator(checkpoint, dtype="float32")
    assert exported.elements == plain.elements and exported.fingerprint() != plain.fingerprint()
    for atoms in (molecule("CH3CH2OH"), Atoms("O")):
        same(exported, plain, atoms, 1e-4)
        same(pickle.loads(pickle.dumps(exported)), plain, atoms, 1e-4)
    with pytest.raises(ConfigError, match="float64"):
        MLIPCalculator(out, dtype="float64")
    with zipfile.ZipFile(out) as archive:
        header, parts = json.loads(archive.read("mlip.json")), {n: archive.read(n) for n in archive.namelist()}
    header["check"]["outputs"][0][0] += 1.0
    with zipfile.ZipFile(out, "w") as archive:
        for name, part in (parts | {"mlip.json": json.dumps(header).encode()}).items():
            archive.writestr(name, part)
    with pytest.raises(CheckpointError, match="differ from the model's"):
        ExportedPotential(out)
