"""Readers: labels under whatever usual name and unit become eV and Angstrom; doubt is an error."""

from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator

from mlip.data.readers import iter_frames, open_frames, to_atoms
from mlip.data.units import LabelKeys, Units
from mlip.errors import DataError

CELL = 'Lattice="4 0 0 0 5 0 0 0 6"'
FORCES = "Properties=species:S:1:pos:R:3:{}:R:3"


def xyz(tmp_path, *frames, name="a.extxyz"):
    """A file of two-atom frames with the given comment lines."""
    path = tmp_path / name
    atoms = "H 0 0 0 0.1 0.2 0.3\nO 0 0 1 -0.1 -0.2 -0.3\n"
    path.write_text("".join(f"2\n{comment}\n{atoms}" for comment in frames))
    return path


def test_usual_names(tmp_path):
    for energy, forces in (("energy", "forces"), ("REF_energy", "REF_forces"), ("dft_energy", "force"),
                           ("total_energy", "DFT_forces")):  # fmt: skip
        [frame] = open_frames(xyz(tmp_path, f"{FORCES.format(forces)} {energy}=-1.5"))
        assert frame.energy == -1.5
        np.testing.assert_array_equal(frame.forces[0], [0.1, 0.2, 0.3])
        assert frame.stress is None and not frame.pbc.any()


def test_a_missing_label_is_none(tmp_path):
    frames = open_frames(xyz(tmp_path, FORCES.format("forces"), FORCES.format("velo") + " energy=1"))
    assert frames[0].energy is None and frames[0].forces is not None
    assert frames[1].energy == 1.0 and frames[1].forces is None


@pytest.mark.parametrize(
    "comments",
    [
        (FORCES.format("forces") + " energy=1 REF_energy=2",),
        (FORCES.format("forces") + " energy=1", FORCES.format("forces") + " REF_energy=2"),
    ],
)
def test_several_names_for_one_label_are_listed(tmp_path, comments):
    path = xyz(tmp_path, *comments)
    with pytest.raises(DataError, match=r"several names for the energy: REF_energy, energy"):
        open_frames(path)
    assert open_frames(path, LabelKeys(energy="REF_energy"))[-1].energy == 2.0


def test_stress_and_virial_together_are_two_names(tmp_path):
    comment = f'{CELL} {FORCES.format("forces")} stress="1 0 0 0 1 0 0 0 1" virial="1 0 0 0 1 0 0 0 1"'
    with pytest.raises(DataError, match="several names for the stress: stress, virial"):
        open_frames(xyz(tmp_path, comment))


def test_free_energy_only_where_there_is_no_other(tmp_path):
    both = xyz(tmp_path, FORCES.format("forces") + " energy=1 free_energy=2")
    assert open_frames(both)[0].energy == 1.0
    assert open_frames(both, LabelKeys(energy="free_energy"))[0].energy == 2.0
    assert open_frames(xyz(tmp_path, FORCES.format("forces") + " free_energy=2"))[0].energy == 2.0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_free_energy_and_energy_do_not_mix_in_one_file(tmp_path, order):
    frames = [xyz(tmp_path, FORCES.format("forces") + f" {name}=1").read_text() for name in ("energy", "free_energy")]
    path = tmp_path / "mixed.extxyz"
    path.write_text("".join(frames[k] for k in order))
    with pytest.raises(DataError, match=r"several names for the energy: energy, free_energy"):
        list(open_frames(path))


def test_an_asked_for_name_must_exist(tmp_path):
    with pytest.raises(DataError, match=r"'E_dft' named for energy.*config_type, energy"):
        open_frames(xyz(tmp_path, FORCES.format("forces") + " energy=1 config_type=x"), LabelKeys(energy="E_dft"))


def test_virial_is_minus_volume_times_stress(tmp_path):
    virial = "12 0 0 0 24 6 0 6 36"
    [frame] = open_frames(xyz(tmp_path, f'{CELL} {FORCES.format("forces")} virial="{virial}"'))
    np.testing.assert_allclose(frame.stress, [-0.1, -0.2, -0.3, -0.05, 0, 0], atol=1e-15)


