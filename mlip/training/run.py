"""A whole training run: data in, run folder out."""

from __future__ import annotations

import logging
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console
from torch import nn

from mlip.checkpoint import save_model
from mlip.config import RunConfig
from mlip.data.frame import count_atoms
from mlip.errors import CheckpointError, ConfigError, fitting
from mlip.memory import keep_freed_memory
from mlip.models import DensityReference, Potential
from mlip.models.growth import without_density
from mlip.training.conductor import Conductor
from mlip.training.distributed import is_parallel, process_rank
from mlip.training.evaluate import Evaluation, evaluate
from mlip.training.gating import reduce_as_before
from mlip.training.loader import BatchStream, bytes_of, evaluation_batches, load_batches, to_device
from mlip.training.module import PotentialModule
from mlip.training.prepare import Prepared, new_model, prepare, subset, training_batches, training_graphs, validation_graphs
from mlip.training.progress import LiveProgress
from mlip.training.report import describe_data, finish
from mlip.training.runfolder import RunFolder
from mlip.training.schedule import Budget
from mlip.training.state import progress_of, read_checkpoint
from mlip.training.uncertainty import FIT_FRAMES

FEATURE_COST = 0.3
"""Features of a frame take a quarter of an evaluation with forces (small preset, AcAc, CPU), the making of its graph apart."""


def train(
    config: RunConfig, restart: bool = False, console: Console | None = None, started: float | None = None
) -> dict[str, Any]:
    """Train a potential, or go on with an unfinished run of the same config in ``run.dir``.

    Writes into ``run.dir``: config.yaml, environment.json, log.csv, training.ckpt (the state to resume from),
    model.safetensors (the weights that were best in validation), results.txt and .json, plots.

    Args:
        config: a checked config with absolute data paths.
        restart: start anew where ``run.dir`` holds a run.
        console: where to report; silent where ``None``.
        started: ``time.monotonic()`` from which ``training.max_minutes`` counts; ``None`` is now.

    Returns:
        The content of ``results.json``; empty on all but the first process of a parallel run.

    Raises:
        UserError: what is wrong with config, data or run folder; a loss that is not finite.
        KeyboardInterrupt: after Ctrl-C; the last checkpoint stays.
    """
    before = time.monotonic() - started if started is not None else 0.0
    budget = Budget(config.training.max_minutes * 60.0 if config.training.max_minutes else None, spent=before)
    first = process_rank() == 0
    console = console if console is not None and first else Console(quiet=True)
    folder = RunFolder(config.run.dir)
    resumed = folder.check(config, restart)
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    keep_freed_memory()
    torch.manual_seed(config.training.seed)
    content = read_checkpoint(folder.checkpoint) if resumed else None
    data = prepare(config, content)
    if content is not None:
        data = _as_begun(config, folder, data, content)
    model = new_model(config, data)
    if content is not None:
        reduce_as_before(model, content)
    with folder.entered(config, restart, resumed) if first else nullcontext():  # what cannot be trained has replaced nothing
        describe_data(console, data, model, folder, resumed)
        conductor = fit(config, data, model, folder, budget, console, resumed)
        if not first:
            return {}
        model.load_state_dict(conductor.best)
        if config.loss.density.auxiliary:
            model, data = without_density(model), replace(data, density=None)
        device = "cuda" if _accelerator(config) == "gpu" else "cpu"
        return finish(config, data, model.to(device).eval(), conductor.progress, folder, console, save_model)


def _as_begun(config: RunConfig, folder: RunFolder, data: Prepared, content: dict[str, Any]) -> Prepared:
    """The data with the density's modes as they were when the run began: eigenvectors depend on the linear algebra library.

    Raises:
        ConfigError: the training file has changed, or what is held out of it.
    """
    if content.get("fingerprint") != data.fingerprint:
        raise ConfigError(
            f"data.train has changed since the run in {folder.path} began; use --restart, or --set run.dir=ANOTHER"
        )
    before = "" if config.data.split_by else data.split  # of runs that did not note it: by groups it was another
    if content.get("split", before) != data.split:
        raise ConfigError(
            f"the run in {folder.path} began with an earlier version, which held other frames out of data.train (data.split_by): "
            "going on would test it on what it has learned; use --restart, or --set run.dir=ANOTHER"
        )
    stored = content.get("density")
    return data if stored is None else replace(data, density=DensityReference.from_dict(stored))


