"""The commands and code of the README and of docs/how-to are real: they parse, they run."""

import shlex
import subprocess
import sys

import pytest
import typer
from examples import PAGES, ROOT, blocks, commands, replaced


def test_readme_shows_commands():
    assert len(commands()) >= 8


def parse(line):
    """Parse as the program would, without running: the arguments of the innermost command.

    Raises:
        click.UsageError: an unknown command or option, a bad value, a required one that is missing.
    """
    from mlip.cli import app as mlip_app
    from scf_accel.cli import app as scf_app

    program, *arguments = shlex.split(line)
    command = typer.main.get_command(mlip_app if program == "mlip" else scf_app)
    context = command.make_context(program, list(arguments))
    while getattr(command, "commands", None):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
    return context.params


@pytest.mark.parametrize("line", commands())
def test_every_command_and_option_exists(line):
    assert parse(line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("mlip trian my.yaml", "No such command"),
        ("mlip train my.yaml --dryrun", "No such option"),
        ("mlip train", "[Mm]issing .*config"),
        ("mlip relax structure.cif", "[Mm]issing .*model"),
        ("mlip md structure.cif --model m --steps many", "valid int"),
        ("mlip data audit a.xyz --nead energy", "No such option"),
        ("mlip info a b", "unexpected extra argument"),
    ],
)
def test_a_command_that_is_wrong_does_not_parse(line, message):
    with pytest.raises(Exception, match=message):
        parse(line)


PYTHON = [block for block in blocks("python") if "import" in block]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """What an example's files are replaced by: a water molecule, untrained models, a small basis, few steps."""
    from mlip.checkpoint import save_model
    from mlip.data.density import DensityBasis
    from mlip.data.hdf5 import HDF5Frames
    from mlip.models import build, density_statistics

    folder = tmp_path_factory.mktemp("stand-ins")
    (folder / "water.xyz").write_text("3\n\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n", encoding="utf-8")
    model = save_model(build({"channels": 4, "l_max": 1}, ["H", "C", "O"], seed=0), folder / "model.safetensors")
    frames = HDF5Frames(ROOT / "datasets" / "organics" / "organics.h5")
    reference = density_statistics(frames[:60], DensityBasis.from_dict(frames.attrs["density_basis"]))
    fields = {"channels": 4, "l_max": 1, "energy": False, "density": {}}
    density = save_model(build(fields, ["H", "O"], density=reference, seed=0), folder / "density.safetensors")
    return {
        "datasets/structures/ethanol.xyz": str(folder / "water.xyz"), "runs/demo/model.safetensors": str(model),
        "runs/density-organics": str(density), "run(fmax=0.01)": "run(fmax=0.01, steps=3)",
    }  # fmt: skip


def test_the_files_of_the_examples_are_there():
    assert (ROOT / "datasets/structures/ethanol.xyz").is_file() and (ROOT / "configs/density-organics.yaml").is_file()
    needed = ("MLIPCalculator", "scf_accel.warm_start", "scf_accel.accelerate", "optimize(mf)")
    assert all(any(name in block for block in blocks("python", PAGES[:1])) for name in needed)


@pytest.mark.parametrize("code", PYTHON, ids=[f"{number}-{block.splitlines()[0]}" for number, block in enumerate(PYTHON)])
def test_python_example_runs(stand_ins, code, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    exec(compile(replaced(code, stand_ins), "example", "exec"), {"__name__": "example"})
    out = capfd.readouterr().out
    if "_report" in code:
        assert "Report(" in out and ("fallback=None" in out or "warm_start" in code)


def test_an_hour_of_commands(tmp_path):
    """Audit, dry run, training, evaluation, relaxation and MD, as the pages give them, on few frames and with few steps."""
    import ase.io
    import in_process

    sys.path.insert(0, str(ROOT / "tests" / "hardening"))
    try:
        from hard_inputs import water
    finally:
        sys.path.pop(0)
    ase.io.write(tmp_path / "my_frames.xyz", water(12), format="extxyz")
    ase.io.write(tmp_path / "other_frames.xyz", water(3, seed=1), format="extxyz")
    box = water(1, seed=2)[0]
    box.set_cell([7.0, 7.0, 7.0])
    box.pbc, box.calc = True, None
    ase.io.write(tmp_path / "structure.cif", box)
    (config,) = [block for block in blocks("yaml") if "my_frames.xyz" in block and "runs/mine" in block]
    assert "max_minutes: 30" in config
    small = config.replace("max_minutes: 30", "max_epochs: 1") + "model: {channels: 4, l_max: 1, num_layers: 1}\n"
    (tmp_path / "my.yaml").write_text(small, encoding="utf-8")
    changes = {
        "--steps 20000": "--steps 2 --timestep 0.1", "--steps 40000": "--steps 4 --timestep 0.1",
        "relax structure.cif": "relax structure.cif --max-steps 1 --fmax 1e9",
    }  # fmt: skip
    words = ("my_frames", "my.yaml", "runs/mine")
    chosen = [line for line in commands() if any(word in line for word in words) and "organics" not in line]
    chosen.sort(key=lambda line: "--resume" in line)
    assert len(chosen) >= 7
    for line in chosen:
        program, *arguments = shlex.split(replaced(line, changes))
        done = in_process.command(program, *arguments, cwd=tmp_path)
        assert done.returncode == 0, (line, done.stderr)


@pytest.mark.slow
def test_demo_end_to_end(tmp_path):
    """The main job with a budget of one minute: model, relaxed molecule, MD, plots."""
    command = [sys.executable, str(ROOT / "benchmarks" / "demo.py"), "--run-dir", str(tmp_path / "demo"), "--minutes", "1"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=1200)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    for name in ("model.safetensors", "results.txt", "learning_curve.png", "ethanol-relaxed.extxyz", "md.png"):
        assert (tmp_path / "demo" / name).stat().st_size > 0
