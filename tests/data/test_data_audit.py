"""The audit: accepts consistent data, refuses each kind of broken one and names the label."""

from dataclasses import replace

import numpy as np
import pytest
from ase import units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from mlip.data.allelectron import read_as_ev
from mlip.data.audit import audit_frames, collect_audit
from mlip.data.e0 import CompositionSums
from mlip.data.frame import Frame
from mlip.data.stats import data_statistics
from mlip.errors import DataError


def label(atoms, stress):
    atoms.calc = EMT()
    return Frame(
        atoms.numbers, atoms.positions.copy(), np.array(atoms.cell), np.array(atoms.pbc),
        energy=float(atoms.get_potential_energy()), forces=atoms.get_forces().copy(),
        stress=atoms.get_stress().copy() if stress else None,
    )  # fmt: skip


def make_crystals():
    """Rattled and strained copper: 24 frames of one cell, 24 of strained ones."""
    rng = np.random.default_rng(0)
    frames = []
    for k in range(48):
        atoms = bulk("Cu", cubic=True) * (2, 1, 1)
        if k % 2:
            strain = 0.02 * rng.normal(size=(3, 3))
            atoms.set_cell(atoms.cell @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.positions += 0.08 * rng.normal(size=(len(atoms), 3))
        frames.append(label(atoms, stress=True))
    return frames


def make_molecules():
    """Distorted water in any orientation."""
    rng = np.random.default_rng(1)
    frames = []
    for _ in range(60):
        atoms = molecule("H2O")
        atoms.positions += 0.05 * rng.normal(size=(3, 3))
        atoms.rotate(float(rng.uniform(0, 360)), rng.normal(size=3))
        frames.append(label(atoms, stress=False))
    return frames


CRYSTALS, MOLECULES = make_crystals(), make_molecules()


def change(frames, which=slice(None), **functions):
    """Copies of frames with some labels changed in the frames ``which``."""
    chosen = set(range(len(frames))[which])
    return [
        replace(frame, **{name: function(getattr(frame, name)) for name, function in functions.items()})
        if k in chosen else frame for k, frame in enumerate(frames)
    ]  # fmt: skip


def nothing(_):
    return None


def test_good_data_pass_every_test():
    report = audit_frames(CRYSTALS, {"energy", "forces", "stress"})
    assert (report.frames, report.atoms, report.elements) == (48, 384, {29: 384})
    assert report.labels["stress"].present == 48 and report.e0_rank == 1 and report.duplicates == 0
    assert [(finding.label, finding.conclusive, finding.passed) for finding in report.findings] == [
        ("forces", True, True), ("stress", True, True),
    ]  # fmt: skip
    assert not report.warnings
    report = audit_frames(MOLECULES)
    assert report.findings[0].conclusive and report.findings[0].passed
    assert any("E0" in text and "rank 1" in text for text in report.warnings)


@pytest.mark.parametrize(
    ("frames", "changes", "text"),
    [
        (CRYSTALS, {"forces": nothing}, "forces: missing in all 48 frames"),
        (CRYSTALS, {"energy": nothing}, "energy: missing in all 48 frames"),
        (CRYSTALS, {"stress": nothing}, "stress: missing in all 48 frames"),
        (CRYSTALS, {"forces": lambda f: -f}, "forces: .*sign is opposite"),
        (CRYSTALS, {"forces": lambda f: 51.4 * f}, "forces: .*units do not match"),
        (CRYSTALS, {"forces": lambda f: f / 51.4}, "forces: .*units do not match"),
        (CRYSTALS, {"stress": lambda s: -s}, "stress: .*sign is opposite"),
        (CRYSTALS, {"stress": lambda s: 160.2 * s}, "stress: .*not eV"),
        (CRYSTALS, {"stress": lambda s: 1602 * s}, "stress: .*not eV"),
        (CRYSTALS, {"positions": lambda x: x / 10, "cell": lambda c: c / 10}, "positions: .*Angstrom"),
        (CRYSTALS, {"positions": lambda x: x * 10, "cell": lambda c: c * 10}, "positions: .*Angstrom"),
        (CRYSTALS, {"energy": lambda e: e + 1e6}, "energy: larger than all-electron"),
    ],
)
def test_a_label_wrong_throughout_is_refused(frames, changes, text):
    with pytest.raises(DataError, match=text):
        audit_frames(change(frames, **changes), {"energy", "forces", "stress"})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"forces": lambda f: -f}, "forces: .*sign is opposite"),
        ({"forces": lambda f: 23.06 * f}, "forces: .*units do not match"),
        ({"positions": lambda x: 1.89 * x}, "positions: .*Bohr"),
        ({"positions": lambda x: x / 1.89}, "positions: .*Bohr"),
    ],
)
def test_wrong_signs_and_units_of_molecules(changes, text):
    with pytest.raises(DataError, match=text):
        audit_frames(change(MOLECULES, **changes))


