"""The parts of the SCF benchmarks that are no measurement: molecules, order of the rows, the store, the tables, the oracle."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import threadpoolctl

pytest.importorskip("pyscf")
pytest.importorskip("rdkit")
from scf_accel.multilevel import Report, Step

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
try:
    import _ablation
    import _control
    import _hardcases
    import _molecules
    import _scfruns
    import scf_hard
    import scf_profile
    import scf_wall
    import scf_wall_plots
finally:
    sys.path.remove(str(BENCHMARKS))


def test_own_list_satisfies_the_claim() -> None:
    """At least 30 distinct molecules of 10 to 60 atoms, ten of them in def2-TZVP, of main-group elements, without a draw."""
    molecules = _molecules.own_molecules()
    sizes = [len(molecule.symbols()) for molecule in molecules]
    assert len({molecule.smiles for molecule in molecules}) == len(molecules) >= 30
    assert min(sizes) >= 10 and max(sizes) <= 60
    assert sum(size <= 15 for size in sizes) >= 15 and sum(size > 25 for size in sizes) >= 6
    assert sum(molecule.tzvp for molecule in molecules) >= 10
    assert {symbol for molecule in molecules for symbol in molecule.symbols()} == _molecules.ELEMENTS


@pytest.mark.parametrize("basis", ["def2-svp", "def2-tzvp"])
def test_counted_functions_are_pyscfs(basis: str) -> None:
    molecule = _molecules.Molecule("CP(=O)(Cl)SCF", "all kinds", True, "")
    assert molecule.functions(basis) == _scfruns.make_mol(molecule.structure(), basis).nao


def test_draw_is_the_same_each_time_and_takes_no_ions(tmp_path: Path) -> None:
    lines = ["CC(=O)[O-]", "C[NH2+]CC(=O)[O-]", "CCO", "CCN", "CC=O", "C[N+](=O)[O-]", "BrCC", "not a SMILES", "CC.CC"]
    (tmp_path / "few.smi").write_text("\n".join(lines) + "\n", encoding="utf-8")
    known = [_molecules.Molecule("CCO", "ethanol", False, "")]
    draws = [_molecules.drawn_molecules(known, tmp_path, {"few.smi": (3, 5, 15), "absent.smi": (3, 5, 15)}) for _ in range(2)]
    assert draws[0] == draws[1]
    assert {molecule.smiles for molecule in draws[0]} == {"CCN", "CC=O", "C[N+](=O)[O-]"}


def test_order_covers_everything_once_and_every_category_early() -> None:
    molecules = _molecules.own_molecules()
    cases = scf_wall.make_cases(molecules, 10_000)
    wanted = 4 * len(molecules) + 4 * sum(molecule.tzvp for molecule in molecules)
    assert len({case.key for case, _ in cases}) == len(cases) == wanted
    assert len({case.category for case, _ in cases[:16]}) == 8
    for category in {case.category for case, _ in cases}:
        members = [(case, number) for case, number in cases if case.category == category]
        assert [number for _, number in members] == list(range(len(members)))  # parity alternates within a category
        ranks = [case.rank() for case, _ in members]
        assert ranks == sorted(ranks)
    limited = scf_wall.make_cases(molecules, 250)
    assert all(case.fit or case.molecule.functions(case.basis) <= 250 for case, _ in limited)


def test_store_forgets_a_line_cut_short_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    store = _scfruns.Store(path)
    store.append({"key": "a", "value": np.int64(1)})
    store.append({"key": "b", "value": 2})
    path.write_bytes(path.read_bytes()[:-7])
    store = _scfruns.Store(path)
    assert "a" in store and "b" not in store
    store.append({"key": "b", "value": 3})
    assert [json.loads(line)["value"] for line in path.read_text().splitlines()] == [1, 3]


def test_store_changes_the_file_only_to_append_and_the_later_row_counts(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"key": "a", "error": "E"}\n{"no": "key"}\n{"key": "b", "va')
    store = _scfruns.Store(path)
    assert path.read_bytes().endswith(b'"va')  # another process may be writing this line
    assert store.failed("a") and not store.failed("b")
    store.append({"key": "a", "value": 1})
    assert path.read_bytes().endswith(b'{"key": "a", "value": 1}\n') and b'"va\n' not in path.read_bytes()
    assert _scfruns.Store(path).rows == [{"key": "a", "value": 1}] == store.rows


def test_work_skips_what_exists_keeps_errors_and_honours_the_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran: Counter[str] = Counter()

    def job(name: str) -> Any:
        def run() -> dict[str, Any]:
            ran[name] += 1
            if name == "bad":
                raise ValueError("no good\nat all")
            if name == "arm" and ran[name] == 1:
                _scfruns.in_arm("ours", lambda: 1 / 0)
            return {"value": 1}

        return _scfruns.Job(name, 1000.0 if name == "long" else 0.0, run, {"name": name.upper(), "xc": "pbe"})

    jobs = [job(name) for name in ("first", "bad", "arm", "long", "last")]
    for _ in range(2):
        store = _scfruns.Store(tmp_path / "rows.jsonl")
        _scfruns.work(jobs, store, minutes=1.0)
    assert ran == {"first": 1, "bad": 1, "arm": 1, "last": 1}
    assert "2 failed" in capsys.readouterr().out
    assert [row.get("error") for row in store.rows] == [None, "ValueError: no good", "ZeroDivisionError: division by zero", None]
    assert [row.get("arm") for row in store.rows] == [None, None, "ours", None]
    assert [(row["name"], row["xc"]) for row in store.rows] == [(key, "pbe") for key in ("FIRST", "BAD", "ARM", "LAST")]
    assert {"load", "load_after", "threads", "blas_threads", "commit", "machine"} <= set(store.rows[1])
    _scfruns.work(jobs, store, minutes=1.0, retry_failed=True)
    assert ran == {"first": 1, "bad": 2, "arm": 2, "last": 1}
    assert [row.get("error") for row in store.rows] == [None, "ValueError: no good", None, None]


def test_threads_are_enforced_for_pyscf_and_blas() -> None:
    before = _scfruns.lib.num_threads()
    with threadpoolctl.threadpool_limits(limits=None):
        for threads in (2, 1):
            _scfruns.set_threads(threads)
            assert _scfruns.lib.num_threads() == threads and set(_scfruns.blas_threads()) <= {threads}
    _scfruns.set_threads(before)


def test_time_and_peak_memory_of_a_run() -> None:
    array, spent = _scfruns.timed(lambda: np.ones(6_000_000).sum() + np.ones(1000))
    assert array[0] == 6_000_001.0 and spent["seconds"] > 0 and spent["cpu"] > 0
    assert spent["peak_mb"] is None or 30 < spent["peak_mb"] < 200  # the 48 MB are gone again


def wall_row(name: str, seconds: float, fit: bool = True, error: float = 0.0, **changes: Any) -> dict[str, Any]:
    """A row of scf_wall with a stock run of ten seconds; ``changes`` of our run, or of the row itself."""
    split = {"start": 0.1 * seconds, "setup": 0.1 * seconds, "coarse": 0.2 * seconds, "fine": 0.5 * seconds}
    steps = [[-1.0, 1e-3, 5, 0.1 * seconds, 0.3 * seconds], [-1.0, 1e-6, 5, 0.1 * seconds, 0.2 * seconds]]
    ours = {"seconds": seconds, "cpu": seconds, "fine": 2, "reported_fine": 2, "coarse": 10, "split": split, "steps": steps}
    ours |= {"energy": -1.0 + error, "converged": True, "fallback": None}
    stock = {"seconds": 10.0, "cpu": 10.0, "cycles": 12, "builds": 20, "energy": -1.0, "converged": True, "incore": not fit}
    row = {
        "key": f"{name}{fit}",
        "name": name,
        "smiles": name,
        "atoms": 12,
        "nao": 100,
        "xc": "pbe",
        "basis": "def2-svp",
        "df": fit,
    }
    row |= {"ours": ours | {key: changes.pop(key) for key in list(changes) if key in ours}, "stock": stock}
    row |= {"reference": {"energy": -1.0, "converged": True}, "first": "ours", "load": 0.5, "load_after": 1.0}
    row |= {"date": "2026-01-01 00:00", "machine": "m", "threads": 2, "blas_threads": 2, "commit": "c"}
    return row | changes


def error_row(name: str, arm: str | None) -> dict[str, Any]:
    """A row of scf_wall that raised."""
    row = {key: value for key, value in wall_row(name, 1.0).items() if key not in ("ours", "stock", "reference", "first")}
    return row | {"error": "ValueError: no", "arm": arm}


def wall_summary(rows: list[dict[str, Any]], **planned: Any) -> dict[str, str]:
    line = scf_wall_plots.summary_line("**all with DF**", rows, **planned)
    return dict(zip(scf_wall_plots.SUMMARY, line, strict=True))


def test_summary_counts_what_misses_the_targets(tmp_path: Path) -> None:
    rows = [wall_row("a", 2.0), wall_row("b", 4.0), wall_row("c", 10.0, error=2e-8), wall_row("d", 2.5, fit=False)]
    groups = scf_wall_plots.categories(rows)
    line = wall_summary(groups["**all with DF**"], planned={"PBE/def2-svp, DF": 4, "B3LYP/def2-svp, DF": 5, "PBE/def2-svp": 9})
    assert (line["rows measured/planned"], line["median ratio"], line["smallest"]) == ("3/9", "2.50", "1.00")
    assert line["largest abs dE, Eh"] == "2.0e-08" and line["abs dE > 1e-08"].startswith("1 ")
    assert line["ratio < 3.0"].startswith("2 ") and line["ratio < 1.3"].startswith("1 ") and line["fine > 3"].startswith("0 ")
    assert line["coarse / our later build"] == "0.100"  # 0.02 by 0.2 of the seconds
    assert line["coarse / stock mean build"] == "0.160"  # 0.08 s by 0.5 s
    store = _scfruns.Store(tmp_path / "scf_wall.jsonl")
    for row in [*rows, error_row("x", "ours"), wall_row("big", 2.0, atoms=80, load_after=3.5, commit="d")]:
        store.append(row)
    scf_wall_plots.write_results(store, tmp_path, 450, {"PBE/def2-svp, DF": 7})
    text = (tmp_path / "scf_wall.md").read_text()
    assert "PBE/def2-svp, DF" in text and "in core" in text and "ValueError: no" in text and "1 failed" in text
    assert "80 to 80" in text and "busy" in text and "2 states of the code" in text and "5/7" in text
    assert (tmp_path / "scf_wall_ratio.png").stat().st_size > 1000 and (tmp_path / "scf_wall_split.png").stat().st_size > 1000
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".jsonl", ".md", ".png", ".png"]


def test_summary_counts_failures_as_ratio_zero_and_leaves_out_what_has_no_stock_result() -> None:
    rows = [wall_row("a", 2.0), wall_row("b", 2.0, converged=False), error_row("c", "ours"), error_row("d", None)]
    line = wall_summary([*rows, error_row("e", "stock"), wall_row("f", 1.0, reference={"energy": -1.0, "converged": False})])
    assert (line["rows measured/planned"], line["left out"], line["failed"]) == ("6/?", "2", "2")
    assert (line["median ratio"], line["smallest"], line["largest"]) == ("0.00", "0.00", "5.00")
    assert line["not converged or fallback"] == line["ratio < 1.3"] == "3 (75%)"


@pytest.mark.parametrize("rows", [[error_row("a", "ours")], [error_row("a", "stock")], [wall_row("a", 1.0, error=float("nan"))]])
def test_tables_of_nothing_but_failures(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    store = _scfruns.Store(tmp_path / "scf_wall.jsonl")
    for row in rows:
        store.append(row)
    scf_wall_plots.write_results(store, tmp_path, 450)
    assert "| - |" in (tmp_path / "scf_wall.md").read_text()


def test_ablation_table_says_what_converged_and_what_fell_back() -> None:
    run = wall_row("a", 2.0)
    starts = {name: {"stock": run["stock"], "ours": run["ours"]} for name in _ablation.STARTS}
    starts["fitted"] = {"stock": run["stock"], "ours": {**run["ours"], "converged": False, "fallback": "no gain"}}
    text = _ablation.starts_table([{**run, "starts": starts}])
    assert "**ours not converged**; fallback: no gain" in text and text.count("| converged |") == 2
    assert text.count("median of 1") == 2  # of the start that converged nowhere there is none


def test_ablation_and_control_follow_the_command_line() -> None:
    arguments = argparse.Namespace(names=["uracil"], basis=["def2-tzvp"], fit="both", xc=["pbe"])
    for jobs in (_ablation.ablation_jobs(arguments), _control.control_jobs(arguments)):
        assert [(job.about["basis"], job.about["df"]) for job in jobs] == [("def2-tzvp", True), ("def2-tzvp", False)]
    default = argparse.Namespace(names=["uracil"], basis=None, fit=None, xc=["pbe"])
    assert [job.about["basis"] for job in _ablation.ablation_jobs(default)] == ["def2-svp"]


def hard_row(solver: str, energy: float, converged: bool = True) -> dict[str, Any]:
    return {"solver": solver, "energy": energy, "converged": converged, "fock": 4, "jk": 5, "seconds": 1.0, "cpu": 1.0, "ours": {}}


def test_lowest_energy_counts_only_converged_runs_but_any_bound() -> None:
    runs = {"stock": hard_row("stock", -1.0), "shift + damp": hard_row("shift + damp", -1.2, False)}
    runs |= {"newton": hard_row("newton", -1.2 + 1e-7), "ours": hard_row("ours", -1.1)}
    assert [scf_hard.reached(row, runs) for row in runs.values()] == [False, False, True, False]
    lines = {line[0]: line for line in scf_hard.summary([runs])}
    assert lines["shift + damp"][2:4] == ["0 (0%)", "0 (0%)"] and lines["newton"][2:4] == ["1 (100%)", "1 (100%)"]


def test_hard_summary_counts_errors_and_compares_costs_of_equal_energies_only() -> None:
    runs = {name: hard_row(name, -1.0) for name in scf_hard.SOLVERS}
    runs["newton"] |= {"energy": -1.1, "fock": 40}
    about = {"group": "g", "name": "n", "xc": "pbe"}
    rows = [{**about, **row} for row in runs.values() if row["solver"] != "shift + damp"]
    rows.append({**about, "solver": "shift + damp", "error": "ValueError: no"})
    cases = scf_hard.by_case(rows)
    lines = {line[0]: dict(zip(scf_hard.SUMMARY, line, strict=True)) for line in scf_hard.summary(list(cases.values()))}
    assert [lines[name]["converged"] for name in scf_hard.SOLVERS] == ["1 (100%)", "0 (0%)", "1 (100%)", "1 (100%)"]
    assert [lines[name]["cost ratios from"] for name in scf_hard.SOLVERS] == ["1", "0", "0", "1"]
    assert lines["newton"]["Fock / stock"] == "-" and lines["shift + damp"]["failed"] == "1"
    assert any("ValueError: no" in line for line in scf_hard.case_lines(cases))
    assert np.isnan(scf_hard.lowest_energy({"stock": hard_row("stock", float("nan"))}))


def test_hard_jobs_take_turns_and_say_what_they_are_about() -> None:
    names = [case.name for case in _hardcases.hard_cases()][:4]
    jobs = scf_hard.make_jobs(("pbe",), names)
    first = [jobs[4 * number].about["solver"] for number in range(4)]
    assert sorted(first) == sorted(scf_hard.SOLVERS)
    assert all({"name", "group", "xc", "solver", "spin"} <= set(job.about) for job in jobs)


def test_control_runs_all_arms_to_one_energy(tmp_path: Path) -> None:
    water = _molecules.Molecule("O", "water", True, "")
    case = scf_wall.Case(water, "pbe", "def2-svp", True)
    row = {"key": "k", **_scfruns.provenance(), **case.about(), **_control.measure_arms(case, 1)}
    assert row["order"] == [*_control.ARMS[1:], _control.ARMS[0]] and list(row["arms"]) == list(_control.ARMS)
    energies = [run["energy"] for run in row["arms"].values()]
    assert max(energies) - min(energies) < 1e-8
    assert list(_control.arms(scf_wall.Case(water, "pbe", "def2-svp", False))) == [_control.ARMS[0], *_control.ARMS[2:]]
    store = _scfruns.Store(tmp_path / "scf_control.jsonl")
    store.append(row)
    _control.write_control(store, tmp_path)
    assert "integrals and orbital values kept" in (tmp_path / "scf_control.md").read_text()


def test_hard_cases_are_molecules() -> None:
    """Electron counts that fit the spins, no clashes, names that are unique."""
    cases = _hardcases.hard_cases()
    assert len({case.name for case in cases}) == len(cases) >= 20
    for case in cases:
        structure = case.structure
        assert (int(structure.numbers.sum()) - structure.charge - structure.spin) % 2 == 0, case.name
        distances = np.linalg.norm(structure.positions[:, None] - structure.positions[None], axis=-1)
        assert distances[np.triu_indices(len(distances), 1)].min() > 0.9, case.name


def test_oracle_start_is_close_to_the_converged_density() -> None:
    """The Fock matrix of the exact fitted density gives a density matrix near the one that was fitted."""
    mol = _scfruns.make_mol(_molecules.Molecule("O", "water", True, "").structure(), "def2-svp")
    mf = _scfruns.make_mean_field(mol, "pbe", True)
    mf.kernel()
    dm = mf.make_rdm1()
    guess = _ablation.fitted_density_matrix(mol, dm)
    assert np.einsum("pq,qp", guess, mf.get_ovlp()) == pytest.approx(mol.nelectron, abs=1e-8)
    assert np.linalg.norm(guess - dm) < 0.02
    assert np.linalg.norm(mf.get_init_guess(mol, "minao") - dm) > 0.5


@pytest.mark.parametrize("builds", [0, 1, 2])
def test_profile_lines_of_short_runs_and_fallbacks(builds: int) -> None:
    steps = [Step(-1.0, 1e-3, 10, 0.5, 0.4 / (number + 1)) for number in range(builds)]
    line = scf_profile.line("pbe", 0.5, Report(steps, fallback=None if builds else "no gain"), {"DIIS": 0.1})
    cells = dict(zip(scf_profile.HEADINGS, line, strict=True))
    assert cells["by stock full build"] == ("0.100" if builds else "-")
    assert cells["by our later full build"] == ("0.250" if builds == 2 else "-")
    assert cells["note"] == ("" if builds else "stock PySCF: no gain")
