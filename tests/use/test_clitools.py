"""What the command line does with errors and Ctrl-C: one line, a trace in a file, an exit code."""

import pytest
import typer

from mlip import clitools
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


def test_logs_of_one_second_stay_beside_each_other(monkeypatch, tmp_path):
    class Stopped(clitools.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(clitools, "datetime", Stopped)
    for words in ("first", "second"):
        assert exit_code(lambda words=words: fail(DataError(words)), monkeypatch, tmp_path) == 1
    logs = sorted(path.read_text() for path in tmp_path.glob("mlip-error-20260102-030405*.log"))
    assert len(logs) == 2 and "first" in logs[0] + logs[1] and "second" in logs[0] + logs[1]


@pytest.mark.parametrize("text", ["a\x1b[2Jb", "a\nb\tc", "\udce9", "[/x]"])
def test_an_error_line_has_no_control_characters(text, monkeypatch, tmp_path, capsys):
    assert exit_code(lambda: fail(DataError(text)), monkeypatch, tmp_path) == 1
    line = capsys.readouterr().err
    assert line.endswith("\n") and line[:-1].isprintable() and list(tmp_path.glob("*.log"))
