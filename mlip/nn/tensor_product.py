"""The edge tensor product and its sum over neighbours, written as a few large matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn

from mlip.nn.constants import ConstantsModule
from mlip.nn.irreps import block, num_components


class Path(NamedTuple):
    """One coupling (l1 of the neighbour's features) x (l2 of the edge's harmonics) -> l3."""

    l1: int
    l2: int
    l3: int


def natural_parity_paths(l_in: int, l_edge: int, l_out: int) -> list[Path]:
    """All paths with l1 + l2 + l3 even that obey the triangle rule: those that keep parity (-1)^l."""
    return [
        Path(a, b, c)
        for a in range(l_in + 1)
        for b in range(l_edge + 1)
        for c in range(abs(a - b), min(a + b, l_out) + 1)
        if (a + b + c) % 2 == 0
    ]


class TensorProductConv(ConstantsModule):
    """A_i = sum_j sum_p w_p(r_ij) [h_j (x) Y(r_ij)]_p: e3nn's 'uvu' tensor product, summed over neighbours.

    w_p,c(r) = sum_k W[k, p, c] B_k(r) is linear in a radial basis shared by all paths, so the sum over neighbours comes first:

        T[i, k, (p, m3), c] = sum_(j, m1) (B_k(r_ij) K_p[m1, m3](ij)) h_j[m1, c]    one batched product per l1 over (j, m1)
        A[i, m3, c]         = sum_(k, p) W[k, p, c] T[i, k, (p, m3), c]             node-wise (W / sqrt(num_basis))

    where K_p = C_p Y is the edge operator. Nothing of the size edges x paths x channels is ever formed, which on a CPU is what
    costs time. Paths are normalised as in e3nn (component, element): sqrt((2 l3 + 1) / number of paths into l3).

    ``paths`` is explicit: a pruned list gives a smaller layer (weights, operations, checkpoint). Shapes: the neighbours of every
    node are padded to a common number D; a padded neighbour has B = 0.
    """

    sum_paths: Tensor
    path_of_row: Tensor

    def __init__(self, paths: Sequence[Path], l_edge: int, l_out: int, num_basis: int, channels: int) -> None:
        super().__init__()
        self.paths = sorted(Path(*p) for p in paths)
        self.l_in = max(p.l1 for p in self.paths)
        self.l_out = l_out
        self.num_basis = num_basis
        self.channels = channels
        self.weight = nn.Parameter(torch.randn(num_basis, len(self.paths), channels))
        self._register_couplings(l_edge)

    def _register_couplings(self, l_edge: int) -> None:
        """Buffers: C_p per l1 as ``[m2, m1 * r]`` with r = (p, m3), the path of every r, and the sum over paths into each m3."""
        into = [sum(p.l3 == l for p in self.paths) for l in range(self.l_out + 1)]
        path_of_row: list[int] = []
        out_of_row: list[int] = []
        self.rows: list[tuple[int, int, int]] = []  # l1, first row, last row + 1
        for l1 in range(self.l_in + 1):
            blocks = []
            start = len(path_of_row)
            for index, path in enumerate(self.paths):
                if path.l1 != l1:
                    continue
                coupling = o3.wigner_3j(*path, dtype=torch.float64) * ((2 * path.l3 + 1) / into[path.l3]) ** 0.5
                padded = torch.zeros(num_components(l_edge), 2 * l1 + 1, 2 * path.l3 + 1, dtype=torch.float64)
                padded[block(path.l2)] = coupling.permute(1, 0, 2)
                blocks.append(padded)
                path_of_row += [index] * (2 * path.l3 + 1)
                out_of_row += list(range(path.l3**2, (path.l3 + 1) ** 2))
            if blocks:
                matrix = torch.cat(blocks, dim=2).flatten(1)
                self.register_constant(f"coupling_{l1}", matrix)
                self.rows.append((l1, start, len(path_of_row)))
        gather = torch.zeros(num_components(self.l_out), len(out_of_row), dtype=torch.float64)
        gather[torch.tensor(out_of_row), torch.arange(len(out_of_row))] = 1
        self.register_constant("sum_paths", gather)
        self.register_buffer("path_of_row", torch.tensor(path_of_row), persistent=False)

    def forward(self, h: Tensor, harmonics: Tensor, basis: Tensor, neighbours: Tensor) -> Tensor:
        """Sum the messages of all neighbours.

        Args:
            h: features ``[N, (l_in+1)^2, channels]``.
            harmonics: ``[N, D, (l_edge+1)^2]``; basis: ``[N, D, num_basis]`` (zero where padded).
            neighbours: sender of each edge ``[N, D]``.

        Returns:
            ``[N, (l_out+1)^2, channels]``.
        """
        nodes, degree = neighbours.shape
        if degree == 0:
            return h.new_zeros(nodes, num_components(self.l_out), self.channels)
        senders = h.index_select(0, neighbours.reshape(-1)).view(nodes, degree, h.shape[1], self.channels)
        weight = (self.num_basis**-0.5 * self.weight).index_select(1, self.path_of_row)
        radial = basis.view(nodes, degree, 1, self.num_basis, 1)
        out = h.new_zeros(())
        for l1, start, stop in self.rows:
            operator = (harmonics @ getattr(self, f"coupling_{l1}")).view(nodes, degree, 2 * l1 + 1, 1, stop - start)
            edge = (radial * operator).view(nodes, degree * (2 * l1 + 1), -1)
            source = senders[:, :, block(l1)].reshape(nodes, degree * (2 * l1 + 1), self.channels)
            summed = torch.bmm(edge.transpose(1, 2), source).view(nodes, self.num_basis, stop - start, self.channels)
            out = out + self.sum_paths[:, start:stop] @ (summed * weight[:, start:stop]).sum(dim=1)
        return out
