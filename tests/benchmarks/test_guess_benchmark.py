"""benchmarks/scf_guess.py: molecules that were not trained on, the measures and targets, jobs, one row end to end, the curve."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyscf")
pytest.importorskip("rdkit")
from mlip.checkpoint import save_model
from mlip.errors import CheckpointError
from mlip.models import build
from mlip.models.densitystats import DensityReference
from scf_accel.auxbasis import load_density_basis
from scf_accel.predictor import ExactPredictor, PredictionError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
try:
    import _guesscurve
    import _guessmeasures
    import _guessmolecules
    import _molecules
    import _scfruns
    import scf_guess
    import scf_guess_plots
finally:
    sys.path.remove(str(BENCHMARKS))

GROUPS = tuple(_guessmolecules.GROUPS)
WATER = _guessmolecules.GuessMolecule("O", "water", True, "", "small", True, True)
STAMP = {"threads": 1, "blas_threads": 1, "machine": "m", "load": 0.0, "commit": "c", "date": "2026-01-01 00:00"}


def water_case(xc: str = "pbe") -> scf_guess.GuessCase:
    return scf_guess.GuessCase(WATER, xc, "def2-svp", True, "small")


def hand_row(name: str, atoms: int, arms: dict[str, tuple[int, int, float, float]], **more: Any) -> dict[str, Any]:
    """A row whose arms are ``(cycles, builds, seconds, energy)``; a negative number of cycles did not converge."""
    runs = {
        guess: {"cycles": abs(cycles), "builds": builds, "seconds": seconds, "energy": energy, "converged": cycles > 0}
        for guess, (cycles, builds, seconds, energy) in arms.items()
    }
    group = "large" if atoms > 20 else "small"
    about = {"name": name, "smiles": name, "atoms": atoms, "nao": 5 * atoms, "xc": "pbe", "basis": "def2-svp", "df": True}
    case = {"key": f"{name}|{'+'.join(arms)}", "case": name, "group": group, "category": group}
    return {**STAMP, **about, **case, "arms": runs, **more}


# ------------------------------------------------------------------------------------------------------- molecules


def test_no_listed_molecule_was_trained_on() -> None:
    listed = [molecule for group in GROUPS for molecule in _guessmolecules.listed_molecules(group)]
    kept, refused = _guessmolecules.untrained(listed, _guessmolecules.trained_smiles())
    assert not refused
    assert kept == listed


def test_lists_are_what_the_benchmark_claims() -> None:
    """30 or more molecules of the training set's size, 20 larger ones, distinct, of all elements, fifteen and ten with a mark."""
    small, large = (_guessmolecules.listed_molecules(group) for group in GROUPS)
    together = [*small, *large]
    assert len(small) >= 30 and len(large) >= 20
    assert len({m.name for m in together}) == len({_guessmolecules.flat_smiles(m.smiles) for m in together}) == len(together)
    assert {symbol for m in large for symbol in m.symbols()} == _molecules.ELEMENTS
    assert sum(m.transfer for m in together) == 15 and sum(m.curve for m in together) == 10
    problems = {m.name: _guessmolecules.problem(m) for m in together}
    assert not {name: text for name, text in problems.items() if text}


def test_stereoisomers_and_isotopes_of_trained_molecules_are_refused(tmp_path: Path) -> None:
    (tmp_path / "some.smi").write_text("# seed\nC[C@@H](N)C(=O)O alanine\n\nFC=CF\n[H][H]\n", encoding="utf-8")
    trained = _guessmolecules.trained_smiles(tmp_path)
    texts = ["CC(N)C(=O)O", "C[C@H](N)C(=O)O", "OC(=O)C(C)[15NH2]", "F/C=C/F", "[H]C(F)=CF", "[H][H]", "NCC(=O)O", "FC=C"]
    molecules = [_guessmolecules.GuessMolecule(smiles, smiles, False, "") for smiles in texts]
    kept, refused = _guessmolecules.untrained(molecules, trained)
    assert [m.smiles for m in kept] == ["NCC(=O)O", "FC=C"]
    assert len(refused) == 6 and all("some.smi" in line for line in refused)
    with pytest.raises(FileNotFoundError, match="trained on"):
        _guessmolecules.trained_smiles(tmp_path / "elsewhere")


