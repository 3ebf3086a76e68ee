"""Truncated, damaged and foreign files: one clear line, exit code 1, the trace in a log; never a traceback, never a result."""

from __future__ import annotations

import json
import shutil
import struct

import h5py
import numpy as np
from hard_inputs import (
    FOREIGN,
    HDF5_DAMAGES,
    HDF5_NAMES,
    bad_xyz,
    damage,
    damages,
    enlarged,
    join_safetensors,
    odd_values,
    split_safetensors,
    write_bytes,
)
from hard_tools import bad_inputs, command
from hypothesis import strategies as st

BRIEF = ("--out", "r.xyz", "--max-steps", "1", "--fmax", "1e300")
SUFFIXES = ["h5", "xyz", "db", "traj", "json", "smi", "OUTCAR", "vasprun.xml", "cif", "safetensors", "yaml"]
UNITS = ("energies in Hartree", "positions in Bohr", "another stress")


def every_reader(path, folder, good):
    """The commands that read labelled frames, on ``path``; which of them refused it."""
    ended = [
        command("mlip", "data", "audit", path, folder=folder),
        command("mlip", "data", "convert", path, "copy.h5", folder=folder),
        command("mlip", "data", "stats", path, folder=folder),
        command("mlip", "eval", good / "model.safetensors", path, "--no-plots", folder=folder),
    ]
    return [end.refused_or_done() for end in ended]


@bad_inputs(25, 150, how=damages())
def test_damaged_hdf5(good, how, folder):
    path = write_bytes(folder / "bad.h5", damage((good / "frames.h5").read_bytes(), how))
    refused = every_reader(path, folder, good)
    assert all(refused) or how[0] == "overwrite"  # other bytes may hit what is not read
    assert (folder / "copy.h5").exists() != refused[1]


@bad_inputs(50, 150, kind=st.sampled_from(sorted(HDF5_DAMAGES)), name=st.sampled_from(HDF5_NAMES))
def test_hdf5_of_another_layout(good, kind, name, folder):
    shutil.copy(good / "frames.h5", folder / "bad.h5")
    with h5py.File(folder / "bad.h5", "r+") as file:
        HDF5_DAMAGES[kind](file, name)
    refused = every_reader(folder / "bad.h5", folder, good)
    if kind in UNITS or (kind == "no dataset" and name in ("atomic_numbers", "positions", "atom_ptr")):
        assert all(refused)


@bad_inputs(3, 6, atoms=st.sampled_from([10**11, 10**12, 10**13]), reader=st.sampled_from(["audit", "stats"]))
def test_hdf5_that_claims_more_than_memory_holds(good, atoms, reader, folder):
    """A small file, of one frame with so many atoms."""
    shutil.copy(good / "frames.h5", folder / "bad.h5")
    with h5py.File(folder / "bad.h5", "r+") as file:
        for name in ("atomic_numbers", "positions", "forces"):
            enlarged(file, name, atoms)
        file["atom_ptr"][-1] = atoms
    assert "GB to read at once" in command("mlip", "data", reader, folder / "bad.h5", folder=folder).refused()


@bad_inputs(25, 150, how=damages())
def test_damaged_checkpoint(good, how, folder):
    path = write_bytes(folder / "bad.safetensors", damage((good / "model.safetensors").read_bytes(), how))
    ended = [
        command("mlip", "info", path, folder=folder),
        command("mlip", "relax", good / "one.xyz", "--model", path, *BRIEF, folder=folder),
    ]
    refused = [end.refused_or_done() for end in ended]
    assert all(refused) or how[0] == "overwrite"
    assert (folder / "r.xyz").exists() != refused[1]


@bad_inputs(50, 300, section=st.sampled_from(["header", "model", "outer"]), place=st.integers(0, 11), value=odd_values)
def test_checkpoint_with_another_header(good, section, place, value, folder):
    """A value of the header is replaced by something else: refused, or (where it does not matter) loaded."""
    outer, rest = split_safetensors((good / "model.safetensors").read_bytes())
    header = json.loads(outer["__metadata__"]["mlip"])
    values = {"header": header, "model": header["model"], "outer": outer}[section]
    values[sorted(values)[place % len(values)]] = value
    outer["__metadata__"] = outer["__metadata__"] if section == "outer" else {"mlip": json.dumps(header)}
    path = write_bytes(folder / "bad.safetensors", join_safetensors(outer, rest))
    command("mlip", "info", path, folder=folder).refused_or_done()
    command("mlip", "relax", good / "one.xyz", "--model", path, *BRIEF, folder=folder).refused_or_done()


