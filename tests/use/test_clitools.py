"""What the command line does with errors and Ctrl-C: one line, a trace in a file, an exit code."""

from datetime import datetime
from types import SimpleNamespace

import pytest
import typer

from mlip.clitools import run_guarded
from mlip.errors import DataError


def exit_code(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["mlip"])
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command)
    with pytest.raises(SystemExit) as stop:
        run_guarded("mlip", app)
    return stop.value.code


def fail(error):
    raise error


def test_ctrl_c_says_one_line_and_exits_130(monkeypatch, tmp_path, capsys):
    assert exit_code(lambda: fail(KeyboardInterrupt()), monkeypatch, tmp_path) == 130
    assert capsys.readouterr().err.count("interrupted") == 1


def test_a_command_that_handled_ctrl_c_itself_is_not_talked_over(monkeypatch, tmp_path, capsys):
    assert exit_code(lambda: fail(typer.Exit(130)), monkeypatch, tmp_path) == 130
    assert "interrupted" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [(DataError("x.xyz: forces are missing"), "error: x.xyz: forces are missing"), (ZeroDivisionError("boom"), "unexpected")],
)
def test_errors_are_one_line_with_the_trace_in_a_file(error, words, monkeypatch, tmp_path, capsys):
    assert exit_code(lambda: fail(error), monkeypatch, tmp_path) == 1
    shown = capsys.readouterr().err.strip()
    assert words in shown and "\n" not in shown
    (log,) = tmp_path.glob("mlip-error-*.log")
    assert "Traceback" in log.read_text()


def test_two_errors_in_one_second_leave_two_logs(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("mlip.clitools.datetime", SimpleNamespace(now=lambda: datetime(2026, 1, 1)))
    for text in ("first", "second"):
        assert exit_code(lambda text=text: fail(ZeroDivisionError(text)), monkeypatch, tmp_path) == 1
    first, second = sorted(tmp_path.glob("mlip-error-*.log"), key=lambda path: len(path.name))
    assert "first" in first.read_text() and "second" in second.read_text()
    assert second.name in capsys.readouterr().err


@pytest.mark.parametrize("text", ["a\x1b[2Jb", "a\nb\tc", "\udce9", "[/x]"])
def test_an_error_line_has_no_control_characters(text, monkeypatch, tmp_path, capsys):
    assert exit_code(lambda: fail(DataError(text)), monkeypatch, tmp_path) == 1
    line = capsys.readouterr().err
    assert line.endswith("\n") and line[:-1].isprintable()
