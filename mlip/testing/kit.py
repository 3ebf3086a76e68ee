"""Laws of a potential, each a function ``law(model, atoms, rng)`` that returns its largest error in the tolerance table's units."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from ase import Atoms
from scipy.spatial.transform import Rotation

from mlip.data.frame import Frame
from mlip.data.graph import collate, frame_to_graph, graph_dict

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def _graph(atoms: Atoms, cutoff: float) -> Any:
    charge = int(atoms.info.get("charge", 0))
    frame = Frame(atoms.numbers, atoms.positions, np.asarray(atoms.cell), np.asarray(atoms.pbc), charge=charge)
    return frame_to_graph(frame, cutoff)


def graph_of(atoms: Atoms | Iterable[Atoms], cutoff: float) -> dict[str, Any]:
    """The model's input for one structure or a batch of them."""
    many = [atoms] if isinstance(atoms, Atoms) else list(atoms)
    return graph_dict(collate([_graph(a, cutoff) for a in many]))


def evaluate(model: Any, atoms: Atoms, stress: bool = False) -> dict[str, np.ndarray]:
    """Energy [1], energies, forces (and stress [1, 6]) as numpy arrays."""
    out = model(graph_of(atoms, model.cutoff), compute_forces=True, compute_stress=stress)
    return {key: value.detach().cpu().numpy() for key, value in out.items()}


