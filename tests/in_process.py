"""A command run in this process as the shell would run it: no new interpreter, no imports to wait for."""

from __future__ import annotations

import functools
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

import typer.main

_parser = functools.cache(typer.main.get_command)  # typer makes a new one for every call, which takes longer than most commands


def command(program: str, *arguments: object, cwd: Path | None = None) -> CompletedProcess[str]:
    """Run ``mlip`` or ``scf-accel`` in the folder ``cwd`` by the entry point that the shell calls; its code and outputs."""
    from mlip.cli import main as mlip_main
    from scf_accel.cli import main as scf_main

    main = {"mlip": mlip_main, "scf-accel": scf_main}[program]
    out, err, code = StringIO(), StringIO(), 0
    before, argv = Path.cwd(), sys.argv
    os.chdir(cwd or before)
    sys.argv = [program, *map(str, arguments)]
    try:
        with patch.object(typer.main, "get_command", _parser), redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = argv
        os.chdir(before)
    return CompletedProcess(list(map(str, arguments)), code, out.getvalue(), err.getvalue())