def fit(
    config: RunConfig, data: Prepared, model: Potential, folder: RunFolder, budget: Budget, console: Console, resumed: bool
) -> Conductor:
    """Optimise ``model``, or go on with that; the outcome is in the conductor (best weights, progress)."""
    graphs = training_graphs(config, data, model.cutoff)
    stream = BatchStream(graphs, training_batches(config, graphs), config.data.num_workers)
    if resumed:
        with fitting(folder.checkpoint, CheckpointError, "--restart"):
            place = progress_of(read_checkpoint(folder.checkpoint))
        stream.start = (place.epoch, place.batch)
        if place.finished:
            return _finished(config, budget, folder, model)
    model.uncertainty = None  # should it have one, it belongs to the weights of now; the finished ones get theirs
    extra: dict[str, Any] = {"fingerprint": data.fingerprint, "split": data.split}
    extra["density"] = data.density.to_dict() if data.density else None
    if data.start is not None:
        extra["start"] = data.start.state()
    module = PotentialModule(model.train(), config, data.elements)
    conductor = Conductor(
        config, Validator(config, data, model.cutoff), budget, folder.checkpoint,
        extra=extra,
        final_cost=final_cost(data),
        on_validation=lambda progress: folder.write_log(progress.history),
    )  # fmt: skip
    with quiet_lightning():
        trainer = make_trainer(config, [conductor, LiveProgress(console, conductor)], folder.path)
        if trainer.world_size > 1:
            sampler = training_batches(config, graphs, trainer.global_rank, trainer.world_size)
            stream.batches = sampler
        on_interrupt = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module, stream)
        except SystemExit as error:
            if trainer.interrupted:
                if threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGINT, on_interrupt)  # Lightning has made this process deaf to Ctrl-C
                raise KeyboardInterrupt from error
            raise
    return conductor


def _finished(config: RunConfig, budget: Budget, folder: RunFolder, model: Potential) -> Conductor:
    """A run that had been trained to the end but was stopped before its results were written."""
    content = read_checkpoint(folder.checkpoint)
    conductor = Conductor(config, lambda _: evaluate(model, [], model.elements), budget, folder.checkpoint)
    with fitting(folder.checkpoint, CheckpointError, "--restart"):
        model.load_state_dict(content["best"])
    conductor.progress, conductor.best = progress_of(content), content["best"]
    return conductor


class Validator:
    """Evaluates a model on this process' share of the validation batches, kept in memory as far as ``data.cache_mb`` reaches.

    Attributes:
        metric_seconds: what it took to make the graphs of the whole set, metric matrices included.
    """

    def __init__(self, config: RunConfig, data: Prepared, cutoff: float):
        self.config, self.elements = config, data.elements
        self.graphs = validation_graphs(config, data, cutoff)
        self.batches = evaluation_batches(self.graphs.num_atoms.tolist(), config.data.valid_batch_size)
        self._kept: list[dict[str, Any]] | None = None
        self.metric_seconds = 0.0

    def __call__(self, model: nn.Module) -> Evaluation:
        parallel = is_parallel()
        rank = torch.distributed.get_rank() if parallel else 0
        world = torch.distributed.get_world_size() if parallel else 1
        device = next(model.parameters()).device
        mine = self.batches[rank::world]
        if self._kept is None:
            start = time.monotonic()
            self._kept = self._keep(mine)
            made = sum(map(len, mine[: len(self._kept) + 1]))
            self.metric_seconds = (time.monotonic() - start) * len(self.graphs) / max(1, made)
        workers = 0 if self.graphs.makes_metrics else self.config.data.num_workers
        source = chain(self._kept, load_batches(self.graphs, mine[len(self._kept) :], workers))
        batches = (to_device(graph, device) for graph in source)
        return evaluate(model, batches, self.elements, loss=self.config.loss, terms=self.config.active_terms)

    def _keep(self, mine: list[list[int]]) -> list[dict[str, Any]]:
        """The first batches, up to the byte budget."""
        kept, room = [], self.config.data.cache_mb * 2**20
        for graph in load_batches(self.graphs, mine):
            room -= bytes_of(graph)
            if room < 0:
                break
            kept.append(graph)
        return kept


def final_cost(data: Prepared) -> float:
    """Atoms of the final evaluation, and of the passes that fit the uncertainty, over atoms of the validation set."""
    atoms = sum(int(count_atoms(frames).sum()) for frames in data.sets().values())
    train, valid = (int(count_atoms(frames).sum()) for frames in (subset(data.train, FIT_FRAMES), data.valid))
    return (atoms + FEATURE_COST * train + (1 + FEATURE_COST) * valid) / max(1, valid)


def make_trainer(config: RunConfig, callbacks: list[Any], folder: Path) -> Trainer:
    """A bare Lightning trainer: one endless epoch, no files, no bars of its own."""
    options = config.training
    parallel = options.devices > 1
    strategy: Any = "auto"
    if parallel:
        strategy = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
    return Trainer(
        accelerator=_accelerator(config),
        devices=options.devices, strategy=strategy, plugins=None if parallel else [LightningEnvironment()],
        max_epochs=1, callbacks=callbacks, default_root_dir=str(folder), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
        use_distributed_sampler=False, inference_mode=False,
    )  # fmt: skip


def _accelerator(config: RunConfig) -> str:
    if config.training.accelerator != "auto":
        return config.training.accelerator
    return "gpu" if torch.cuda.is_available() else "cpu"


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Within, Lightning neither prints tips nor warns about choices that are made on purpose; after, as before."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric", "pytorch.utilities")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
            warnings.filterwarnings("ignore", message=".*find_unused_parameters=True was specified.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
