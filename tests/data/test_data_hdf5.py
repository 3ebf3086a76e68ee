"""The HDF5 contract: what is written comes back, missing stays missing, reading is lazy, damage is told."""

import pickle
import tracemalloc

import h5py
import numpy as np
import pytest

from mlip.data.frame import Frame, frame_extra
from mlip.data.hdf5 import HDF5Frames, write_frames
from mlip.data.readers import open_frames
from mlip.errors import DataError


def make_frames(count, seed=0):
    """Frames of random size in which every label is missing somewhere."""
    rng = np.random.default_rng(seed)
    frames = []
    for k in range(count):
        n = int(rng.integers(1, 9))
        frame = Frame(rng.integers(1, 10, n), rng.normal(size=(n, 3)), charge=k % 3 - 1, spin=k % 2, id=f"f{k}")
        frame.energy = None if k % 3 == 0 else float(rng.normal())
        frame.forces = None if k % 4 == 0 else rng.normal(size=(n, 3))
        frame.density_coefficients = None if k % 5 == 0 else rng.normal(size=3 * n)
        if k % 2:
            frame.cell, frame.pbc = rng.normal(size=(3, 3)), np.array([True, k % 3 == 0, True])
            frame.stress = rng.normal(size=6)
        frame.extras = {"molecule": f"C{k}", "scf_cycles": k} if k % 7 else {}
        frames.append(frame)
    return frames


def assert_same(a, b):
    for name in ("atomic_numbers", "positions", "cell", "pbc", "forces", "stress", "density_coefficients"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None), name
        if x is not None:
            np.testing.assert_array_equal(x, y, err_msg=name)
    assert (a.energy, a.charge, a.spin, a.id, a.extras) == (b.energy, b.charge, b.spin, b.id, b.extras)


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_round_trip(tmp_path, compression):
    """Over several write blocks, by index, by slice and in a loop."""
    frames = make_frames(1200)
    attrs = {"level_of_theory": {"xc": "PBE"}, "licence": "MIT"}
    assert write_frames(tmp_path / "a.h5", iter(frames), attrs, compression=compression) == 1200
    read = open_frames(tmp_path / "a.h5")
    assert isinstance(read, HDF5Frames)
    assert len(read) == 1200
    for k, frame in enumerate(read):
        assert_same(frames[k], frame)
    for k in (0, 511, 512, -1):
        assert_same(frames[k], read[k])
    assert [frame.id for frame in read[3:9:2]] == ["f3", "f5", "f7"]
    assert read.attrs["level_of_theory"] == {"xc": "PBE"} and read.attrs["energy_unit"] == "eV"
    np.testing.assert_array_equal(read.num_atoms, [len(frame) for frame in frames])
    with pytest.raises(IndexError):
        read[1200]


def test_missing_is_nan_in_the_file(tmp_path):
    write_frames(tmp_path / "a.h5", make_frames(8))
    with h5py.File(tmp_path / "a.h5") as file:
        assert np.isnan(file["energy"][0]) and np.isnan(file["stress"][0]).all()
        assert np.isnan(file["forces"][: file["atom_ptr"][1]]).all()
        assert file["positions"].dtype == file["energy"].dtype == np.float64


def test_extras(tmp_path):
    """Integers, floats and strings; one that becomes wider late is widened; a missing one stays missing."""
    frames = make_frames(600)
    frames[599].extras = {"scf_cycles": 7.5, "late": 1}
    write_frames(tmp_path / "a.h5", frames)
    read = HDF5Frames(tmp_path / "a.h5")
    assert read.extra_names == ["late", "molecule", "scf_cycles"]
    cycles = read.frame_extra("scf_cycles")
    assert np.isnan(cycles[0]) and cycles[1] == 1 and cycles[599] == 7.5
    assert read.frame_extra("molecule")[:2].tolist() == ["", "C1"]
    assert read[599].extras["late"] == 1 and "late" not in read[0].extras
    assert frame_extra(read[1:3], "molecule").tolist() == ["C1", "C2"]
    assert frame_extra(frames[1:3], "molecule").tolist() == ["C1", "C2"]
    with pytest.raises(DataError, match="molecule"):
        read.frame_extra("smiles")


