"""Every predicted density obeys the laws of the test kit; deliberately broken models do not."""

import numpy as np
import pytest
import torch
from densities import acetaldehyde, crystal, density_model, toy_reference

from mlip.models import build
from mlip.testing import DENSITY_LAWS, LAWS, LawError, check_all, evaluate_density, laws_of, rotate_coefficients
from mlip.testing.density import real_harmonics

STRUCTURES = {"molecule": acetaldehyde, "crystal": crystal}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("l_max", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_density_laws_by_l_max(structure, l_max, dtype):
    atoms = STRUCTURES[structure]()
    errors = check_all(density_model(atoms, dtype, l_max=l_max), atoms)
    assert set(errors) == set(DENSITY_LAWS)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "density",
    [{"nonlinearity": "none"}, {"projection": "coulomb"}, {"projection": "none"}, {"l_max": 2, "channels": 5}],
    ids=lambda d: "-".join(f"{k}-{v}" for k, v in d.items()),
)
def test_density_laws_by_options(density, dtype):
    atoms = acetaldehyde()
    assert check_all(density_model(atoms, dtype, density=density), atoms)


def test_a_model_with_both_heads_obeys_all_laws():
    atoms = acetaldehyde()
    model = density_model(atoms, energy=True)
    assert set(check_all(model, atoms)) == {*LAWS, *DENSITY_LAWS}


def test_laws_of_silu_hold_but_rotation_only_to_aliasing():
    atoms = acetaldehyde()
    models = [
        density_model(atoms, density={"nonlinearity": "silu"}, grid={"oversampling": oversampling}) for oversampling in (1.0, 2.0)
    ]
    exact = [name for name in DENSITY_LAWS if name not in ("density_rotation", "density_reflection")]
    assert check_all(models[0], atoms, laws=exact)
    coarse, fine = (DENSITY_LAWS["density_rotation"](model, atoms, np.random.default_rng(0)) for model in models)
    assert fine < 0.5 * coarse


def test_only_the_laws_of_the_heads_apply():
    atoms = acetaldehyde()
    assert laws_of(build({"channels": 4}, [1, 6, 8])) == list(LAWS)
    assert laws_of(density_model(atoms)) == list(DENSITY_LAWS)


@pytest.mark.parametrize("improper", [False, True])
def test_rotated_coefficients_are_the_rotated_density(improper):
    """The density, summed from its formula, at rotated points: the kit's rotations stand on their own feet."""
    atoms, rng = acetaldehyde(), np.random.default_rng(0)
    basis = toy_reference([1, 6, 8]).basis
    coefficients = rng.normal(size=basis.offsets(atoms.numbers)[-1])
    generator = rng.normal(size=(3, 3))
    matrix = np.linalg.qr(generator)[0]
    matrix *= np.sign(np.linalg.det(matrix)) * (-1 if improper else 1)

    def density(positions, values, points):
        total, start = np.zeros(len(points)), 0
        for z, position in zip(atoms.numbers, positions, strict=True):
            offset = points - position
            r = np.linalg.norm(offset, axis=1)
            for shell in basis.of(int(z)):
                radial = sum(d * np.exp(-a * r**2) for a, d in zip(shell.exponents, shell.radial, strict=True)) * r**shell.l
                total += radial * (real_harmonics(shell.l, offset / r[:, None]) @ values[start : start + shell.size])
                start += shell.size
        return total

    points = rng.normal(scale=2.0, size=(50, 3))
    rotated = rotate_coefficients(basis, atoms.numbers, coefficients, matrix)
    before = density(atoms.positions, coefficients, points)
    np.testing.assert_allclose(density(atoms.positions @ matrix.T, rotated, points @ matrix.T), before, atol=1e-12)