def test_the_benchmark_leaves_trained_molecules_out_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    trained = {_guessmolecules.flat_smiles("CN1CCC[C@@H]1c1cccnc1"): "list.smi"}
    names = [molecule.name for molecule in _guessmolecules.guess_molecules(("large",), trained)]
    assert len(names) == len(_guessmolecules.listed_molecules("large")) - 1 and "nicotine" not in names
    assert "nicotine" in capsys.readouterr().out


def test_unknown_words_in_a_list_are_named(tmp_path: Path) -> None:
    (tmp_path / "guess_small.smi").write_text("CCO ethanol transfre\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"ethanol.*transfre"):
        _guessmolecules.listed_molecules("small", tmp_path)


# -------------------------------------------------------------------------------------------------------- measures


def test_measures_of_hand_made_rows() -> None:
    rows = [
        hand_row("a", 30, {"minao": (10, 12, 6.0, -1.0), "ours x@1": (6, 9, 4.0, -1.0 + 2e-9)}),
        hand_row("b", 40, {"minao": (20, 22, 9.0, -2.0), "ours x@1": (14, 16, 9.0, -2.1)}),
        hand_row("c", 50, {"minao": (10, 12, 1.0, -3.0), "ours x@1": (-50, 53, 9.0, -3.0)}),
        hand_row("d", 50, {"minao": (-50, 52, 1.0, -3.0), "ours x@1": (9, 11, 9.0, -3.0)}),
    ]
    members = [c for c in _guessmeasures.comparisons(rows) if c.guess == "ours x@1"]
    assert [c.about["name"] for c in members] == ["a", "b", "c"]  # nothing to compare d with
    assert [row["name"] for row in _guessmeasures.without_reference(rows)] == ["d"]
    summary = _guessmeasures.summarise(members)
    assert (summary.count, summary.converged, summary.other_solutions, summary.slow) == (3, 2, 1, 0)
    assert summary.ric == pytest.approx(((0.6 + 0.7) / 2, 0.65))
    assert summary.eric == pytest.approx(((9 / 12 + 16 / 22) / 2, (9 / 12 + 16 / 22) / 2))
    assert summary.wall == pytest.approx((1.25, 1.25))
    assert summary.cycles == 10 and summary.most_extra == -4
    assert summary.energy == pytest.approx(2e-9, rel=1e-3)
    claims = _guessmeasures.targets(members, members)
    assert [target.met for target in claims] == [True, True, False, True]
    assert claims[0].value == "65.0 %" and claims[2].value == "2 of 3"


def test_of_two_rows_of_a_case_the_later_counts_with_its_own_reference() -> None:
    rows = [
        hand_row("a", 30, {"minao": (10, 12, 6.0, -1.0), "atom": (9, 11, 6.0, -1.0), "oracle": (5, 8, 3.0, -1.0)}),
        hand_row("a", 30, {"minao": (12, 14, 6.0, -1.0), "oracle": (6, 9, 3.0, -1.0)}),
    ]
    rics = {c.guess: c.ric for c in _guessmeasures.comparisons(rows)}
    assert rics == {"minao": 1.0, "atom": 0.9, "oracle": 0.5}


@pytest.mark.parametrize(
    ("small", "large", "wanted"),
    [((10, 10), (20, 13), [True, True, True, True]), ((10, 12), (20, 14), [False, False, True, False])],
)
def test_targets_are_met_or_not(small: tuple[int, int], large: tuple[int, int], wanted: list[bool]) -> None:
    """RIC and ERIC are judged on the larger molecules, convergence and the slowest case on all."""
    rows = [
        hand_row(name, atoms, {"minao": (stock, stock + 2, 2.0, -1.0), "ours x@1": (mine, mine + 3, 1.0, -1.0)})
        for name, atoms, (stock, mine) in (("s", 10, small), ("l", 30, large))
    ]
    ours = [c for c in _guessmeasures.comparisons(rows) if c.guess == "ours x@1"]
    assert [t.met for t in _guessmeasures.targets([c for c in ours if c.about["atoms"] > 20], ours)] == wanted


def test_nothing_measured_is_neither_met_nor_failed() -> None:
    assert [target.met for target in _guessmeasures.targets([], [])] == [None] * 4


# ------------------------------------------------------------------------------------------------------------ jobs


def test_categories_share_the_time_and_are_cheapest_first() -> None:
    arguments = scf_guess.parse(["--fit", "both", "--max-nao-direct", "250"])
    molecules = [molecule for group in GROUPS for molecule in _guessmolecules.listed_molecules(group)]
    cases = scf_guess.make_cases(molecules, arguments)
    assert len({case.key for case in cases}) == len(cases)
    queues: dict[tuple[str, bool], list[scf_guess.GuessCase]] = {}
    for case in cases:
        queues.setdefault((case.label, case.fit), []).append(case)
    assert len(queues) == 7 and {(case.label, case.fit) for case in cases[:7]} == set(queues)
    for (label, fit), queue in queues.items():
        costs = [case.estimate() for case in queue]
        assert costs == sorted(costs)
        assert fit or max(case.molecule.functions(case.basis) for case in queue) <= 250
        assert len(queue) == 15 or label in GROUPS
    assert scf_guess.make_cases(molecules, scf_guess.parse([]))[0].fit


def test_jobs_measure_only_what_no_row_has(tmp_path: Path) -> None:
    store = _scfruns.Store(tmp_path / "rows.jsonl")
    case, model = water_case(), scf_guess.Model("ours x@1", None)

    def keys(guesses: list[str], model: scf_guess.Model | None = None, retry: bool = False) -> list[str]:
        return [job.key for job in scf_guess.make_jobs([case], guesses, model, store, retry)]

    every = ["minao", "atom", "ours", "oracle"]
    assert keys(every, model) == [f"{case.key}|atom+ours x@1+oracle"]
    run = {"converged": True}
    store.append({"key": f"{case.key}|atom+oracle", "case": case.key, "arms": {"minao": run, "atom": run, "oracle": run}})
    assert keys(["minao", "atom", "oracle"])[0] in store
    assert keys(every, model) == [f"{case.key}|ours x@1"]
    failed = {"minao": run, "ours x@1": {"error": "no"}}
    store.append({"key": f"{case.key}|ours x@1", "case": case.key, "arms": failed, "error": "no"})
    assert keys(every, model)[0] in store
    assert keys(every, model, retry=True) == [f"{case.key}|ours x@1"] and store.failed(f"{case.key}|ours x@1")
    assert keys(every, scf_guess.Model("ours x@2", None)) == [f"{case.key}|ours x@2"], "other weights are another guess"


def run_main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["scf_guess.py", *words, "--output", str(tmp_path)])
    scf_guess.main()


