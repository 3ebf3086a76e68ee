"""benchmarks/fine_tune.py: rows end to end on a toy set, what is done is only read, a table and a plot."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import in_process
import pytest

FOLDERS = [str(Path(__file__).resolve().parents[2] / folder) for folder in ("benchmarks", "tests/training")]
sys.path[:0] = FOLDERS
try:
    import fine_tune
    from fine_tune import Row, Set
    from finetune_toys import write_shifted, write_source
    from training_toys import toy_values, write_config
finally:
    del sys.path[: len(FOLDERS)]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One set: crystals with the source's own energies and 3 eV more for each atom of copper."""
    write_shifted(tmp_path / "frames.xyz", write_source(tmp_path / "source"), {"Cu": 3.0, "Au": 0.0})
    files = Set("EMT", *(tmp_path / f"{name}.xyz" for name in ("frames", "frames", "none")))
    monkeypatch.setattr(fine_tune, "SETS", {"acac": files})
    values = toy_values(tmp_path, precision="float32")
    values["data"]["test"] = {"300K": str(files.test)}
    del values["model"], values["loss"]
    monkeypatch.setattr(fine_tune, "CONFIG", write_config(tmp_path, values))
    monkeypatch.setattr(fine_tune, "train", train_here)
    return tmp_path


def train_here(row: Row, folder: Path, threads: int) -> None:
    """The same command in this process."""
    if not (folder / "results.json").exists():
        assert in_process.command("mlip", *fine_tune.train_words(row, folder, threads)).returncode == 0


def call(folder: Path, *words: str) -> None:
    words = (*words, "--output", str(folder / "out"), "--runs", str(folder / "runs"))
    fine_tune.main(fine_tune.parse(list(words)))


def test_rows_are_measured_once_and_shown(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--from", str(toy / "source"), "--sizes", "6", "--steps", "2", "--arms", "scratch", "fine-tuned-fitted-e0")
    call(toy, *words)
    rows = {row["key"]: row for row in map(json.loads, (toy / "out" / "fine_tune.jsonl").read_text().splitlines())}
    fitted = next(row for key, row in rows.items() if key.startswith("E0-acac-6frames-fitted"))
    assert fitted["before"]["mean_per_atom"] < -1.0 and abs(fitted["after"]["mean_per_atom"]) < 1e-5
    assert "error" in next(row for key, row in rows.items() if "isolated" in key)  # there is no such file
    scratch, tuned = (next(row for key, row in rows.items() if key.startswith(arm)) for arm in ("scratch", "fine-tuned"))
    assert scratch["parameters"] == tuned["parameters"] - 9  # the same network, without aluminium: two vectors of 4 and a bias
    assert scratch["steps"] == tuned["steps"] == 2 and scratch["errors"]["300K energy"] > 0
    text = (toy / "out" / "fine_tune.md").read_text()
    assert "| 6 | scratch |" in text and "Failed: `E0-acac-6frames-isolated" in text and (toy / "out" / "fine_tune.png").exists()
    monkeypatch.setattr(fine_tune, "measure_run", None)  # nothing is measured twice
    call(toy, *words)
    call(toy, "--table")


def test_frames_are_drawn_so_that_smaller_sets_are_parts_of_larger_ones(toy: Path) -> None:
    import ase.io

    small, large = (ase.io.read(fine_tune.draw("acac", size, toy / "data")[0], ":") for size in (3, 6))
    assert len(large) == 6 and all(one == two for one, two in zip(small, large, strict=False))
    with pytest.raises(SystemExit, match="more than the 9 that there are"):
        fine_tune.draw("acac", 9, toy / "data")
