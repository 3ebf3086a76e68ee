"""The shipped set datasets/organics is what its README says."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from mlip.data.hdf5 import HDF5Frames
from scf_accel.fitting import auxiliary_charges, make_auxmol
from scf_accel.labels import LabelSettings, make_molecule
from scf_accel.structures import has_clash, is_near_duplicate, structure_from_smiles

FOLDER = Path(__file__).parents[2] / "datasets" / "organics"
ELEMENTS = {1, 6, 7, 8, 9, 15, 16, 17}


@pytest.fixture(scope="module")
def frames():
    return HDF5Frames(FOLDER / "organics.h5")


def test_readme_counts_what_the_file_holds(frames):
    row = r"^\| frames \| (\d+) frames of (\d+) molecules; (\d+) atoms; (\d+) to (\d+) atoms a frame, mean ([\d.]+) \|$"
    found = re.search(row, (FOLDER / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert found, "the README has no row 'frames'"
    sizes = frames.num_atoms
    counts = len(frames), len(set(frames.frame_extra("molecule"))), sizes.sum(), sizes.min(), sizes.max()
    assert tuple(map(int, found.groups()[:5])) == counts
    assert float(found[6]) == pytest.approx(sizes.mean(), abs=0.051)


def test_second_order_cycles_are_counted_or_unknown(frames):
    solvers, cycles = frames.frame_extra("solver"), frames.frame_extra("scf_cycles")
    for solver, count in zip(solvers, cycles, strict=True):
        assert 1 <= count <= 60 if solver in ("diis", "multilevel") else count == -1 or count > 1


def test_labels_are_complete_and_of_one_theory(frames):
    theory = frames.attrs["level_of_theory"]
    assert {name: theory[name] for name in LabelSettings().as_dict()} == LabelSettings().as_dict()
    assert frames.attrs["licence"] == "CC0-1.0" and theory["density_metric"] == "coulomb"
    assert len({frame.id for frame in frames}) == len(frames)
    for frame in frames:
        assert np.isfinite(frame.energy) and np.isfinite(frame.forces).all()
        assert np.isfinite(frame.density_coefficients).all()
        assert np.abs(frame.forces.sum(axis=0)).max() < 1e-4  # float32 storage
        assert len(frame) <= 20 and set(frame.atomic_numbers.tolist()) <= ELEMENTS
        assert not frame.pbc.any()


def test_every_element_has_its_isolated_atom_and_the_set_is_diverse(frames):
    atoms = {int(frame.atomic_numbers[0]): frame for frame in frames if len(frame) == 1}
    assert set(atoms) == ELEMENTS
    assert {z: frame.spin for z, frame in atoms.items()} == {1: 1, 6: 2, 7: 3, 8: 2, 9: 1, 15: 3, 16: 2, 17: 1}
    for frame in frames:  # every molecule is bound, or nearly so where it is strongly distorted
        assert frame.energy < sum(atoms[int(z)].energy for z in frame.atomic_numbers) + 3.0
    molecules = set(frames.frame_extra("molecule"))
    assert "CCO" in molecules and len(molecules) > 60
    for element in ELEMENTS:
        assert sum(element in frame.atomic_numbers for frame in frames) > 30


def test_no_near_duplicates_and_no_clashes(frames):
    seen = defaultdict(list)
    for frame in frames:
        key = frame.extras["molecule"]
        pulled_diatomic = len(frame) == 2 and frame.extras["origin"].startswith("stretched")  # another run's Gaussian copy is alike
        assert pulled_diatomic or not is_near_duplicate(frame.positions, seen[key])
        seen[key].append(frame.positions)
        assert not has_clash(frame.atomic_numbers, frame.positions)


def test_density_coefficients_count_the_electrons(frames):
    """Also a check of the order of the coefficients: the s functions must sit where the basis says."""
    for index in range(0, len(frames), max(1, len(frames) // 25)):
        frame = frames[index]
        mol = make_molecule(frame.atomic_numbers, frame.positions, frame.charge, frame.spin, LabelSettings())
        charges = auxiliary_charges(make_auxmol(mol))
        assert len(charges) == len(frame.density_coefficients)
        assert charges @ frame.density_coefficients == pytest.approx(mol.nelectron, rel=2e-3)


def test_a_stored_label_is_reproduced(frames):
    """One small frame is labelled again: the file, its theory and today's code agree."""
    from scf_accel.labels import compute_labels

    index = next(k for k, name in enumerate(frames.frame_extra("molecule")) if name == "O")
    frame = frames[index]
    labels = compute_labels(frame.atomic_numbers, frame.positions, frame.charge, frame.spin, LabelSettings())
    assert labels.energy == pytest.approx(frame.energy, abs=1e-5)
    np.testing.assert_allclose(labels.forces, frame.forces, atol=1e-3)
    np.testing.assert_allclose(labels.density_coefficients, frame.density_coefficients, atol=1e-4)


