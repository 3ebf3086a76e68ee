"""The parts of a warm start as plain functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlip.errors import StructureError
from scf_accel.predictor import PredictionError, as_predictor
from scf_accel.warmstart.check import check_coefficients
from scf_accel.warmstart.plugin import uncovered
from scf_accel.warmstart.report import Refused

if TYPE_CHECKING:
    from pyscf import gto


@dataclass(frozen=True)
class PredictedDensity:
    """An electron density ``rho(r) = sum_P c_P chi_P(r)``, electrons per cubic Bohr.

    Attributes:
        auxmol: the molecule of the functions ``chi_P``; ``auxmol.eval_gto("GTOval_sph", points)`` evaluates them.
        coefficients: ``[naux]`` ``c_P``.
    """

    auxmol: Any
    coefficients: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """``[n]`` density at ``points[n, 3]`` in Bohr."""
        return self.auxmol.eval_gto("GTOval_sph", np.asarray(points, dtype=np.float64)) @ self.coefficients


def predict_density(mol: gto.Mole, model: Any = None, *, device: str = "cpu", dtype: str | None = None) -> PredictedDensity:
    """The predicted electron density of a molecule.

    Args:
        mol: PySCF molecule; its orbital basis does not matter.
        model, device, dtype: as for :func:`scf_accel.warm_start`.

    Raises:
        StructureError: the model does not cover the molecule, or its answer is no density of it.
        CheckpointError: there is no such model.
    """
    predictor = as_predictor(model, device, dtype)
    reason = predictor.refusal(mol)
    if reason is not None:
        raise StructureError(f"no predicted density: {reason}")
    try:
        auxmol = predictor.auxmol(mol)
        return PredictedDensity(auxmol, check_coefficients(auxmol, predictor.coefficients(mol), mol.nelectron)[0])
    except (PredictionError, Refused) as problem:
        raise StructureError(f"no predicted density: {problem}") from problem


def guess_density_matrix(
    mf: Any, model: Any = None, *, surrogate: str = "pbe", device: str = "cpu", dtype: str | None = None
) -> np.ndarray:
    """Density matrix of the predicted density, for ``mf.kernel(dm0)``: ``[nao, nao]``, for two spins ``[2, nao, nao]``.

    It is not compared with the stock guess; :func:`scf_accel.warm_start` does that, and lets DIIS begin with its Fock matrix, for
    which a plain Kohn-Sham object needs ``mf.diis_start_cycle = 0``.

    Args:
        mf: PySCF mean-field object; it stays as it is.
        model, device, dtype: as for :func:`scf_accel.warm_start`.
        surrogate: functional of the guess for those that need more than a density and its gradient.

    Raises:
        StructureError: the model does not cover the object, or its answer is no density of it.
        CheckpointError: there is no such model.
    """
    from scf_accel.guess import density_matrix

    reason = uncovered(mf)
    if reason is not None:
        raise StructureError(f"no predicted density: {reason}")
    density = predict_density(mf.mol, model, device=device, dtype=dtype)
    return density_matrix(mf, density.auxmol, density.coefficients, surrogate=surrogate)
