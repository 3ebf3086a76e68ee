"""A tiny smooth pair potential with the interface of a Potential, for tests of what stands around a model."""

from __future__ import annotations

import torch


class ToyPotential(torch.nn.Module):
    """Morse pairs D (exp(-2a(r - r0)) - 2 exp(-a(r - r0))) (1 - (r/rc)^2)^3, stronger for hydrogen."""

    def __init__(self, elements=(29,), cutoff=4.0, depth=0.35, width=1.4, r0=2.6, dtype=torch.float64, charges=None):
        super().__init__()
        self.elements = list(elements)
        self.cutoff = cutoff
        self.metadata = {} if charges is None else {"charges": charges}
        self.shape = torch.nn.Parameter(torch.tensor([depth, width, r0], dtype=dtype))
        self.calls = 0

    @property
    def dtype(self):
        return self.shape.dtype

    def forward(self, graph, compute_forces=True, compute_stress=False):
        self.calls += 1
        positions, cell, batch = graph["positions"], graph["cell"], graph["batch"]
        strain = torch.zeros(graph["num_graphs"], 3, 3, dtype=positions.dtype)
        if compute_forces:
            positions = positions.detach().requires_grad_(True)
        if compute_stress:
            strain.requires_grad_(True)
        flow = torch.eye(3, dtype=positions.dtype) + 0.5 * (strain + strain.transpose(1, 2))
        sender, receiver = graph["edge_index"]
        moved = torch.einsum("ni,nij->nj", positions, flow[batch])
        lattice = cell @ flow
        offsets = torch.einsum("ei,eij->ej", graph["edge_shift"], lattice[batch[receiver]])
        vectors = moved[sender] - moved[receiver] + offsets
        r = vectors.norm(dim=1).to(self.dtype)
        depth, width, r0 = self.shape
        hydrogens = (graph["atomic_numbers"] == 1).to(self.dtype)
        scale = depth * (1 + 0.1 * (hydrogens[sender] + hydrogens[receiver]))
        x = torch.exp(-width * (r - r0))
        pair = scale * (x * x - 2 * x) * (1 - (r / self.cutoff).clamp(max=1) ** 2) ** 3
        energies = torch.zeros(len(positions), dtype=torch.float64).index_add(0, receiver, 0.5 * pair.double())
        energy = torch.zeros(graph["num_graphs"], dtype=torch.float64).index_add(0, batch, energies)
        output = {"energy": energy, "energies": energies}
        inputs = [positions] * compute_forces + [strain] * compute_stress
        if inputs:
            grads = list(torch.autograd.grad(energy.sum(), inputs))
            if compute_forces:
                output["forces"] = -grads.pop(0)
            if compute_stress:
                stress = grads.pop(0) / torch.linalg.det(cell).abs().reshape(-1, 1, 1)
                output["stress"] = stress[:, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        return output
