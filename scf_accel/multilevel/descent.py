"""Second-order descent of the coarse model, for inner problems that DIIS does not solve: soft modes, small gaps.

Orbitals turn by ``C exp(X)``, ``X`` antisymmetric with one parameter for each pair of an orbital and a less occupied one; the
occupations stay what they are. A trust-region Newton step comes from conjugate gradients (Steihaug, SIAM J. Numer. Anal.
20, 626 (1983)), in which the Hessian acts by finite differences of the gradient: each product costs one coarse Fock matrix
and no response kernel is needed. Where a step meets negative curvature it goes to the boundary of the trust region, downhill.
That the end is a minimum is not tested.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from pyscf import scf

FIRST_RADIUS = 0.4  # norm of the first steps, radians
LARGEST_RADIUS = 1.0
PATIENCE = 4  # steps refused in a row
DIFFERENCE = 1e-3  # norm of the finite-difference displacement
NOISE = 1e-10  # Hartree: smaller changes of the energy may be rounding
SMALLEST_CURVATURE = 0.1  # Hartree, of the preconditioner
MAX_PRODUCTS = 25  # Hessian products a step


@dataclass(frozen=True)
class Rotations:
    """The independent orbital rotations of occupations ``mo_occ``: ``masks`` [sets of orbitals, nmo, nmo], PySCF's order."""

    masks: np.ndarray

    @classmethod
    def of(cls, mo_occ: np.ndarray) -> Rotations:
        occupations = np.atleast_2d(mo_occ)
        if np.ndim(mo_occ) == 1:  # closed shells, and open ones with one set of orbitals
            return cls(scf.hf.uniq_var_indices(occupations[0])[None])
        return cls(np.stack([(n == 0)[:, None] & (n > 0) for n in occupations]))

    @property
    def size(self) -> int:
        return int(self.masks.sum())

    def turn(self, mo_coeff: np.ndarray, x: np.ndarray) -> np.ndarray:
        """``C exp(X)``."""
        coefficients = np.asarray(mo_coeff)
        stacked = coefficients.reshape(len(self.masks), *coefficients.shape[-2:])
        out, start = [], 0
        for c, mask in zip(stacked, self.masks, strict=True):
            generator = np.zeros(mask.shape)
            generator[mask] = x[start : start + int(mask.sum())]
            start += int(mask.sum())
            out.append(c @ scipy.linalg.expm(generator - generator.T))
        return np.stack(out).reshape(coefficients.shape)

    def curvature(self, mo_energy: np.ndarray, restricted: bool) -> np.ndarray:
        """The Hessian without the response of the potential: orbital-energy differences, bounded below.

        In PySCF's convention the gradient is 2 F_ai for closed shells and F_ai for one spin.
        """
        energies = np.atleast_2d(mo_energy)
        differences = [(e[:, None] - e)[mask] for e, mask in zip(energies, self.masks, strict=True)]
        return (2.0 if restricted else 1.0) * np.maximum(np.concatenate(differences), SMALLEST_CURVATURE)


def descend(
    evaluate: Callable[[Any], tuple[np.ndarray, np.ndarray]], mo_coeff: Any, mo_occ: Any, restricted: bool, tol: float, budget: int
) -> tuple[Any, float, int]:
    """Minimise from ``mo_coeff``; returns orbitals, the norm of their gradient, and the evaluations spent.

    Args:
        evaluate: orbitals -> gradient ``[pairs]`` in PySCF's convention, and orbital energies.
        restricted: whether the gradient carries the factor 2 of closed shells.
        tol: norm of the gradient to reach.
        budget: evaluations at most.
    """
    rotations = Rotations.of(mo_occ)
    gradient, energies = evaluate(mo_coeff)
    spent, radius, refused = 1, FIRST_RADIUS, 0
    if gradient.size != rotations.size or not gradient.size:  # a class with rotations of its own
        return mo_coeff, float(np.linalg.norm(gradient)), spent
    while np.linalg.norm(gradient) > tol and spent < budget and refused < PATIENCE and np.isfinite(gradient).all():
        size = float(np.linalg.norm(gradient))
        curvature = rotations.curvature(energies, restricted)

        def product(vector: np.ndarray, c: Any = mo_coeff, g: np.ndarray = gradient) -> np.ndarray:
            step = DIFFERENCE / np.linalg.norm(vector)
            return (evaluate(rotations.turn(c, step * vector))[0] - g) / step

        allowed = min(MAX_PRODUCTS, budget - spent)
        step, products = trust_region_step(product, gradient, curvature, radius, min(0.3, size**0.5) * size, allowed)
        turned = rotations.turn(mo_coeff, step)
        new_gradient, new_energies = evaluate(turned)
        spent += products + 1
        # along exp(tX) the slope is gradient . step exactly; the trapezoidal rule gives the change of energy
        change = 0.5 * float((gradient + new_gradient) @ step)
        if change < NOISE:
            mo_coeff, gradient, energies = turned, new_gradient, new_energies
            good = abs(float(new_gradient @ step)) < 0.5 * abs(float(gradient @ step)) or np.linalg.norm(gradient) < 0.5 * size
            radius, refused = min(2.0 * radius, LARGEST_RADIUS) if good else radius, 0
        else:
            radius, refused = 0.2 * min(radius, float(np.linalg.norm(step))), refused + 1
    return mo_coeff, float(np.linalg.norm(gradient)), spent


def trust_region_step(
    product: Callable[[np.ndarray], np.ndarray],
    gradient: np.ndarray,
    curvature: np.ndarray,
    radius: float,
    tol: float,
    products: int,
) -> tuple[np.ndarray, int]:
    """Steihaug's preconditioned conjugate gradients on ``gradient . x + x . H x / 2`` within ``|x| <= radius``."""
    x, residual = np.zeros_like(gradient), gradient.copy()
    z = residual / curvature
    direction, rho = -z, float(residual @ z)
    for count in range(1, products + 1):
        image = product(direction)
        bend = float(direction @ image)
        if bend <= 0:
            return x + to_boundary(x, direction, radius) * direction, count
        length = rho / bend
        if np.linalg.norm(x + length * direction) >= radius:
            return x + to_boundary(x, direction, radius) * direction, count
        x = x + length * direction
        residual = residual + length * image
        if np.linalg.norm(residual) < tol:
            return x, count
        z = residual / curvature
        rho, old = float(residual @ z), rho
        direction = -z + (rho / old) * direction
    return x, products


def to_boundary(x: np.ndarray, direction: np.ndarray, radius: float) -> float:
    """The ``t > 0`` with ``|x + t direction| = radius``."""
    a, b, c = float(direction @ direction), 2.0 * float(x @ direction), float(x @ x) - radius**2
    return (-b + np.sqrt(max(0.0, b * b - 4 * a * c))) / (2 * a)
