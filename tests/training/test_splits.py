"""A test set taken from the training file: disjoint from the rest, whole molecules, the same whatever is held out beside it."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from density_toys import density_frames, write_toys
from training_toys import stopped, toy_values, write_config

from mlip.checkpoint import read_header
from mlip.configfile import load_config, parse_config
from mlip.errors import ConfigError
from mlip.training.prepare import Prepared, prepare
from mlip.training.run import _as_begun, train
from mlip.training.runfolder import RunFolder


def split(folder: Path, **data: object) -> Prepared:
    """40 frames of ten molecules, prepared with ``data`` beside the training file."""
    frames = density_frames(40, 0)
    for k, frame in enumerate(frames):
        frame.extras = {"molecule": f"M{k % 10}", "place": k}
    values = toy_values(folder)
    values["data"] = {"train": str(write_toys(folder / "molecules.h5", frames)), "split_by": "molecule", **data}
    values["loss"] = {"stress": {"weight": 0.0}}
    return prepare(load_config(write_config(folder, values)))


def places(frames) -> set[int]:
    return {int(frame.extras["place"]) for frame in frames}


def test_three_parts_of_whole_molecules(tmp_path):
    data = split(tmp_path, valid=0.2, test=0.3)
    parts = [data.train, data.valid, data.tests["test"]]
    assert [len(part) for part in parts] == [20, 8, 12]  # shares of all frames
    assert set().union(*map(places, parts)) == set(range(40))
    molecules = [{frame.extras["molecule"] for frame in part} for part in parts]
    assert not molecules[0] & molecules[1] and not molecules[0] & molecules[2] and not molecules[1] & molecules[2]


def test_the_test_frames_do_not_depend_on_the_share_for_validation(tmp_path):
    few, many = (places(split(tmp_path, valid=share, test=0.2).tests["test"]) for share in (0.1, 0.5))
    other = places(split(tmp_path, valid=0.1, test=0.2, split_seed=1).tests["test"])
    assert few == many and few != other


@pytest.mark.parametrize("by", ["molecule", None])
def test_a_run_goes_on_with_its_own_split_only(tmp_path, monkeypatch, by):
    values = toy_values(tmp_path, 2, precision="float64")
    values["data"] = {"train": str(write_toys(tmp_path / "m.h5", density_frames(12, 0))), "split_by": by, "valid": 0.4}
    values["loss"] = {"stress": {"weight": 0.0}}
    config = load_config(write_config(tmp_path, values))
    content = stopped(config, 2, monkeypatch)
    data = prepare(config)
    assert content["split"] == data.split and len(data.split) == 16
    folder = RunFolder(config.run.dir)
    assert _as_begun(config, folder, data, content) is data
    refusal = pytest.raises(ConfigError, match=r"held other frames out of data.train")
    with refusal:
        _as_begun(config, folder, data, {**content, "split": "0" * 16})
    before = {name: value for name, value in content.items() if name != "split"}  # as an earlier version wrote it
    with refusal if by else nullcontext():
        _as_begun(config, folder, data, before)
    assert train(config)["epochs"] == 2
    assert read_header(config.run.dir)["metadata"]["training_data"]["split"] == data.split


def test_no_digest_where_nothing_is_drawn(tmp_path):
    assert prepare(load_config(write_config(tmp_path, toy_values(tmp_path)))).split == ""


def test_its_errors_are_in_the_table(tmp_path):
    values = toy_values(tmp_path, 1)
    values["data"] |= {"test": 0.3}
    results = train(load_config(write_config(tmp_path, values)))
    assert results["errors"]["test"]["energy"]["count"] == 3 and np.isfinite(results["errors"]["test"]["forces"]["mae"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"test": 1.5}, "data.test: 1.5 is neither a file nor a fraction"),
        ({"test": 0.0}, "data.test: 0.0 is neither a file nor a fraction"),
        ({"test": 0.6, "valid": 0.5}, "valid 0.5 and test 0.6 leave nothing to train on"),
    ],
)
def test_impossible_shares(given, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_config({"data": {"train": "a.h5", **given}, "training": {"max_epochs": 1}})
