"""Structures that cannot be: huge and tiny cells, atoms far away or on top of each other, impossible elements and masses."""

from __future__ import annotations

import numpy as np
import pytest
from hard_inputs import write_bytes
from hard_tools import bad_inputs, command
from hypothesis import strategies as st

from mlip.data.neighbors import neighbor_list
from mlip.errors import StructureError

HUGE = ["1e7", "1e9", "1e17", "1e38", "1e300", "-1e300"]
PLACES = ["position", "open cell", "cell", "one vector", "shear"]


@bad_inputs(15, 30, place=st.sampled_from(PLACES), number=st.sampled_from(HUGE))
def test_huge_cells_and_positions(good, place, number, folder):
    """Numbers that no structure has: every command says so, none fills the memory."""
    x = number if place == "position" else "0.96"
    vectors = {
        "position": "", "open cell": f"{number} 0 0 0 9 0 0 0 9", "cell": f"{number} 0 0 0 {number} 0 0 0 {number}",
        "one vector": f"9 0 0 0 {number} 0 0 0 9", "shear": f"9 0 0 {number} 9 0 0 0 9",
    }[place]  # fmt: skip
    cell = f'Lattice="{vectors}" pbc="{"F F F" if place == "open cell" else "T T T"}" ' if vectors else ""
    path = write_bytes(folder / "bad.xyz", f"3\n{cell}energy=-470\nO 0 0 0\nH {x} 0 0\nH -0.24 0.93 0\n".encode())
    model = good / "model.safetensors"
    for words in (["data", "audit", path], ["data", "convert", path, "o.h5"], ["data", "stats", path], ["eval", model, path]):
        command("mlip", *words, folder=folder).refused()
    for words in (["relax", path, "--model", model], ["md", path, "--model", model, "--steps", "1"]):
        command("mlip", *words, folder=folder).refused()
    for words in (["run", path], ["label", path, "o.h5", "--dry-run"]):
        command("scf-accel", *words, folder=folder).refused("scf-accel")


@bad_inputs(12, 60, long=st.sampled_from([3e3, 1e4, 1e5, 1e6]), thin=st.sampled_from([3.0, 5.0, 20.0]),
            axis=st.integers(0, 2), open_axis=st.sampled_from([None, 0, 1, 2]))  # fmt: skip
def test_long_thin_cells(long, thin, axis, open_axis, folder):
    """Of some of these vesin divides by a number of cells that is zero, which would end the process: found, or refused."""
    cell, pbc = np.diag(np.where(np.arange(3) == axis, long, thin)), np.arange(3) != open_axis
    positions = np.array([[0.0, 0, 0], [1.0, 0, 0], [0, 1.1, 0]])
    try:
        edge_index, shifts = neighbor_list(positions, cell, pbc, 2.5)
    except StructureError as error:
        assert "Angstrom, is too long in one direction" in str(error)
        return
    vectors = positions[edge_index[0]] - positions[edge_index[1]] + shifts @ cell
    assert np.linalg.norm(vectors, axis=1).max() < 2.5 and {(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)} <= {
        (int(i), int(j)) for i, j in edge_index.T
    }


@pytest.mark.parametrize(("count", "side"), [(3, 0.01), (30_000, None)], ids=["tiny cell", "all in one place"])
def test_pairs_beyond_memory_are_refused_before_they_are_made(monkeypatch, count, side):
    monkeypatch.setattr("mlip.data.neighbors.available_memory", lambda: 8 * 10**9)
    positions = np.arange(count * 3).reshape(-1, 3) * 1e-6
    with pytest.raises(StructureError, match=r"pairs of atoms within 5 Angstrom need [0-9]+ GB, and 8 GB are free"):
        neighbor_list(positions, np.eye(3) * (side or 0.0), [side is not None] * 3, 5.0)


COLUMNS = {
    "Z:I:1": ["0", "-4", "119", "99999"], "numbers:I:1": ["0", "-1", "119", "99999"],
    "masses:R:1": ["-1", "0", "nan"], "pos:R:3": ["1 2 3"], "species:S:1": ["H"], "forces:R:3:forces:R:3": ["1 2 3 4 5 6"],
    "forces:R:3:REF_forces:R:3": ["1 2 3 4 5 6"],
}  # fmt: skip
CASES = [(columns, value) for columns, values in COLUMNS.items() for value in values]


@bad_inputs(len(CASES), 0, case=st.sampled_from(CASES))
def test_impossible_atoms_and_columns_given_twice(good, case, folder):
    columns, value = case
    rows = "".join(f"{symbol} {x} {y} 0 {value}\n" for symbol, x, y in (("O", 0, 0), ("H", 0.96, 0), ("H", -0.24, 0.93)))
    text = f"3\nProperties=species:S:1:pos:R:3:{columns} energy=-470\n{rows}"
    path = write_bytes(folder / "bad.xyz", text.encode())
    model = good / "model.safetensors"
    command("mlip", "md", path, "--model", model, "--steps", "1", folder=folder).refused_or_done()
    command("mlip", "relax", path, "--model", model, "--fmax", "1e9", folder=folder).refused_or_done()
    command("scf-accel", "label", path, "o.h5", "--dry-run", folder=folder).refused_or_done("scf-accel")
    command("mlip", "data", "audit", path, folder=folder).refused()
    converted = command("mlip", "data", "convert", path, "o.h5", folder=folder)
    assert converted.refused_or_done() or columns == "masses:R:1"  # which a data file does not hold
