"""Jobs: the same command gives the same ids, copies are distinct and physical, bad input is one clear line."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import molecule

from mlip.errors import DataError, StructureError
from scf_accel.forcefield import bonded_molecule, langevin_snapshot, molecular_force_field
from scf_accel.structures import (
    Perturbations,
    has_clash,
    has_flown_apart,
    is_near_duplicate,
    job_id,
    make_groups,
    parse_range,
    read_smiles,
    read_structures,
    structure_from_smiles,
)

COPIES = Perturbations(gaussian=((0.03, 0.1),), langevin=((300, 600), (600, 1000)), langevin_steps=60, seed=1)


def write(folder, text, name="molecules.smi"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def ids(groups):
    return [job.id for group in groups for job in group]


def test_same_command_same_jobs(tmp_path):
    path = write(tmp_path, "CCO ethanol\n\n# a comment\nC#N\n[N]\nOCC\n")
    first, left_out = make_groups(path, COPIES, {"basis": "x"})
    assert [len(group) for group in first] == [4, 4, 1]  # OCC is CCO again; an atom has no copies
    assert not left_out
    assert ids(first) == ids(make_groups(path, COPIES, {"basis": "x"})[0])
    assert len(set(ids(first))) == 9
    turned = write(tmp_path, "[N]\nC#N\nCCO\n", "turned.smi")
    assert set(ids(make_groups(turned, COPIES, {"basis": "x"})[0])) == set(ids(first))
    others = make_groups(path, COPIES, {"basis": "y"}), make_groups(path, Perturbations(seed=2), {"basis": "x"})
    for other, _ in others:
        assert not set(ids(other)) & set(ids(first)) - {ids(first)[-1]}  # the lone atom has no random part


def test_copies_move_and_keep_the_molecule(tmp_path):
    ((base, *copies),) = make_groups(write(tmp_path, "CCO\n"), COPIES, {})[0]
    for copy in copies:
        shift = np.abs(copy.structure.positions - base.structure.positions)
        assert 0.02 < shift.max() < 1.5
        np.testing.assert_array_equal(copy.structure.numbers, base.structure.numbers)
        assert not has_clash(copy.structure.numbers, copy.structure.positions)
    assert [c.structure.origin.split()[0] for c in copies] == ["gaussian", "langevin", "langevin"]


def test_langevin_runs_at_its_temperature():
    """Equipartition: the mean potential energy above the minimum is about kT/2 for each of 3N - 6 vibrations."""
    from rdkit import Chem

    molecule = Chem.AddHs(Chem.MolFromSmiles("CO"))
    base = structure_from_smiles("CO", molecule, 0)
    field, name = molecular_force_field(molecule)
    assert name == "mmff"
    bottom = field.CalcEnergy(base.positions.ravel().tolist())
    rng = np.random.default_rng(0)
    excess = []
    for _ in range(40):
        x = langevin_snapshot(molecule, base.positions, 300.0, 200, rng)
        excess.append(field.CalcEnergy(x.ravel().tolist()) - bottom)
    expected = 0.5 * (3 * 6 - 6) * 0.0019872 * 300.0  # kcal/mol
    assert np.mean(excess) == pytest.approx(expected, rel=0.35)


def test_near_duplicates_are_left_out(tmp_path):
    import ase.io
    from ase.build import molecule

    water = molecule("H2O")
    turned, moved = water.copy(), water.copy()
    turned.rotate(40, "x")
    moved.positions[1, 1] += 0.1
    ase.io.write(tmp_path / "water.xyz", [water, turned, moved])
    for index, frame in enumerate((water, turned, moved)):
        frame.info["molecule"] = "water"
        frame.info["index"] = index
    ase.io.write(tmp_path / "water.xyz", [water, turned, moved], format="extxyz")
    groups, left_out = make_groups(tmp_path / "water.xyz", Perturbations(), {})
    assert len(ids(groups)) == 2 and len(left_out) == 1 and "near-duplicate" in left_out[0]
    assert is_near_duplicate(water.positions, [turned.positions])
    assert not is_near_duplicate(water.positions, [moved.positions])


def test_job_id_depends_on_everything_that_matters(tmp_path):
    ((job,),) = make_groups(write(tmp_path, "O\n"), Perturbations(), {})[0]
    s = job.structure
    base = job_id(s, {})
    for change in ({"charge": 1}, {"spin": 2}, {"positions": s.positions + 1e-5}, {"numbers": s.numbers + 1}):
        assert job_id(type(s)(**{**vars(s), **change}), {}) != base
    assert job_id(s, {"xc": "pbe"}) != base


def test_charge_and_spin(tmp_path):
    path = write(tmp_path, "[O][O]\nO=O\n[CH3]\n[NH4+]\n[C]\n[O]\n")
    found = {group[0].structure.molecule: group[0].structure for group in make_groups(path, Perturbations(), {})[0]}
    assert {name: (s.charge, s.spin) for name, s in found.items()} == {
        "[O][O]": (0, 2), "O=O": (0, 0), "[CH3]": (0, 1), "[NH4+]": (1, 0), "[C]": (0, 2), "[O]": (0, 2)
    }  # fmt: skip


def test_ase_file_with_charge_and_langevin(tmp_path):
    import ase.io
    from ase.build import molecule

    ion = molecule("H2O")
    ion.info["charge"] = 1
    ase.io.write(tmp_path / "a.xyz", [molecule("CH3OH"), ion], format="extxyz")
    groups, left_out = make_groups(tmp_path / "a.xyz", Perturbations(langevin=((300, 300),), langevin_steps=20), {})
    methanol, cation = groups
    assert len(methanol) == 2 and methanol[1].structure.origin == "langevin 300 K"
    assert (cation[0].structure.charge, cation[0].structure.spin) == (1, 1)
    assert len(cation) + len(left_out) == 2, left_out  # the copy of the cation was made, or its absence is told
    assert all("langevin 300 K" in line for line in left_out)
    with pytest.raises(StructureError, match="use Gaussian copies"):
        bonded_molecule(np.array([18, 10]), np.array([[0.0, 0, 0], [0, 0, 9.0]]), 3)


def test_charge_and_multiplicity_are_read_as_the_data_readers_do(tmp_path):
    import ase.io
    from ase.build import molecule

    from mlip.data.frame import Frame
    from mlip.data.readers import open_frames, to_atoms

    oxygen = molecule("O2")
    ours = to_atoms(Frame(oxygen.numbers, oxygen.positions, charge=-1, spin=3))
    named = molecule("O2")
    named.info.update(total_charge=1, spin_multiplicity=2)
    ase.io.write(tmp_path / "a.extxyz", [ours, named, molecule("O2")], format="extxyz")
    found = [(s.charge, s.spin) for s in read_structures(tmp_path / "a.extxyz")]
    assert found == [(-1, 3), (1, 1), (0, 0)]
    assert found == [(frame.charge, frame.spin) for frame in open_frames(tmp_path / "a.extxyz")]
    named.info = {"charge": "minus"}
    ase.io.write(tmp_path / "b.extxyz", named, format="extxyz")
    with pytest.raises(DataError, match=r"b\.extxyz: frame 0: charge is 'minus', not numbers"):
        read_structures(tmp_path / "b.extxyz")


def test_max_atoms_says_what_it_leaves_out(tmp_path):
    groups, left_out = make_groups(write(tmp_path, "C\nCCCC\n"), Perturbations(), {}, max_atoms=6)
    assert len(groups) == 1 and left_out == ["CCCC: 14 atoms, more than --max-atoms 6"]


@pytest.mark.parametrize(
    ("text", "words"),
    [("CCO\nxyz(\nC1CC\n*C\n", r"line 2 \(xyz\(\), line 3 \(C1CC\), line 4"), ("# nothing\n", "no SMILES")],
)
def test_bad_smiles_file(tmp_path, text, words):
    with pytest.raises(DataError, match=words) as caught:
        read_smiles(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_periodic_or_unreadable_structures_are_refused(tmp_path):
    import ase.io
    from ase.build import bulk

    ase.io.write(tmp_path / "si.xyz", bulk("Si"), format="extxyz")
    with pytest.raises(DataError, match="periodic"):
        make_groups(tmp_path / "si.xyz", Perturbations(), {})
    with pytest.raises(DataError, match="ASE cannot read"):
        make_groups(write(tmp_path, "no structure", "a.cif"), Perturbations(), {})
    with pytest.raises(DataError, match="no such file"):
        make_groups(tmp_path / "missing.smi", Perturbations(), {})


@pytest.mark.parametrize("text", ["", "a", "-0.1", "0.2:0.1", "1:2:3", "nan", "0"])
def test_bad_range(text):
    with pytest.raises(DataError, match="one positive number or a range"):
        parse_range("--gaussian", text)


def test_range():
    assert parse_range("--langevin", "300") == (300.0, 300.0)
    assert parse_range("--gaussian", "0.03:0.12") == (0.03, 0.12)


def test_a_force_field_geometry_that_makes_no_sense_is_left_out(tmp_path):
    """UFF squeezes PF5 to F-F of 0.9 Angstrom, and its MD explodes: neither is labelled, and both are said."""
    path = tmp_path / "m.smi"
    path.write_text("FP(F)(F)(F)F\nCO\n")
    groups, left_out = make_groups(path, Perturbations(langevin=((300.0, 800.0),)), {})
    assert {job.structure.molecule for group in groups for job in group} == {"CO"}
    assert any("no sensible geometry" in line for line in left_out)


def test_an_atom_that_flew_away_is_noticed():
    water = molecule("H2O")
    assert not has_flown_apart(water.numbers, water.positions)
    water.positions[1] += 5.0
    assert has_flown_apart(water.numbers, water.positions)
    assert not has_flown_apart(water.numbers[:1], water.positions[:1])