def test_the_sign_of_forces_without_comparable_frames():
    """All compositions differ, so only the closest contacts can tell."""
    rng = np.random.default_rng(2)
    frames = []
    for k in range(60):
        atoms = bulk("Cu", a=3.6, cubic=True) * (1, 1, 1 + k % 2)
        atoms.numbers = rng.choice([28, 29, 46], len(atoms))
        atoms.positions += 0.15 * rng.normal(size=(len(atoms), 3))
        frames.append(label(atoms, stress=False))
        frames[-1].pbc = np.array([True, True, True])
        frames[-1].cell = frames[-1].cell * (1 + 1e-3 * k)  # cells differ, so energies cannot be compared
    finding = collect_audit(frames).findings[0]
    assert "contacts" in finding.text and finding.conclusive and finding.passed
    with pytest.raises(DataError, match="short bonds attract"):
        audit_frames(change(frames, forces=lambda f: -f))


def in_hartree(unit):
    """Frames of organics.h5, all-electron energies, with energies and forces in another unit."""
    from pathlib import Path

    from mlip.data.hdf5 import HDF5Frames

    frames = HDF5Frames(Path(__file__).parents[2] / "datasets" / "organics" / "organics.h5", load_density=False)
    chosen = [frames[k] for k in range(0, len(frames), 25)]
    return change(chosen, energy=lambda e: e / unit, forces=lambda f: f / unit)


@pytest.mark.parametrize(("unit", "name"), [(units.Hartree, "Hartree"), (units.Rydberg, "Rydberg")])
def test_all_electron_energies_in_another_unit(unit, name):
    text = f"all their electrons in {name}, and read as eV; if that is so name the units .--units energy={name}"
    with pytest.raises(DataError, match=text):
        audit_frames(in_hartree(unit))
    assert not any("electrons" in warning for warning in audit_frames(in_hartree(1.0)).warnings)
    one = [frame for frame in in_hartree(unit) if len(frame) == 9][:1] * 3  # of one composition: no more than a suspicion
    assert any(f"in {name}" in warning for warning in audit_frames(one).warnings)


def sums(energies, compositions):
    """Frames of these compositions, whose energies are the sums of those of their atoms, 3 % bound."""
    found = CompositionSums()
    for numbers in compositions:
        energy = 1.03 * sum(energies[z] for z in numbers)
        found.add(Frame(np.array(numbers), np.zeros((len(numbers), 3)), energy=energy))
    return found


GTH = {1: -13.6, 6: -155.0, 7: -270.0, 8: -430.0, 13: -57.0, 14: -107.0, 16: -276.0, 17: -406.0, 23: -1935.0}  # about, eV


@pytest.mark.parametrize(
    "composition", [[6, 1, 1, 1, 1], [17] * 2, [6, 17, 17, 17, 17], [6, 1, 17, 17, 17], [13, 13, 8, 8, 8], [14] * 8, [23] * 2]
)
def test_pseudopotentials_alone_are_suspicious_at_most(composition):
    found = read_as_ev(sums(GTH, [composition]))
    assert found is None or not found[1]


def test_pseudopotentials_of_many_compositions_are_in_no_other_unit():
    compositions = [[6, 1, 1, 1, 1], [6, 17, 17, 17, 17], [6, 6, 1, 1, 17, 17], [8, 1, 1], [6, 8, 8], [8, 6, 1, 1], [17, 1]]
    assert read_as_ev(sums(GTH, compositions)) is None
    xtb = {1: -10.9, 6: -47.3, 7: -78.8, 8: -118.4, 9: -136.0, 15: -65.9, 16: -96.2, 17: -113.4}
    assert read_as_ev(sums(xtb, [*compositions, [7, 1, 1, 1], [6, 9, 1, 1, 1]])) is None
    silver = sums({47: -1000.0}, [[47], [47, 47]])
    assert read_as_ev(silver) is None


def test_physics_can_be_switched_to_warnings():
    report = audit_frames(change(CRYSTALS, forces=lambda f: -f), physics=False)
    assert any("sign is opposite" in text for text in report.warnings)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["energy", "forces", "stress"])
