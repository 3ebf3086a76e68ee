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

import numpy as np
import pytest
from hard_jobs import JOBS, PROGRAM, label, md, train, write_config
from hard_tools import contents, faults, scratch
from hypothesis import strategies as st
from pyscf import gto

from mlip.files import atomic_write_text

AT_ONCE = {"label": "o.h5", "to xyz": "o.extxyz", "to hdf5": "o.h5"}
"""Outputs that are made in one go: there, or not."""


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


SIZES = st.sampled_from([0, 1, 50, 500, 2000, 5000]) | st.integers(0, 9000) | st.integers(0, 2 * 2**20)


@faults(36, 250, job=st.sampled_from(sorted(JOBS)), size=SIZES)
def test_full_disk(good, job, size, folder):
    if job == "train":
        write_config(good, folder)
    before = contents(good)
    with disk_of(size):
        ended = JOBS[job](good, folder)
    assert "Traceback" not in ended.out + ended.err and contents(good) == before
    if ended.code == 0:
        return  # all its files were small enough
    line = ended.err.strip()
    assert len(line.splitlines()) == 1 and "free some space" in line and "unexpected" not in line, line
    assert not list(folder.rglob("*.tmp")) and not (folder / AT_ONCE.get(job, "nothing")).exists()
    if job in ("train", "label", "md"):  # goes on when there is room
        again = md(good, folder, "--resume") if job == "md" else JOBS[job](good, folder)
        assert again.code == 0, again.err


@faults(6, 20, job=st.sampled_from(["eval", *sorted(AT_ONCE)]), size=st.integers(0, 300))
def test_full_disk_leaves_the_older_file(good, job, size, folder):
    """An output that is replaced is whole, or as before."""
    JOBS[job](good, folder)
    older = contents(folder)
    shutil.rmtree(folder / "o.h5.parts", ignore_errors=True)
    with disk_of(size):
        ended = JOBS[job](good, folder, *["--force"] * job.startswith("to"))
    assert ended.code == 1 and "free some space" in ended.err
    now = contents(folder)
    assert all(now[name] == content for name, content in older.items() if ".parts" not in name)


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


def may_read(path):
    """Whether a user may read what root has installed."""
    with nobody():
        return os.access(path, os.R_OK, effective_ids=True)


def import_all(job, readable, done=set()):  # noqa: B006 (what has been imported stays so)
    """What a job imports when it needs it: a user cannot read it where root has the libraries at home."""
    if job not in done:
        with scratch() as place:
            if job == "train":
                write_config(readable, place)
            JOBS[job](readable, place)
        done.add(job)


@faults(14, 21, job=st.sampled_from(sorted(JOBS)), inside=st.sampled_from(["", "a", "a/b"]))
def test_read_only_folder(readable, job, inside, folder):
    """The error names what is forbidden; the log goes where one may write."""
    if job == "label" and not may_read(Path(gto.__file__)):
        return  # root has the libraries at home, and PySCF reads basis sets when it needs them
    place = folder / inside
    place.mkdir(parents=True, exist_ok=True)
    if job == "train":
        write_config(readable, place)
    for made in (folder, *folder.rglob("*")):
        made.chmod(0o555 if made.is_dir() else 0o644)
    before = contents(folder)
    import_all(job, readable)
    try:
        with nobody():
            line = JOBS[job](readable, place).refused(PROGRAM.get(job, "mlip"))
    finally:
        folder.chmod(0o755)
    assert "may write to" in line or "ermission denied" in line or "cannot be written" in line, line
    assert contents(folder) == before


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
    """Within, ``act`` is called at the ``count``-th call of a function of this project."""
    left = count

    def watch(frame, event, _):
        nonlocal left
        if event == "call" and ours(frame):
            left -= 1
            if left == 0:
                sys.setprofile(None)
                act()

    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(None)


def ours(frame) -> bool:
    return "/mlip/" in frame.f_code.co_filename or "/scf_accel/" in frame.f_code.co_filename


FIRST = 4
"""Calls before the entry point listens."""
STOPPED = ["md", "train", "label"]


def interrupt():
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def undisturbed(good):
    """The jobs without a fault: the calls of this project that each took, and the result."""
    found = {}
    for job in STOPPED:
        calls = 0

        def count(frame, event, _):
            nonlocal calls
            calls += event == "call" and ours(frame)

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
    """What must not depend on an interruption: trajectory and table without the clock; weights; labels."""
    if job == "label":
        return (folder / "o.h5").read_bytes()
    if job == "train":
        from safetensors.numpy import load_file

        return {name: value.tobytes() for name, value in load_file(folder / "run" / "model.safetensors").items()}
    table = np.genfromtxt(folder / "o.csv", delimiter=",", names=True)
    return (folder / "o.extxyz").read_bytes(), [table[name].tobytes() for name in table.dtype.names if name != "wall_s"]


def goes_on(good, job, folder, result):
    """The same command again ends as if nothing had happened; finished jobs and parts of before the stop are kept."""
    kept = {name: content for name, content in contents(folder).items() if name.endswith(".npz") and ".parts" in name}
    again = md(good, folder, "--resume") if job == "md" else (train if job == "train" else label)(good, folder)
    assert again.code == 0 or "finished run" in again.err, again.err
    assert result_of(job, folder) == result
    now = contents(folder)
    assert all(now[name] == content for name, content in kept.items())


@faults(24, 200, job=st.sampled_from(STOPPED), place=st.floats(0.001, 0.999))
def test_ctrl_c_at_any_point(good, undisturbed, job, place, folder):
    calls, result = undisturbed[job]
    try:
        with after_calls(FIRST + int(place * (calls - FIRST)), interrupt):
            ended = JOBS[job](good, folder)
    except KeyboardInterrupt:  # pytest would stop
        pytest.fail(f"Ctrl-C went through at call {place} of {job}: {traceback.format_exc()[-1500:]}")
    assert ended.code == 130 and "Traceback" not in ended.err + ended.out
    assert "interrupted" in ended.err + ended.out and len(ended.err.strip().splitlines()) <= 1
    assert not list(folder.rglob("*.tmp"))
    goes_on(good, job, folder, result)


@faults(12, 100, job=st.sampled_from(STOPPED), place=st.floats(0.001, 0.999))
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
    goes_on(good, job, folder, result)


@faults(15, 0, size=st.integers(0, 400), text=st.text(min_size=500, max_size=600))
def test_a_file_that_is_replaced_is_whole_or_as_before(size, text, folder):
    path = folder / "file"
    atomic_write_text(path, "as before")
    with disk_of(size), pytest.raises(OSError, match=str(path)):
        atomic_write_text(path, text)
    assert contents(folder) == {"file": b"as before"}