HEADERS = {
    "a key twice": lambda text: text.replace("{", '{"cutoff": 3.0, ', 1),
    "a nested key twice": lambda text: text.replace('"model": {', '"model": {"channels": 8, '),
    "too deep": lambda text: "[" * 5000,
    "endless version": lambda text: text.replace('"format_version": ', '"format_version": 1e999, "was": '),
    "version 0": lambda text: text.replace('"format_version": ', '"format_version": 0, "was": '),
    "version 99": lambda text: text.replace('"format_version": ', '"format_version": 99, "was": '),
    "cut": lambda text: text[: len(text) // 2],
    "a list": lambda text: f"[{text}]",
    "no number": lambda text: text.replace('"avg_num_neighbors": ', '"avg_num_neighbors": NaN, "was": '),
    "no elements": lambda text: text.replace('"elements": ', '"elements": [], "was": '),
    "element 0": lambda text: text.replace('"elements": ', '"elements": [0, 1], "was": '),
    "a million channels": lambda text: text.replace('"channels": 4', '"channels": 1000000'),
    "a million layers": lambda text: text.replace('"num_layers": 1', '"num_layers": 1000000'),
    "an empty density": lambda text: text.replace('"density": null, "uncer', '"density": {"basis": {}}, "uncer'),
    "an empty uncertainty": lambda text: text.replace('"uncertainty": null', '"uncertainty": {}'),
    "a number for an uncertainty": lambda text: text.replace('"uncertainty": null', '"uncertainty": 5'),
}


@bad_inputs(len(HEADERS), 0, kind=st.sampled_from(sorted(HEADERS)))
def test_header_that_cannot_be(good, kind, folder):
    outer, rest = split_safetensors((good / "model.safetensors").read_bytes())
    text = outer["__metadata__"]["mlip"]
    outer["__metadata__"] = {"mlip": HEADERS[kind](text)}
    assert outer["__metadata__"]["mlip"] != text
    path = write_bytes(folder / "bad.safetensors", join_safetensors(outer, rest))
    command("mlip", "info", path, folder=folder).refused_or_done()
    command("mlip", "relax", good / "one.xyz", "--model", path, *BRIEF, folder=folder).refused()


FRAMES = {
    "header of 8 exabytes": struct.pack("<Q", 2**63) + b"{}",
    "header of 100 MB": struct.pack("<Q", 100 * 2**20) + b"{" * 100,
    "no header": struct.pack("<Q", 0),
    "no tensors": struct.pack("<Q", 2) + b"{}",
    "null": struct.pack("<Q", 4) + b"null",
}
TENSORS = [
    {"dtype": "F32", "shape": [2**40, 2**40]}, {"dtype": "F32", "shape": [-1]}, {"dtype": "BOOL"}, {"dtype": "I32"},
    {"data_offsets": [4, 0]}, {"data_offsets": [0, 2**62]}, {"dtype": "F99"}, {"shape": []}, {"data_offsets": []}, {"shape": "x"},
]  # fmt: skip


@bad_inputs(15, 0, what=st.sampled_from(sorted(FRAMES)) | st.integers(0, len(TENSORS) - 1))
def test_safetensors_that_contradict_themselves(good, what, folder):
    content = FRAMES.get(what, b"")
    if not content:
        outer, rest = split_safetensors((good / "model.safetensors").read_bytes())
        first = min(name for name in outer if name != "__metadata__")
        content = join_safetensors({**outer, first: {**outer[first], **TENSORS[what]}}, rest)
    path = write_bytes(folder / "bad.safetensors", content)
    command("mlip", "relax", good / "one.xyz", "--model", path, *BRIEF, folder=folder).refused()


@bad_inputs(9, 30, place=st.floats(0, 1), value=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_weights_that_are_not_finite_give_no_result(good, place, value, folder):
    outer, rest = split_safetensors((good / "model.safetensors").read_bytes())
    name = sorted(key for key, entry in outer.items() if entry.get("dtype") == "F32")[0]
    start, stop = outer[name]["data_offsets"]
    at = start + int(place * (stop - start - 4)) // 4 * 4
    rest = rest[:at] + np.float32(value).tobytes() + rest[at + 4 :]
    path = write_bytes(folder / "bad.safetensors", join_safetensors(outer, rest))
    ended = command("mlip", "relax", good / "one.xyz", "--model", path, *BRIEF, folder=folder)
    written = (folder / "r.xyz").exists() and (folder / "r.xyz").stat().st_size > 0
    assert "nan" not in ended.out and ended.refused_or_done() != written


@bad_inputs(35, 300, text=bad_xyz())
def test_odd_xyz(good, text, folder):
    path = write_bytes(folder / "bad.xyz", text.encode())
    every_reader(path, folder, good)
    command("mlip", "relax", path, "--model", good / "model.safetensors", *BRIEF, folder=folder).refused_or_done()
    command("mlip", "md", path, "--model", good / "model.safetensors", "--steps", "1", folder=folder).refused_or_done()
    command("scf-accel", "label", path, "out.h5", "--dry-run", folder=folder).refused_or_done("scf-accel")


@bad_inputs(10, 60, where=st.floats(0, 0.999))
def test_cut_xyz(good, where, folder):
    """Cut anywhere, but for the end of a frame, it is refused."""
    text = (good / "frames.xyz").read_bytes()
    kept = text[: int(where * len(text))]
    refused = every_reader(write_bytes(folder / "bad.xyz", kept), folder, good)
    assert all(refused) or kept.rstrip().count(b"\n") % 5 == 4


@bad_inputs(30, 100, suffix=st.sampled_from(SUFFIXES), kind=st.sampled_from(sorted(FOREIGN)))
def test_foreign_file_behind_every_name(good, suffix, kind, folder):
    """A file that is something else: no command takes it, whatever it is called."""
    path = write_bytes(folder / (suffix if suffix in ("OUTCAR", "vasprun.xml") else f"bad.{suffix}"), FOREIGN[kind])
    model = good / "model.safetensors"
    for words in (["data", "audit", path], ["relax", path, "--model", model], ["info", path], ["train", path]):
        command("mlip", *words, folder=folder).refused()
    command("scf-accel", "run", path, folder=folder).refused("scf-accel")
    if suffix != "h5":
        command("scf-accel", "label", path, "out.h5", "--dry-run", folder=folder).refused("scf-accel")
