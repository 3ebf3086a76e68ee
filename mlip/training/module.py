"""The Lightning module: one optimisation step of a potential."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from mlip.config import RunConfig
from mlip.errors import UserError
from mlip.training.distributed import sum_over_processes
from mlip.training.losses import TERMS, loss_sums, pair_penalty, total_loss
from mlip.training.metrics import ErrorSums
from mlip.training.optimizer import make_optimizer
from mlip.training.predict import density_degrees, pair_gate_of, predict

MAX_BAD_STEPS = 10


class PotentialModule(LightningModule):
    """Loss, gradient check and optimiser of a potential.

    Args:
        model: takes a graph dict, returns ``energy``, ``forces``, ``stress``, ``density_coefficients``: what it has heads for.
        config: the run.
        elements: atomic numbers in the data.

    Attributes:
        loss_weights: present weight of each term; the conductor may change them in the course of a run.
        errors: errors on the training batches since the epoch began.
        step_errors: errors on the last batch (for the progress bar).
        skipped: whether the last step was left out because its gradient was not finite.
        bad_steps: how many in a row.
        pair_gate: settings of the density head's pair gate, if there is one.
        done: share of the run that is done, which the conductor knows.
    """

    def __init__(self, model: nn.Module, config: RunConfig, elements: list[int]):
        super().__init__()
        self.model = model
        self.config = config
        self.elements = elements
        self.loss_weights = {name: float(getattr(config.loss, name).weight) for name in TERMS}
        self.terms = config.active_terms
        self.pair_gate = pair_gate_of(model)
        self.errors = ErrorSums(elements, density_degrees(model), pairs=self.pair_gate is not None)
        self.step_errors = self.errors.empty()
        self.done = 1.0
        self.skipped = False
        self.bad_steps = 0

    def training_step(self, graph: dict[str, Any], batch_idx: int) -> Tensor:
        """Loss of one batch, normalised over all processes; with a pair gate, the penalty that leads to its sparsity."""
        prediction = predict(self.model, graph, stress="stress" in self.terms)
        sums, counts = loss_sums(prediction, graph, self.config.loss, self.terms)
        self.step_errors = self.errors.empty()
        self.step_errors.add(prediction, graph)
        self.errors.sums += self.step_errors.sums
        loss = total_loss(sums, counts, self.loss_weights, self.trainer.world_size, sum_over_processes)
        if self.pair_gate is not None and "density_pairs_soft" in prediction:
            loss = loss + pair_penalty(prediction, self.pair_gate, self.done, self.trainer.world_size, sum_over_processes)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; its rate is set before each step by the conductor."""
        return make_optimizer(self.model, self.config.training)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip by norm; leave out a step whose gradient is not finite, and give up after :data:`MAX_BAD_STEPS`.

        Raises:
            UserError: the gradient was not finite in that many steps in a row.
        """
        limit = self.config.training.gradient_clip or float("inf")
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.skipped = not bool(torch.isfinite(norm))
        self.bad_steps = self.bad_steps + 1 if self.skipped else 0
        if self.skipped:
            optimizer.zero_grad(set_to_none=True)
        if self.bad_steps >= MAX_BAD_STEPS:
            raise UserError(
                f"the loss or its gradient was not finite in {self.bad_steps} steps in a row; lower training.lr, set "
                "training.gradient_clip, or look for broken labels with `mlip data audit` (the last checkpoint is kept)"
            )
