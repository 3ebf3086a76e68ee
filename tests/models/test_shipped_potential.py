"""The potential in the package: what it is, that it works out of the box, and that DFT agrees with what it says of a molecule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.units import Hartree
from typer.testing import CliRunner

from mlip import MLIPCalculator
from mlip.checkpoint import read_header, shipped_models
from mlip.cli import app
from mlip.data.hdf5 import HDF5Frames, write_frames
from mlip.defaults import DEFAULT_POTENTIAL
from mlip.dynamics import relax
from mlip.errors import StructureError


def test_its_file_says_what_it_is():
    path = shipped_models()[DEFAULT_POTENTIAL]
    about = read_header(path)["metadata"]
    assert path.stat().st_size < 20e6
    assert about["level_of_theory"]["xc"] == "pbe" and about["level_of_theory"]["basis"] == "def2-svp"
    assert about["errors"]["test"]["forces"]["mae"] < 100 and about["errors"]["test"]["energy_per_atom"]["mae"] < 20


def test_it_is_the_default():
    given, default = MLIPCalculator(DEFAULT_POTENTIAL), MLIPCalculator()
    assert default.fingerprint() == given.fingerprint()
    assert set(default.elements) == {1, 6, 7, 8, 9, 15, 16, 17}


def test_what_it_does_not_know_is_refused():
    atoms = bulk("Si")
    atoms.calc = MLIPCalculator()
    with pytest.raises(StructureError, match="does not know Si; it was made for H, C, N, O, F, P, S, Cl"):
        atoms.get_potential_energy()
    atoms = molecule("CH3")
    atoms.info["charge"] = 1
    atoms.calc = MLIPCalculator()
    with pytest.raises(StructureError, match="charge"):
        atoms.get_potential_energy()
    del atoms.info["charge"]
    with pytest.raises(StructureError, match=r"9 electrons.* closed shells alone"):
        atoms.get_potential_energy()


def test_dft_has_small_forces_at_its_minimum():
    pytest.importorskip("pyscf")
    from scf_accel.labels import LabelSettings, compute_labels

    atoms = molecule("CH3CH2OH")
    calculator = MLIPCalculator(dtype="float64", uncertainty=True)
    assert relax(atoms, calculator, fmax=0.01).converged
    labels = compute_labels(atoms.numbers, atoms.positions, 0, 0, LabelSettings(grid_level=1))
    assert np.abs(labels.forces).max() < 0.2  # 0.05; at the ase.build geometry 0.77
    assert calculator.results["forces_std"].max() < 0.5


def test_eval_says_that_energies_look_like_hartree(tmp_path):
    """Of all-electron energies that were read as eV; not where the units are right, or named."""
    frames = HDF5Frames(Path(__file__).parents[2] / "datasets" / "organics" / "organics.h5", load_density=False)
    chosen = [frames[k] for k in range(0, len(frames), 40)]
    for name, unit in (("right", 1.0), ("wrong", Hartree)):
        write_frames(tmp_path / f"{name}.h5", [replace(f, energy=f.energy / unit, forces=f.forces / unit) for f in chosen])

    def said(name, *more):
        ended = CliRunner().invoke(app, ["eval", DEFAULT_POTENTIAL, str(tmp_path / f"{name}.h5"), "--no-plots", *more])
        assert ended.exit_code == 0, ended.output
        return "all their electrons in Hartree, and read as eV" in ended.output

    assert said("wrong") and not said("right")
    assert not said("wrong", "--units", "energy=eV,length=Angstrom")
