"""Sums and agreements over the processes of a parallel run; in a single process they do nothing."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor


def is_parallel() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def process_rank() -> int:
    """This process' number, also before the processes have met (Lightning and torchrun set it in the environment)."""
    if is_parallel():
        return dist.get_rank()
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def _meeting_place() -> torch.device:
    """Where tensors must lie to be exchanged: NCCL takes those of a GPU only."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes (a new tensor)."""
    if not is_parallel():
        return values
    total = values.to(_meeting_place(), copy=True)
    dist.all_reduce(total)
    return total.to(values.device)


def agree_on_maximum(values: list[float]) -> list[float]:
    """The same numbers on every process: the largest of each."""
    if not is_parallel():
        return values
    largest = torch.tensor(values, dtype=torch.float64, device=_meeting_place())
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest.tolist()