def test_geometries_follow_from_the_committed_list(frames):
    from rdkit import Chem

    lines = [line for name in ("molecules", "molecules-wide") for line in (FOLDER / f"{name}.smi").read_text().splitlines()]
    listed = {Chem.CanonSmiles(line) for line in lines if line[0] != "#"}
    assert set(frames.frame_extra("molecule")) <= listed
    k = next(k for k, f in enumerate(frames) if f.extras["molecule"] == "O" and f.extras["origin"] == "mmff")
    again = structure_from_smiles("O", Chem.AddHs(Chem.MolFromSmiles("O")), 0)
    ours, theirs = (np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (again.positions, frames[k].positions))
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_density_set_is_what_the_readme_says():
    """densities.h5: as many frames as stated, one theory of its own, whole densities, no forces, no molecule of the benchmarks."""
    from rdkit import Chem, rdBase

    frames = HDF5Frames(FOLDER / "densities.h5")
    row = r"^\| frames in densities.h5 \| (\d+) frames of (\d+) molecules; (\d+) atoms; (\d+) to (\d+) atoms a frame"
    found = re.search(row, (FOLDER / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert found, "the README has no row 'frames in densities.h5'"
    sizes, molecules = frames.num_atoms, set(frames.frame_extra("molecule"))
    assert tuple(map(int, found.groups())) == (len(frames), len(molecules), sizes.sum(), sizes.min(), sizes.max())
    settings = LabelSettings(grid_level=0, conv_tol=1e-7, forces=False).as_dict()
    assert {name: frames.attrs["level_of_theory"][name] for name in settings} == settings
    for index in range(0, len(frames), max(1, len(frames) // 25)):
        frame = frames[index]
        mol = make_molecule(frame.atomic_numbers, frame.positions, frame.charge, frame.spin, LabelSettings())
        assert frame.forces is None and np.isfinite(frame.energy)
        count = auxiliary_charges(make_auxmol(mol)) @ frame.density_coefficients
        assert count == pytest.approx(mol.nelectron, rel=2e-3)
    benchmarks = FOLDER.parents[1] / "benchmarks"
    with rdBase.BlockLogs():
        tested = {
            Chem.CanonSmiles(line.split()[0])
            for name in ("guess_small.smi", "guess_large.smi")
            for line in (benchmarks / name).read_text(encoding="utf-8").splitlines()
            if line and line[0] != "#"
        }
    assert len(tested) > 50 and not tested & molecules


def test_ions_and_radicals_are_a_set_of_their_own(frames):
    """ions.h5: every frame is charged or has unpaired electrons, by its SMILES; the theory is that of organics.h5."""
    from rdkit import Chem

    ions = HDF5Frames(FOLDER / "ions.h5", load_density=False)
    row = r"^\| frames in ions.h5 \| (\d+) frames of (\d+) ions and radicals; (\d+) atoms; (\d+) to (\d+) atoms a frame"
    found = re.search(row, (FOLDER / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert found, "the README has no row 'frames in ions.h5'"
    sizes, molecules = ions.num_atoms, ions.frame_extra("molecule")
    assert tuple(map(int, found.groups())) == (len(ions), len(set(molecules)), sizes.sum(), sizes.min(), sizes.max())
    assert ions.attrs["level_of_theory"] == frames.attrs["level_of_theory"] and ions.attrs["licence"] == "CC0-1.0"
    for frame in ions:
        assert frame.charge or frame.spin
        assert frame.charge == Chem.GetFormalCharge(Chem.MolFromSmiles(frame.extras["molecule"])) and abs(frame.charge) <= 1
        assert (frame.atomic_numbers.sum() - frame.charge - frame.spin) % 2 == 0
        assert np.isfinite(frame.energy) and np.isfinite(frame.forces).all()
    kinds = {(frame.charge, min(frame.spin, 1)) for frame in ions}
    assert kinds >= {(1, 0), (-1, 0), (0, 1)}


def test_no_ion_or_radical_in_the_set_of_molecules(frames):
    for frame in frames:
        assert frame.charge == 0 and (frame.spin == 0 or len(frame) == 1), frame.id


def test_pretraining_list_holds_nothing_that_organics_energy_is_judged_by():
    """molecules-many.smi against the splits of configs/organics-energy.yaml and the benchmarks' lists, stereoisomers included."""
    from rdkit import Chem, rdBase

    from mlip.configfile import load_config
    from mlip.training.prepare import prepare

    def flat(smiles):
        molecule = Chem.MolFromSmiles(smiles)
        Chem.RemoveStereochemistry(molecule)
        return Chem.MolToSmiles(molecule)

    def listed(path):
        return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]

    root = FOLDER.parents[1]
    data = prepare(load_config(root / "configs" / "organics-energy.yaml", ["model.init_from=null"]))
    judged = {frame.extras["molecule"] for part in (data.valid, data.tests["test"]) for frame in part}
    with rdBase.BlockLogs():
        many = {flat(smiles) for smiles in listed(FOLDER / "molecules-many.smi")}
        judged = {flat(smiles) for smiles in judged}
        tested = {flat(smiles) for path in (root / "benchmarks").glob("*.smi") for smiles in listed(path)}
    assert len(many) > 9000 and len(judged) > 80 and len(tested) > 50
    assert not many & judged and not many & tested
