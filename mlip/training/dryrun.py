"""What a run would do: data audit, model size, measured time per epoch. Writes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from rich.console import Console

from mlip.config import RunConfig
from mlip.memory import keep_freed_memory
from mlip.models import Potential
from mlip.training.losses import TERMS, loss_sums, pair_penalty, total_loss
from mlip.training.optimizer import make_optimizer
from mlip.training.predict import pair_gate_of, predict
from mlip.training.prepare import new_model, prepare, training_batches, training_graphs
from mlip.training.report import describe_data, parameter_table
from mlip.training.results import clock

TIMED_STEPS, TIMED_SECONDS = 12, 20.0


def step_seconds(model: Potential, config: RunConfig, batches: Iterable[dict[str, Any]]) -> list[float]:
    """Seconds of one training step with each of ``batches``, as many as :data:`TIMED_SECONDS` allow; the weights stay."""
    model.train()
    optimizer = make_optimizer(model, config.training)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    weights = {name: float(getattr(config.loss, name).weight) for name in TERMS}
    terms, gate = config.active_terms, pair_gate_of(model)
    seconds: list[float] = []
    for graph in batches:
        start = time.monotonic()
        prediction = predict(model, graph, stress="stress" in terms)
        loss = total_loss(*loss_sums(prediction, graph, config.loss, terms), weights)
        if gate is not None and "density_pairs_soft" in prediction:
            loss = loss + pair_penalty(prediction, gate)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.monotonic() - start)
        if sum(seconds) > TIMED_SECONDS:
            break
    return seconds


def dry_run(config: RunConfig, console: Console) -> float:
    """Print audit, sizes and timing; returns the estimated seconds per epoch."""
    from mlip.training.loader import load_batches

    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    keep_freed_memory()  # as the training does: it is part of what a step costs
    data = prepare(config)
    for name, report in data.audits.items():
        console.print(name, style="bold", markup=False)
        console.print(report)
    model = new_model(config, data)
    describe_data(console, data, model)
    console.print(parameter_table(model))
    graphs = training_graphs(config, data, model.cutoff)
    batches = list(training_batches(config, graphs))
    seconds = step_seconds(model, config, load_batches(graphs, batches[:TIMED_STEPS]))
    timed = seconds[1:] or seconds
    per_step = sum(timed) / len(timed)
    epoch = per_step * len(batches) / config.training.devices
    console.print(
        f"{len(batches)} steps an epoch, {1000 * per_step:.0f} ms each (measured over {len(timed)}): "
        f"{epoch:.1f} s an epoch",
        highlight=False,
    )
    limits = []
    if config.training.max_epochs:
        epochs = config.training.max_epochs
        limits.append(f"{epochs} epochs would take about {clock(epoch * epochs)}")
    if config.training.max_minutes:
        count = 60 * config.training.max_minutes / max(epoch, 1e-9)
        limits.append(f"{config.training.max_minutes:g} minutes are about {count:.0f} epochs")
    console.print("; ".join(limits) + "; nothing was written", highlight=False)
    return epoch
