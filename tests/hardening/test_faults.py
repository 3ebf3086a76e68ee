"""A full disk, a folder that is read-only, Ctrl-C and SIGKILL at any point: one clear line, and nothing written is lost."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hard_tools import bad_inputs, command, contents, scratch
from hypothesis import strategies as st

from mlip.files import atomic_write_text

MD = ("--steps", "12", "--save-every", "3", "--log-every", "2", "--state-every", "2", "--dtype", "float64", "--out", "o.extxyz")


def md(good, folder, *more):
    return command("mlip", "md", good / "one.xyz", "--model", good / "model.safetensors", *MD, *more, folder=folder)


def train(good, folder, epochs=2):
    values = {
        "data": {"train": str(good / "frames.xyz"), "valid": 0.34, "batch_size": 2, "e0": {"H": 0.0, "O": -470.0}},
        "model": {"channels": 4, "l_max": 1, "num_layers": 1},
        "training": {"max_epochs": epochs, "precision": "float64", "threads": 1, "accelerator": "cpu"},
        "run": {"dir": "run", "plots": False},
    }  # fmt: skip
    (folder / "c.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return command("mlip", "train", "c.yaml", folder=folder)


JOBS = {
    "md": md,
    "train": train,
    "to xyz": lambda good, folder: command("mlip", "data", "convert", good / "frames.h5", "o.extxyz", folder=folder),
    "relax": lambda good, folder: command(
        "mlip", "relax", good / "one.xyz", "--model", good / "model.safetensors", "--out", "o.traj", "--fmax", "1e9", folder=folder
    ),
    "eval": lambda good, folder: command(
        "mlip", "eval", good / "model.safetensors", good / "frames.xyz", "--out", "o", folder=folder
    ),
}


@contextmanager
def disk_of(size: int):
    """Within, no file can grow beyond ``size`` bytes: every write after that fails in the operating system."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


@bad_inputs(30, job=st.sampled_from(sorted(JOBS)), size=st.sampled_from([0, 1, 50, 500, 2000, 5000]) | st.integers(0, 9000))
def test_full_disk(good, job, size, folder):
    before = contents(good)
    with disk_of(size):
        ended = JOBS[job](good, folder)
    assert "Traceback" not in ended.out + ended.err and contents(good) == before
    if ended.code == 0:
        return  # all its files were small enough
    line = ended.err.strip()
    assert len(line.splitlines()) == 1 and "free some space" in line and "unexpected" not in line, line
    if job in ("to xyz", "eval"):  # made in one go: there, or not
        assert not [name for name in contents(folder) if name.startswith("o.") or name.endswith(".tmp")]


@bad_inputs(10, free=st.integers(0, 2**20))
def test_full_disk_under_hdf5(good, free, folder):
    """Asked before: HDF5 does not survive a write that fails."""
    (folder / "o.h5").write_bytes(b"as before")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlip.data.writer.shutil.disk_usage", lambda _: SimpleNamespace(free=free))
        line = command("mlip", "data", "convert", good / "frames.xyz", "o.h5", "--force", folder=folder).refused()
    assert "free some space" in line and contents(folder) == {"o.h5": b"as before"}