def test_list_measures_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(scf_guess, "measure", lambda *words: pytest.fail("measured"))
    run_main(
        monkeypatch, tmp_path, "--list", "--guesses", "oracle", "--names", "pyrazine", "nicotine", "--categories", "large", "b3lyp"
    )
    lines = capsys.readouterr().out.splitlines()
    assert sum("|pbe|" in line for line in lines) == 1 and sum("|b3lyp|" in line for line in lines) == 2
    assert lines[-1].startswith("3 rows") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--list", "--names", "nothing"], "nothing"),
        (["--list", "--model", "no/such/model"], "--guesses minao atom oracle"),
        (["--list", "--learning-curve"], "NAME:PATH"),
        (["--list", "--learning-curve", "a:no/such/model"], "no/such/model"),
    ],
)
def test_wrong_words_end_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        run_main(monkeypatch, tmp_path, *words)


# ------------------------------------------------------------------------------------------------------ end to end


class Unknowing(ExactPredictor):
    """Has no prediction."""

    name = "unknowing"

    def __init__(self) -> None:
        super().__init__(lambda mol: None)

    def coefficients(self, mol: Any) -> np.ndarray:
        raise PredictionError("nothing comes to mind")


def test_a_row_end_to_end(tmp_path: Path) -> None:
    """The oracle saves cycles, its Fock matrix is counted, every run ends at one energy; the table and plot come of it."""
    case = water_case()
    model = scf_guess.Model("ours unknowing@0", Unknowing(), 0.5)
    row = {"key": case.key, **_scfruns.provenance(), **case.about(), **scf_guess.measure(case, 1, scf_guess.GUESSES, model)}
    row = json.loads(json.dumps(row))
    assert list(row["arms"]) == ["ours unknowing@0", "atom", "minao", "oracle"], "turned round in every second row"
    minao, oracle, ours = (row["arms"][name] for name in ("minao", "oracle", "ours unknowing@0"))
    assert all(arm["converged"] for arm in row["arms"].values()) and "error" not in row
    assert oracle["cycles"] < minao["cycles"] == ours["cycles"]
    assert oracle["builds"] - oracle["cycles"] == minao["builds"] - minao["cycles"] + 1, "the Fock matrix of the guess"
    assert ours["builds"] == minao["builds"] and "nothing comes to mind" in ours["fallback"]
    assert oracle["fallback"] is None and oracle["guess_seconds"] > 0 and oracle["check_seconds"] == 0
    assert oracle["seconds"] > oracle["guess_seconds"] + oracle["inference_seconds"]
    assert oracle["electrons"] == pytest.approx(10, abs=0.1)
    assert np.ptp([arm["energy"] for arm in row["arms"].values()]) < 1e-7
    store = _scfruns.Store(tmp_path / "scf_guess.jsonl")
    store.append(row)
    scf_guess_plots.write_results(store, tmp_path, {"4 to 20 atoms, PBE/def2-SVP, DF": 3})
    text = (tmp_path / "scf_guess.md").read_text(encoding="utf-8")
    assert "(1 of 3 molecules)" in text and f"{oracle['cycles'] / minao['cycles']:.1%}".replace("%", " %") in text
    assert "fallback: " in text and "not measured" in text
    assert (tmp_path / "scf_guess_size.png").stat().st_size > 5000


