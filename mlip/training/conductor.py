"""Leads a run: learning rate, path gates, averaging, validation, best weights, checkpoints, and when to stop.

Lightning drives the optimisation over one endless stream of batches; epochs, and with them the place to resume at, are
counted here, so that a checkpoint taken anywhere, also within an epoch, continues exactly.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from mlip.config import RunConfig
from mlip.errors import CheckpointError, fitting
from mlip.models import Potential
from mlip.training.distributed import agree_on_maximum, sum_over_processes
from mlip.training.ema import WeightAverage
from mlip.training.evaluate import Evaluation
from mlip.training.gating import Gating
from mlip.training.losses import TERMS
from mlip.training.metrics import ErrorSums
from mlip.training.module import PotentialModule
from mlip.training.schedule import Budget, learning_rate
from mlip.training.state import Progress, read_checkpoint, restore, save_checkpoint

SAVE_EVERY = 120.0
"""Seconds between checkpoints within an epoch."""
SAVE_SHARE = 0.05
"""Checkpoints take at most this share of the time."""
VALIDATION_SHARE = 0.1
LOGGED = ("energy_per_atom", "forces", "stress", "density_coulomb", "density_overlap", "density", "density_pairs")
MONITORED = {
    "energy_mae": ("energy_per_atom", "mae"),
    "energy_rmse": ("energy_per_atom", "rmse"),
    "forces_mae": ("forces", "mae"),
    "forces_rmse": ("forces", "rmse"),
    "density_coulomb": ("density_coulomb", "mae"),
    "density_overlap": ("density_overlap", "mae"),
    "density_rmse": ("density", "rmse"),
}
"""What a name of ``training.monitor`` stands for: quantity and kind of error in a report."""


class Conductor(Callback):
    """See the module's docstring.

    Args:
        config: the run.
        validate: evaluates the model it is given on this process' share of the validation set.
        budget: the wall-clock budget.
        checkpoint: file of the training state.
        extra: plain values stored with it (config, data fingerprint).
        final_cost: final evaluation in units of one validation (frames to evaluate at the end / validation frames).
        on_validation: called on the first process with the progress after each validation.
    """

    def __init__(
        self,
        config: RunConfig,
        validate: Callable[[torch.nn.Module], Evaluation],
        budget: Budget,
        checkpoint: Path,
        extra: dict[str, Any] | None = None,
        final_cost: float = 1.0,
        on_validation: Callable[[Progress], None] | None = None,
    ):
        self.config, self.options = config, config.training
        self.validate, self.budget, self.checkpoint = validate, budget, checkpoint
        self.extra, self.final_cost, self.on_validation = extra or {}, final_cost, on_validation
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self.average: WeightAverage | None = None
        self.gating = None if self.options.gate is None else Gating(self.options.gate, self.options.seed)
        self.share = 0.0
        self._elapsed = self._validation_seconds = self._last_validation = 0.0
        self._last_save, self._save_seconds = time.monotonic(), 0.0

    # --- start -------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = _module(pl_module)
        self.average = WeightAverage(module.model, self.options.ema_decay)
        if self.checkpoint.exists():
            with fitting(self.checkpoint, CheckpointError, "--restart"):
                content = read_checkpoint(self.checkpoint)
                self.progress, self.best = restore(content, module.model, trainer.optimizers[0], self.average)
                if self.gating is not None:
                    self.gating.load_state_dict(content["gate"])
                module.errors.sums = content["epoch_errors"][trainer.global_rank].clone()
            self.budget.resume(self.progress.elapsed)
            self._last_validation = self.progress.elapsed
        self.measure(trainer, module)

    def measure(self, trainer: Trainer, module: PotentialModule) -> None:
        """Validate once before training: the first row of the log, and the time to reserve for the end."""
        start = time.monotonic()
        if self.progress.history:
            self._time_validation(time.monotonic() - start, self.progress.history[-1]["validation_seconds"])
            return
        self._validate(trainer, module)

    # --- every step --------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        module = _module(pl_module)
        self._elapsed = agree_on_maximum([self.budget.elapsed])[0]
        epochs = batch["epoch"] + batch["batch_index"] / batch["num_batches"]
        self.share = self._share(epochs)
        if self.gating is not None and self.gating.before_step(_potential(module), self.share, epochs, self.progress.step):
            self._freeze(trainer, module)
        self.progress.lr = learning_rate(self.share, self.options)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.progress.lr
        module.loss_weights, module.done = self.loss_weights(self.share), self.share

    def _freeze(self, trainer: Trainer, module: PotentialModule) -> None:
        """Reduce the network to the paths that its gates have chosen. From here on, only such weights can be the best."""
        assert self.gating is not None and self.average is not None
        self.gating.freeze(_potential(module), _plain(trainer.optimizers[0]), self.average)
        self.best, progress = {}, self.progress
        progress.best_value = progress.reference = float("inf")
        progress.stale = 0
        if isinstance(trainer.strategy, DDPStrategy):  # gradients are summed over processes for parameters known when it was set up
            trainer.strategy.model = module
            trainer.strategy.configure_ddp()

    def _share(self, epochs: float) -> float:
        """How much of the run is done, 0 to 1: of the time or of the epochs, whichever is further."""
        by_epochs = epochs / self.options.max_epochs if self.options.max_epochs else 0.0
        return max(by_epochs, self.budget.progress(self._elapsed))

    def loss_weights(self, share: float) -> dict[str, float]:
        """Weights of the loss at this share of the run."""
        weights = {name: float(getattr(self.config.loss, name).weight) for name in TERMS}
        stage = self.options.stage_two
        if stage is not None and share >= stage.start:
            weights |= {name: value for name in TERMS if (value := getattr(stage, name)) is not None}
        return weights

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module = _module(pl_module)
        assert self.average is not None
        self.progress.step += 1
        if module.skipped:
            self.progress.skipped += 1
        else:
            self.average.update()
        last = batch["batch_index"] + 1 == batch["num_batches"]
        self.progress.epoch = batch["epoch"] + last
        self.progress.batch = 0 if last else batch["batch_index"] + 1
        self._elapsed = agree_on_maximum([self.budget.elapsed])[0]
        self.progress.elapsed = self._elapsed
        reason = self._reason_to_stop(last)
        if reason and self._gates_are_open():
            self._freeze(trainer, module)
        if reason or (last and self._validation_is_due()):
            self._validate(trainer, module)
            if not reason and self._patience_lost():
                if self._gates_are_open():
                    self._freeze(trainer, module)
                else:
                    reason = f"no improvement in {self.progress.stale} validations (early stopping)"
        self.progress.finished = reason
        if reason:
            trainer.should_stop = True
        self._maybe_save(trainer, module, last, force=bool(reason))

    def _reason_to_stop(self, last: bool) -> str:
        if self.budget.usable is not None and self._elapsed >= self.budget.usable:
            return "the time is up"
        limit = self.options.max_epochs
        return "all epochs are done" if last and limit is not None and self.progress.epoch >= limit else ""

    def _patience_lost(self) -> bool:
        rule = self.options.early_stopping
        return rule is not None and self.progress.stale >= rule.patience

    def _gates_are_open(self) -> bool:
        """Whether the network has gates that are not yet frozen."""
        return self.gating is not None and not self.gating.frozen

    def _validation_is_due(self) -> bool:
        every = self.options.validate_every
        if every != "auto":
            return self.progress.epoch % every == 0
        if self.options.max_minutes is None:
            return True
        return self._elapsed - self._last_validation >= self._validation_seconds / VALIDATION_SHARE

    # --- validation --------------------------------------------------------------------------------------------

    def _validate(self, trainer: Trainer, module: PotentialModule) -> None:
        """Evaluate the averaged weights, log a row, keep them if they are the best."""
        assert self.average is not None
        start = time.monotonic()
        with self.average.applied():
            outcome = self.validate(module.model)
            for tensor in outcome.tensors():
                tensor.copy_(sum_over_processes(tensor))
            value = self._monitored(outcome)
            if self._judge(value):
                self.best = {name: t.detach().cpu().clone() for name, t in module.model.state_dict().items()}
        self._time_validation(time.monotonic() - start)
        trained = module.errors.empty()
        trained.sums = sum_over_processes(module.errors.sums)
        module.errors = module.errors.empty()
        self._elapsed = agree_on_maximum([self.budget.elapsed])[0]
        self._last_validation = self.progress.elapsed = self._elapsed
        self.progress.history.append(self._row(outcome, trained))
        if trainer.is_global_zero and self.on_validation is not None:
            self.on_validation(self.progress)

    def _judge(self, value: float) -> bool:
        """Count a validation; whether its weights are the best so far. ``min_delta`` concerns only when to stop."""
        progress, first = self.progress, not self.best
        value = value if value == value else float("inf")
        if first or value < progress.reference - self._min_delta():
            progress.reference, progress.stale = value, 0
        else:
            progress.stale += 1
        if not (first or value < progress.best_value):
            return False
        progress.best_value, progress.best_epoch = value, progress.epoch
        return True

    def _monitored(self, outcome: Evaluation) -> float:
        name = self.options.monitor
        if name == "loss":
            weights = self.loss_weights(1.0)
            if self.config.loss.density.auxiliary:
                weights["density"] = 0.0
            return outcome.loss(weights)
        quantity, kind = MONITORED[name]
        return outcome.errors.report()[quantity][kind]

    def _min_delta(self) -> float:
        rule = self.options.early_stopping
        return rule.min_delta if rule is not None else 0.0

    def _time_validation(self, seconds: float, known: float | None = None) -> None:
        """Remember what a validation takes; reserve the final evaluation and the plots."""
        self._validation_seconds = agree_on_maximum([known if known is not None else seconds])[0]
        plots = 5.0 if self.config.run.plots else 0.5
        metrics = getattr(self.validate, "metric_seconds", 0.0)  # those of all sets are made once more at the end
        self.budget.reserve = self._validation_seconds * (1.0 + 1.1 * self.final_cost) + 1.1 * self.final_cost * metrics + plots

    def _row(self, outcome: Evaluation, trained: ErrorSums) -> dict[str, float]:
        row: dict[str, float] = {
            "epoch": self.progress.epoch, "step": self.progress.step, "seconds": self.progress.elapsed,
            "lr": self.progress.lr, "valid_loss": outcome.loss(self.loss_weights(1.0)),
        }  # fmt: skip
        for part, errors in (("train", trained), ("valid", outcome.errors)):
            report = errors.report()
            for quantity in LOGGED:
                for kind in ("mae", "rmse", "mean"):
                    if kind in report.get(quantity, {}):
                        row[f"{part}_{quantity}_{kind}"] = report[quantity][kind]
        row["validation_seconds"] = self._validation_seconds
        return row

    # --- checkpoints -------------------------------------------------------------------------------------------

    def _maybe_save(self, trainer: Trainer, module: PotentialModule, last: bool, force: bool) -> None:
        since = time.monotonic() - self._last_save
        due = force or since >= SAVE_EVERY or (last and since >= self._save_seconds / SAVE_SHARE)
        if not agree_on_maximum([float(due)])[0]:
            return
        everyone = torch.zeros(trainer.world_size, *module.errors.sums.shape, dtype=torch.float64)
        everyone[trainer.global_rank] = module.errors.sums
        everyone = sum_over_processes(everyone)
        assert self.average is not None
        if trainer.is_global_zero:
            start = time.monotonic()
            extra = {**self.extra, "epoch_errors": everyone}
            if self.gating is not None:
                extra["gate"] = self.gating.state_dict(_potential(module))
            optimizer = _plain(trainer.optimizers[0])
            save_checkpoint(self.checkpoint, module.model, optimizer, self.average, self.best, self.progress, extra)
            self._save_seconds = time.monotonic() - start
        self._last_save = time.monotonic()


def _module(pl_module: LightningModule) -> PotentialModule:
    assert isinstance(pl_module, PotentialModule)
    return pl_module


def _potential(module: PotentialModule) -> Potential:
    assert isinstance(module.model, Potential)
    return module.model


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser itself, where Lightning has wrapped it."""
    return getattr(optimizer, "optimizer", optimizer)
