"""A learned, smooth choice among the pairs of a convolution (the idea of SPHNet's sparse pair gate, arXiv 2502.01171)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

SOFTNESS = 0.25
"""Width of the sigmoid that stands for the step "let through or not" where a derivative of their number is needed."""
SPREAD = 0.3
"""Scale of the differences of x between pairs at the start."""
NORM_EPS = 1e-4
"""Added to an atom's mean square: smooth where all its scalars vanish."""


class GatedPairs(NamedTuple):
    """What a gate says of the padded pairs ``[N, D]``: their weights, 0 where padded; and scores x (any value where padded)."""

    weight: Tensor
    score: Tensor


class PairGate(nn.Module):
    """w_ij = S(x_ij) in [0, 1] for each directed pair, of sender j and receiver i:

        x_ij = 1 + b + spread o . silu(U s_i + V s_j + R B(r_ij) + c) / sqrt(hidden)
        S(x) = 10 x^3 - 15 x^4 + 6 x^5 within [0, 1], 0 below, 1 above: exactly, with two continuous derivatives

    s are scalars of the two atoms, each atom's divided by their root mean square, B the radial basis; nothing else enters, neither
    the pair's direction nor another pair of the batch. SPHNet lets the best pairs of a batch through, a hard quantile: the outcome
    then jumps as atoms move, and depends on batch-mates. Here a message times w stays as smooth as it was, and a pair with w = 0
    can be left out.

    A new gate is about open. How many pairs it lets through is up to training: :func:`soft_count` can be derived.
    """

    def __init__(self, channels: int, num_basis: int, hidden: int) -> None:
        super().__init__()
        self.receiver = nn.Linear(channels, hidden)
        self.sender = nn.Linear(channels, hidden, bias=False)
        self.radial = nn.Linear(num_basis, hidden, bias=False)
        self.weight = nn.Parameter(torch.randn(hidden))
        self.bias = nn.Parameter(torch.zeros(()))
        self.factor = SPREAD * hidden**-0.5

    def forward(self, scalars: Tensor, basis: Tensor, neighbours: Tensor, degree: Tensor) -> GatedPairs:
        """Weights and scores.

        Args:
            scalars: of every atom ``[N, channels]``.
            basis: ``[N, D, num_basis]``. neighbours: senders ``[N, D]``.
            degree: of the D, how many are neighbours ``[N]``; they come first, padding behind them.
        """
        scalars = nn.functional.rms_norm(scalars, scalars.shape[1:], eps=NORM_EPS)
        sent = self.sender(scalars).index_select(0, neighbours.reshape(-1)).view(*neighbours.shape, len(self.weight))
        hidden = nn.functional.silu(self.receiver(scalars).unsqueeze(1) + sent + self.radial(basis))
        score = 1 + self.bias + hidden @ (self.factor * self.weight)
        real = torch.arange(neighbours.shape[1], device=degree.device) < degree.unsqueeze(1)
        return GatedPairs(torch.where(real, smooth_step(score), 0.0), score)


def smooth_step(x: Tensor) -> Tensor:
    """0 for x <= 0, 1 for x >= 1, a polynomial of degree 5 between; value, slope and curvature are continuous."""
    t = x.clamp(0, 1)
    return t**3 * (10 + t * (6 * t - 15))


def soft_count(gated: GatedPairs, degree: Tensor) -> Tensor:
    """About how many pairs of each atom are let through ``[N]``: a sum of sigmoids, so that shut pairs can open again."""
    real = torch.arange(gated.score.shape[1], device=degree.device) < degree.unsqueeze(1)
    return torch.where(real, torch.sigmoid(gated.score / SOFTNESS), 0.0).sum(dim=1)
