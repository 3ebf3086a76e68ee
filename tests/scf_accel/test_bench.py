"""``scf-accel bench``: the measures are what they are said to be, in table, plot and JSON; bad input is one clear line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from pyscf import dft, gto, scf
from rich.console import Console
from typer.testing import CliRunner

import scf_accel.predictor
import scf_accel.warmstart  # before its name as_predictor is replaced in a test
from mlip.errors import DataError, UserError
from scf_accel.benchmark import BenchRequest, Case, Run, bench_command, measure, parse_guesses
from scf_accel.benchreport import note, summary, values
from scf_accel.cli import app
from scf_accel.predictor import ExactPredictor

WATER = "3\n\nO 0 0 0.12\nH 0 0.76 -0.47\nH 0.02 -0.75 -0.48\n"
METHYL = "4\n\nC 0 0 0\nH 0 1.08 0\nH 0.935 -0.54 0\nH -0.935 -0.54 0\n"
THEORY = {"basis": "sto-3g", "grid_level": 0}


@pytest.fixture
def files(tmp_path):
    for name, text in (("water", WATER), ("methyl", METHYL)):
        (tmp_path / f"{name}.xyz").write_text(text)
    return [tmp_path / "water.xyz", tmp_path / "methyl.xyz"]


def bench(structures, theory=None, **options):
    """Exit code and what was printed."""
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    code = bench_command(BenchRequest(structures, **options), {**THEORY, **(theory or {})}, console)
    return code, console.export_text()


@pytest.fixture
def model(monkeypatch):
    """An exact predictor in place of a trained model."""

    def method(mol):
        mf = dft.UKS(mol, xc="pbe") if mol.spin else dft.RKS(mol, xc="pbe")
        mf.grids.level = 0
        return mf

    found = ExactPredictor(method)
    monkeypatch.setattr(scf_accel.predictor, "as_predictor", lambda model=None, *_: found)
    return found


def test_measures(files, model, tmp_path):
    out, plot = tmp_path / "out" / "bench.json", tmp_path / "bench.png"
    code, text = bench(files, json_out=out, plot=plot, repeats=2)
    assert code == 0
    assert "RIC" in text and "medians" in text and "methyl" in text and "oracle" in text
    assert plot.read_bytes()[:4] == b"\x89PNG"
    results = json.loads(out.read_text())
    assert [entry["name"] for entry in results["molecules"]] == ["water", "methyl"]
    for entry in results["molecules"]:
        runs = {run["guess"]: run for run in entry["runs"]}
        assert list(runs) == ["minao", "atom", "huckel", "vsap", "ours", "oracle"]
        reference = runs["minao"]
        assert reference["ric"] == reference["eric"] == reference["wall_ratio"] == 1
        for name, run in runs.items():
            assert run["converged"] and len(run["seconds"]) == 2
            assert abs(run["energy"] - reference["energy"]) < 1e-8
            assert run["ric"] == run["cycles"] / reference["cycles"]
            guess_builds = int(name in ("ours", "oracle"))
            assert run["eric"] == run["builds"] / reference["builds"]
            assert run["builds"] == run["cycles"] + 2 + guess_builds, "the guess, the cycles, the last check"
        assert runs["ours"]["start"] == runs["oracle"]["start"] == "predicted"
        assert runs["ours"]["cycles"] == runs["oracle"]["cycles"] <= reference["cycles"]
    assert results["summary"]["oracle"]["molecules"] == 2 and results["summary"]["ours"]["used"] == 2
    assert results["summary"]["minao"]["ric"] == {"median": 1, "mean": 1, "max": 1}


def test_cycles_are_those_of_plain_pyscf(files, tmp_path):
    out = tmp_path / "bench.json"
    assert bench(files[:1], guesses="atom", json_out=out)[0] == 0
    mol = gto.M(atom=str(files[0]), basis="sto-3g", verbose=0)
    runs = json.loads(out.read_text())["molecules"][0]["runs"]
    for run in runs:
        mf = dft.RKS(mol, xc="pbe").set(conv_tol=1e-9, init_guess=run["guess"])
        mf.grids.level = 0
        mf.kernel()
        assert (run["cycles"], run["energy"]) == (mf.cycles, pytest.approx(mf.e_tot, abs=1e-9))
    assert [run["guess"] for run in runs] == ["minao", "atom"]


def test_without_a_model(files, monkeypatch, tmp_path):
    monkeypatch.setattr("mlip.checkpoint.shipped_models", dict)
    out = tmp_path / "bench.json"
    code, text = bench(files[:1], guesses="ours", json_out=out)
    run = json.loads(out.read_text())["molecules"][0]["runs"][1]
    assert code == 0 and "ships no density model" in run["note"] and run["start"] == "minao" and run["ric"] == 1
    assert "ships no density model" in " ".join(text.split())


def test_a_run_that_does_not_converge(files, capsys, tmp_path):
    out = tmp_path / "bench.json"
    code, text = bench(files[:1], {"max_cycle": 1}, guesses="atom,oracle", json_out=out)
    assert code == 1 and "not converged" in text
    assert "water from minao" in capsys.readouterr().err
    runs = json.loads(out.read_text())["molecules"][0]["runs"]
    assert all(run["ric"] is None for run in runs)


def test_an_error_in_one_guess_spares_the_others(files, model, monkeypatch, capsys):
    monkeypatch.setattr(dft.rks.RKS, "init_guess_by_vsap", lambda self, mol=None: 1 / 0)
    code, text = bench(files[:1], guesses="vsap,oracle")
    assert code == 1 and "ZeroDivisionError" in text and "water from vsap" in capsys.readouterr().err


def test_ratios_need_two_converged_runs():
    reference = Run("minao", True, -1.0, 10, 12, [2.0, 4.0])
    run = Run("ours", True, -1.0, 6, 9, [1.0])
    case = Case("x", None, lambda: None, {"minao": reference, "ours": run})
    assert case.ratios(run) == {"ric": 0.6, "eric": 0.75, "wall_ratio": 3.0, "energy_difference": 0.0}
    reference.converged = False
    assert case.ratios(run) is None


def test_runs_without_a_comparable_result_are_counted_and_not_averaged():
    def case(**fields):
        reference, run = (Run(name, True, -1.0, 10, 12, [1.0]) for name in ("minao", "ours"))
        return Case("x", None, lambda: None, {"minao": reference, "ours": replace(run, **fields)})

    good, other = case(cycles=6), case(cycles=1, energy=-1.1)
    failed, open_end = case(cycles=1, error="ZeroDivisionError"), case(cycles=1, converged=False)
    cases = [good, other, failed, open_end]
    assert values(cases, "ours", "ric") == [0.6]
    found = summary(cases, ["ours"])["ours"]
    counts = {name: found[name] for name in ("molecules", "other_solution", "failed", "converged")}
    assert counts == {"molecules": 1, "other_solution": 1, "failed": 2, "converged": 2}
    assert found["ric"]["median"] == found["ric"]["max"] == 0.6
    assert "another SCF solution" in note(other, other.runs["ours"]) and not note(good, good.runs["ours"])


@pytest.mark.parametrize("later", ["error", "open end", "other energy"])
def test_a_later_repeat_that_fails_spoils_the_run(later):
    mol = gto.M(atom="H 0 0 0; H 0 0 0.74", basis="6-31g", verbose=0)
    made = []

    def make():
        mf = scf.RHF(mol)
        made.append(mf)
        if len(made) == 3 and later == "error":  # order: minao, atom, atom, minao
            mf.get_init_guess = lambda *_, **__: 1 / 0
        if len(made) == 3 and later == "open end":
            mf.max_cycle = 1
        if len(made) == 3 and later == "other energy":
            mf.energy_nuc = lambda *_: 0.0
        return mf

    case = Case("x", None, make)
    measure(case, ["minao", "atom"], None, 3, lambda line: None)
    assert not case.runs["minao"].failed and case.runs["atom"].failed
    assert values([case], "atom", "ric") == [] and values([case], "minao", "ric") == [1.0]
    assert summary([case], ["atom"])["atom"]["failed"] == 1


def test_guess_names():
    assert parse_guesses("Atom, ours,atom") == ["minao", "atom", "ours"]
    assert parse_guesses("minao,atom,huckel,vsap,ours,oracle", hartree_fock=True) == ["minao", "atom", "huckel", "ours", "oracle"]
    with pytest.raises(UserError, match="no guess is called 'sad'"):
        parse_guesses("minao,sad")
    with pytest.raises(UserError, match="Kohn-Sham methods only"):
        parse_guesses("vsap", hartree_fock=True)


def test_hartree_fock(files):
    code, text = bench(files[:1], {"xc": "hf", "grid_level": None}, guesses="huckel,oracle")
    assert code == 0 and "huckel" in text


@pytest.mark.parametrize(
    ("options", "theory", "message"),
    [
        ({"guesses": "none"}, {}, "no guess is called"),
        ({}, {"xc": "pbee"}, "does not know this functional"),
        ({}, {"basis": "def3"}, "does not know this basis"),
        ({"model": "nowhere"}, {}, "no model 'nowhere'"),
        ({"charge": 11}, {}, "change --charge"),
    ],
)
def test_bad_options(files, options, theory, message):
    with pytest.raises(UserError, match=message):
        bench(files[:1], theory, **options)


def test_bad_files(files, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        bench([files[0], tmp_path / "absent.xyz"])
    out = tmp_path / "there.json"
    out.write_text("{}")
    with pytest.raises(UserError, match="--overwrite"):
        bench(files[:1], json_out=out)
    assert bench(files[:1], json_out=out, overwrite=True, guesses="minao")[0] == 0


def test_command_line(files, tmp_path):
    help_text = CliRunner().invoke(app, ["bench", "--help"], env={"COLUMNS": "200"})
    assert help_text.exit_code == 0 and "Example: scf-accel bench" in help_text.output
    command = [sys.executable, "-m", "scf_accel.cli", "bench", "absent.xyz"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1
    lines = run.stderr.strip().splitlines()
    assert len(lines) == 1 and "absent.xyz: no such file" in lines[0]
