"""The documentation: what is generated covers the code, and mkdocs builds it without a warning."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_reference_has_every_option_and_an_example():
    generate = generator()
    expected = {"mlip": ["mlip data audit", "--physics", "--set", "required"], "scf-accel": ["scf-accel label", "--no-forces"]}
    for program, words in expected.items():
        text = generate.command_page(program)
        assert all(word in text for word in words)
        assert text.count(f"```sh\n{program} ") == text.count("\n## ")


def test_the_python_reference_has_signatures_and_sections():
    generate = generator()
    text = generate.python_page("mlip") + generate.python_page("scf_accel")
    for word in ("class MLIPCalculator(Calculator)", "def run_md(", "def accelerate(", "def warm_start(", "**Raises**"):
        assert word in text, word


def test_every_result_is_on_the_benchmarks_page():
    text = generator().benchmarks_page()
    assert text.count("\n## ") >= len(list((ROOT / "benchmarks" / "results").glob("*.md")))


def test_mkdocs_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the extra 'docs'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "reference" / "mlip.html").stat().st_size > 10_000
