"""Good files to start from, and ways to damage them."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hypothesis import strategies as st

FOREIGN = {
    "empty": b"",
    "one byte": b"\x00",
    "text": b"this is not the file you are looking for\n" * 3,
    "pickle": pickle.dumps({"weights": [1.0]}),
    "zip": b"PK\x03\x04" + bytes(60),
    "gzip": b"\x1f\x8b\x08\x00" + bytes(40),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(40),
    "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "git lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "json": b'{"energy": 1}',
    "latin-1": "Ångström\n".encode("latin-1"),
    "zeros": bytes(4096),
    "utf-16": "3\n\nO 0 0 0\n".encode("utf-16"),
}


def water(count: int, seed: int = 0) -> list[Any]:
    """Water molecules with harmonic labels: energies in eV and the forces that belong to them."""
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    rng = np.random.default_rng(seed)
    rest = np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    made = []
    for _ in range(count):
        atoms = Atoms("OHH", rest + rng.normal(scale=0.05, size=rest.shape))
        energy, forces = -470.0, np.zeros((3, 3))
        for i, j, length in ((0, 1, 0.96), (0, 2, 0.96), (1, 2, 1.52)):
            vector = atoms.positions[i] - atoms.positions[j]
            stretch = np.linalg.norm(vector) - length
            energy += 10 * stretch**2
            pull = -20 * stretch * vector / np.linalg.norm(vector)
            forces[i] += pull
            forces[j] -= pull
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        made.append(atoms)
    return made


# ------------------------------------------------------------------------------------------------ bytes


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, Any]:
    """A way to damage any file: cut it, overwrite a part with other bytes, or put another file in its place."""
    kind = draw(st.sampled_from(["cut", "cut", "overwrite", "overwrite", "foreign"]))
    if kind == "cut":
        return kind, draw(st.floats(0, 0.999))
    if kind == "overwrite":
        return kind, (draw(st.floats(0, 1)), draw(st.binary(min_size=1, max_size=24)))
    return kind, draw(st.sampled_from(sorted(FOREIGN)))


def damage(content: bytes, how: tuple[str, Any]) -> bytes:
    """``content`` damaged as :func:`damages` says."""
    kind, what = how
    if kind == "cut":
        return content[: int(what * len(content))]
    if kind == "foreign":
        return FOREIGN[what]
    place, new = int(what[0] * (len(content) - 1)), what[1]
    return content[:place] + new + content[place + len(new) :]


# ------------------------------------------------------------------------------------------------ HDF5

HDF5_DAMAGES: dict[str, Any] = {
    "no format": lambda file, _: file.attrs.__delitem__("format"),
    "another format": lambda file, _: file.attrs.__setitem__("format", "someone-elses"),
    "newer version": lambda file, _: file.attrs.__setitem__("format_version", 99),
    "version is text": lambda file, _: file.attrs.__setitem__("format_version", "two"),
    "energies in Hartree": lambda file, _: file.attrs.__setitem__("energy_unit", "Hartree"),
    "positions in Bohr": lambda file, _: file.attrs.__setitem__("length_unit", "Bohr"),
    "another stress": lambda file, _: file.attrs.__setitem__("stress_convention", "GPa, compression positive"),
    "no dataset": lambda file, name: file.__delitem__(name),
    "a group instead": lambda file, name: (file.__delitem__(name), file.create_group(name)),
    "text instead": lambda file, name: replaced(file, name, np.array([b"abc"] * max(1, file[name].shape[0]))),
    "one row short": lambda file, name: replaced(file, name, file[name][:-1]),
    "one row more": lambda file, name: replaced(file, name, np.concatenate([file[name][:], file[name][-1:]])),
    "a scalar": lambda file, name: replaced(file, name, np.float64(1.0)),
    "no rows": lambda file, name: replaced(file, name, file[name][:0]),
    "infinite": lambda file, name: replaced(file, name, np.full(file[name].shape, np.inf)),
    "negative": lambda file, name: replaced(file, name, np.full(file[name].shape, -7)),
    "huge": lambda file, name: replaced(file, name, np.full(file[name].shape, 2**40)),
    "a million million rows": lambda file, name: enlarged(file, name),
    "complex": lambda file, name: replaced(file, name, np.full(file[name].shape, 1j)),
}
HDF5_NAMES = ["atomic_numbers", "positions", "atom_ptr", "energy", "forces", "cell", "pbc", "charge", "spin", "density_ptr", "id"]


def enlarged(file: h5py.File, name: str, rows: int = 10**12) -> None:
    """Let a dataset claim so many rows, none of them stored."""
    old = file[name]
    shape, dtype = (rows, *old.shape[1:]), old.dtype
    del file[name]
    file.create_dataset(name, shape, dtype, chunks=(1024, *shape[1:]))


def replaced(file: h5py.File, name: str, values: Any) -> None:
    """Put ``values`` in the place of a dataset."""
    del file[name]
    file[name] = values


# ------------------------------------------------------------------------------------------------ safetensors


def split_safetensors(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON header and the rest."""
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def join_safetensors(header: dict[str, Any], rest: bytes) -> bytes:
    """The inverse."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


odd_values = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**12), 10**12), st.sampled_from(["", "abc", "nan", "float16", "__import__('os')"]),
    st.floats(allow_nan=False), st.sampled_from([[], {}, [1], ["H"], {"H": 1}, [[1, 2]], [0], [-1], [999], {"1": "x"}]),
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ extended XYZ

XYZ_LINES = [
    "H nan 0 0", "H inf 0 0", "H 0 0", "Xx 0 0 1", "H 0 0 0 0 0 0 0 0 0 0", "H a b c", "", "200 0 0 1", "H 1e308 0 1e308",
    "H 0 0 0", "é 0 0 1",
]  # fmt: skip
XYZ_COMMENTS = [
    "Lattice=\"1 2 3\"", "Lattice=\"nan 0 0 0 nan 0 0 0 nan\" pbc=\"T T T\"", "Lattice=\"0 0 0 0 0 0 0 0 0\" pbc=\"T T T\"",
    "Lattice=\"1e-8 0 0 0 1e-8 0 0 0 1e-8\" pbc=\"T T T\"", "Lattice=\"1e9 0 0 0 1e9 0 0 0 1e9\" pbc=\"T T T\"",
    "Lattice=\"1 0 0 1 0 0 1 0 0\" pbc=\"T T T\"", "energy=nan", "energy=inf", "energy=abc", "energy=1 REF_energy=2",
    "energy=1 energy=2", "energy=\"1 2 3\"", "charge=0.5", "charge=abc", "spin=-3", "multiplicity=0", "charge=1 total_charge=2",
    "Properties=species:S:1", "Properties=species:S:1:pos:R:3:forces:R:2", "Properties=species:S:1:pos:R:3:forces:S:3",
    "Properties=pos:R:3", "Properties=species:S:1:pos:R:999", "Properties=", "stress=\"1 2\"", "virial=abc",
    "pbc=\"maybe\"", "forces=3", "positions=3", "numbers=3", "id=\"\"", "pbc=\"T T T\"",
]  # fmt: skip
XYZ_COUNTS = ["3", "0", "-1", "4", "2", "1e3", "9999", "three", "3 3", "１"]


@st.composite
def bad_xyz(draw: st.DrawFn) -> str:
    """An extended XYZ file of two frames of which one has a wrong count, comment or atom line."""
    good = ["3", "energy=-470.0", "O 0 0 0", "H 0.96 0 0", "H -0.24 0.93 0"]
    bad = list(good)
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(["count", "comment", "comment", "atom", "atom"]))
        if place == "count":
            bad[0] = draw(st.sampled_from(XYZ_COUNTS))
        elif place == "comment":
            bad[1] = draw(st.sampled_from(XYZ_COMMENTS))
        else:
            bad[draw(st.integers(2, 4))] = draw(st.sampled_from(XYZ_LINES))
    frames = [good, bad] if draw(st.booleans()) else [bad]
    return "\n".join(line for frame in frames for line in frame) + draw(st.sampled_from(["\n", ""]))


def write_bytes(path: Path, content: bytes) -> Path:
    """Write and return ``path``."""
    path.write_bytes(content)
    return path
