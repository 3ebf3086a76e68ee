"""The edge tensor product and its sum over neighbours, written as a few large matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mlip.nn.constants import ConstantsModule
from mlip.nn.coupling import wigner_3j
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

    ``paths`` is explicit: a pruned list gives a smaller layer (weights, operations, checkpoint), see :meth:`restricted`; one call
    can be limited to some of them (see mlip.nn.gate). Shapes: the neighbours of every node are padded to a common number D; a
    padded neighbour has B = 0.
    """

    sum_paths: Tensor
    path_of_row: Tensor

    def __init__(self, paths: Sequence[Path], l_edge: int, l_out: int, num_basis: int, channels: int) -> None:
        super().__init__()
        self.paths = sorted(Path(*p) for p in paths)
        self.l_in = max(p.l1 for p in self.paths)
        self.l_edge = l_edge
        self.l_out = l_out
        self.num_basis = num_basis
        self.channels = channels
        self.weight = nn.Parameter(torch.randn(num_basis, len(self.paths), channels))
        self._register_couplings()

    def _paths_into(self) -> list[int]:
        return [sum(p.l3 == l for p in self.paths) for l in range(self.l_out + 1)]

    def _register_couplings(self) -> None:
        """Buffers: C_p per l1 as ``[m2, m1 * r]`` with r = (p, m3), the path of every r, and the sum over paths into each m3."""
        into = self._paths_into()
        path_of_row: list[int] = []
        out_of_row: list[int] = []
        self.rows: list[tuple[int, int, int]] = []  # l1, first row, last row + 1
        for l1 in range(self.l_in + 1):
            blocks = []
            start = len(path_of_row)
            for index, path in enumerate(self.paths):
                if path.l1 != l1:
                    continue
                coupling = wigner_3j(*path) * ((2 * path.l3 + 1) / into[path.l3]) ** 0.5
                padded = torch.zeros(num_components(self.l_edge), 2 * l1 + 1, 2 * path.l3 + 1, dtype=torch.float64)
                padded[block(path.l2)] = coupling.permute(1, 0, 2)
                blocks.append(padded)
                path_of_row += [index] * (2 * path.l3 + 1)
                out_of_row += list(range(path.l3**2, (path.l3 + 1) ** 2))
            if blocks:
                matrix = torch.cat(blocks, dim=2).flatten(1)
                self.register_constant(f"coupling_{l1}", matrix)
                self.rows.append((l1, start, len(path_of_row)))
        self.paths_of_rows = path_of_row
        gather = torch.zeros(num_components(self.l_out), len(out_of_row), dtype=torch.float64)
        gather[torch.tensor(out_of_row), torch.arange(len(out_of_row))] = 1
        self.register_constant("sum_paths", gather)
        self.register_buffer("path_of_row", torch.tensor(path_of_row), persistent=False)

    def forward(
        self,
        h: Tensor,
        harmonics: Tensor,
        basis: Tensor,
        neighbours: Tensor,
        factor: Tensor | None = None,
        active: Sequence[int] | None = None,
        pair_weight: Tensor | None = None,
    ) -> Tensor:
        """Sum the messages of all neighbours.

        Args:
            h: features ``[N, (l_in+1)^2, channels]``.
            harmonics: ``[N, D, (l_edge+1)^2]``; basis: ``[N, D, num_basis]`` (zero where padded).
            neighbours: sender of each edge ``[N, D]``.
            factor: of each path ``[paths]``; ``None``: 1.
            active: indices of the paths that are evaluated, the others give nothing; ``None``: all. The normalisation stays.
            pair_weight: of each message ``[N, D]``; ``None``: 1.

        Returns:
            ``[N, (l_out+1)^2, channels]``.
        """
        nodes, degree = neighbours.shape
        if degree == 0:
            return h.new_zeros(nodes, num_components(self.l_out), self.channels)
        senders = h.index_select(0, neighbours.reshape(-1)).view(nodes, degree, h.shape[1], self.channels)
        if pair_weight is not None:  # here, where its derivative costs least
            senders = senders * pair_weight[:, :, None, None]
        couplings, path_of_row, sum_paths = self._tables(active)
        weight = self.num_basis**-0.5 * self.weight
        if factor is not None:
            weight = weight * factor.unsqueeze(1)
        weight = weight.index_select(1, path_of_row)
        radial = basis.view(nodes, degree, 1, self.num_basis, 1)
        out = h.new_zeros(())
        start = 0
        for l1, coupling in couplings:
            stop = start + coupling.shape[1] // (2 * l1 + 1)
            operator = (harmonics @ coupling).view(nodes, degree, 2 * l1 + 1, 1, stop - start)
            edge = (radial * operator).view(nodes, degree * (2 * l1 + 1), -1)
            source = senders[:, :, block(l1)].reshape(nodes, degree * (2 * l1 + 1), self.channels)
            summed = torch.bmm(edge.transpose(1, 2), source).view(nodes, self.num_basis, stop - start, self.channels)
            out = out + sum_paths[:, start:stop] @ (summed * weight[:, start:stop]).sum(dim=1)
            start = stop
        return out

    def _tables(self, active: Sequence[int] | None) -> tuple[list[tuple[int, Tensor]], Tensor, Tensor]:
        """``(l1, C)`` for each l1, the path of every row, and the sum over paths; of the active paths alone."""
        couplings = [(l1, getattr(self, f"coupling_{l1}")) for l1, _, _ in self.rows]
        if active is None:
            return couplings, self.path_of_row, self.sum_paths
        chosen, device = set(active), self.path_of_row.device
        kept: list[int] = []
        some = []
        for (l1, coupling), (_, start, stop) in zip(couplings, self.rows, strict=True):
            mine = [row for row in range(start, stop) if self.paths_of_rows[row] in chosen]
            if mine:
                columns = torch.tensor(mine, device=device) - start
                by_row = coupling.view(len(coupling), 2 * l1 + 1, stop - start)
                some.append((l1, by_row.index_select(2, columns).flatten(1)))
                kept += mine
        rows = torch.tensor(kept, device=device)
        return some, self.path_of_row.index_select(0, rows), self.sum_paths.index_select(1, rows)

    def folded(self, kept: Sequence[int], factor: Tensor) -> Tensor:
        """What the weights of the paths ``kept`` are multiplied with in :meth:`restricted`, ``[len(kept)]``.

        Their factors, and the change of the normalisation, which knows how many paths there are.
        """
        before = self._paths_into()
        degrees = [self.paths[index].l3 for index in kept]
        renormalised = [(degrees.count(l) / before[l]) ** 0.5 for l in degrees]
        return factor[list(kept)] * factor.new_tensor(renormalised)

    @torch.no_grad()
    def restricted(self, kept: Sequence[int], factor: Tensor) -> TensorProductConv:
        """A layer of the paths ``kept`` (ascending) alone that gives what ``forward(..., factor, kept)`` gives here."""
        paths = [self.paths[index] for index in kept]
        with torch.random.fork_rng(devices=[]):  # its first weights are not used
            small = TensorProductConv(paths, self.l_edge, self.l_out, self.num_basis, self.channels)
        small.to(device=self.weight.device, dtype=self.weight.dtype)
        small.weight.copy_(self.weight[:, list(kept)] * self.folded(kept, factor).unsqueeze(1))
        return small.train(self.training)
