"""What a stopped run left and somebody damaged: resuming says so in one line and destroys nothing."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from hard_inputs import damage, write_bytes
from hard_jobs import JOBS, md, no_chemistry
from hard_tools import bad_inputs, command, contents
from hypothesis import strategies as st

KINDS = st.sampled_from(["empty", "json", "latin-1", "zeros", "pickle", "zip"]).map(lambda kind: ("foreign", kind))
WHOLE = KINDS | st.floats(0.05, 0.9).map(lambda part: ("cut", part))


@pytest.fixture(scope="session")
def stopped(good, tmp_path_factory):
    """A folder after MD, a folder of a training that was stopped before its results, and one of a labelling run."""
    folder = tmp_path_factory.mktemp("stopped")
    for job in ("md", "train", "label"):
        (folder / job).mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mlip.training.run.finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            ended = JOBS[job](good, folder / job)
        assert ended.code == (130 if job == "train" else 0), ended.err
    write_bytes(folder / "label" / "o.h5.parts" / "x.failed.json", b'{"reason": "a", "molecule": "b", "origin": "c"}\n')
    return folder


def damaged(stopped, job, folder, name, change):
    """A copy of what the job left, with the file ``name`` changed."""
    shutil.copytree(stopped / job, folder, dirs_exist_ok=True)
    path = sorted(folder.glob(name))[0]
    return write_bytes(path, change(path.read_bytes()))


@bad_inputs(15, 60, name=st.sampled_from(["o.extxyz", "o.csv", "o.state.npz"]), how=WHOLE)
def test_md_files(good, stopped, name, how, folder):
    """What is shorter than the state says, or no table of this run, is not continued, and not cut either."""
    path = damaged(stopped, "md", folder, name, lambda old: damage(old, how))
    shorter = path.stat().st_size < (stopped / "md" / name).stat().st_size
    before = contents(folder)
    ended = md(good, folder, "--steps", "14", "--resume")
    if shorter or name != "o.extxyz":  # a trajectory of the same length is not read
        ended.refused()
        assert contents(folder) == before


STATES = [
    ("positions", np.zeros((2, 3))), ("positions", np.array("x")), ("positions", None), ("momenta", None),
    ("momenta", np.zeros((1, 3))), ("positions", np.full((3, 3), np.nan)), ("cell", np.full(9, np.inf)), ("meta", np.array("[]")),
    ("meta", np.array('{"format": 1}')), ("meta", np.array("{")), ("rng", {}), ("rng", None), ("step", "x"), ("freedom", None),
    ("frames", -1), ("frames", {}), ("log", "x"), ("wall", "x"), ("identity", 3), ("identity", {}),
]  # fmt: skip


@bad_inputs(len(STATES), 0, place=st.integers(0, len(STATES) - 1))
def test_md_state(good, stopped, place, folder):
    name, value = STATES[place]
    shutil.copytree(stopped / "md", folder, dirs_exist_ok=True)
    arrays = dict(np.load(folder / "o.state.npz"))
    if name in arrays:
        arrays[name] = value
    else:
        arrays["meta"] = np.array(json.dumps({**json.loads(str(arrays["meta"])), name: value}))
    np.savez(folder / "o.state.npz", **{key: array for key, array in arrays.items() if array is not None})
    md(good, folder, "--steps", "14", "--resume").refused()


@bad_inputs(10, 40, name=st.sampled_from(["run/config.yaml", "run/training.ckpt"]), how=WHOLE)
def test_training_files(good, stopped, name, how, folder):
    damaged(stopped, "train", folder, name, lambda old: damage(old, how))
    before = contents(folder)
    line = command("mlip", "train", "c.yaml", folder=folder).refused()
    after = contents(folder)
    assert "--restart" in line and "`False`" not in line  # torch advises to run the file
    for path in ("run/training.ckpt", "run/log.csv"):
        assert after[path] == before[path]


CHECKPOINTS = [
    ("progress", {}), ("progress", None), ("progress", {"best_value": 1.0, "epoch": "x", "extra": 3}), ("best", {}), ("best", 3),
    ("model", {}), ("optimizer", {}), ("average", {}), ("random", 3), ("random", torch.zeros(3)), ("epoch_errors", {}),
    ("fingerprint", "x"), ("format_version", 99), ("format_version", "x"),
]  # fmt: skip


@bad_inputs(len(CHECKPOINTS), 0, place=st.integers(0, len(CHECKPOINTS) - 1))
def test_training_checkpoint(good, stopped, place, folder):
    name, value = CHECKPOINTS[place]
    shutil.copytree(stopped / "train", folder, dirs_exist_ok=True)
    content = torch.load(folder / "run" / "training.ckpt", weights_only=True)
    if name != "best":  # which is asked for when training has ended
        content["progress"].update(finished="", epoch=1, batch=0)
    torch.save({**content, name: value}, folder / "run" / "training.ckpt")
    assert "run" in command("mlip", "train", "c.yaml", folder=folder).refused()


@bad_inputs(15, 60, name=st.sampled_from(["settings.json", "x.failed.json", "*.npz"]), how=WHOLE, assemble=st.booleans())
def test_label_parts(good, stopped, name, how, assemble, folder):
    """The damaged file is named, and the labelled file of before stays."""
    path = damaged(stopped, "label", folder, f"o.h5.parts/{name}", lambda old: damage(old, how))
    before = contents(folder)
    with no_chemistry():
        words = ["label", good / "frames.xyz", "o.h5", *["--assemble-only"] * assemble]
        line = command("scf-accel", *words, folder=folder).refused("scf-accel")
    assert path.name in line and "pickle.load" not in line
    after = contents(folder)
    assert {file: after.get(file) for file in before if not file.endswith("lock")} == {
        file: content for file, content in before.items() if not file.endswith("lock")
    }


PARTS = [
    ("energy", np.nan), ("positions", np.full((3, 3), np.inf)), ("density_coefficients", np.array([np.nan])), ("charge", "x"),
    ("positions", np.zeros((5, 3))), ("forces", np.zeros((1, 3))), ("atomic_numbers", np.array([999, 1, 1])),
    ("atomic_numbers", np.array(["a"])), ("solver", 3), ("scf_cycles", np.array([1, 2])), ("molecule", None),
]  # fmt: skip


@bad_inputs(len(PARTS), 0, place=st.integers(0, len(PARTS) - 1))
def test_label_part_of_other_numbers(good, stopped, place, folder):
    name, value = PARTS[place]
    shutil.copytree(stopped / "label", folder, dirs_exist_ok=True)
    part = sorted(folder.glob("o.h5.parts/*.npz"))[0]
    arrays = {**np.load(part), name: value}
    np.savez(part, **{key: array for key, array in arrays.items() if array is not None})
    before = (folder / "o.h5").read_bytes()
    words = ["label", good / "frames.xyz", "o.h5", "--assemble-only"]
    command("scf-accel", *words, folder=folder).refused("scf-accel")
    assert (folder / "o.h5").read_bytes() == before
