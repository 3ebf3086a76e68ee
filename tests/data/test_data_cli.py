"""``mlip data``: the commands as a user runs them."""

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from mlip.cli import app
from mlip.data.convert import convert_files
from mlip.data.readers import open_frames
from mlip.errors import DataError


def write_xyz(path, count=6, energy="REF_energy", spread=0.0):
    rng = np.random.default_rng(count)
    lines = []
    for k in range(count):
        x = 1.0 + spread * rng.normal()
        stretch = x - 1.0
        lines += [
            "2", f"Properties=species:S:1:pos:R:3:REF_forces:R:3 {energy}={10 * stretch**2 - 30!r} molecule=H{k % 2}",
            f"H 0 0 0 0 0 {20 * stretch!r}", f"H 0 0 {x!r} 0 0 {-20 * stretch!r}",
        ]  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    return path


def run(*arguments):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def test_convert_to_hdf5_and_back(tmp_path):
    first, second = write_xyz(tmp_path / "a.xyz", 6, spread=0.1), write_xyz(tmp_path / "b.xyz", 4, spread=0.1)
    result = run("convert", first, second, tmp_path / "all.h5", "--attr", "licence=MIT", "--units", "energy=Hartree")
    assert result.exit_code == 0 and "10 frames, 20 atoms; energy in 10, forces in 10" in result.output
    frames = open_frames(tmp_path / "all.h5")
    assert frames.attrs["licence"] == "MIT" and len({frame.id for frame in frames}) == 10
    assert frames[7].extras["molecule"] == "H1"
    assert run("convert", tmp_path / "all.h5", tmp_path / "all.extxyz").exit_code == 0
    for a, b in zip(frames, open_frames(tmp_path / "all.extxyz"), strict=True):
        assert a.energy == pytest.approx(b.energy, abs=1e-9) and (a.id, a.extras) == (b.id, b.extras)
        np.testing.assert_allclose(a.forces, b.forces, atol=1e-7)
        np.testing.assert_allclose(a.positions, b.positions, atol=1e-7)
    again = run("convert", tmp_path / "all.h5", tmp_path / "copy.h5", "--float32", "--compress")
    assert again.exit_code == 0
    with h5py.File(tmp_path / "copy.h5") as file:
        assert file["forces"].dtype == np.float32 and file.attrs["licence"] == "MIT"


def test_convert_refuses_to_overwrite(tmp_path):
    source, target = write_xyz(tmp_path / "a.xyz"), tmp_path / "a.h5"
    target.write_text("precious")
    with pytest.raises(DataError, match="exists already"):
        convert_files([source], target)
    assert run("convert", source, target).exit_code == 1 and target.read_text() == "precious"
    assert run("convert", source, target, "--force").exit_code == 0
    with pytest.raises(DataError, match="input as well"):
        convert_files([target], target, overwrite=True)
    assert run("convert", source).exit_code == 2


def test_a_conversion_that_fails_leaves_nothing(tmp_path):
    source = write_xyz(tmp_path / "a.xyz")
    source.write_text(source.read_text() + "2\ncut\nH 0 0 0\n")
    for name in ("a.h5", "b.extxyz"):
        with pytest.raises(DataError, match="truncated"):
            convert_files([source], tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["a.xyz"]


def test_nan_labels_are_told_when_they_become_missing(tmp_path):
    source = write_xyz(tmp_path / "a.xyz", 1, spread=0.1)
    source.write_text(source.read_text() + "1\nREF_energy=nan\nH 0 0 0\n")
    summary = convert_files([source], tmp_path / "a.h5")
    assert any("energy: not finite in 1" in note for note in summary.notes)
    assert open_frames(tmp_path / "a.h5")[1].energy is None


def test_audit_exit_codes(tmp_path):
    path = write_xyz(tmp_path / "a.xyz", 60, spread=0.1)
    good = run("audit", path)
    assert good.exit_code == 0 and "60 frames" in good.output
    bad = run("audit", path, "--need", "stress")
    assert bad.exit_code == 1 and "stress: missing in all 60 frames" in str(bad.exception)
    assert run("audit", path, "--need", "energy", "--energy-key", "E").exit_code == 1


def test_stats(tmp_path):
    path = write_xyz(tmp_path / "a.xyz", spread=0.1)
    result = run("stats", path, "--cutoff", "2")
    assert result.exit_code == 0 and "1.00 on average" in result.output
