"""The command line ``mlip``: parses and calls; no logic. Heavy imports happen inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlip.clitools import run_guarded

app = typer.Typer(
    name="mlip",
    help="Train an interatomic potential, evaluate it, relax structures and run molecular dynamics.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(
    help="Convert, describe and audit data sets.", no_args_is_help=True, pretty_exceptions_enable=False
)
app.add_typer(data_app, name="data")


def main() -> None:
    """Entry point: errors become one line, a log file and a non-zero exit."""
    run_guarded("mlip", app)


if __name__ == "__main__":
    main()
