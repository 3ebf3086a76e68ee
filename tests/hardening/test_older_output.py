"""A command that fails leaves what an earlier one has written, also where it may replace it, and leaves nothing in its way."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from hard_jobs import evaluate, md, relax, train
from hard_tools import command, contents

from mlip.errors import UserError
from mlip.files import atomic_path, atomic_write_text, check_writable, locked


@pytest.fixture
def bad(tmp_path):
    """Structures that cannot be run: an element that the model does not know, overlapping atoms, no cell."""
    folder = tmp_path / "bad"
    folder.mkdir()
    ase.io.write(folder / "si.xyz", bulk("Si", cubic=True))
    atoms = molecule("H2O")
    ase.io.write(folder / "water.xyz", atoms)
    atoms.positions[1] = atoms.positions[0]
    ase.io.write(folder / "overlap.xyz", atoms)
    (folder / "cut.h5").write_bytes(b"not an HDF5 file")
    return folder


def run(good, folder, name, structure, *more):
    words = {"md": ("--out", "o.extxyz", "--steps", "3"), "relax": ("--out", "o.traj")}[name]
    return command("mlip", name, structure, "--model", good / "model.safetensors", *words, *more, folder=folder)


CASES = [
    ("relax", "water.xyz", ("--cell",)), ("relax", "water.xyz", ("--optimizer", "foo")), ("relax", "si.xyz", ()),
    ("relax", "overlap.xyz", ()), ("md", "si.xyz", ()), ("md", "overlap.xyz", ()), ("md", "water.xyz", ("--ensemble", "npt")),
    ("md", "water.xyz", ("--stop-above", "0.1")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "structure", "more"), CASES)
def test_a_start_that_fails_replaces_nothing_and_leaves_nothing(good, bad, tmp_path, name, structure, more):
    assert {"md": md, "relax": relax}[name](good, tmp_path).code == 0
    before = contents(tmp_path)
    run(good, tmp_path, name, bad / structure, *more, "--overwrite").refused()
    assert contents(tmp_path) == before
    empty = tmp_path / "empty"
    empty.mkdir()
    ended = run(good, empty, name, bad / structure, *more)
    ended.refused()
    assert not contents(empty) and not ended.out.strip()


@pytest.mark.parametrize("how", ["--restart", "run.overwrite=true"])
def test_a_training_that_fails_leaves_the_finished_one(good, bad, tmp_path, how):
    assert train(good, tmp_path).code == 0
    before = contents(tmp_path)
    option = (how,) if how.startswith("--") else ("--set", how)
    command("mlip", "train", "c.yaml", *option, "--set", f"data.train={bad / 'cut.h5'}", folder=tmp_path).refused()
    assert contents(tmp_path) == before
    assert command("mlip", "train", "c.yaml", *option, folder=tmp_path).code == 0
    assert contents(tmp_path).keys() == before.keys() and contents(tmp_path)["run/log.csv"] != before["run/log.csv"]


def test_errors_of_a_file_do_not_replace_those_of_a_run(good, tmp_path):
    assert train(good, tmp_path).code == 0
    before = contents(tmp_path)
    words = ("mlip", "eval", "run", good / "frames.xyz", "--no-plots")
    assert "a training run lies there" in command(*words, "--out", "run", folder=tmp_path).refused()
    assert contents(tmp_path) == before
    assert evaluate(good, tmp_path).code == 0


def test_what_a_killed_process_left_of_a_file_goes_with_the_next_writing(tmp_path):
    code = "import os, sys; from mlip.files import atomic_path\nwith atomic_path(sys.argv[1]) as t: t.touch(); os._exit(9)"
    target = tmp_path / "x[1].txt"
    subprocess.run([sys.executable, "-c", code, target], check=False, timeout=60)
    (left,) = tmp_path.glob(".*.tmp")
    process = left.name.rpartition("-")[2]
    others = [left.with_name(left.name.replace(f"-{process}", f"-1-{process}")), left.with_name(f".y.{process}")]
    for other in others:  # of a machine whose name begins like this one's; of another file
        other.touch()
    atomic_write_text(target, "soon after")
    assert left.exists()  # it may be of a container that does not show its processes
    for path in (left, *others):
        os.utime(path, (0, 0))
    with atomic_path(target) as mine:
        mine.write_text("new")
        os.utime(mine, (0, 0))
        check_writable(target)
        with atomic_path(tmp_path / "another") as second:
            second.touch()
        assert mine.exists() and not left.exists()
    assert target.read_text() == "new" and all(other.exists() for other in others)


def test_errors_name_the_file_and_not_its_temporary(tmp_path):
    with pytest.raises(IsADirectoryError) as caught, atomic_path(tmp_path / "a.txt") as temporary:
        temporary.mkdir()
        try:
            temporary.write_text("")
        finally:
            temporary.rmdir()
    assert caught.value.filename == str(tmp_path / "a.txt")


def test_whether_a_file_can_be_written_is_asked_without_touching_it(tmp_path):
    (tmp_path / "there.txt").write_text("kept")
    check_writable(tmp_path / "there.txt")
    check_writable(tmp_path / "new" / "file.txt")
    assert contents(tmp_path) == {"there.txt": b"kept"}
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        check_writable(tmp_path / "file" / "below.txt")
    with pytest.raises(IsADirectoryError, match="new"):
        check_writable(tmp_path / "new")


def test_two_runs_do_not_write_the_same_files(good, tmp_path):
    assert train(good, tmp_path).code == 0 and md(good, tmp_path).code == 0
    before = contents(tmp_path)
    with locked(tmp_path / "run"), locked(tmp_path / "o.csv"):
        with pytest.raises(UserError, match="another run"), locked(tmp_path / "run"):
            pass
        assert "another run" in command("mlip", "train", "c.yaml", "--restart", folder=tmp_path).refused()
        assert "another run" in md(good, tmp_path, "--resume").refused()
        assert "another run" in md(good, tmp_path, "--overwrite").refused()
    assert contents(tmp_path) == before
    assert md(good, tmp_path, "--resume").code == 0


@pytest.mark.parametrize("name", ["md", "relax"])
def test_what_appears_while_a_run_starts_is_not_replaced(good, tmp_path, monkeypatch, name):
    """Another run may have been quicker."""
    out = {"md": "o.extxyz", "relax": "o.traj"}[name]
    get_forces = Atoms.get_forces

    def meanwhile(self, *args, **kwargs):
        (tmp_path / out).write_text("of another run")
        return get_forces(self, *args, **kwargs)

    monkeypatch.setattr(Atoms, "get_forces", meanwhile)
    assert "exists already" in {"md": md, "relax": relax}[name](good, tmp_path).refused()
    assert (tmp_path / out).read_text() == "of another run"


def test_md_that_may_replace_loses_nothing_on_a_full_disk(good, tmp_path, monkeypatch):
    assert md(good, tmp_path).code == 0
    before = contents(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("mlip.dynamics.md.write_state", full)
        assert "free some space" in md(good, tmp_path, "--overwrite").refused()
    assert contents(tmp_path) == before
    (tmp_path / "o.state.npz").unlink()
    assert "no state to resume from" in md(good, tmp_path, "--resume").refused()
    assert md(good, tmp_path, "--resume", "--overwrite").code == 0


def test_md_says_that_its_table_is_gone(good, tmp_path):
    assert md(good, tmp_path).code == 0
    (tmp_path / "o.csv").unlink()
    assert "o.csv has 0 bytes" in md(good, tmp_path, "--resume").refused()
    assert not (tmp_path / "o.csv").exists()


def test_md_goes_on_where_the_disk_was_full(good, tmp_path, monkeypatch):
    """The advice is the command that goes on, and a full disk is not taken for a broken trajectory."""
    options = ("--steps", "6", "--save-every", "2", "--out", "o.traj")
    words = ("mlip", "md", good / "one.xyz", "--model", good / "model.safetensors", *options)
    assert command(*words, folder=tmp_path).code == 0
    state = dict(np.load(tmp_path / "o.state.npz"))
    meta = str(state["meta"]).replace('"frames": 4', '"frames": 3')  # one frame is to be cut off
    np.savez(tmp_path / "o.state.npz", **{**state, "meta": np.array(meta)})

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("mlip.dynamics.output.atomic_path", full)
        patch.setattr(sys, "argv", ["mlip", "md"])
        line = command(*words, "--resume", folder=tmp_path).refused()
    assert "free some space and run the same command again (with --resume once it had begun)" in line and "start anew" not in line
    assert command(*words, "--resume", folder=tmp_path).code == 0
