"""Options and configs that cannot be: units, names, numbers, keys."""

from __future__ import annotations

import yaml
from hard_tools import bad_inputs, command
from hypothesis import strategies as st

NUMBERS = ["nan", "inf", "-inf", "-1", "0", "1e400", "abc", ""]
MD_OPTIONS = {
    "--timestep": NUMBERS, "--temperature": NUMBERS, "--damping": NUMBERS, "--steps": ["-1", "x", "1.5", "1e3"],
    "--save-every": ["0", "-2", "x"], "--log-every": ["0", "-2"], "--state-every": ["0", "-2"], "--index": ["7", "-9", "x"],
    "--ensemble": ["nvp", "NVE ", "", "npt"], "--thermostat": ["berendsen", ""], "--dtype": ["float16", "int", ""],
    "--device": ["cuda:99", "abacus", ""], "--out": ["x.cif", "x", "."], "--max-temperature": NUMBERS,
    "--model": ["absent.safetensors", ".", "/dev/null", ""],
}  # fmt: skip
UNITS = [
    "energy=parsec", "length=inch", "energy", "=eV", "energy=MeV", "forces=eV", "stress=psi", "colour=red", "energy=eV;length=A",
    "a=b=c",
]  # fmt: skip
CONFIGS = [
    ("data.batch_size", [0, -1, "many", 1.5]), ("data.valid", [0.0, 1.0, -0.5, 7, "absent.xyz"]),
    ("data.units.energy", ["eVs", 3]),
    ("data.e0", ["maybe", {"Xx": 1.0}, {"H": "low"}, {"H": float("nan"), "O": 1.0}]), ("data.keys.energy", ["absent"]),
    ("training.lr", [-1, 0, "fast", float("nan"), float("inf")]), ("training.max_epochs", [-1, 1.5, "x"]),
    ("training.precision", ["float8", 3]), ("training.accelerator", ["abacus"]), ("training.seed", ["x"]),
    ("training.trheads", [1]),
    ("model.l_max", [-1, 99, "x"]), ("model.preset", ["huge"]), ("model.cutoff", [0.1, 1e9, "far", float("nan")]),
    ("model.channels", [0, 10**9, 1.5]), ("loss.energy.weight", [-1, "x", float("nan")]), ("loss.forces.kind", ["l7"]),
    ("loss.stress.weight", [1.0]), ("run.dir", [3, "/dev/null/run", "/proc/run"]),
    ("run", [None, 3, "x"]), ("data", [None, [], "x"]),
]  # fmt: skip


@st.composite
def config_changes(draw):
    """A key of a training config and a value that it cannot have."""
    key, values = draw(st.sampled_from(CONFIGS))
    return key, draw(st.sampled_from(values))


@bad_inputs(50, option=st.sampled_from(sorted(MD_OPTIONS)), data=st.data())
def test_md_options(good, option, data, folder):
    options = {"--model": good / "model.safetensors", "--steps": 2, "--out": "o.traj"}
    options[option] = data.draw(st.sampled_from(MD_OPTIONS[option]))
    words = [str(part) for pair in options.items() for part in pair]
    ended = command("mlip", "md", good / "one.xyz", *words, folder=folder)
    assert ended.refused_or_done() or (option, options[option]) in ALLOWED


ALLOWED = {("--max-temperature", "1e400"), ("--temperature", "0")}


@bad_inputs(25, first=st.sampled_from(UNITS), second=st.sampled_from(["", ",length=Bohr", ",energy=Hartree", ",,", ",stress=GPa"]))
def test_units(good, first, second, folder):
    ended = command("mlip", "data", "audit", good / "frames.xyz", "--units", first + second, folder=folder)
    assert "units" in ended.refused()


WRONG_UNITS = [
    "energy=Hartree,forces=eV/Angstrom", "energy=meV,forces=eV/Angstrom", "forces=Hartree/Bohr", "forces=meV/Angstrom", "length=nm",
    "length=Bohr,forces=Hartree/Bohr", "energy=kcal/mol,forces=eV/Angstrom", "energy=kJ/mol,forces=eV/Angstrom",
]  # fmt: skip


@bad_inputs(10, units=st.sampled_from(WRONG_UNITS), need=st.sampled_from(["energy", "forces"]))
def test_labels_in_other_units_than_said(many, units, need, folder):
    """Numbers in eV and Angstrom read as something else: the structures, or energies and forces, contradict each other."""
    words = ("--units", units, "--need", need, "--need", "energy", "--need", "forces")
    command("mlip", "data", "audit", many, *words, folder=folder).refused()


@bad_inputs(45, change=config_changes())
def test_configs(good, change, folder):
    key, value = change
    values = {
        "data": {"train": str(good / "frames.xyz"), "valid": 0.34, "batch_size": 2},
        "model": {"channels": 4, "l_max": 1, "num_layers": 1}, "training": {"max_epochs": 0}, "run": {"dir": "run", "plots": False},
    }  # fmt: skip
    *sections, last = key.split(".")
    place = values
    for section in sections:
        place = place.setdefault(section, {})
    place[last] = value
    (folder / "c.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    ended = command("mlip", "train", "c.yaml", folder=folder)
    ended.refused()
