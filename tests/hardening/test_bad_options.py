"""Options and configs that cannot be: units, names, numbers, keys."""

from __future__ import annotations

import yaml
from hard_tools import bad_inputs, command
from hypothesis import strategies as st

from mlip.data.hdf5 import write_frames

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


MD_CASES = [(option, value) for option, values in MD_OPTIONS.items() for value in values]
ALLOWED = {("--max-temperature", "1e400"), ("--temperature", "0")}


@bad_inputs(40, len(MD_CASES), case=st.sampled_from(MD_CASES))
def test_md_options(good, case, folder):
    options = {"--model": good / "model.safetensors", "--steps": 2, "--out": "o.traj", **dict([case])}
    words = [str(part) for pair in options.items() for part in pair]
    ended = command("mlip", "md", good / "one.xyz", *words, folder=folder)
    assert ended.refused_or_done() or case in ALLOWED


MORE_UNITS = ["", ",length=Bohr", ",energy=Hartree", ",,", ",stress=GPa"]


@bad_inputs(20, 50, first=st.sampled_from(UNITS), second=st.sampled_from(MORE_UNITS))
def test_units(good, first, second, folder):
    ended = command("mlip", "data", "audit", good / "frames.xyz", "--units", first + second, folder=folder)
    assert "units" in ended.refused()


WRONG_UNITS = [
    "energy=Hartree,forces=eV/Angstrom", "energy=meV,forces=eV/Angstrom", "forces=Hartree/Bohr", "forces=meV/Angstrom", "length=nm",
    "length=Bohr,forces=Hartree/Bohr", "energy=kcal/mol,forces=eV/Angstrom", "energy=kJ/mol,forces=eV/Angstrom",
]  # fmt: skip


@bad_inputs(8, 0, units=st.sampled_from(WRONG_UNITS))
def test_labels_in_other_units_than_said(many, units, folder):
    """Numbers in eV and Angstrom read as something else: the structures, or energies and forces, contradict each other."""
    command("mlip", "data", "audit", many, "--units", units, folder=folder).refused()


def config(good) -> dict:
    return {
        "data": {"train": str(good / "frames.xyz"), "valid": 0.34, "batch_size": 2},
        "model": {"channels": 4, "l_max": 1, "num_layers": 1}, "training": {"max_epochs": 1}, "run": {"dir": "run", "plots": False},
    }  # fmt: skip


def test_the_config_that_is_spoilt_below_is_good(good, tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config(good)), encoding="utf-8")
    assert command("mlip", "train", "c.yaml", folder=tmp_path).code == 0


CONFIG_CASES = [(key, value) for key, values in CONFIGS for value in values]