@contextmanager
def nobody():
    """Within, this process has a user's rights, not root's."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@bad_inputs(12, job=st.sampled_from(sorted(JOBS)), inside=st.sampled_from(["", "a", "a/b"]))
def test_read_only_folder(readable, job, inside, folder):
    """The error names what is forbidden; the log goes where one may write."""
    place = folder / inside
    place.mkdir(parents=True, exist_ok=True)
    (place / "c.yaml").touch()
    (place / "c.yaml").chmod(0o666)
    for made in (folder, *folder.rglob("*")):
        if made.is_dir():
            made.chmod(0o555)
    try:
        with nobody():
            line = JOBS[job](readable, place).refused()
    finally:
        folder.chmod(0o755)
    assert "may write to" in line or "ermission denied" in line or "cannot be written" in line, line


@pytest.fixture(scope="module")
def readable(good):
    """The good files where every user can read them."""
    with scratch() as folder:
        folder.chmod(0o755)
        for path in good.iterdir():
            shutil.copy(path, folder)
            (folder / path.name).chmod(0o644)
        yield folder


# ------------------------------------------------------------------------------------------------ interruptions


@contextmanager
def after_calls(count: int, act):
    """Within, ``act`` is called at the ``count``-th call of a function of this package."""
    left = count

    def watch(frame, event, _):
        nonlocal left
        if event == "call" and "/mlip/" in frame.f_code.co_filename:
            left -= 1
            if left == 0:
                sys.setprofile(None)
                act()

    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(None)


FIRST = 4
"""Calls before the entry point listens."""


def interrupt():
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def undisturbed(good):
    """MD and training without a fault: the calls of this package each took, and the files."""
    found = {}
    for job in ("md", "train"):
        calls = 0

        def count(frame, event, _):
            nonlocal calls
            calls += event == "call" and "/mlip/" in frame.f_code.co_filename

        with scratch() as folder:
            JOBS[job](good, folder)  # once for the imports
        with scratch() as folder:
            sys.setprofile(count)
            ended = JOBS[job](good, folder)
            sys.setprofile(None)
            assert ended.code == 0, ended.err
            found[job] = calls, result_of(job, folder)
    return found


def result_of(job: str, folder: Path):
    """What must not depend on an interruption: trajectory and table without the clock; weights."""
    if job == "train":
        from safetensors.numpy import load_file

        return {name: value.tobytes() for name, value in load_file(folder / "run" / "model.safetensors").items()}
    table = np.genfromtxt(folder / "o.csv", delimiter=",", names=True)
    return (folder / "o.extxyz").read_bytes(), [table[name].tobytes() for name in table.dtype.names if name != "wall_s"]


@bad_inputs(24, job=st.sampled_from(["md"]), place=st.floats(0.001, 0.999))
def test_ctrl_c_at_any_point(good, undisturbed, job, place, folder):
    calls, result = undisturbed[job]
    try:
        with after_calls(FIRST + int(place * (calls - FIRST)), interrupt):
            ended = JOBS[job](good, folder)
    except KeyboardInterrupt:  # pytest would stop
        pytest.fail(f"Ctrl-C went through at call {place} of {job}: {traceback.format_exc()[-1500:]}")
    assert ended.code == 130 and "Traceback" not in ended.err + ended.out
    assert "interrupted" in ended.err + ended.out and len(ended.err.strip().splitlines()) <= 1
    again = md(good, folder, "--resume") if job == "md" else train(good, folder)
    assert again.code == 0 or "finished run" in again.err, again.err
    assert result_of(job, folder) == result


@pytest.mark.slow
@bad_inputs(30, job=st.sampled_from(["md", "train"]), place=st.floats(0.001, 0.999))
def test_sigkill_at_any_point(good, undisturbed, job, place, folder):
    """In a forked process: no handler runs, no file is closed."""
    calls, result = undisturbed[job]
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        with after_calls(FIRST + int(place * (calls - FIRST)), lambda: os.kill(os.getpid(), signal.SIGKILL)):
            JOBS[job](good, folder)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    again = md(good, folder, "--resume") if job == "md" else train(good, folder)
    assert again.code == 0 or "finished run" in again.err, again.err
    assert result_of(job, folder) == result


@bad_inputs(15, size=st.integers(0, 400), text=st.text(min_size=500, max_size=600))
def test_a_file_that_is_replaced_is_whole_or_as_before(size, text, folder):
    path = folder / "file"
    atomic_write_text(path, "as before")
    with disk_of(size), pytest.raises(OSError):
        atomic_write_text(path, text)
    assert contents(folder) == {"file": b"as before"}
