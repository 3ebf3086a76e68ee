"""What every benchmark prints above its table: machine, date, command and versions, as Markdown."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path


def processor() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def header(title: str, packages: Sequence[str] = ("torch", "numpy", "ase"), device: str = "cpu") -> str:
    """A Markdown head line and a list: date, machine, command, versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = f"{processor()}, {cores} cores available, {platform.system()} {platform.release()}"
    if device != "cpu":
        import torch

        machine += f"; {torch.cuda.get_device_name(device)}"
    if "torch" in sys.modules:
        import torch

        machine += f"; torch uses {torch.get_num_threads()} threads"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("mlip-scf-accel", *packages))
    command = " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    return (
        f"## {title}\n\n- date: {datetime.now():%Y-%m-%d %H:%M}{load}\n- machine: {machine}\n"
        f"- command: `{command}`\n- versions: Python {platform.python_version()}, {versions}\n"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [list(columns), ["---"] * len(columns), *[list(row) for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