@bad_inputs(35, len(CONFIG_CASES), case=st.sampled_from(CONFIG_CASES))
def test_configs(good, case, folder):
    key, value = case
    values = config(good)
    *sections, last = key.split(".")
    place = values
    for section in sections:
        place = place.setdefault(section, {})
    place[last] = value
    (folder / "c.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    command("mlip", "train", "c.yaml", folder=folder).refused()


TEXTS = [
    "{good}run: {{dir: again}}\n", "{good}data: {{}}\n", "{good}[1]: 2\n", "{good}{{a: 1}}: 2\n", "? [a]\n: 1\n", "a: &a [*a]\n",
    "{good}x: &x {{y: *x}}\n", "&a [*a]", "{good}1: 2\n", "{good}null: 2\n", "\t", "- 1\n", "a: b: c\n", "!!binary x", "{deep}",
    "[" * 200, "{good}<<: 5\n", "%YAML 9.0\n---\na: 1\n", "a: 1\n---\nb: 2\n", "\x00", "data: 1e1000\n",
    "x: !!python/name:os.system\n", "data: !!set {{a}}\n", "{laughs}", "{good}training: {{max_epochs: 1, max_epochs: 2}}\n",
]  # fmt: skip


@bad_inputs(len(TEXTS), 0, text=st.sampled_from(TEXTS))
def test_config_files(good, text, folder):
    """Keys given twice, keys that are no names, endless recursion, objects of Python, what is no YAML."""
    good_text = yaml.safe_dump(config(good), default_flow_style=None)
    laughs = "a0: &a0 [x]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 12)) + "data: *a11\n"
    (folder / "c.yaml").write_text(text.format(good=good_text, deep="{" * 500, laughs=laughs), encoding="utf-8")
    command("mlip", "train", "c.yaml", folder=folder).refused()


SETTINGS = [
    "training={max_epochs: 1, max_epochs: 2}", "training={[1]: 2}", "training.x.y=3", "a=", "=", "a", "training..lr=1",
    "training=[1]", "data.train=", "data.train=[]", "data.train={a: b}", "run.dir=", "data.valid=null", "data.test=[1]",
    "data.keys.energy=3", "data.e0={H: 1}", "data.e0={H: 1, H: 2, O: 3}", "data.e0={1: 1.0, O: 3.0}", "data.train=/dev/null",
    "data.train=/", "data.train=/proc/self/mem", "training.lr=!!python/name:os.system", "data.valid=/",
]  # fmt: skip


@bad_inputs(15, len(SETTINGS), text=st.sampled_from(SETTINGS))
def test_settings_on_the_command_line(good, text, folder):
    (folder / "c.yaml").write_text(yaml.safe_dump(config(good)), encoding="utf-8")
    command("mlip", "train", "c.yaml", "--set", text, folder=folder).refused()


CONVERSIONS = [
    ("--attr", "a"), ("--attr", "=1"), ("--attr", "a=1", "--attr", "a=2"), ("--attr", "energy_unit=Hartree"),
    ("--attr", "format=x"),
    ("--units", "energy=Hartree,energy=eV"), ("--units", "energy=eV,length=Bohr,length=Angstrom"), ("--energy-key", "absent"),
    ("--forces-key", "energy"), ("--energy-key", "forces"),
]  # fmt: skip


@bad_inputs(len(CONVERSIONS), 0, words=st.sampled_from(CONVERSIONS))
def test_conversions(good, words, folder):
    """Attributes and units given twice, attributes that the format fixes, keys that are not there or something else."""
    command("mlip", "data", "convert", good / "frames.xyz", "o.h5", *words, folder=folder).refused()
    assert not (folder / "o.h5").exists()


EMPTY = {
    "e.xyz": b"", "f.xyz": b"0\n\n", "g.extxyz": b"\n\n\n", "h.xyz": b"0\nenergy=1\n0\nenergy=2\n", "e.traj": b"", "e.db": b"",
    "e.json": b"{}", "e.smi": b"", "f.smi": b"# nothing\n\n", "e.h5": None,
}  # fmt: skip
"""Files without a structure; ``None``: a good file of no frames."""


@bad_inputs(len(EMPTY), 0, name=st.sampled_from(sorted(EMPTY)))
def test_empty_sets(good, name, folder):
    path, content = folder / name, EMPTY[name]
    if content is None:
        write_frames(path, [])
    else:
        path.write_bytes(content)
    (folder / "c.yaml").write_text(yaml.safe_dump(config(good)), encoding="utf-8")
    model = good / "model.safetensors"
    for words in (["audit", path], ["stats", path], ["convert", path, "o.h5"], ["convert", path, "o.extxyz"]):
        command("mlip", "data", *words, folder=folder).refused()
    for words in (["eval", model, path], ["relax", path, "--model", model], ["md", path, "--model", model]):
        command("mlip", *words, folder=folder).refused()
    for part in ("train", "valid", "test"):
        command("mlip", "train", "c.yaml", "--set", f"data.{part}={path}", "--restart", folder=folder).refused()
    for words in (["label", path, "l.h5"], ["run", path], ["bench", path]):
        command("scf-accel", *words, folder=folder).refused("scf-accel")
    assert not list(folder.glob("o.*")) and not (folder / "l.h5").exists()
