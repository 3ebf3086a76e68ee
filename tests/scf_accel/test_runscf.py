"""``scf-accel run``: the multilevel energy is the stock energy, what is written is what was calculated, bad input is one line."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from pyscf import dft, gto, lib, scf
from rich.console import Console

import scf_accel
from mlip.errors import UserError
from scf_accel import runresult, runscf
from scf_accel.labels import HARTREE_TO_EV
from scf_accel.runinput import Theory, make_mean_field, make_molecule, read_molecule
from scf_accel.runscf import RunRequest, run_command
from scf_accel.runtable import Recorder, Row, StepTable

WATER = Atoms("OHH", [[0, 0, 0.117], [0, 0.757, -0.469], [0.05, -0.757, -0.469]])
CHEAP = {"basis": "6-31g", "grid_level": 1}


@pytest.fixture
def water(tmp_path) -> Path:
    write(tmp_path / "water.xyz", WATER)
    return tmp_path / "water.xyz"


def run(path, *, expect=0, screen=None, **options):
    """Run in this process; the JSON result."""
    names = set(Theory.__dataclass_fields__)
    theory = {key: value for key, value in options.items() if key in names}
    request = RunRequest(path, overwrite=True, json_out=path.with_suffix(".json"))
    for key in options.keys() - names:
        setattr(request, key, options[key])
    console = Console(file=screen or io.StringIO(), width=100)
    assert run_command(request, theory, console) == expect
    return json.loads(request.json_out.read_text(encoding="utf-8"))


def command(*arguments, **options):
    line = [sys.executable, "-m", "scf_accel.cli", "run", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, **options)


# ---------------------------------------------------------------------------------------------------- results


@pytest.fixture
def always(monkeypatch) -> None:
    """The multilevel solver also where it gains nothing: Hartree-Fock of small molecules."""
    accelerate = scf_accel.accelerate
    monkeypatch.setattr(scf_accel, "accelerate", lambda mf: accelerate(mf, always=True))


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    ("options", "method"),
    [
        ({"xc": "pbe", **CHEAP}, "RKS"),
        ({"xc": "b3lyp", "density_fit": True, **CHEAP}, "RKS"),
        ({"xc": "pbe", "charge": 1, **CHEAP}, "UKS"),
        ({"xc": "HF", "basis": "6-31g"}, "RHF"),
        ({"xc": "hf", "charge": 1, "auxbasis": "def2-universal-jkfit", "basis": "6-31g"}, "UHF"),
    ],
)
def test_accelerated_is_stock(water, options, method):
    ours = run(water, forces=True, **options)
    stock = run(water, forces=True, stock=True, **options)
    assert ours["converged"] and stock["converged"]
    assert ours["theory"] == stock["theory"] and ours["theory"]["method"] == method
    assert ours["theory"]["density_fit"] == ("density_fit" in options or "auxbasis" in options)
    assert abs(ours["energy_hartree"] - stock["energy_hartree"]) < 1e-8
    assert ours["fine_builds"] < stock["fine_builds"] and stock["coarse_builds"] == 0
    assert ours["fallback"] is None and ours["steps"][0]["energy_change_hartree"] is None
    np.testing.assert_allclose(ours["forces_ev_per_angstrom"], stock["forces_ev_per_angstrom"], atol=3e-3)
    np.testing.assert_allclose(ours["dipole_debye"], stock["dipole_debye"], atol=1e-3)
    for name in ("homo_ev", "lumo_ev", "gap_ev"):
        assert ours["orbitals"][name] == pytest.approx(stock["orbitals"][name], abs=1e-2)


@pytest.mark.parametrize("stock", [False, True])
def test_what_is_written_and_shown_is_consistent(water, stock):
    screen = io.StringIO()
    result = run(water, stock=stock, screen=screen, chkfile=water.with_suffix(".chk"), **CHEAP)
    shown, steps, seconds = screen.getvalue(), result["steps"], result["seconds"]
    assert result["energy_ev"] == result["energy_hartree"] * HARTREE_TO_EV
    assert steps[-1]["energy_hartree"] == pytest.approx(result["energy_hartree"], abs=1e-10)
    assert result["coarse_builds"] == sum(step["coarse_builds"] for step in steps)
    assert result["fine_builds"] == len(steps) + 2 * stock  # stock PySCF: one for the guess, one to check
    assert {step["solver"] for step in steps} == {result["solver"]} == {"stock" if stock else "multilevel"}
    parts = sum(seconds[name] for name in ("start", "coarse_setup", "coarse", "fine", "other"))
    assert parts == pytest.approx(seconds["total"]) and seconds["forces"] is None
    orbitals = result["orbitals"]
    assert orbitals["gap_ev"] == pytest.approx(orbitals["lumo_ev"] - orbitals["homo_ev"]) and orbitals["gap_ev"] > 0
    assert result["dipole_norm_debye"] == pytest.approx(np.linalg.norm(result["dipole_debye"]))
    assert result["forces_ev_per_angstrom"] is None and result["fallback"] is None and result["warnings"] == []
    np.testing.assert_allclose(result["structure"]["positions_angstrom"], WATER.positions, atol=1e-8)
    assert f"{result['energy_hartree']:.10f} Eh" in shown and f"{result['energy_ev']:.6f} eV" in shown
    assert all(f"{step['energy_hartree']:.10f}" in shown for step in steps)
    assert lib.chkfile.load(str(water.with_suffix(".chk")), "scf/e_tot") == pytest.approx(result["energy_hartree"], abs=1e-9)


def test_forces_are_minus_the_slope_of_the_energy(tmp_path):
    def at(distance, **options):
        write(tmp_path / "hf.xyz", Atoms("HF", [[0, 0, 0], [0, 0, distance]]))
        return run(tmp_path / "hf.xyz", conv_tol=1e-11, **CHEAP, **options)

    forces = np.array(at(1.0, forces=True)["forces_ev_per_angstrom"])
    slope = (at(1.002)["energy_ev"] - at(0.998)["energy_ev"]) / 0.004
    assert forces[1, 2] == pytest.approx(-slope, abs=1e-3)
    np.testing.assert_allclose(forces.sum(axis=0), 0, atol=1e-6)


def test_dipole_of_an_ion_does_not_depend_on_where_it_is(tmp_path):
    dipoles = []
    for shift in (0.0, 3.0):
        atoms = WATER.copy()
        atoms.translate([shift, -shift, 0])
        atoms.info["charge"] = 1
        write(tmp_path / "ion.xyz", atoms, format="extxyz")
        dipoles.append(run(tmp_path / "ion.xyz", xc="hf", basis="sto-3g")["dipole_debye"])
    np.testing.assert_allclose(*dipoles, atol=1e-3)


def test_core_potentials_come_with_the_basis(tmp_path):
    write(tmp_path / "hi.xyz", Atoms("IH", [[0, 0, 0], [0, 0, 1.6]]))
    result = run(tmp_path / "hi.xyz", grid_level=0)
    mol = gto.M(atom="I 0 0 0; H 0 0 1.6", basis="def2-svp", ecp={"I": "def2-svp"}, verbose=0)
    mf = dft.RKS(mol, xc="pbe")
    mf.grids.level = 0
    assert abs(result["energy_hartree"] - mf.kernel()) < 1e-8
    assert result["theory"]["core_electrons_replaced"] == {"I": 28}


def test_open_shell_atom_has_no_missing_numbers_but_none(tmp_path):
    write(tmp_path / "h.xyz", Atoms("H"))
    result = run(tmp_path / "h.xyz", basis="sto-3g", grid_level=0)
    assert result["structure"]["unpaired_electrons"] == 1 and result["spin_squared"] == pytest.approx(0.75)
    assert result["orbitals"]["beta"]["homo_ev"] is None and result["orbitals"]["alpha"]["lumo_ev"] is None


def counted_builds(monkeypatch, kind) -> list[float]:
    """Seconds of every full-cost Fock matrix of a PySCF class, measured at the class itself."""
    seconds, original = [], kind.get_veff

    def get_veff(obj, *args, **kwargs):
        started = time.perf_counter()
        try:
            return original(obj, *args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - started)

    monkeypatch.setattr(kind, "get_veff", get_veff)
    return seconds


def check_account(result, measured) -> None:
    """All Fock matrices are in the result, and the parts of the time are disjoint and no more than the total."""
    seconds = result["seconds"]
    assert result["fine_builds"] == len(measured)
    assert seconds["fine"] == pytest.approx(sum(measured), rel=0.05)
    assert sum(step["fine_seconds"] for step in result["steps"]) <= seconds["fine"] * (1 + 1e-9)
    assert sum(seconds[name] for name in ("start", "coarse_setup", "coarse", "fine", "other")) == pytest.approx(seconds["total"])
    assert min(seconds[name] for name in ("start", "coarse_setup", "coarse", "fine", "other")) >= 0


def test_hand_over_is_reported_and_the_energy_is_right(water, monkeypatch):
    accelerate, screen = scf_accel.accelerate, io.StringIO()
    monkeypatch.setattr(scf_accel, "accelerate", lambda mf: accelerate(mf, max_outer=1))
    measured = counted_builds(monkeypatch, dft.rks.RKS)
    result = run(water, screen=screen, conv_tol=1e-10, **CHEAP)
    check_account(result, measured)
    solvers = [step["solver"] for step in result["steps"]]
    assert solvers[:2] == ["multilevel", "stock"] and result["fine_builds"] > len(solvers)  # stock PySCF: guess and check
    assert result["seconds"]["coarse"] > 0 and result["seconds"]["start"] > 0
    assert result["converged"] and result["fallback"] and result["fallback"] in screen.getvalue()
    assert any(result["fallback"] in line for line in result["warnings"])
    assert abs(result["energy_hartree"] - run(water, stock=True, **CHEAP)["energy_hartree"]) < 1e-8


def test_small_hartree_fock_is_stock_and_accounted_for(water, monkeypatch):
    measured = counted_builds(monkeypatch, scf.hf.RHF)
    result = run(water, xc="hf", basis="6-31g")
    check_account(result, measured)
    assert "in-core Hartree-Fock" in result["fallback"] and {step["solver"] for step in result["steps"]} == {"stock"}
    assert result["fine_builds"] == len(result["steps"]) + 2 and result["coarse_builds"] == 0
    assert result["seconds"]["start"] > 0 and result["seconds"]["coarse_setup"] == 0


def test_numbers_that_are_not_finite_are_null(water, monkeypatch):
    monkeypatch.setattr(runresult, "dipole", lambda mf: np.array([np.nan, 0.0, np.inf]))
    result = run(water, basis="sto-3g", grid_level=0)
    assert result["dipole_debye"] == [None, 0.0, None] and result["dipole_norm_debye"] is None
    assert runresult.finite_only({"a": [(1.0, float("nan"))], "b": "nan", "c": 2}) == {"a": [[1.0, None]], "b": "nan", "c": 2}
    results = runresult.finite_only({**result, "forces_ev_per_angstrom": [[0.0, float("nan"), 0.0]], "spin_squared": float("nan")})
    results["structure"]["unpaired_electrons"], results["seconds"]["forces"] = 1, 0.1
    shown = "\n".join(runresult.summary(results))
    assert "largest force     none" in shown and "<S^2>             none" in shown


def test_an_old_checkpoint_stays_until_there_is_a_new_one(water, monkeypatch):
    path = water.with_suffix(".chk")
    options = {"chkfile": path, "basis": "sto-3g", "grid_level": 0, "stock": True}
    energy = run(water, **options)["energy_hartree"]
    old, converge = path.read_bytes(), runscf.converge

    def stop(mf, request, recorder):
        assert path.read_bytes() == old
        raise KeyboardInterrupt

    monkeypatch.setattr(runscf, "converge", stop)
    water.with_suffix(".json").unlink()
    assert run_command(RunRequest(water, stock=True, chkfile=path, overwrite=True), CHEAP, Console(file=io.StringIO())) == 130
    assert path.read_bytes() == old and sorted(water.parent.iterdir()) == [path, water]

    def late(mf, request, recorder):
        assert mf.chkfile != str(path)
        return converge(mf, request, recorder)

    monkeypatch.setattr(runscf, "converge", late)
    other = run(water, **{**options, "basis": "6-31g"})["energy_hartree"]
    assert other < energy - 0.1 and lib.chkfile.load(str(path), "scf/e_tot") == pytest.approx(other, abs=1e-8)
    assert not path.with_name("water.chk.partial").exists()


def test_not_converged_exits_non_zero_with_results_written(water, capsys):
    result = run(water, expect=1, max_cycle=1, forces=True, stock=True, **CHEAP)
    assert not result["converged"] and result["energy_hartree"] < -70 and result["forces_ev_per_angstrom"] is None
    message = capsys.readouterr().err
    assert "not converged in 1 step" in message and "--max-cycle" in message and "is written" in message


def test_timing_leaves_the_object_as_it_was(water):
    structure, theory = read_molecule(water), Theory(**CHEAP)
    mf = make_mean_field(make_molecule(structure, theory), theory)
    plain, recorder = type(mf), Recorder(lambda row: None)
    with recorder.timed_builds(mf):
        mf.kernel()
    assert type(mf) is plain and "get_veff" not in vars(mf) and recorder.builds == mf.cycles + 2


# ---------------------------------------------------------------------------------------------------- input


def test_frame_charge_and_spin(tmp_path):
    path, frames = tmp_path / "all.xyz", [Atoms("H"), Atoms("O"), WATER.copy()]
    frames[2].info.update(charge=1, multiplicity=4)
    write(path, frames, format="extxyz")
    last = read_molecule(path)
    assert (last.molecule, last.charge, last.spin) == ("H2O", 1, 3)
    assert read_molecule(path, 1).spin == 2 and read_molecule(path, -3).molecule == "H"  # Hund's rule for an atom
    assert read_molecule(path, 1, charge=-1).spin == 1 and read_molecule(path, 1, spin=0).spin == 0
    assert (read_molecule(path, charge=0).charge, read_molecule(path, charge=0).spin) == (0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"xc": "pbe00"}, "does not know this functional; did you mean pbe0"),
        ({"xc": ","}, "does not know this functional"),
        ({"xc": "0"}, "does not know this functional, the name is a number"),
        ({"xc": "br89,"}, "depends on the Laplacian of the density"),
        ({"xc": "b3lyp-d3bj"}, "dispersion"),
        ({"basis": "def2-svpx"}, "--basis def2-svpx: PySCF does not know this basis set; did you mean def2svp"),
        ({"basis": "gth-dzvp"}, "pseudopotentials"),
        ({"auxbasis": "nothing"}, "--auxbasis nothing: PySCF does not know"),
        ({"auxbasis": "weigend", "density_fit": False}, "leave --no-density-fit away"),
        ({"auxbasis": "weigend", "xc": "pbe0"}, "fits the Coulomb term only"),
        ({"xc": "hf", "grid_level": 2}, "no integration grid"),
        ({"conv_tol": 0.0}, "positive threshold"),
        ({"spin": 1}, r"impossible with 10 electrons \(charge 0\); possible: --spin 0, 2"),
        ({"spin": 12}, "impossible with 10 electrons"),
        ({"spin": 10, "basis": "sto-3g"}, "10 orbitals to fill, but --basis sto-3g has 7"),
        ({"charge": 10}, "leaves 0 electrons"),
        ({"index": 1}, "has 1 frame, numbered from 0; --index 1 is not one"),
    ],
)
def test_impossible_options_are_one_clear_line(water, options, message, monkeypatch):
    monkeypatch.setattr(runscf, "converge", lambda *_: pytest.fail("calculated with bad input"))
    with pytest.raises(UserError, match=message) as error:
        run(water, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing.xyz", None, "no such file"),
        ("empty.xyz", "", "cannot read this file as a structure"),
        ("cut.xyz", "3\n\nO 0 0 0\nH 0 0 1\n", "cannot read this file as a structure"),
        ("words.xyz", "hello\nworld\n", "cannot read this file as a structure"),
        ("unknown.foo", "hello\n", "cannot read this file as a structure"),
        ("list.smi", "CCO\n", "SMILES has no geometry"),
        ("crystal.xyz", '1\nLattice="5 0 0 0 5 0 0 0 5" pbc="T T T"\nNe 0 0 0\n', "periodic.*molecules only"),
        ("nan.xyz", "1\n\nH 0 0 nan\n", "not finite"),
        ("dummy.xyz", "2\n\nH 0 0 0\nX 0 0 1\n", "atom 1 is a dummy"),
        ("double.xyz", "2\n\nH 0 0 0\nH 0 0 0\n", "atoms 0 and 1 .* apart"),
        ("heavy.xyz", "1\n\nU 0 0 0\n", "has no functions for U"),
    ],
)
def test_unusable_structures_are_one_clear_line(tmp_path, name, text, message, monkeypatch):
    monkeypatch.setattr(runscf, "converge", lambda *_: pytest.fail("calculated with bad input"))
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        run(tmp_path / name)


def test_outputs_are_checked_before_the_calculation(water, monkeypatch):
    monkeypatch.setattr(runscf, "converge", lambda *_: pytest.fail("calculated before the check"))
    folder, file = water.parent, water.parent / "old.json"
    file.write_text("old", encoding="utf-8")
    for outputs, message in (
        ({"json_out": folder}, "is a folder"),
        ({"json_out": file / "x.json"}, "cannot be written"),
        ({"chkfile": Path("/proc/x.chk")}, "--chkfile .* cannot be written"),
        ({"json_out": file}, "exists already; replace it with --overwrite"),
        ({"json_out": water, "overwrite": True}, "same file as the structure"),
        ({"json_out": folder / "a", "chkfile": folder / "a"}, "same file as --chkfile"),
    ):
        with pytest.raises(UserError, match=message):
            run_command(RunRequest(water, **outputs), CHEAP, Console(file=io.StringIO()))
    assert file.read_text(encoding="utf-8") == "old" and sorted(folder.iterdir()) == [file, water]


# ---------------------------------------------------------------------------------------------------- the screen


@pytest.mark.parametrize(("terminal", "width", "framed"), [(True, 80, True), (True, 60, False), (False, 80, False)])
def test_table_on_a_wide_terminal_lines_elsewhere(terminal, width, framed):
    screen = io.StringIO()
    rows = [Row(1, -12345.1234567891, None, 1e-3, 9, 0.5, 1.5, "multilevel"), Row(2, -12346.0, -0.9, 1e-6, 0, 0, 2, "stock")]
    with StepTable(Console(file=screen, force_terminal=terminal, width=width)) as table:
        for row in rows:
            table.add(row)
            assert "-12345.1234567891" in screen.getvalue()
    assert ("│" in screen.getvalue()) == framed and "-12346.0000000000" in screen.getvalue()


def test_command_line(water):
    good = command(water, "--basis", "sto-3g", "--grid-level", "0", "--threads", "1", cwd=water.parent)
    assert good.returncode == 0 and "converged in" in good.stdout and not good.stderr, good.stderr
    bad = command(water, "--xc", "nonsense", cwd=water.parent)
    assert bad.returncode == 1 and not bad.stdout
    assert len(bad.stderr.splitlines()) == 1 and bad.stderr.startswith("scf-accel: error: --xc nonsense")
    assert command(water, "--spin", "-1").returncode == 2
    shown = command("--help").stdout
    assert "Example: scf-accel run" in shown and "multilevel solver" in shown and "is the default" in shown


def test_ctrl_c_is_one_line_and_130(water):
    arguments = [water, "--stock", "--basis", "def2-tzvp", "--grid-level", "9", "--json", water.with_suffix(".json")]
    line = [sys.executable, "-m", "scf_accel.cli", "run", *map(str, arguments)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=water.parent) as process:
        for text in process.stdout:
            if text.startswith("   1 "):
                break
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert errors.startswith("scf-accel: interrupted after") and len(errors.splitlines()) == 1
    assert list(water.parent.iterdir()) == [water]
