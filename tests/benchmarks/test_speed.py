"""benchmarks/speed.py: a row end to end by a real worker, read and not measured twice, reasons for what is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = str(Path(__file__).resolve().parents[2] / "benchmarks")
sys.path.insert(0, FOLDER)
try:
    import _speedworker
    import speed
finally:
    sys.path.remove(FOLDER)


def call(folder: Path, *words: str) -> None:
    speed.main(speed.parse([*words, "--output", str(folder), "--threads", "1", "--seconds", "0.01"]))


def test_a_row_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--systems", "ethanol", "--presets", "small", "--forms", "eager", "--peer-venv", f"mace={tmp_path}/absent")
    call(tmp_path, *words)
    assert "mace is left out" in capsys.readouterr().out
    (row,) = (json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines())
    assert row["median_ms"] > 0 and row["atoms"] == 9 and row["edges"] == 72 and row["peak_mb"] > row["step_mb"] >= 0
    assert "| small eager |" in (tmp_path / "speed.md").read_text()

    def never(*_: Any) -> None:
        raise AssertionError("measured twice")

    monkeypatch.setattr(speed, "measure", never)
    call(tmp_path, *words)


def test_a_contestant_that_fails_is_a_row_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    python = tmp_path / "venv" / "bin" / "python"
    python.write_text("#!/bin/sh\necho 'No module named mace' >&2; exit 1\n")
    python.chmod(0o755)
    call(tmp_path, "--systems", "ethanol", "--presets", "small", "--forms", "--peer-venv", f"mace={tmp_path}/venv")
    rows = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    assert [row["error"] for row in rows] == ["No module named mace"] * 2
    assert "No module named mace" in (tmp_path / "speed.md").read_text()
    with pytest.raises(SystemExit, match="allowed: mace"):
        call(tmp_path, "--peer-venv", "other=/x")


def test_the_systems_are_what_their_names_say() -> None:
    sizes = {name: len(make()) for name, make in _speedworker.SYSTEMS.items()}
    assert sizes == {"ethanol": 9, "si64": 64, "cu108": 108, "si512": 512, "water192": 192, "water648": 648}
    assert len(_speedworker.system_of("si216")) == 216
    box = _speedworker.water(64)
    distances = box.get_all_distances(mic=True)
    assert distances[distances > 0].min() > 0.9
    assert 0.95 < 64 * 18.015 / 6.022e23 / (box.get_volume() * 1e-24) < 1.05
