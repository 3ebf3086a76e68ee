"""Laws of a predicted density, each a function ``law(model, atoms, rng)`` that returns its largest error.

Errors of coefficients are relative to the largest coefficient, where that is above 1. Coefficients are in data order
(see :mod:`mlip.data.density`); how they rotate is worked out here from Legendre functions, not from the package's own tables.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from ase import Atoms
from scipy.spatial.transform import Rotation
from scipy.special import lpmv

from mlip.data.density import DensityBasis
from mlip.testing.kit import Law, graph_of


def evaluate_density(model: Any, atoms: Atoms | Iterable[Atoms], project: bool | None = None) -> list[np.ndarray]:
    """Coefficients of each structure, ``[K]`` float64, all from one batch; its charge is ``atoms.info["charge"]``."""
    out = model(graph_of(atoms, model.cutoff), compute_forces=False, compute_density=True, project_density=project)
    coefficients = out["density_coefficients"].detach().cpu().numpy().astype(np.float64)
    return np.split(coefficients, out["density_ptr"].tolist()[1:-1])


def real_harmonics(l: int, points: np.ndarray) -> np.ndarray:
    """``[n, 2l+1]`` orthonormal real harmonics of unit vectors in data order: x, y, z for l = 1, else m = -l .. l."""
    cosine, azimuth = points[:, 2], np.arctan2(points[:, 1], points[:, 0])
    columns = {}
    for m in range(l + 1):
        norm = math.sqrt((2 * l + 1) / (4 * math.pi) * math.factorial(l - m) / math.factorial(l + m) * (2 if m else 1))
        polar = (-1) ** m * norm * lpmv(m, l, cosine)  # without the Condon-Shortley phase
        columns[-m], columns[m] = polar * np.sin(m * azimuth), polar * np.cos(m * azimuth)
    return np.stack([columns[m] for m in ((1, -1, 0) if l == 1 else range(-l, l + 1))], axis=1)


def rotate_coefficients(basis: DensityBasis, numbers: np.ndarray, coefficients: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The coefficients ``[K]`` of rho(M^-1 r) for an orthogonal matrix M ``[3, 3]``, proper or not."""
    points = np.random.default_rng(0).normal(size=(200, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    rotations = [
        np.linalg.lstsq(real_harmonics(l, points), real_harmonics(l, points @ matrix), rcond=None)[0]
        for l in range(basis.l_max + 1)
    ]
    degrees = np.concatenate([basis.degrees(int(z)) for z in numbers])
    shells = np.split(coefficients, np.cumsum(2 * degrees + 1)[:-1])
    return np.concatenate([rotations[l] @ shell for l, shell in zip(degrees, shells, strict=True)])


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference, relative to the largest entry of ``a`` where that is above 1."""
    return float(np.abs(a - b).max(initial=0.0)) / max(1.0, float(np.abs(a).max(initial=0.0)))


def _split_atoms(model: Any, atoms: Atoms, coefficients: np.ndarray) -> list[np.ndarray]:
    return np.split(coefficients, model.density_basis.offsets(atoms.numbers)[1:-1])


def _transformed(model: Any, atoms: Atoms, matrix: np.ndarray) -> float:
    moved = atoms.copy()
    moved.set_cell(np.asarray(atoms.cell) @ matrix.T, scale_atoms=False)
    moved.positions = atoms.positions @ matrix.T
    (before,), (after,) = evaluate_density(model, atoms), evaluate_density(model, moved)
    return _difference(rotate_coefficients(model.density_basis, atoms.numbers, before, matrix), after)


def density_rotation(model: Any, atoms: Atoms, rng: np.random.Generator) -> float:
    """c(R x) = D(R) c(x) with Wigner's D for every shell."""
    return _transformed(model, atoms, Rotation.random(random_state=int(rng.integers(2**31))).as_matrix())


def density_reflection(model: Any, atoms: Atoms, rng: np.random.Generator) -> float:
    """The same for an improper rotation: a shell of degree l has parity (-1)^l."""
    return _transformed(model, atoms, -Rotation.random(random_state=int(rng.integers(2**31))).as_matrix())


def density_translation(model: Any, atoms: Atoms, rng: np.random.Generator) -> float:
    """c(x + t) = c(x)."""
    moved = atoms.copy()
    moved.positions += rng.normal(size=3) * 10
    return _difference(evaluate_density(model, atoms)[0], evaluate_density(model, moved)[0])


def density_permutation(model: Any, atoms: Atoms, rng: np.random.Generator) -> float:
    """Renaming atoms moves their coefficients along."""
    order = rng.permutation(len(atoms))
    before = _split_atoms(model, atoms, evaluate_density(model, atoms)[0])
    return _difference(np.concatenate([before[i] for i in order]), evaluate_density(model, atoms[order])[0])


def density_batch_equals_single(model: Any, atoms: Atoms, rng: np.random.Generator) -> float:
    """A structure's density does not depend on its batch-mates, nor do their charges touch it."""
    mate, part = atoms.copy(), atoms[: max(1, len(atoms) // 2)]
    mate.positions += rng.normal(scale=0.05, size=mate.positions.shape)
    mate.info["charge"] = 1
    group = [mate, atoms, part]
    together = evaluate_density(model, group)
    return max(_difference(evaluate_density(model, one)[0], batched) for one, batched in zip(group, together, strict=True))


def density_image_shift(model: Any, atoms: Atoms, rng: np.random.Generator) -> float:
    """Moving atoms by lattice vectors changes nothing."""
    if not atoms.pbc.any():
        return 0.0
    moved = atoms.copy()
    moved.positions += (rng.integers(-2, 3, size=(len(atoms), 3)) * atoms.pbc) @ np.asarray(atoms.cell)
    return _difference(evaluate_density(model, atoms)[0], evaluate_density(model, moved)[0])


def density_size_extensivity(model: Any, atoms: Atoms, rng: np.random.Generator) -> float:
    """Two structures out of reach of each other have their own densities, side by side, before the count is corrected."""
    far = atoms.copy()
    far.set_pbc(False)
    one, other = far.copy(), far[: max(1, len(far) // 2)]
    other.positions += [np.ptp(far.positions[:, 0]) + 3 * model.cutoff, 0, 0]
    apart = np.concatenate([evaluate_density(model, part, project=False)[0] for part in (one, other)])
    return _difference(apart, evaluate_density(model, one + other, project=False)[0])


def density_locality(model: Any, atoms: Atoms, rng: np.random.Generator) -> float:
    """In a chain, an atom further than one hop a layer (the head's own is one more) has no influence, before the count."""
    links = model.config.num_layers + 2
    numbers = [int(z) for z in rng.choice(atoms.numbers, size=links + 1)]
    chain = Atoms(numbers, positions=[[0.9 * model.cutoff * k, 0, 0] for k in range(links + 1)])
    moved = chain.copy()
    moved.positions[-1] += 0.05 * model.cutoff * np.array([0.0, 1.0, 1.0])
    before, after = (_split_atoms(model, chain, evaluate_density(model, c, project=False)[0])[0] for c in (chain, moved))
    return _difference(before, after)


def density_electron_count(model: Any, atoms: Atoms, rng: np.random.Generator) -> float:
    """Every graph's coefficients integrate to its electrons, relative to their number; 0 for a model that does not project."""
    if model.config.density.projection == "none":
        return 0.0
    cation, anion = atoms.copy(), atoms[: max(1, len(atoms) // 2)]
    cation.info["charge"], anion.info["charge"] = 1, -1
    basis, reference, worst = model.density_basis, model.density_reference, 0.0
    group = [atoms, cation, anion]
    for one, coefficients in zip(group, evaluate_density(model, group), strict=True):
        electrons = sum(reference.electrons_of(int(z)) for z in one.numbers) - one.info.get("charge", 0)
        count = float(np.concatenate([basis.charges(int(z)) for z in one.numbers]) @ coefficients)
        worst = max(worst, abs(count / electrons - 1))
    return worst


def density_smooth_at_cutoff(model: Any, atoms: Atoms, rng: np.random.Generator) -> float:
    """The density of a pair becomes that of two atoms without a jump where one leaves the other's neighbourhood."""
    numbers = [int(atoms.numbers[0]), int(atoms.numbers[-1])]
    (apart,) = evaluate_density(model, Atoms(numbers, positions=[[0, 0, 0], [model.cutoff + 1, 0, 0]]))
    worst = 0.0
    for r in (model.cutoff * (1 - 1e-5), model.cutoff - 1e-7, model.cutoff, model.cutoff + 1e-7):
        worst = max(worst, _difference(apart, evaluate_density(model, Atoms(numbers, positions=[[0, 0, 0], [r, 0, 0]]))[0]))
    return worst


def density_isolated_atom(model: Any, atoms: Atoms, rng: np.random.Generator) -> float:
    """One atom alone is spherical, and the same wherever it is."""
    z = int(atoms.numbers[-1])
    (lone,), (moved,) = (evaluate_density(model, Atoms([z], positions=[p])) for p in ([1.0, 2.0, 3.0], [-7.0, 0.1, 0.0]))
    aspherical = np.repeat(model.density_basis.degrees(z), [shell.size for shell in model.density_basis.of(z)]) > 0
    return max(_difference(lone, moved), float(np.abs(lone[aspherical]).max(initial=0.0)))


def density_precision(model: Any, atoms: Atoms, rng: np.random.Generator) -> float:
    """The same model in float32 and in float64 predicts the same, up to rounding."""
    single, double = (evaluate_density(copy.deepcopy(model).to(kind), atoms)[0] for kind in (torch.float32, torch.float64))
    return _difference(double, single)


DENSITY_LAWS: dict[str, Law] = {
    law.__name__: law
    for law in (
        density_rotation,
        density_reflection,
        density_translation,
        density_permutation,
        density_batch_equals_single,
        density_image_shift,
        density_size_extensivity,
        density_locality,
        density_electron_count,
        density_smooth_at_cutoff,
        density_isolated_atom,
        density_precision,
    )
}
