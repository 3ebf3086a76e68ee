"""Baseline and scales of a training set: what they are, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from densities import acetaldehyde, toy_basis, toy_reference

from mlip.data.frame import Frame
from mlip.errors import ConfigError, DataError
from mlip.models import DensityReference, build, density_statistics
from mlip.models.densitystats import SCALE_FLOOR
from mlip.testing import evaluate_density, rotate_coefficients


def labelled_frames(count=40, noise=0.3, charge=0):
    """Acetaldehydes whose coefficients are noise about one vector, and hold the right number of electrons."""
    atoms, rng = acetaldehyde(), np.random.default_rng(0)
    basis = toy_basis([1, 6, 8])
    charges = np.concatenate([basis.charges(int(z)) for z in atoms.numbers])
    frames = []
    for _ in range(count):
        c = rng.normal(scale=noise, size=len(charges)) + 0.5 * (charges != 0)
        c += charges * (atoms.numbers.sum() - charge - charges @ c) / (charges @ charges)
        frames.append(Frame(atoms.numbers, atoms.positions, density_coefficients=c, charge=charge))
    return frames, basis


def test_baseline_is_the_mean_and_scale_the_spread():
    frames, basis = labelled_frames()
    reference = density_statistics(frames, basis)
    numbers, offsets = frames[0].atomic_numbers, basis.offsets(frames[0].atomic_numbers)
    carbon = np.array([f.density_coefficients[offsets[i] : offsets[i + 1]] for f in frames for i in np.flatnonzero(numbers == 6)])
    start = 0
    for k, shell in enumerate(basis.of(6)):
        values = carbon[:, start : start + shell.size]
        mean = values.mean() if shell.l == 0 else 0.0
        assert reference.baseline[6][k] == pytest.approx(mean)
        assert reference.scales[6][k] == pytest.approx(np.sqrt(np.mean((values - mean) ** 2)))
        start += shell.size
    assert reference.charges == (0,) and reference.metric == "coulomb"


def test_modes_are_independent_and_weigh_what_they_repel():
    """V^T M V = diag(s^2) in the atom's Coulomb metric, and amplitudes V^-1 (c - baseline) with the unit matrix as covariance."""
    frames, basis = labelled_frames(count=80)
    reference = density_statistics(frames, basis)
    numbers, offsets = frames[0].atomic_numbers, basis.offsets(frames[0].atomic_numbers)
    for z in basis.elements:
        rows = np.array([f.density_coefficients[offsets[i] : offsets[i + 1]] for f in frames for i in np.flatnonzero(numbers == z)])
        degrees = np.array(basis.degrees(z))
        starts = np.cumsum([0, *(2 * degrees + 1)])
        for l, modes in enumerate(reference.modes_of(z)):
            shells = np.flatnonzero(degrees == l)
            if not len(shells):
                continue
            c = rows[:, starts[shells][:, None] + np.arange(2 * l + 1)] - np.array(reference.baseline[z])[shells][None, :, None]
            energy = modes.T @ basis.onsite_repulsion(z, l) @ modes
            np.testing.assert_allclose(energy, np.diag(np.diag(energy)), atol=1e-10 * energy.max())
            assert (np.diff(np.diag(energy)) <= 0).all()
            amplitudes = np.einsum("ks,nsm->nkm", np.linalg.inv(modes), c)
            covariance = np.einsum("nkm,njm->kj", amplitudes, amplitudes) / (len(c) * (2 * l + 1))
            np.testing.assert_allclose(covariance, np.eye(len(shells)), atol=1e-6)


def test_equal_shells_have_modes():
    """Two shells that are the same are no reason to fail."""
    frames, basis = labelled_frames()
    twice = {z: (*shells, shells[0]) for z, shells in basis.shells.items()}
    doubled = replace(basis, shells=twice)
    offsets = basis.offsets(frames[0].atomic_numbers)
    longer = [replace(f, density_coefficients=np.insert(f.density_coefficients, offsets[1:], 0.0)) for f in frames]
    reference = density_statistics(longer, doubled)
    assert all(np.isfinite(matrix).all() for z in doubled.elements for matrix in reference.modes_of(z))


def test_statistics_do_not_depend_on_orientation():
    frames, basis = labelled_frames()
    matrix = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    turned = [
        replace(f, density_coefficients=rotate_coefficients(basis, f.atomic_numbers, f.density_coefficients, matrix))
        for f in frames
    ]
    a, b = density_statistics(frames, basis), density_statistics(turned, basis)
    for z in basis.elements:
        np.testing.assert_allclose(a.baseline[z], b.baseline[z], atol=1e-12)
        np.testing.assert_allclose(a.scales[z], b.scales[z], rtol=1e-10)


