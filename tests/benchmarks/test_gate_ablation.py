"""benchmarks/gate_ablation.py: rows end to end on a toy set, what is done is only read, ratios to the dense network, reasons."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import in_process
import pytest

FOLDERS = [str(Path(__file__).resolve().parents[2] / folder) for folder in ("benchmarks", "tests/training")]
sys.path[:0] = FOLDERS
try:
    import _store
    import gate_ablation
    from gate_ablation import Row, Set
    from training_toys import toy_values, write_config
finally:
    del sys.path[: len(FOLDERS)]

ERRORS = (("F MAE meV/A", "test", "forces", "mae"),)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only set: crystals labelled by EMT, trained for an epoch."""
    values = toy_values(tmp_path, 1)
    values["model"] |= {"num_layers": 2}
    monkeypatch.setattr(gate_ablation, "SETS", {"toy": Set(write_config(tmp_path, values), "energy", ERRORS)})
    monkeypatch.setattr(gate_ablation, "INFERENCE_SECONDS", 0.0)
    monkeypatch.setattr(gate_ablation, "train", train_here)
    return tmp_path


def train_here(row: Row, folder: Path) -> None:
    """The same command in this process."""
    if not (folder / "results.json").exists():
        assert in_process.command("mlip", *gate_ablation.train_words(row, folder)).returncode == 0


def call(folder: Path, *words: str) -> None:
    gate_ablation.main(gate_ablation.parse([*words, "--output", str(folder / "out"), "--runs", str(folder / "runs")]))


def test_rows_are_measured_once_and_compared_with_the_dense_network(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(toy, "--l-max", "2", "--k", "0", "0.5", "--minutes", "3", "--threads", "1")
    dense, gated = (json.loads(line) for line in (toy / "out" / "gate_ablation.jsonl").read_text().splitlines())
    assert dense["paths"] == [3, 11] and gated["paths"] == [3, 6]
    assert (dense["executed_paths"], gated["executed_paths"]) == (14, 9)
    assert gated["multiply_adds"] < dense["multiply_adds"] and gated["parameters"] == dense["parameters"] - 5 * 8 * 4
    results = json.loads((toy / "runs" / dense["key"] / "results.json").read_text())
    assert dense["errors"] == {"F MAE meV/A": results["errors"]["test"]["forces"]["mae"]}
    assert all(row["step_ms"] > 0 and row["inference_ms"] > 0 and row["epochs"] == 1 for row in (dense, gated))
    text = (toy / "out" / "gate_ablation.md").read_text()
    assert gated["dense"]["multiply_adds"] == dense["multiply_adds"] == dense["dense"]["multiply_adds"]
    assert f"({gated['multiply_adds'] / dense['multiply_adds']:.2f})" in text and "(1.00)" in text
    assert "9 (3+6)" in text and "commit" in text

    def never(*_: Any) -> None:
        raise AssertionError("measured twice")

    monkeypatch.setattr(gate_ablation, "train", never)
    call(toy, "--l-max", "2", "--k", "0", "0.5", "--minutes", "3", "--threads", "1")
    assert len((toy / "out" / "gate_ablation.jsonl").read_text().splitlines()) == 2
    call(toy, "--l-max", "2", "--k", "0.3", "--minutes", "3", "--total", "1")
    assert "left for lack of time" in capsys.readouterr().out
    call(toy, "--l-max", "2", "--k", "0.3", "--minutes", "3")  # an error is a row, and tried again
    call(toy, "--l-max", "2", "--k", "0.3", "--minutes", "3")
    lines = (toy / "out" / "gate_ablation.jsonl").read_text().splitlines()
    assert [json.loads(line).get("error") for line in lines[2:]] == ["AssertionError: measured twice"] * 2
    assert "Failed: `toy-l2-k0.3-fifth-3min-1threads`: AssertionError" in (toy / "out" / "gate_ablation.md").read_text()


def test_a_set_that_is_not_there_is_skipped_with_its_reason(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (toy / "train.extxyz").unlink()
    call(toy, "--minutes", "3")
    out = capsys.readouterr().out
    assert "toy: skipped: data.train: the file" in out and "no finished row" in out
    monkeypatch.setattr(gate_ablation.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(gate_ablation, "load_config", lambda path: None)
    assert Set(toy / "config.yaml", "density", ()).missing() == "needs PySCF"
    assert Set(toy / "config.yaml", "energy", ()).missing() == ""


def test_all_sparsities_at_all_degrees_for_both_heads() -> None:
    rows = list(gate_ablation.rows_of(gate_ablation.parse([])))
    assert len(rows) == len({row.key for row in rows}) == 3 * 3 * 4 + 3
    assert {(row.l_max, row.k) for row in rows if row.name == "acac"} == {(l, k) for l in (2, 3, 4) for k in (0, 0.3, 0.5, 0.7)}
    assert [(row.l_max, row.k) for row in rows if row.pairs] == [(2, 0), (3, 0), (4, 0)]
    settings = Row("density-organics", 3, 0.0, 0.5, 2.0, 1).settings(Path("x"))
    assert "model.density.pair_gate.sparsity=0.5" in settings and "model.gate=null" in settings
    assert "model.gate.sparsity=0.3" in Row("acac", 3, 0.3, 0.0, 2.0, 1).settings(Path("x"))


def test_the_commit_of_a_row_covers_both_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(words: list[str], **_: Any) -> Any:
        asked.append(words)
        return _store.subprocess.CompletedProcess(words, 0, stdout="abc\n")

    monkeypatch.setattr(_store.subprocess, "run", run)
    assert _store.commit() == "abc+" and {"mlip", "scf_accel", "benchmarks"} <= set(asked[1])
