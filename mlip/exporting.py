"""What ``mlip export`` does: checks what costs nothing first, then loads torch and compiles."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from mlip.errors import ConfigError


def export_command(name: str, out: Path, dtype: str, overwrite: bool) -> None:
    """Compile the model called ``name`` into ``out`` and check the result against it.

    Raises:
        ConfigError: a wrong suffix or dtype, an ``out`` that exists, no compiler, or a failed compilation.
        CheckpointError: no such model.
    """
    if out.suffix != ".pt2":
        raise ConfigError(f"{out} must end in .pt2; name it {out.with_suffix('.pt2')}")
    if dtype not in ("float32", "float64"):
        raise ConfigError(f"dtype is {dtype!r}; choose float32 or float64")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; give another name, or --overwrite")
    start = time.perf_counter()
    import torch

    from mlip.checkpoint import load_model
    from mlip.exported import export_model

    model = load_model(name, dtype=dtype)
    export_model(model, out)
    seconds, size = time.perf_counter() - start, out.stat().st_size / 1e6
    text = f"{out}: {dtype}, for {torch.get_num_threads()} threads, checked against {name}, {size:.1f} MB, {seconds:.0f} s"
    Console().print(text, highlight=False, soft_wrap=True, markup=False)
