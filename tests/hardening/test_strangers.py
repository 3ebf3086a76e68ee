"""A file from a stranger cannot run code: pickles with an order in them, behind every name that a command reads."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
from hard_inputs import join_safetensors, split_safetensors, write_bytes
from hard_tools import FAULTS, INPUTS, bad_inputs, command
from hypothesis import strategies as st

from mlip.data.schema import decode_attribute


class Order:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def as_torch(order: Order) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(order))
        file.writestr("archive/version", "3\n")
    return buffer.getvalue()


def as_arrays(order: Order) -> bytes:
    buffer = io.BytesIO()
    objects = np.array([order], dtype=object)
    np.savez(buffer, meta=objects, positions=objects, energy=objects)
    return buffer.getvalue()


def as_yaml(order: Order) -> bytes:
    return f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{order.path}']]\n".encode()


KINDS = {"pickle": pickle.dumps, "pickle 0": lambda o: pickle.dumps(o, 0), "torch": as_torch, "npz": as_arrays, "yaml": as_yaml}
NAMES = [
    "x.safetensors", "x.pt", "x.pt2", "x.pkl", "x.h5", "x.xyz", "x.db", "x.json", "x.traj", "OUTCAR", "x.yaml", "x.npz", "x.cif",
    "x",
]  # fmt: skip


@bad_inputs(24, 65, kind=st.sampled_from(sorted(KINDS)), name=st.sampled_from(NAMES))
def test_no_command_obeys_a_file(good, kind, name, folder):
    path, mark = folder / name, folder / "obeyed"
    path.write_bytes(KINDS[kind](Order(mark)))
    model, one = good / "model.safetensors", good / "one.xyz"
    as_model = (["info", path], ["eval", path, good / "frames.xyz"], ["relax", one, "--model", path])
    as_data = (["eval", model, path], ["relax", path, "--model", model], ["md", path, "--model", model], ["data", "audit", path])
    for words in (*as_model, *as_data, ["train", path]):
        command("mlip", *words, folder=folder).refused()
    command("scf-accel", "run", path, folder=folder).refused("scf-accel")
    assert not mark.exists()


@bad_inputs(15, 0, kind=st.sampled_from(sorted(KINDS)), place=st.sampled_from(["state", "checkpoint", "part"]))
def test_no_state_to_resume_from_is_obeyed(good, kind, place, folder):
    """What a stopped run left, replaced by a stranger: MD's state, training's checkpoint, a labelled part."""
    mark = folder / "obeyed"
    content = KINDS[kind](Order(mark))
    if place == "state":
        (folder / "one-md.state.npz").write_bytes(content)
        words = (good / "one.xyz", "--model", good / "model.safetensors", "--out", "one-md.traj", "--resume")
        command("mlip", "md", *words, folder=folder).refused()
    elif place == "checkpoint":
        from mlip.errors import CheckpointError
        from mlip.training.state import read_checkpoint

        (folder / "training.ckpt").write_bytes(content)
        try:
            read_checkpoint(folder / "training.ckpt")
        except CheckpointError as error:
            assert "--restart" in str(error)
    else:
        (folder / "o.h5.parts").mkdir()
        (folder / "o.h5.parts" / "a.npz").write_bytes(content)
        (folder / "m.smi").write_text("[H][H]\n", encoding="utf-8")
        command("scf-accel", "label", "m.smi", "o.h5", "--assemble-only", folder=folder).refused("scf-accel")
    assert not mark.exists()


def test_an_attribute_that_looks_like_code_is_text():
    assert decode_attribute("__import__('os').getcwd()") == "__import__('os').getcwd()"
    assert decode_attribute("{not json") == "{not json"


NAMES_OF_TERMINALS = ["\x1b]0;title\x07", "\x1b[2J", "[/nope]", "[bold]x", "a\rb", "\x00", "\u202e", "[link=http://x]y[/link]"]


@bad_inputs(len(NAMES_OF_TERMINALS), 0, text=st.sampled_from(NAMES_OF_TERMINALS))
def test_a_header_cannot_steer_the_terminal(good, text, folder):
    """Text of a stranger's header is shown as it is: no control characters, no styles."""
    outer, rest = split_safetensors((good / "model.safetensors").read_bytes())
    header = json.loads(outer["__metadata__"]["mlip"])
    header["metadata"] = {"licence": text, text: "licence"}
    outer["__metadata__"] = {"mlip": json.dumps(header)}
    path = write_bytes(folder / "m.safetensors", join_safetensors(outer, rest))
    ended = command("mlip", "info", path, folder=folder)
    assert ended.code == 0 and not [c for c in ended.out if not c.isprintable() and c != "\n"]
    assert not text.isprintable() or ended.out.count(text) == 2


def test_there_are_at_least_300_bad_inputs():
    """In the default run alone; with ``-m slow`` several times as many. Faults are not counted."""
    import test_bad_options
    import test_bad_structures
    import test_damaged_files
    import test_damaged_states
    import test_faults

    modules = (test_bad_options, test_bad_structures, test_damaged_files, test_damaged_states, test_faults)
    assert {name.partition(".")[0] for name in (*INPUTS, *FAULTS)} == {__name__, *(module.__name__ for module in modules)}
    assert sum(some for some, _ in INPUTS.values()) >= 300
    assert sum(max(counts) for counts in INPUTS.values()) >= 1000
    assert sum(some for some, _ in FAULTS.values()) >= 50