class Broken(torch.nn.Module):
    """A model whose coefficients were tampered with."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def __getattr__(self, name):
        return super().__getattr__(name) if name == "model" else getattr(self.model, name)

    def forward(self, graph, **options):
        out = dict(self.model(graph, **options))
        return {**out, "density_coefficients": self.tamper(graph, out["density_coefficients"])}

    def atom_of(self, graph):
        sizes = self.model.density_head.tables.num_functions[self.model.species(graph["atomic_numbers"])]
        return torch.repeat_interleave(torch.arange(len(sizes)), sizes)


class LaboratoryFrame(Broken):
    """Coefficients depend on where the atoms are along x."""

    def tamper(self, graph, c):
        return c + 1e-3 * graph["positions"][self.atom_of(graph), 0].to(c.dtype)


class ForgottenOrder(Broken):
    """Components come as the network holds them, not as the basis stores them."""

    def __init__(self, model):
        super().__init__(model)
        model.density_head.readout.to_data.copy_(torch.eye(len(model.density_head.readout.to_data)))

    def tamper(self, graph, c):
        return c


class WrongParity(Broken):
    """A spherical function times a pseudoscalar: a triple product of positions, the same in every rotated frame."""

    def tamper(self, graph, c):
        x = graph["positions"] - graph["positions"].mean(0)
        return c * (1 + 0.1 * torch.linalg.det(x[:3] + x[-3:]).to(c.dtype))


class Rank(Broken):
    """Coefficients depend on an atom's place in the list."""

    def tamper(self, graph, c):
        return c + 1e-3 * self.atom_of(graph).to(c.dtype)


class BatchNorm(Broken):
    """Coefficients are divided by a mean over the whole batch."""

    def tamper(self, graph, c):
        return c / (1 + c.abs().mean())


class Mean(Broken):
    """A constant spread over the structure's atoms."""

    def tamper(self, graph, c):
        return c + 1.0 / len(graph["atomic_numbers"])


class NotSmooth(Broken):
    """A jump at the cutoff."""

    def tamper(self, graph, c):
        return c + 1e-2 * (graph["edge_index"].shape[1] > 0)


class Aspherical(Broken):
    """Every shell has a constant."""

    def tamper(self, graph, c):
        return c + 1e-2


class LostElectrons(Broken):
    """Tampered with after the projection."""

    def tamper(self, graph, c):
        return 0.999 * c


class Coarse(Broken):
    """Half precision in between, but only in a float32 network."""

    def tamper(self, graph, c):
        return c.half().to(c.dtype) if c.dtype == torch.float32 else c


class Global(Broken):
    """Shares out the missing electrons though told not to: not local, not extensive."""

    def forward(self, graph, **options):
        return self.model(graph, **{**options, "project_density": True})


@pytest.mark.parametrize(
    ("broken", "law"),
    [
        (LaboratoryFrame, "density_rotation"),
        (LaboratoryFrame, "density_translation"),
        (ForgottenOrder, "density_rotation"),
        (WrongParity, "density_reflection"),
        (Rank, "density_permutation"),
        (BatchNorm, "density_batch_equals_single"),
        (Mean, "density_size_extensivity"),
        (Global, "density_size_extensivity"),
        (Global, "density_locality"),
        (NotSmooth, "density_smooth_at_cutoff"),
        (Aspherical, "density_isolated_atom"),
        (LostElectrons, "density_electron_count"),
        (Coarse, "density_precision"),
    ],
)
def test_kit_catches_broken_densities(broken, law):
    atoms = acetaldehyde()
    check_all(density_model(atoms), atoms, laws=[law])
    with pytest.raises(LawError, match=law):
        check_all(broken(density_model(atoms)), atoms, laws=[law])


def test_kit_catches_wrong_image_shift():
    atoms = crystal()
    check_all(density_model(atoms), atoms, laws=["density_image_shift"])
    with pytest.raises(LawError, match="density_image_shift"):
        check_all(LaboratoryFrame(density_model(atoms)), atoms, laws=["density_image_shift"])


def test_the_head_reaches_one_hop_further_than_the_backbone():
    """The law of locality is not empty: the last atom within reach does have an influence."""
    from ase import Atoms

    model = density_model(Atoms("H"))
    hops = model.config.num_layers + 1
    chain = Atoms([1] * (hops + 1), positions=[[3.6 * k, 0, 0] for k in range(hops + 1)])
    moved = chain.copy()
    moved.positions[-1] += 0.2
    before, after = (evaluate_density(model, c, project=False)[0][: model.density_basis.num_functions(1)] for c in (chain, moved))
    assert np.abs(before - after).max() > 1e-8