def test_a_guess_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(case: Any, guess: str, predictor: Any = None, check: bool = True) -> tuple[dict[str, Any], Any]:
        if guess == bad:
            raise RuntimeError("broken")
        return {"cycles": 5, "builds": 7, "energy": -1.0, "seconds": 1.0, "converged": True}, FakeRun()

    class FakeRun:
        converged = True

        def make_rdm1(self) -> np.ndarray:
            return np.zeros((2, 2))

    monkeypatch.setattr(scf_guess, "run_guess", run)
    monkeypatch.setattr(scf_guess, "oracle_of", lambda case, dm: None)
    case, bad = water_case(), "oracle"
    row = scf_guess.measure(case, 0, ["minao", "atom", "oracle"], None)
    assert row["arm"] == "oracle" and "broken" in row["error"] and row["arms"]["atom"]["converged"]
    members = _guessmeasures.comparisons([{"case": "c", **row}])
    lost = [c for c in members if c.guess == "oracle"]
    assert len(members) == 3 and not lost[0].converged and _guessmeasures.summarise(lost).errors == 1
    bad = "minao"
    with pytest.raises(_scfruns.ArmError, match="broken"):
        scf_guess.measure(case, 0, ["minao", "atom"], None)


def test_a_guess_without_its_predictor_is_no_silent_minao() -> None:
    with pytest.raises(ValueError, match="needs a predictor"):
        scf_guess.run_guess(water_case(), "ours")


def test_the_oracle_is_of_this_geometry_only() -> None:
    mol = _scfruns.make_mol(WATER.structure(), "def2-svp")
    dm = _scfruns.make_mean_field(mol, "pbe", True).get_init_guess(mol, "minao")
    oracle = scf_guess.oracle_of(water_case(), dm)
    assert oracle.coefficients(mol).shape == (oracle.auxmol(mol).nao,)
    with pytest.raises(RuntimeError, match="another geometry"):
        oracle.coefficients(mol.set_geom_(mol.atom_coords() * 1.1, unit="Bohr", inplace=False))


# -------------------------------------------------------------------------------------------------- learning curve


def saved_model(folder: Path, frames: int | None, density: bool = True) -> Path:
    """A run folder with a model that was not trained."""
    reference = DensityReference(load_density_basis("def2-universal-jfit", [1, 8])) if density else None
    fields = {"channels": 4, "l_max": 1, "num_layers": 1, "energy": not density, "density": {} if density else None}
    model = build(fields, [1, 8], density=reference, avg_num_neighbors=2.0, seed=frames or 0)
    folder.mkdir(parents=True)
    return save_model(model, folder / "model.safetensors", {} if frames is None else {"frames": {"train": frames, "valid": 2}})


