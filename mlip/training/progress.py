"""Live progress of a run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn
from rich.text import Text

from mlip.training.conductor import LOGGED, Conductor
from mlip.training.metrics import ErrorSums
from mlip.training.module import PotentialModule
from mlip.training.results import clock, short

LINE_EVERY = 5.0
"""Seconds between plain lines where there is no terminal."""


class _TimeLeft(ProgressColumn):
    """Elapsed and remaining time of the run, estimated from the share that is done."""

    def render(self, task: Any) -> Text:
        elapsed, left = task.fields.get("elapsed", 0.0), task.fields.get("left")
        return Text(f"{clock(elapsed)} < {'?' if left is None else clock(left)}", style="cyan")


class LiveProgress(Callback):
    """Shows errors of the last steps and of the last validation; on the first process only."""

    def __init__(self, console: Console, conductor: Conductor):
        self.console, self.conductor = console, conductor
        self.bar: Progress | None = None
        self._recent: ErrorSums | None = None
        self._last_line = 0.0
        self._validations = self._skipped = 0
        self._phase = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self.console.is_terminal:
            self.bar = Progress(
                TextColumn("epoch {task.fields[epoch]}"), BarColumn(bar_width=20), TaskProgressColumn(), _TimeLeft(),
                TextColumn("{task.fields[text]}"), console=self.console, transient=False, refresh_per_second=4,
            )  # fmt: skip
            self.bar.add_task("train", total=1.0, epoch=0, text="")
            self.bar.start()
        self._skipped = self.conductor.progress.skipped

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, PotentialModule)
        self._remember(pl_module)
        progress, share = self.conductor.progress, min(1.0, self.conductor.share)
        history = progress.history
        self._warn_of_skipped()
        self._tell_of_gates(pl_module)
        if len(history) > self._validations and progress.epoch > 0:
            self._validations = len(history)
            if self.bar is None and (time.monotonic() - self._last_line >= LINE_EVERY or progress.finished):
                self._last_line = time.monotonic()
                at = f"epoch {progress.epoch}  step {progress.step}  {clock(progress.elapsed)}"
                self.console.print(f"{at}  {self._text()}", highlight=False, soft_wrap=True)
        if self.bar is not None:
            left = progress.elapsed * (1.0 - share) / share if share > 0.002 else None
            self.bar.update(
                self.bar.task_ids[0], completed=share, epoch=progress.epoch + (progress.batch > 0), text=self._text(),
                elapsed=progress.elapsed, left=left,
            )  # fmt: skip

    def _warn_of_skipped(self) -> None:
        """At the end of an epoch, if steps were left out in it."""
        progress = self.conductor.progress
        count = progress.skipped - self._skipped
        if progress.batch == 0 and count > 0:
            self._skipped = progress.skipped
            self.console.print(
                f"warning: {count} steps left out in epoch {progress.epoch}: their gradient was not finite",
                style="yellow", markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip

    def _tell_of_gates(self, module: PotentialModule) -> None:
        """When the path gates begin another phase."""
        gating = self.conductor.gating
        if gating is None or gating.phase == self._phase:
            return
        self._phase = gating.phase
        self.console.print(f"step {self.conductor.progress.step}: {gating.describe(module.model)}", highlight=False, soft_wrap=True)

    def _remember(self, module: PotentialModule) -> None:
        """Errors of roughly the last twenty steps."""
        if self._recent is None:
            self._recent = module.errors.empty()
        self._recent.sums = 0.95 * self._recent.sums + module.step_errors.sums

    def _text(self) -> str:
        train = short(self._recent.report(), "mae") if self._recent is not None else ""
        row = self.conductor.progress.history[-1] if self.conductor.progress.history else {}
        valid = {q: {kind: row[f"valid_{q}_{kind}"] for kind in ("mae", "mean") if f"valid_{q}_{kind}" in row} for q in LOGGED}
        valid = {quantity: kinds for quantity, kinds in valid.items() if kinds}
        return f"train {train}  valid {short(valid, 'mae')}"

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
