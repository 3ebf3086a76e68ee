"""All that a stopped run needs to go on exactly where it was, in one file of plain tensors and containers."""

from __future__ import annotations

import io
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlip.errors import CheckpointError
from mlip.files import atomic_path
from mlip.training.ema import WeightAverage

FORMAT_VERSION = 1
_PARTS: dict[str, type] = {"model": dict, "optimizer": dict, "average": dict, "best": dict, "progress": dict, "random": Tensor}


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: optimiser steps done. epoch, batch: place of the next batch in the stream.
        elapsed: seconds of wall time used by all parts of the run.
        lr: rate of the last step. skipped: steps left out for a gradient that was not finite.
        best_value: best validation so far of the monitored number (eV or loss units). best_epoch: when it was reached.
        reference: value that early stopping compares with: the last one that was better by ``min_delta``.
        stale: validations without such an improvement.
        history: one row of numbers a validation, as in ``log.csv``.
        finished: why the run ended (empty while it runs).
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    elapsed: float = 0.0
    lr: float = 0.0
    skipped: int = 0
    best_value: float = float("inf")
    best_epoch: int = 0
    reference: float = float("inf")
    stale: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    finished: str = ""


def save_checkpoint(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    best: dict[str, Tensor],
    progress: Progress,
    extra: dict[str, Any],
) -> None:
    """Write a training checkpoint atomically: weights, average, best so far, optimiser, place, random state."""
    content = {
        "format_version": FORMAT_VERSION,
        "model": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.state_dict(),
        "best": best,
        "progress": asdict(progress),
        "random": torch.get_rng_state(),
        **extra,
    }
    buffer = io.BytesIO()  # of a full disk torch would say no more than "enforce fail"
    torch.save(content, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a training checkpoint (``weights_only``: a stranger's file cannot run code).

    Raises:
        CheckpointError: damaged or of another format version.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles, which are refused
            content = torch.load(path, map_location="cpu", weights_only=True)
        version = int(content["format_version"])
    except Exception as error:
        why = str(error).partition(". ")[0] or type(error).__name__  # what torch says next is how to run a stranger's code
        raise CheckpointError(f"{path}: cannot be read ({why}); start anew with --restart") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: written by another version (format {version}, this one has {FORMAT_VERSION}); use --restart"
        )
    wrong = [name for name, kind in _PARTS.items() if not isinstance(content.get(name), kind)]
    if wrong:
        raise CheckpointError(f"{path}: not a training checkpoint ({', '.join(wrong)}); start anew with --restart")
    return content


def progress_of(content: dict[str, Any]) -> Progress:
    """The progress in a checkpoint; those of before ``reference`` was kept had it equal to ``best_value``."""
    values = content["progress"]
    return Progress(**{"reference": values["best_value"], **values})


def restore(
    content: dict[str, Any], module: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage
) -> tuple[Progress, dict[str, Tensor]]:
    """Put a checkpoint's content back in place; returns the progress and the best weights."""
    module.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    average.load_state_dict(content["average"])
    torch.set_rng_state(content["random"])
    return progress_of(content), content["best"]
