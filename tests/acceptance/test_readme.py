"""The README's commands and code are real: they parse, they run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from in_process import command

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
        ("mlip relax --model m", "[Mm]issing .*file"),
        ("mlip md structure.cif --model m --steps many", "valid int"),
        ("mlip data audit a.xyz --nead energy", "No such option"),
        ("mlip info a b", "unexpected extra argument"),
    ],
)
def test_a_command_that_is_wrong_does_not_parse(line, message):
    with pytest.raises(Exception, match=message):
        parse(line)


def example(number):
    """The text of one of the five examples."""
    return re.search(rf"^### {number}\. .*?(?=^##)", README, flags=re.S | re.M).group()


def code_of(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)


def run_lines(text, folder):
    """The commands of an example's shell block, in this process; they have to succeed."""
    (block,) = code_of(text, "sh")
    for line in block.splitlines():
        if line.startswith("mlip "):
            program, *arguments = shlex.split(line, comments=True)
            result = command(program, *arguments, cwd=folder)
            assert result.returncode == 0, f"{line}\n{result.stdout}{result.stderr}"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder with the files that the examples read, the training set cut to 12 frames; example 1 has been run in it."""
    from mlip.data.readers import open_frames
    from mlip.data.writer import write_frames

    folder = tmp_path_factory.mktemp("clone")
    (folder / "datasets" / "organics").mkdir(parents=True)
    (folder / "datasets" / "structures").symlink_to(ROOT / "datasets" / "structures")
    frames = open_frames(ROOT / "datasets" / "organics" / "organics.h5")
    ethanol = [frame for frame in frames if sorted(frame.atomic_numbers) == [1] * 6 + [6, 6, 8]]
    assert len(ethanol) >= 4
    write_frames(folder / "datasets" / "organics" / "organics.h5", [*ethanol[:4], *frames[:8]])
    text = example(1)
    (config,) = re.findall(r"^cat > my\.yaml <<'END'\n(.*?)^END\n", text, flags=re.S | re.M)
    assert "max_minutes: 10 " in config
    (folder / "my.yaml").write_text(config.replace("max_minutes: 10 ", "max_epochs: 2 "), encoding="utf-8")
    run_lines(text, folder)
    return folder


def test_first_example_trains(clone):
    assert (clone / "runs" / "mine" / "model.safetensors").is_file()


def test_second_example_relaxes(clone, monkeypatch, capsys):
    """In this process, with three steps instead of all."""
    (code,) = code_of(example(2), "python")
    assert "run(fmax=0.01)" in code
    monkeypatch.chdir(clone)
    exec(compile(code.replace("run(fmax=0.01)", "run(fmax=0.01, steps=3)"), "README.md", "exec"), {})
    assert "FIRE2:" in capsys.readouterr().out


def test_third_example_runs_dynamics_and_resumes(clone, monkeypatch):
    """With 2 and 4 steps instead of 2000 and 4000."""
    text = example(3)
    assert "--steps 2000" in text and "--steps 4000" in text
    run_lines(text.replace("--steps 2000", "--steps 2").replace("--steps 4000", "--steps 4"), clone)
    assert (clone / "runs" / "ethanol.traj").is_file()


@pytest.mark.parametrize(("number", "said"), [(4, "fallback=None"), (5, "Converged!"), ("accelerate", "Report(")])
def test_scf_example_runs(tmp_path, number, said):
    """The example with a smaller molecule than the file of the repository that it reads."""
    section = example(number) if number in (4, 5) else README[README.index("## Accelerate an SCF") :]
    code = code_of(section, "python")[0]
    xyz, water = "datasets/structures/ethanol.xyz", tmp_path / "water.xyz"
    assert xyz in code and (ROOT / xyz).is_file()
    water.write_text("3\n\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n", encoding="utf-8")
    code = code.replace(xyz, str(water))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert said in result.stdout + result.stderr


@pytest.mark.slow
def test_demo_end_to_end(tmp_path):
    """The main job with a budget of one minute: model, relaxed molecule, MD, plots."""
    command = [sys.executable, str(ROOT / "benchmarks" / "demo.py"), "--run-dir", str(tmp_path / "demo"), "--minutes", "1"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=1200)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    for name in ("model.safetensors", "results.txt", "learning_curve.png", "ethanol-relaxed.extxyz", "md.png"):
        assert (tmp_path / "demo" / name).stat().st_size > 0