def test_bad_numbers_are_refused_with_their_place(name, value):
    def spoil(old):
        if isinstance(old, float):
            return value
        return np.concatenate([old[:-1], np.full_like(old[-1:], value)])

    frames = change(CRYSTALS, slice(5, 7), **{name: spoil})
    word = "NaN in 2 and infinite in 0" if np.isnan(value) else "NaN in 0 and infinite in 2"
    with pytest.raises(DataError, match=rf"{name}: {word} of 48 frames \(first: frame 5\)"):
        audit_frames(frames, {name})
    others = {"energy", "forces", "stress"} - {name}
    assert any(word in text for text in audit_frames(frames, others).warnings), "a label nobody needs is a warning"


def test_partial_labels_are_allowed_and_told():
    report = audit_frames(change(CRYSTALS, slice(0, 5), stress=nothing), {"energy", "forces", "stress"})
    assert "stress: missing in 5 of 48 frames; the loss masks them" in report.warnings


def test_stress_without_periodic_frames():
    frames = change(CRYSTALS, pbc=lambda _: np.zeros(3, bool))
    with pytest.raises(DataError, match="stress: missing in all 48 frames: none of them is periodic"):
        audit_frames(frames, {"stress"}, physics=False)


def test_duplicates_and_their_energies():
    frames = [*CRYSTALS, CRYSTALS[3], replace(CRYSTALS[4], energy=0.5)]
    report = collect_audit(frames)
    assert report.duplicates == 2
    assert any(text.startswith("1 of them with another energy") for text in report.warnings)


def test_net_force_placeholders_spin_and_overlaps_are_told():
    frames = change(CRYSTALS, slice(0, 1), forces=lambda f: f + 0.1)
    frames = change(frames, slice(1, 2), stress=np.zeros_like)
    frames = change(frames, slice(2, 3), positions=lambda x: np.where(np.arange(8)[:, None] == 1, x[0] + 0.1, x))
    frames = change(frames, slice(3, 4), charge=lambda _: 1)
    text = "\n".join(collect_audit(frames).warnings)
    parts = ("net force exceeds", "stress: exactly zero in 1 frames", "closer than 0.3 A (frame 2:", "charge and spin")
    for part in parts:
        assert part in text, part


def test_unknown_label_and_empty_set():
    with pytest.raises(DataError, match="allowed: energy"):
        audit_frames(CRYSTALS, {"dipole"})
    with pytest.raises(DataError, match="no frames"):
        audit_frames([])


def test_report_as_text():
    text = str(collect_audit(change(CRYSTALS, forces=lambda f: -f)))
    for part in ("48 frames, 384 atoms", "Cu 384", "energy per atom", "net force", "E0 rank: 1 of 1", "refused forces"):
        assert part in text


def test_statistics():
    """Perfect fcc has 12 neighbours in the first shell."""
    crystal = label(bulk("Cu", a=3.6, cubic=True), stress=True)
    stats = data_statistics([crystal] * 3, cutoff=3.0)
    assert (stats.frames, stats.atoms, stats.periodic, stats.elements) == (3, 12, 3, {29: 12})
    assert stats.avg_num_neighbors == 12.0 and stats.labels == {"energy": 3, "forces": 3, "stress": 3}
    assert sum(stats.histograms["force norms (eV/A)"][0]) == 12
    assert "12.00 on average" in str(stats)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["positions", "cell"])
def test_structures_that_are_not_finite_are_refused_by_frame(name):
    def spoil(values):
        spoiled = np.array(values)
        spoiled[1, 1] = np.nan if name == "positions" else np.inf
        return spoiled

    with pytest.raises(DataError, match=r"not finite or beyond 1e\+06 Angstrom in 2 of 48 frames \(first: frame 3\)"):
        audit_frames(change(CRYSTALS, slice(3, 5), **{name: spoil}))


def test_forces_that_are_all_zero_are_missing_labels():
    with pytest.raises(DataError, match="exactly zero on every atom of all 60 frames"):
        audit_frames(change(MOLECULES, forces=np.zeros_like))
    assert not any("forces: exactly zero" in text for text in collect_audit(MOLECULES).warnings)
    some = collect_audit(change(MOLECULES, slice(4, 6), forces=np.zeros_like), physics=False)
    assert not some.refusals
    assert any("in 2 frames of more than one atom (first: frame 4)" in text for text in some.warnings)
    assert not any("forces" in text for text in collect_audit(change(MOLECULES, forces=np.zeros_like), {"energy"}).refusals)