def test_equal_frames_have_the_floor_as_scale():
    frames, basis = labelled_frames(count=1)
    oxygen = density_statistics(frames * 3, basis).scales[8]
    assert [scale == SCALE_FLOOR for scale in oxygen] == [l == 0 for l in basis.degrees(8)]


def test_frames_without_a_label_are_passed_over():
    frames, basis = labelled_frames()
    with_gaps = [f for frame in frames for f in (frame, replace(frame, density_coefficients=None, charge=3))]
    assert density_statistics(with_gaps, basis) == density_statistics(frames, basis)


def test_charges_are_those_that_occur():
    neutral, basis = labelled_frames(3)
    assert density_statistics([*neutral, *labelled_frames(3, charge=1)[0]], basis).charges == (0, 1)


def test_json_round_trip_is_exact():
    frames, basis = labelled_frames()
    reference = density_statistics(frames, basis, electrons={8: 8.0})
    assert DensityReference.from_dict(json.loads(json.dumps(reference.to_dict()))) == reference


def test_a_lone_atom_has_its_baseline_where_the_network_says_nothing():
    """With the readout at 0, prediction = baseline: the mean density of the training set."""
    from ase import Atoms

    reference = toy_reference([1, 6, 8])
    model = build(
        {"channels": 4, "energy": False, "density": {"projection": "none"}}, [1, 6, 8], density=reference, dtype="float64"
    )
    for weight in model.density_head.readout.weight:
        weight.data.zero_()
    wanted = np.repeat(reference.baseline[6], [shell.size for shell in reference.basis.of(6)])
    np.testing.assert_allclose(evaluate_density(model, Atoms("C"))[0], wanted)


def test_a_new_model_predicts_about_the_baseline():
    reference, atoms = toy_reference([1, 6, 8]), acetaldehyde()
    fields = {"channels": 16, "energy": False, "density": {"projection": "none", "modes": False}}
    model = build(fields, [1, 6, 8], density=reference, avg_num_neighbors=6.0, dtype="float64", seed=0)
    (found,) = evaluate_density(model, atoms)
    tables = {z: np.stack(reference.of(z)).repeat([shell.size for shell in reference.basis.of(z)], axis=1) for z in (1, 6, 8)}
    baseline, scale = np.concatenate([tables[z] for z in atoms.numbers.tolist()], axis=1)
    assert 0 < np.sqrt(np.mean(np.square((found - baseline) / scale))) < 0.1


def test_core_potentials_take_their_electrons_away():
    """With another number of electrons a neutral atom, the labels fit, and the model projects to that number."""
    frames, basis = labelled_frames()
    numbers = frames[0].atomic_numbers
    charges = np.concatenate([basis.charges(int(z)) for z in numbers])
    for frame in frames:  # two electrons less on each C and O
        c = frame.density_coefficients
        frame.density_coefficients = c - charges * 2 * (numbers > 1).sum() / (charges @ charges)
    with pytest.raises(ConfigError, match="core potentials"):
        density_statistics(frames, basis)
    reference = density_statistics(frames, basis, electrons={6: 4, 8: 6})
    model = build({"channels": 4, "energy": False, "density": {}}, [1, 6, 8], density=reference, dtype="float64")
    held = charges @ evaluate_density(model, acetaldehyde())[0]
    assert held == pytest.approx(numbers.sum() - 2 * (numbers > 1).sum())


def test_a_minority_of_frames_with_core_potentials_is_found():
    frames, basis = labelled_frames(5)
    charges = np.concatenate([basis.charges(int(z)) for z in frames[0].atomic_numbers])
    c = frames[3].density_coefficients
    frames[3] = replace(frames[3], density_coefficients=c - charges * 2 / (charges @ charges), id="m3")
    with pytest.raises(ConfigError, match=r"frame 3 'm3': .* holds 22\.00 electrons and should hold 24: .*core potentials"):
        density_statistics(frames, basis)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda f: replace(f, density_coefficients=None), ConfigError, "no frame has"),
        (lambda f: replace(f, density_coefficients=f.density_coefficients[:-1], id="m7"), DataError, r"m7.*functions"),
        (lambda f: replace(f, density_coefficients=f.density_coefficients * np.nan), DataError, "finite: False"),
        (lambda f: replace(f, density_coefficients=f.density_coefficients * 1.1), ConfigError, "another basis"),
        (lambda f: replace(f, atomic_numbers=np.where(f.atomic_numbers == 1, 9, f.atomic_numbers)), DataError, "F"),
    ],
)
def test_labels_that_do_not_fit_are_named(change, error, words):
    frames, basis = labelled_frames(3)
    with pytest.raises(error, match=words):
        density_statistics([change(frame) for frame in frames], basis)
