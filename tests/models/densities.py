"""A toy auxiliary basis, structures and models for tests of the density head."""

import numpy as np
import torch
from ase.build import bulk, molecule

from mlip.data.density import DensityBasis, Shell
from mlip.models import DensityReference, build
from mlip.models.density import READOUT_START


def toy_basis(elements):
    """Uneven shells, not sorted by l, one contracted; the first element goes to l = 4, the others to lower ones."""
    rng = np.random.default_rng(5)
    shells = {}
    for k, z in enumerate(sorted(elements)):
        degrees = [(0, 2, 0, 1, 4, 1, 3), (1, 0, 0), (0, 2, 1, 2)][k % 3]
        single = [Shell(l, (float(a),), (1.0,)) for l, a in zip(degrees, rng.uniform(0.2, 2.0, len(degrees)), strict=True)]
        shells[z] = (Shell(0, (9.0, 2.0), (0.6, 0.5)), *single)
    return DensityBasis("toy", shells)


def toy_reference(elements):
    """Baselines of order 1 and scales of order 0.3, another for every shell; modes that mix the shells of a degree."""
    basis, rng = toy_basis(elements), np.random.default_rng(6)
    degrees = {z: basis.degrees(z) for z in basis.elements}
    baseline = {z: tuple(float(rng.uniform(-1, 2)) if l == 0 else 0.0 for l in ls) for z, ls in degrees.items()}
    scales = {z: tuple(rng.uniform(0.1, 0.5, len(ls)).tolist()) for z, ls in degrees.items()}
    counts = {z: [ls.count(l) for l in range(max(ls) + 1)] for z, ls in degrees.items()}
    modes = {z: tuple(tuple(map(tuple, rng.normal(scale=0.3, size=(n, n)).tolist())) for n in ns) for z, ns in counts.items()}
    return DensityReference(basis, baseline, scales, charges=(-1, 0, 1), modes=modes)


def density_model(atoms, dtype="float64", seed=0, density=None, **config):
    """A small model for the elements of ``atoms``, density alone; readout and alphas large, so that errors show."""
    fields = {"channels": 8, "cutoff": 4.0, "readout_hidden": 8, "energy": False, "density": density or {}, **config}
    elements = sorted({int(z) for z in atoms.numbers})
    model = build(fields, elements, density=toy_reference(elements), avg_num_neighbors=10.0, dtype=dtype, seed=seed)
    with torch.no_grad():
        for weight in model.density_head.readout.weight:
            weight.div_(READOUT_START)
        for layer in [*model.backbone.layers, model.density_head.interaction]:
            if layer.grid_mix is not None:
                layer.alpha.fill_(0.7)
    return model


def acetaldehyde():
    atoms = molecule("CH3CHO")
    atoms.rattle(0.1, seed=3)
    return atoms


def crystal():
    """A skewed, rattled two-element cell that is smaller than the cutoff."""
    atoms = bulk("GaAs", "zincblende", a=4.8)
    atoms.set_cell(np.asarray(atoms.cell) + 0.2 * np.random.default_rng(0).normal(size=(3, 3)), scale_atoms=True)
    atoms.rattle(0.1, seed=1)
    return atoms
