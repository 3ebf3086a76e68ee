"""From a PySCF molecule to coefficients by a model: order, frame of reference, ghosts, and what it refuses."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from pyscf import gto, scf
from small_molecules import molecule

import scf_accel
from mlip.checkpoint import save_model
from mlip.errors import CheckpointError
from mlip.models import build
from mlip.models.densitystats import DensityReference
from scf_accel.auxbasis import load_density_basis, make_auxmol, rotate_coefficients
from scf_accel.fitting import electron_count
from scf_accel.predictor import DensityPredictor, ExactPredictor, PredictionError, Predictor, as_predictor

ELEMENTS = [1, 6, 8]
BASIS = load_density_basis("def2-universal-jfit", ELEMENTS)


def make_model(charges=(0,), dtype="float32"):
    fields = {"channels": 8, "l_max": 1, "num_layers": 1, "energy": False, "density": {}}
    reference = DensityReference(BASIS, charges=charges)
    return build(fields, ELEMENTS, density=reference, avg_num_neighbors=4.0, dtype=dtype, seed=0)


def turned(angle=0.7):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def test_coefficients_are_in_the_order_of_the_auxiliary_molecule_and_turn_with_it():
    mol, predictor = molecule("formaldehyde"), DensityPredictor(make_model(dtype="float64"))
    aux = predictor.auxmol(mol)
    wanted = predictor.coefficients(mol)
    assert wanted.shape == (aux.nao,) and wanted.dtype == np.float64
    assert electron_count(aux, wanted) == pytest.approx(16, abs=1e-6), "projected"
    rotation = turned()
    moved = mol.set_geom_(mol.atom_coords() @ rotation.T + 1.0, unit="Bohr", inplace=False)
    numbers = [6, 8, 1, 1]
    np.testing.assert_allclose(predictor.coefficients(moved), rotate_coefficients(BASIS, numbers, wanted, rotation), atol=1e-8)
    points = np.random.default_rng(0).normal(size=(50, 3))
    density = aux.eval_gto("GTOval_sph", points) @ wanted
    other = predictor.auxmol(moved).eval_gto("GTOval_sph", points @ rotation.T + 1.0) @ predictor.coefficients(moved)
    np.testing.assert_allclose(other, density, atol=1e-8)


def test_ghosts_and_the_orbital_basis_do_not_matter():
    predictor = DensityPredictor(make_model(dtype="float64"))
    plain = predictor.coefficients(molecule())
    ghosts = molecule("GHOST-O 0 0 3; O 0 0 0.12; H 0 0.76 -0.47; X-H 0 0 4; H 0.02 -0.75 -0.48", "def2-svp")
    assert predictor.auxmol(ghosts).natm == 5 and predictor.refusal(ghosts) is None
    np.testing.assert_allclose(predictor.coefficients(ghosts), plain, atol=1e-12)


def test_units_of_the_molecule_do_not_matter():
    predictor = DensityPredictor(make_model(dtype="float64"))
    mol = molecule()
    bohr = gto.M(atom=[(mol.atom_symbol(k), mol.atom_coord(k)) for k in range(3)], unit="Bohr", basis="sto-3g")
    np.testing.assert_allclose(predictor.coefficients(bohr), predictor.coefficients(mol), atol=1e-8)


def test_refusals():
    predictor = DensityPredictor(make_model())
    assert predictor.refusal(molecule()) is None
    assert predictor.refusal(molecule(spin=2)) is None, "open shells are covered"
    assert "not trained on F, S" in predictor.refusal(molecule("S 0 0 0; F 0 0 1.6; H 1.3 0 0"))
    assert "total charge 0, not 1" in predictor.refusal(molecule(charge=1, spin=1))
    assert DensityPredictor(make_model(charges=(0, 1))).refusal(molecule(charge=1, spin=1)) is None
    cores = molecule("O 0 0 0; H 0 0 1", basis={"O": "ccecp-cc-pvdz", "H": "sto-3g"}, ecp={"O": "ccecp"}, charge=-1)
    assert "atom 0 (O) has a core potential" in predictor.refusal(cores)
    assert "no atoms" in predictor.refusal(molecule("GHOST-H 0 0 0"))


def test_a_model_without_a_density_head():
    model = build({"channels": 8, "l_max": 1, "num_layers": 1}, ELEMENTS, avg_num_neighbors=4.0, dtype="float32", seed=0)
    assert "no density head" in DensityPredictor(model).refusal(molecule())


def test_an_untrained_model_is_found_out_by_what_its_density_would_have_to_change():
    mf = scf_accel.warm_start(scf.RHF(molecule()), DensityPredictor(make_model()))
    dm = mf.get_init_guess()
    assert "estimated energy error" in mf.warm_start_report.fallback
    np.testing.assert_array_equal(dm, mf.undo_warm_start().get_init_guess())


def test_overlapping_atoms():
    with pytest.raises(PredictionError, match="Angstrom apart"):
        DensityPredictor(make_model()).coefficients(molecule("O 0 0 0; H 0 0 0.1; H 0 1 0"))


def test_checkpoints(tmp_path):
    model = make_model()
    path = save_model(model, tmp_path / "water-density.safetensors")
    predictor, again = as_predictor(path), as_predictor(str(path))
    assert predictor is again, "loaded once"
    assert predictor.name == "water-density" and predictor.refusal(molecule()) is None
    mol, double = molecule("formaldehyde"), DensityPredictor(path, dtype="float64")
    np.testing.assert_allclose(double.coefficients(mol), DensityPredictor(model).coefficients(mol), atol=1e-4)
    assert double.model.dtype == torch.float64 and not double.model.training
    folder = tmp_path / "run"
    folder.mkdir()
    save_model(model, folder / "model.safetensors")
    assert as_predictor(folder).name == "run"
    with pytest.raises(CheckpointError, match="no model"):
        as_predictor(tmp_path / "absent.safetensors")


def test_a_file_of_the_year_1970_is_a_file(tmp_path):
    path = save_model(make_model(), tmp_path / "old-density.safetensors")
    os.utime(path, (0, 0))
    assert as_predictor(path).name == "old-density" and as_predictor(path).basis == BASIS


def test_the_oracle_knows_molecules_apart_at_the_same_place():
    predictor = ExactPredictor(lambda mol: scf.UHF(mol))
    cases = [("O 0 0 0; H 0 0 1", -1, 0), ("F 0 0 0; H 0 0 1", 0, 0), ("F 0 0 0; H 0 0 1", 1, 1), ("F 0 0 0; H 0 0 1", 0, 2)]
    mols = [molecule(atoms, "sto-3g", charge=charge, spin=spin) for atoms, charge, spin in cases]
    found = [(mol, predictor.coefficients(mol)) for mol in mols]
    for mol, coefficients in found:
        assert electron_count(predictor.auxmol(mol), coefficients) == pytest.approx(mol.nelectron, abs=0.1)
        assert predictor.coefficients(mol.copy()) is coefficients
    assert len({coefficients.tobytes() for _, coefficients in found}) == len(cases)


def test_anything_with_the_three_methods_is_a_predictor():
    exact = ExactPredictor(lambda mol: None)
    assert isinstance(exact, Predictor) and as_predictor(exact) is exact
    assert make_auxmol(molecule(), BASIS).nao == exact.auxmol(molecule()).nao
