"""The README's commands and code are real: they parse, they run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def commands():
    lines = [line.partition(" #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith(("mlip ", "scf-accel "))]


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


def test_python_example_runs(tmp_path, monkeypatch):
    """The example with the demo's model replaced by an untrained one of the same elements."""
    from mlip.checkpoint import save_model
    from mlip.models import build

    (code,) = [block for block in blocks("python") if "runs/demo/model.safetensors" in block]
    model = save_model(build({"channels": 4, "l_max": 1}, ["H", "C", "O"], seed=0), tmp_path / "model.safetensors")
    monkeypatch.chdir(ROOT)
    code = code.replace("runs/demo/model.safetensors", str(model)).replace("run(fmax=0.01)", "run(fmax=0.01, steps=3)")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["accelerate", "warm_start"])
def test_scf_example_runs(tmp_path, name):
    """The example with a smaller molecule than the file of the repository that it reads."""
    (code,) = [block for block in blocks("python") if f"scf_accel.{name}" in block]
    example, water = "datasets/structures/ethanol.xyz", tmp_path / "water.xyz"
    assert example in code and (ROOT / example).is_file()
    water.write_text("3\n\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n", encoding="utf-8")
    code = code.replace(example, str(water))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "Report(" in result.stdout and "fallback=None" in result.stdout


@pytest.mark.slow
def test_demo_end_to_end(tmp_path):
    """The main job with a budget of one minute: model, relaxed molecule, MD, plots."""
    command = [sys.executable, str(ROOT / "benchmarks" / "demo.py"), "--run-dir", str(tmp_path / "demo"), "--minutes", "1"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=1200)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    for name in ("model.safetensors", "results.txt", "learning_curve.png", "ethanol-relaxed.extxyz", "md.png"):
        assert (tmp_path / "demo" / name).stat().st_size > 0