def _difference(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """Largest error of energy per atom and of forces; the forces scaled so that their largest is at most 1."""
    scale = max(1.0, float(np.abs(a["forces"]).max()))
    energy = float(np.abs(a["energy"].sum() - b["energy"].sum())) / len(a["energies"])
    return max(energy / scale, float(np.abs(a["forces"] - b["forces"]).max()) / scale)


def _transformed(model: Any, atoms: Atoms, matrix: np.ndarray) -> float:
    moved = atoms.copy()
    moved.set_cell(np.asarray(atoms.cell) @ matrix.T, scale_atoms=False)
    moved.positions = atoms.positions @ matrix.T
    before, after = evaluate(model, atoms), evaluate(model, moved)
    return _difference(after, {**before, "forces": before["forces"] @ matrix.T})


def rotation(model: Any, atoms: Atoms, rng: np.random.Generator) -> float:
    """E(R x) = E(x), F(R x) = R F(x)."""
    return _transformed(model, atoms, Rotation.random(random_state=int(rng.integers(2**31))).as_matrix())


def reflection(model: Any, atoms: Atoms, rng: np.random.Generator) -> float:
    """The same for an improper rotation."""
    return _transformed(model, atoms, -Rotation.random(random_state=int(rng.integers(2**31))).as_matrix())


def translation(model: Any, atoms: Atoms, rng: np.random.Generator) -> float:
    """E(x + t) = E(x)."""
    moved = atoms.copy()
    moved.positions += rng.normal(size=3) * 10
    return _difference(evaluate(model, atoms), evaluate(model, moved))


def permutation(model: Any, atoms: Atoms, rng: np.random.Generator) -> float:
    """Renaming atoms permutes forces."""
    order = rng.permutation(len(atoms))
    before, after = evaluate(model, atoms), evaluate(model, atoms[order])
    return _difference(after, {**before, "forces": before["forces"][order]})


def batch_equals_single(model: Any, atoms: Atoms, rng: np.random.Generator) -> float:
    """A structure's result does not depend on its batch-mates."""
    mate, larger = atoms.copy(), atoms.copy()
    mate.positions += rng.normal(scale=0.05, size=mate.positions.shape)
    larger = larger[: max(1, len(larger) // 2)]
    group = [mate, atoms, larger]
    out = model(graph_of(group, model.cutoff), compute_forces=True)
    start, n = len(mate), len(atoms)
    batched = {
        "energy": out["energy"][1:2].detach().numpy(),
        "energies": out["energies"][start : start + n].detach().numpy(),
        "forces": out["forces"][start : start + n].detach().numpy(),
    }
    return _difference(evaluate(model, atoms), batched)


def image_shift(model: Any, atoms: Atoms, rng: np.random.Generator) -> float:
    """Moving atoms by lattice vectors changes nothing."""
    if not atoms.pbc.any():
        return 0.0
    moved = atoms.copy()
    moved.positions += (rng.integers(-2, 3, size=(len(atoms), 3)) * atoms.pbc) @ np.asarray(atoms.cell)
    return _difference(evaluate(model, atoms), evaluate(model, moved))


def size_extensivity(model: Any, atoms: Atoms, rng: np.random.Generator) -> float:
    """Two copies out of reach have twice the energy; a doubled crystal cell too."""
    one = evaluate(model, atoms)
    if atoms.pbc.any():
        axis = int(np.flatnonzero(atoms.pbc)[0])
        repeats = [1, 1, 1]
        repeats[axis] = 2
        double = atoms.repeat(repeats)
    else:
        far = atoms.copy()
        far.positions += [np.ptp(atoms.positions[:, 0]) + 3 * model.cutoff, 0, 0]
        double = atoms + far
    two = evaluate(model, double)
    n = len(atoms)
    error = max(_difference(one, {**one, "forces": two["forces"][k : k + n]}) for k in (0, n))
    return max(error, abs(float(two["energy"][0]) - 2 * float(one["energy"][0])) / n)


def _relative(analytic: float, numeric: float, scale: float) -> float:
    return abs(analytic - numeric) / max(0.01, scale)


def finite_difference_forces(model: Any, atoms: Atoms, rng: np.random.Generator) -> float:
    """F = -dE/dx by central differences, for a few random directions."""
    step = 1e-4 if model.dtype == torch.float64 else 3e-3
    forces = evaluate(model, atoms)["forces"]
    worst = 0.0
    for _ in range(3):
        direction = rng.normal(size=atoms.positions.shape)
        direction /= np.linalg.norm(direction)
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions += sign * step * direction
            energies.append(float(evaluate(model, moved)["energy"][0]))
        numeric = -(energies[0] - energies[1]) / (2 * step)
        worst = max(worst, _relative(float((forces * direction).sum()), numeric, float(np.abs(forces).max())))
    return worst


def finite_difference_stress(model: Any, atoms: Atoms, rng: np.random.Generator) -> float:
    """sigma = (1/V) dE/d(strain) by central differences, all six components."""
    if not atoms.pbc.all():
        return 0.0
    step = 1e-4 if model.dtype == torch.float64 else 3e-3
    stress = evaluate(model, atoms, stress=True)["stress"][0]
    worst = 0.0
    for k, (a, b) in enumerate(VOIGT):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[a, b] += sign * step / 2
            strain[b, a] += sign * step / 2
            moved = atoms.copy()
            moved.set_cell(np.asarray(atoms.cell) @ strain, scale_atoms=True)
            energies.append(float(evaluate(model, moved)["energy"][0]))
        numeric = (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
        worst = max(worst, _relative(float(stress[k]), numeric, float(np.abs(stress).max())))
    return worst


def smooth_at_cutoff(model: Any, atoms: Atoms, rng: np.random.Generator) -> float:
    """Energy and force of a pair vanish smoothly where one atom leaves the other's neighbourhood."""
    numbers = [int(atoms.numbers[0]), int(atoms.numbers[-1])]
    apart = evaluate(model, Atoms(numbers, positions=[[0, 0, 0], [model.cutoff + 1, 0, 0]]))
    delta = 1e-5 * model.cutoff
    worst = 0.0
    for r in (model.cutoff - delta, model.cutoff - 1e-7, model.cutoff, model.cutoff + 1e-7):
        near = evaluate(model, Atoms(numbers, positions=[[0, 0, 0], [r, 0, 0]]))
        worst = max(worst, _difference(near, apart))
    return worst


def isolated_atom(model: Any, atoms: Atoms, rng: np.random.Generator) -> float:
    """One atom alone has its reference energy E0, no force, and the same energy wherever it is."""
    lone = Atoms([int(atoms.numbers[0])], positions=[[1.0, 2.0, 3.0]])
    moved = Atoms([int(atoms.numbers[0])], positions=[[-7.0, 0.1, 0.0]])
    a, b = evaluate(model, lone), evaluate(model, moved)
    if not np.isfinite(a["energy"]).all():
        return float("inf")
    reference = abs(float(a["energy"][0]) - model.e0[int(atoms.numbers[0])])
    return max(_difference(a, b), float(np.abs(a["forces"]).max()), reference)


Law = Callable[[Any, Atoms, np.random.Generator], float]
LAWS: dict[str, Law] = {
    law.__name__: law
    for law in (
        rotation,
        reflection,
        translation,
        permutation,
        batch_equals_single,
        image_shift,
        size_extensivity,
        finite_difference_forces,
        finite_difference_stress,
        smooth_at_cutoff,
        isolated_atom,
    )
}