def test_nine_and_six_numbers_are_the_same_stress(tmp_path):
    nine = f'{CELL} {FORCES.format("forces")} stress="1 6 5 6 2 4 5 4 3"'
    six = f'{CELL} {FORCES.format("forces")} REF_stress="1 2 3 4 5 6"'
    for comment in (nine, six):
        np.testing.assert_array_equal(open_frames(xyz(tmp_path, comment))[0].stress, [1, 2, 3, 4, 5, 6])
    crooked = f'{CELL} {FORCES.format("forces")} REF_stress="1 6 5 0 2 4 5 4 3"'
    with pytest.raises(DataError, match="not symmetric"):
        open_frames(xyz(tmp_path, crooked))


def test_units_are_converted(tmp_path):
    comment = f'{CELL} {FORCES.format("forces")} energy=2 stress="1 0 0 0 1 0 0 0 1"'
    unit = Units(energy="hartree", length="bohr", stress="GPa", stress_sign="compression_positive")
    [frame] = open_frames(xyz(tmp_path, comment), units=unit)
    assert frame.energy == pytest.approx(2 * units.Hartree)
    np.testing.assert_allclose(frame.positions[1], [0, 0, units.Bohr])
    np.testing.assert_allclose(np.diag(frame.cell), np.array([4, 5, 6]) * units.Bohr)
    np.testing.assert_allclose(frame.forces[0], np.array([0.1, 0.2, 0.3]) * units.Hartree / units.Bohr)
    np.testing.assert_allclose(frame.stress[:3], -units.GPa)


@pytest.mark.parametrize(
    ("fields", "factor"),
    [
        ({"energy": "kcal/mol"}, units.kcal / units.mol),
        ({"energy": "kJ/mol", "length": "nm"}, units.kJ / units.mol / 10),
        ({"forces": "Hartree/Bohr"}, units.Hartree / units.Bohr),
        ({"energy": "Hartree", "forces": "kcal/mol/Angstrom"}, units.kcal / units.mol),
    ],
)
def test_force_units(fields, factor):
    assert Units(**fields).forces_factor == pytest.approx(factor)


def test_stress_units():
    assert Units(stress="kbar").stress_factor == pytest.approx(0.1 * units.GPa)
    assert Units(stress="kJ/mol/nm^3").stress_factor == pytest.approx(units.kJ / units.mol / 1000)
    assert Units(energy="Hartree", length="Bohr").stress_factor == pytest.approx(units.Hartree / units.Bohr**3)


@pytest.mark.parametrize("text", ["energy=joule", "forces=eV", "stress=psi", "mass=u", "energy", "energy=MeV"])
def test_unknown_units_are_refused(text):
    with pytest.raises(DataError, match="units"):
        Units.parse(text)


def test_charge_spin_and_extras(tmp_path):
    comment = FORCES.format("forces") + " energy=1 charge=-1 multiplicity=2 molecule=HO step=3 kT=0.5"
    [frame] = open_frames(xyz(tmp_path, comment))
    assert (frame.charge, frame.spin) == (-1, 1)
    assert frame.extras == {"molecule": "HO", "step": 3, "kT": 0.5}
    with pytest.raises(DataError, match="disagree"):
        open_frames(xyz(tmp_path, FORCES.format("forces") + " spin=2 multiplicity=2"))
    with pytest.raises(DataError, match="whole number"):
        open_frames(xyz(tmp_path, FORCES.format("forces") + " charge=0.5"))


def test_an_open_box_keeps_its_cell_and_ignores_stress(tmp_path):
    comment = f'{CELL} {FORCES.format("forces")} pbc="F F F" stress="1 0 0 0 1 0 0 0 1"'
    [frame] = open_frames(xyz(tmp_path, comment))
    assert not frame.pbc.any() and frame.cell[2, 2] == 6.0 and frame.stress is None