def test_points_of_the_curve_come_from_headers(tmp_path: Path) -> None:
    file = saved_model(tmp_path / "single", 70)
    saved_model(tmp_path / "runs" / "many", 500)
    saved_model(tmp_path / "runs" / "few", 20)
    words = [f"named:{file}", str(tmp_path / "single"), str(tmp_path / "runs")]
    found = _guesscurve.points(words)
    assert [(item.name, item.frames) for item in found] == [("few", 20), ("named", 70), ("single", 70), ("many", 500)]
    saved_model(tmp_path / "silent", None)
    with pytest.raises(CheckpointError, match="training frames"):
        _guesscurve.points([str(tmp_path / "silent")])
    saved_model(tmp_path / "energies", 9, density=False)
    with pytest.raises(CheckpointError, match="density"):
        _guesscurve.points([str(tmp_path / "energies")])


def test_curve_jobs_are_a_row_a_model_and_minao_runs_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    saved_model(tmp_path / "runs" / "few", 20)
    saved_model(tmp_path / "runs" / "many", 500)
    asked: list[tuple[str, ...]] = []

    def measure(case: Any, number: int, guesses: Any, model: Any, check: bool = True) -> dict[str, Any]:
        asked.append(tuple(guesses))
        names = {"ours": "" if model is None else model.label}
        return {"arms": {names.get(name, name): {"converged": True, "cycles": len(asked)} for name in guesses}}

    monkeypatch.setattr(_guesscurve, "measure", measure)
    store = _scfruns.Store(tmp_path / "rows.jsonl")
    jobs = _guesscurve.curve_jobs([water_case()], _guesscurve.points([str(tmp_path / "runs")]), store)
    assert [job.about.get("frames") for job in jobs] == [None, 20, 500]
    _scfruns.work(jobs, store, None)
    assert len(store.rows) == 3 and asked == [("minao", "oracle"), ("ours",), ("ours",)]
    found = {c.guess: c for c in _guessmeasures.comparisons(store.rows)}
    assert len(found) == 4 and all(c.reference["cycles"] == 1 for c in found.values())


def test_the_curve_is_over_molecules_that_every_model_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def rows(guess: str, cycles: dict[str, int], **more: Any) -> list[dict[str, Any]]:
        arms = {"minao": (10, 12, 1.0, -1.0)}
        return [
            hand_row(name, 40 if name == "big" else 10, {**arms, guess: (count, count + 3, 1.0, -1.0)}, **more)
            for name, count in cycles.items()
        ]

    measured = [
        *rows("ours b@2", {"small": 6, "big": 7}, model="b", frames=400),
        *rows("oracle", {"small": 5, "big": 6, "other": 9}),
        *rows("ours a@1", {"small": 8, "big": 9, "other": 1}, model="a", frames=50),
    ]
    items = _guesscurve.curve_points(_guessmeasures.comparisons(measured))
    assert [item.frames for item in items] == [50, 400, None]
    assert [item.mean() for item in items] == pytest.approx([0.85, 0.65, 0.55])
    assert [item.mean("large") for item in items] == pytest.approx([0.9, 0.7, 0.6])
    store = _scfruns.Store(tmp_path / "scf_guess_curve.jsonl")
    for row in measured:
        store.append(row)
    _guesscurve.write_curve(store, tmp_path)
    assert "| a (ours a@1) | 50 | 80.0 % | 90.0 % | 85.0 % |" in capsys.readouterr().out
    assert (tmp_path / "scf_guess_curve.png").stat().st_size > 5000


def test_the_curve_is_of_the_models_that_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An older model that ran for one molecule only does not take the others from the table."""
    file = saved_model(tmp_path / "new", 70)
    items, store = _guesscurve.points([str(file)]), _scfruns.Store(tmp_path / "scf_guess_curve.jsonl")
    label, reference = scf_guess.label_of(str(file)), {"minao": (10, 12, 1.0, -1.0)}
    assert label is not None
    for guess, names in (("ours old@0", "a"), ("oracle", "ab"), (label, "ab")):
        about = {} if guess == "oracle" else {"model": guess.split()[1], "frames": 70 if guess == label else 7}
        for name in names:
            store.append(hand_row(name, 10, {**reference, guess: (6, 9, 1.0, -1.0)}, **about))
    _guesscurve.write_curve(store, tmp_path, items)
    text = capsys.readouterr().out
    assert "over the 2 molecules" in text and "old" not in text
    _guesscurve.write_curve(store, tmp_path)
    assert "over the 1 molecules" in capsys.readouterr().out
