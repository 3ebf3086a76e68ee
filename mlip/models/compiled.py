"""A potential's network as native code for any number of atoms and neighbours: traced with its derivative, compiled ahead of time.

Forward and backward become one graph (make_fx), of which torch.export and AOTInductor make a shared library; nothing of the model's
Python runs afterwards. Needs a C++ compiler, and half a minute to two minutes.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mlip.models.inference import FrozenNetwork, PairTables
from mlip.models.potential import Potential

Inputs = tuple[Tensor, ...]
"""Of FrozenNetwork.forward: species, numbers, table, and the tensors of PairTables."""


def compiler() -> str | None:
    """The C++ compiler that torch would call, ``None`` if there is none."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return next((found for name in names if (found := shutil.which(name))), None)


def sample_inputs(model: Potential, atoms: int = 5, neighbours: int = 7, seed: int = 0) -> Inputs:
    """Random inputs of :meth:`FrozenNetwork.forward`: every second atom lacks its last neighbour."""
    generator = torch.Generator().manual_seed(seed)
    receivers = torch.arange(atoms).repeat_interleave(neighbours)
    there = torch.ones(atoms, neighbours, dtype=torch.bool)
    there[::2, -1] = False
    senders = torch.randint(atoms, (atoms * neighbours,), generator=generator)
    slots, pairs = PairTables.of_edges(torch.stack([senders, receivers])[:, there.flatten()], atoms)
    vectors = torch.randn(len(slots), 3, generator=generator, dtype=torch.float64)
    length = model.cutoff * (0.3 + 0.65 * torch.rand(len(slots), 1, generator=generator, dtype=torch.float64))
    table = torch.zeros(*pairs.neighbours.shape, 3, dtype=torch.float64)
    table[..., 2] = model.cutoff
    table.view(-1, 3)[slots] = vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True) * length
    species = torch.arange(atoms) % len(model.elements)
    return species, torch.tensor(model.elements)[species], table, *pairs


def enlarged(inputs: Inputs, cutoff: float, atoms: int, width: int, outgoing: int) -> Inputs:
    """The same with copies of the last atom, without neighbours, and with empty columns; energies and derivatives stay."""
    species, numbers, table, neighbours, degree, places, counts = inputs
    old, old_width = neighbours.shape
    source = torch.arange(atoms, device=species.device).clamp(max=old - 1)
    vectors = table.new_zeros(atoms, width, 3)
    vectors[..., 2] = cutoff
    vectors[:old, :old_width] = table
    senders, back = neighbours.new_zeros(atoms, width), places.new_zeros(atoms, outgoing)
    senders[:old, :old_width] = neighbours
    back[:old, : places.shape[1]] = places // old_width * width + places % old_width
    more = degree.new_zeros(atoms - old)
    return species[source], numbers[source], vectors, senders, torch.cat([degree, more]), back, torch.cat([counts, more])


def compile_network(model: Potential, path: Path) -> None:
    """Write the compiled network of a model on the CPU to ``path``, which ends in .pt2.

    Raises:
        RuntimeError: the compiler's or torch's own error (also other exceptions of torch's compiler).
    """
    # Loaded here: torch's compiler takes seconds to import.
    from torch._inductor import aoti_compile_and_package
    from torch.export import Dim, export
    from torch.fx.experimental.proxy_tensor import make_fx

    network = FrozenNetwork(model).set_fused(True)
    # The tracer takes equal sizes for the same: these are no others of the graph.
    inputs = enlarged(sample_inputs(model), model.cutoff, 53, 59, 61)
    traced = make_fx(network, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*inputs)
    by_atom = {0: Dim("atoms", min=2)}
    by_pair, outwards = by_atom | {1: Dim("neighbours", min=2)}, by_atom | {1: Dim("outgoing", min=2)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own internals
        program = export(traced, inputs, dynamic_shapes=(by_atom, by_atom, by_pair, by_pair, by_atom, outwards, by_atom))
        aoti_compile_and_package(program, package_path=str(path))


class PaddedNetwork:
    """Compiled code for at least two atoms and two columns of neighbours, made to take any number by adding empty ones.

    Args:
        run: the compiled network. cutoff: Angstrom, the length of padding vectors.
    """

    def __init__(self, run: Callable[..., tuple[Tensor, Tensor]], cutoff: float) -> None:
        self.run, self.cutoff = run, cutoff

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`mlip.models.inference.FrozenNetwork.forward`."""
        (atoms, width), outgoing = inputs[3].shape, inputs[5].shape[1]
        if min(atoms, width, outgoing) >= 2:
            energies, gradient = self.run(*inputs)
            return energies, gradient
        energies, gradient = self.run(*enlarged(inputs, self.cutoff, max(2, atoms), max(2, width), max(2, outgoing)))
        return energies[:atoms], gradient[:atoms, :width]