def test_damage_names_file_and_frame(tmp_path):
    path = xyz(tmp_path, FORCES.format("forces"), FORCES.format("forces"))
    text = path.read_text()
    for broken, what in (
        (text[: text.rindex("O 0")], "frame 1 is truncated: 1 of 2 atoms"),
        (text[:-12], "frame 1 cannot be read"),
        (text + "<html>\n", "frame 2: a number of atoms expected"),
        ("", "no structure"),
    ):
        path.write_text(broken)
        with pytest.raises(DataError, match=f"a.extxyz.*{what}"):
            open_frames(path)


def test_unknown_formats_and_missing_files(tmp_path):
    (tmp_path / "a.cif").write_text("data_")
    with pytest.raises(DataError, match="readable are"):
        open_frames(tmp_path / "a.cif")
    with pytest.raises(DataError, match="no such file"):
        open_frames(tmp_path / "b.xyz")


def test_ase_database_and_trajectory(tmp_path):
    atoms = Atoms("CuAu", positions=[[0, 0, 0], [0, 0, 2.5]], cell=[5, 5, 5], pbc=True)
    forces = np.array([[0, 0, 1.0], [0, 0, -1.0]])
    atoms.calc = SinglePointCalculator(atoms, energy=-3.0, forces=forces, stress=np.arange(6.0))
    ase.io.write(tmp_path / "a.traj", [atoms, atoms])
    with ase.db.connect(tmp_path / "a.db") as database:
        database.write(atoms, molecule="alloy")
        database.write(Atoms("H"), REF_energy=-13.6)
    for frame in (open_frames(tmp_path / "a.traj")[1], next(iter_frames(tmp_path / "a.db"))):
        assert frame.energy == -3.0 and frame.pbc.all()
        np.testing.assert_array_equal(frame.forces, forces)
        np.testing.assert_array_equal(frame.stress, np.arange(6.0))
    with pytest.raises(DataError, match="eV and Angstrom"):
        open_frames(tmp_path / "a.traj", units=Units(energy="Hartree"))
    database_frames = iter_frames(tmp_path / "a.db")
    assert next(database_frames).extras == {"molecule": "alloy"}
    with pytest.raises(DataError, match="several names"):
        next(database_frames)


VASP = Path(ase.__file__).parent / "test" / "testdata" / "vasp"


@pytest.mark.skipif(not VASP.is_dir(), reason="this ASE ships no VASP samples")
def test_vasp(tmp_path):
    outcar = tmp_path / "OUTCAR"
    outcar.write_text((VASP / "OUTCAR_example_1").read_text())
    [frame] = open_frames(outcar)
    assert frame.energy == pytest.approx(-68.23102426) and frame.forces.shape == (18, 3) and frame.stress.shape == (6,)
    assert open_frames(outcar, LabelKeys(energy="free_energy"))[0].energy == pytest.approx(frame.energy, abs=0.1)
    outcar.write_text(outcar.read_text()[:9000])
    with pytest.raises(DataError, match="OUTCAR: frame 0"):
        open_frames(outcar)
    xml = tmp_path / "vasprun.xml"
    xml.write_text((VASP / "vasprun_pstress.xml").read_text())
    frames = open_frames(xml)
    assert len(frames) >= 1 and frames[0].energy is not None and frames[0].forces is not None
    xml.write_text(xml.read_text()[:2000])
    with pytest.raises(DataError, match=r"vasprun.xml: frame 0"):
        open_frames(xml)


def test_frames_to_atoms_and_back(tmp_path):
    comment = f'{CELL} {FORCES.format("forces")} energy=2 charge=1 multiplicity=3 stress="1 0 0 0 1 0 0 0 1" note=x'
    [frame] = open_frames(xyz(tmp_path, comment))
    ase.io.write(tmp_path / "b.extxyz", to_atoms(frame))
    [again] = open_frames(tmp_path / "b.extxyz")
    assert (again.energy, again.charge, again.spin, again.id, again.extras) == (2.0, 1, 2, "0", {"note": "x"})
    np.testing.assert_array_equal(again.forces, frame.forces)
    np.testing.assert_array_equal(again.stress, frame.stress)
