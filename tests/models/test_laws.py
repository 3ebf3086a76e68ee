"""Every model obeys the laws of the test kit; deliberately broken ones do not."""

import numpy as np
import pytest
import torch
from ase.cluster import Octahedron
from densities import acetaldehyde, crystal

from mlip.models import build
from mlip.testing import LAWS, LawError, check_all

STRUCTURES = {"molecule": acetaldehyde, "crystal": crystal}


def model_for(atoms, dtype, seed=0, scramble=True, **config):
    config = {"channels": 8, "cutoff": 4.0, "readout_hidden": 8, **config}
    elements = sorted({int(z) for z in atoms.numbers})
    e0, bonding = {z: -10.0 * z for z in elements}, {z: -0.2 * z for z in elements}
    model = build(config, elements, e0=e0, bonding_energy=bonding, avg_num_neighbors=10.0, dtype=dtype, seed=seed)
    if scramble:  # a large alpha, so that an error of the grid shows
        with torch.no_grad():
            for layer in model.backbone.layers:
                if layer.grid_mix is not None:
                    layer.alpha.fill_(0.7)
    return model


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("l_max", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_laws_by_l_max(structure, l_max, dtype):
    atoms = STRUCTURES[structure]()
    errors = check_all(model_for(atoms, dtype, l_max=l_max), atoms)
    assert set(errors) == set(LAWS)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("kind", ["bspline", "bessel", "mlp"])
@pytest.mark.parametrize(("dtype", "zbl"), [("float32", False), ("float64", False), ("float64", True)])
def test_laws_by_radial_kind(structure, kind, dtype, zbl):
    atoms = STRUCTURES[structure]()
    assert check_all(model_for(atoms, dtype, radial={"kind": kind}, zbl=zbl), atoms)


def test_laws_without_grid():
    atoms = acetaldehyde()
    assert check_all(model_for(atoms, "float64", grid={"enabled": False}), atoms)


def test_laws_of_silu_grid_hold_but_rotation_only_to_aliasing():
    """All laws except rotation and reflection are exact for the silu grid too."""
    atoms = acetaldehyde()
    model = model_for(atoms, "float64", grid={"activation": "silu", "oversampling": 2.0})
    exact = [name for name in LAWS if name not in ("rotation", "reflection")]
    assert check_all(model, atoms, laws=exact)
    coarse = model_for(atoms, "float64", grid={"activation": "silu"})
    rng = np.random.default_rng
    assert LAWS["rotation"](model, atoms, rng(0)) < 0.5 * LAWS["rotation"](coarse, atoms, rng(0))


def test_large_cluster_is_evaluated_in_one_batch():
    atoms = Octahedron("Cu", 4)
    atoms.rattle(0.1, seed=1)
    assert check_all(model_for(atoms, "float64"), atoms, laws=["rotation", "finite_difference_forces"])


class FrameDependent(torch.nn.Module):
    """A broken layer: adds an energy that depends on the direction of the laboratory's x axis."""

    def __init__(self, model):
        super().__init__()
        self.model, self.cutoff, self.dtype, self.e0 = model, model.cutoff, model.dtype, model.e0

    def forward(self, graph, **options):
        out = dict(self.model(graph, **options))
        x = graph["positions"][:, 0]
        out["energy"] = out["energy"] + 1e-3 * x.abs().sum()
        return out


class BatchDependent(FrameDependent):
    """A broken layer: normalises by a mean over the whole batch."""

    def forward(self, graph, **options):
        out = dict(self.model(graph, **options))
        out["forces"] = out["forces"] / (1 + out["forces"].abs().mean())
        return out


class NotExtensive(FrameDependent):
    """A broken layer: the energy is a mean over atoms."""

    def forward(self, graph, **options):
        out = dict(self.model(graph, **options))
        out["energy"] = out["energy"] / len(out["energies"])
        return out


class NoReference(FrameDependent):
    """A broken layer: lone atoms do not have the reference energy."""

    def forward(self, graph, **options):
        out = dict(self.model(graph, **options))
        out["energy"] = out["energy"] - 1.0
        return out


class NotSmooth(FrameDependent):
    """A broken layer: a pair energy cut off without an envelope."""

    def forward(self, graph, **options):
        out = dict(self.model(graph, **options))
        out["energy"] = out["energy"] + 1e-2 * graph["edge_index"].shape[1]
        return out


@pytest.mark.parametrize(
    ("broken", "law"),
    [
        (FrameDependent, "rotation"),
        (FrameDependent, "translation"),
        (FrameDependent, "finite_difference_forces"),
        (BatchDependent, "batch_equals_single"),
        (NotExtensive, "size_extensivity"),
        (NotSmooth, "smooth_at_cutoff"),
        (NoReference, "isolated_atom"),
    ],
)
def test_kit_catches_broken_models(broken, law):
    atoms = acetaldehyde()
    model = model_for(atoms, "float64")
    check_all(model, atoms, laws=[law])
    with pytest.raises(LawError, match=law):
        check_all(broken(model), atoms, laws=[law])


def test_kit_catches_a_broken_layer_inside_the_network():
    """Components swapped inside the norm: still a smooth network, no longer equivariant."""
    atoms = acetaldehyde()
    model = model_for(atoms, "float64")
    norm = model.backbone.layers[0].norm
    original = norm.forward
    norm.forward = lambda x: original(x)[:, [0, 2, 1, 3, 4, 5, 6, 7, 8]]
    with pytest.raises(LawError, match="rotation"):
        check_all(model, atoms)