def test_single_precision_where_allowed(tmp_path):
    frames = make_frames(6)
    write_frames(tmp_path / "a.h5", frames, float32=("forces",))
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["forces"].dtype == np.float32
    forces = HDF5Frames(tmp_path / "a.h5")[1].forces
    np.testing.assert_allclose(forces, frames[1].forces, rtol=1e-6)
    with pytest.raises(DataError, match="positions"):
        write_frames(tmp_path / "b.h5", frames, float32=("positions",))


def test_reading_is_lazy_and_bounded(tmp_path):
    """A pass over 40 MB holds a small part of them at any time; one frame reads one slice."""
    numbers, positions = np.full(500, 6), np.random.default_rng(0).normal(size=(500, 3))

    def many():
        for _ in range(1600):
            yield Frame(numbers, positions, energy=0.0, forces=positions.copy())

    tracemalloc.start()
    write_frames(tmp_path / "big.h5", many())
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    frames = HDF5Frames(tmp_path / "big.h5")
    assert sum(len(frame) for frame in frames) == 800_000
    read = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    frames[1500]
    one = tracemalloc.get_traced_memory()[1] - tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    size = (tmp_path / "big.h5").stat().st_size
    assert size > 38e6
    assert written < 0.4 * size and read < 0.4 * size and one < 1e6, (size, written, read, one)


def test_pickles_without_its_handle(tmp_path):
    write_frames(tmp_path / "a.h5", make_frames(5))
    frames = HDF5Frames(tmp_path / "a.h5")
    data = pickle.dumps(frames)
    assert len(data) < 4000
    assert_same(pickle.loads(data)[3], frames[3])


def test_density_can_be_left_out(tmp_path):
    write_frames(tmp_path / "a.h5", make_frames(4))
    assert HDF5Frames(tmp_path / "a.h5", load_density=False)[1].density_coefficients is None


def test_a_failing_source_leaves_the_old_file(tmp_path):
    write_frames(tmp_path / "a.h5", make_frames(3))

    def broken():
        yield from make_frames(600)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_frames(tmp_path / "a.h5", broken())
    assert len(HDF5Frames(tmp_path / "a.h5")) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:3000])


def damage_foreign(path):
    path.write_text("not HDF5 at all")


def damage_format(path):
    with h5py.File(path, "a") as file:
        file.attrs["format"] = "something else"


def damage_version(path):
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 99


def damage_dataset(path):
    with h5py.File(path, "a") as file:
        del file["positions"]


def damage_shape(path):
    with h5py.File(path, "a") as file:
        file["energy"].resize(2, axis=0)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (damage_truncate, "truncated"),
        (damage_foreign, "cannot be read"),
        (damage_format, "not of the format"),
        (damage_version, "99.*upgrade"),
        (damage_dataset, "positions is missing"),
        (damage_shape, "energy"),
    ],
)
def test_damage_is_told(tmp_path, damage, text):
    path = tmp_path / "a.h5"
    write_frames(path, make_frames(20))
    damage(path)
    with pytest.raises(DataError, match=f"a.h5.*{text}"):
        HDF5Frames(path)


def test_bad_frames_are_refused(tmp_path):
    good = Frame(np.array([1]), np.zeros((1, 3)), id="x")
    bad_shape = Frame(np.array([1]), np.zeros((1, 3)), forces=np.zeros((2, 3)))
    bad_value = Frame(np.array([1]), np.full((1, 3), np.nan))
    for frames, text in (([good, good], "twice"), ([bad_shape], "forces"), ([bad_value], "not finite")):
        with pytest.raises(DataError, match=text):
            write_frames(tmp_path / "a.h5", frames)
    with pytest.raises(DataError, match="no such file"):
        HDF5Frames(tmp_path / "none.h5")
