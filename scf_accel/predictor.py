"""From a PySCF molecule to the coefficients of its electron density: a trained model, or the exact answer.

Whatever predicts densities has the three methods of :class:`Predictor`; :class:`DensityPredictor` runs a trained model and
:class:`ExactPredictor` is the oracle that tests and benchmarks compare with. Coefficients belong to the functions of
``auxmol`` in PySCF's order (see :mod:`mlip.data.density`), the density is in electrons per cubic Bohr.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from mlip.errors import CheckpointError, UserError
from scf_accel.auxbasis import atomic_numbers, make_auxmol
from scf_accel.fitting import DEFAULT_AUXBASIS, fit_density

if TYPE_CHECKING:
    from pyscf import gto

    from mlip.data.density import DensityBasis

DEFAULT_MODEL = "organics-density"
CLOSEST = 0.3  # Angstrom; no bond comes near it


class PredictionError(Exception):
    """A density cannot be predicted, or is not to be trusted; the message says why."""


@runtime_checkable
class Predictor(Protocol):
    """Predicts densities. An attribute ``name`` is shown in reports where there is one."""

    def refusal(self, mol: gto.Mole) -> str | None:
        """Why ``mol`` is outside of what is known; None if it is inside."""

    def auxmol(self, mol: gto.Mole) -> gto.Mole:
        """The atoms of ``mol`` with the functions that the coefficients belong to; ghosts carry none."""

    def coefficients(self, mol: gto.Mole) -> np.ndarray:
        """``[naux]`` float64 coefficients in the order of :meth:`auxmol`; may raise :class:`PredictionError`."""


def real_numbers(mol: gto.Mole) -> np.ndarray:
    """``[n]`` atomic numbers of the atoms that are not ghosts; core potentials do not change them."""
    numbers = atomic_numbers(mol)
    return numbers[numbers > 0]


class DensityPredictor:
    """Densities by a trained model (a checkpoint with a density head), which is loaded at first use.

    Args:
        model: path or name of a checkpoint, a model, or None: the one that the package ships.
        device: ``"cpu"``, ``"cuda"``, ...
        dtype: of the network, ``"float32"`` or ``"float64"``; None: as the checkpoint says.

    Raises:
        CheckpointError: ``model`` names no file or shipped model.
    """

    def __init__(self, model: Any = None, device: str = "cpu", dtype: str | None = None) -> None:
        self.device, self.dtype = str(device), dtype
        self._given = DEFAULT_MODEL if model is None else model
        if isinstance(model, str | Path):
            from mlip.checkpoint import find_model

            self._given = find_model(model)
        self.name = Path(self._given).stem if isinstance(self._given, str | Path) else type(self._given).__name__
        if self.name == "model" and isinstance(self._given, Path):
            self.name = self._given.parent.name  # a run folder's model.safetensors

    def __getstate__(self) -> dict[str, Any]:
        by_name = isinstance(self._given, str | Path)
        return {key: value for key, value in self.__dict__.items() if key != "model" or not by_name}

    @functools.cached_property
    def model(self) -> Any:
        """The model, in evaluation mode."""
        if not isinstance(self._given, str | Path):
            model = self._given.to(self.device)
            return (model if self.dtype is None else model.to(_torch_dtype(self.dtype))).eval()
        from mlip.checkpoint import load_model

        return load_model(self._given, dtype=self.dtype, device=self.device).eval()

    @property
    def basis(self) -> DensityBasis:
        """The auxiliary basis of the model."""
        return self.model.density_basis

    def missing(self) -> str | None:
        """Why there is no model to use; None if there is one."""
        from mlip.checkpoint import shipped_models

        if self._given == DEFAULT_MODEL and DEFAULT_MODEL not in shipped_models():
            return f"this version ships no density model ({DEFAULT_MODEL}); give one with model="
        try:
            basis = getattr(self.model, "density_basis", None)
        except UserError as error:
            return str(error)
        return f"the model {self.name} has no density head" if basis is None else None

    def refusal(self, mol: gto.Mole) -> str | None:
        """Why the model does not cover ``mol``: no model, an element or a total charge that it was not trained on."""
        reason = self.missing()
        if reason is not None:
            return reason
        from pyscf.data.elements import ELEMENTS

        numbers = real_numbers(mol)
        if not len(numbers):
            return "there are no atoms"
        unknown = sorted({int(z) for z in numbers} - (set(self.model.elements) & set(self.basis.elements)))
        if unknown:
            found = ", ".join(ELEMENTS[z] for z in unknown)
            return f"the model {self.name} was not trained on {found}"
        cores = [atom for atom in range(mol.natm) if mol.atom_charge(atom) not in (0, self._electrons(atomic_numbers(mol)[atom]))]
        if cores:
            symbol, charge = mol.atom_symbol(cores[0]), mol.atom_charge(cores[0])
            return f"atom {cores[0]} ({symbol}) has a core potential and {charge} electrons; the model {self.name} predicts all"
        allowed = trained_charges(self.model)
        if mol.charge not in allowed:
            return f"the model {self.name} was trained on total charge {', '.join(map(str, allowed))}, not {mol.charge}"
        return None

    def _electrons(self, z: int) -> float:
        """Of the neutral atom in the densities that the model was trained on."""
        reference = getattr(self.model, "density_reference", None)
        return int(z) if reference is None else reference.electrons_of(int(z))

    def auxmol(self, mol: gto.Mole) -> gto.Mole:
        """The atoms of ``mol`` with the functions of the model."""
        return make_auxmol(mol, self.basis)

    def coefficients(self, mol: gto.Mole) -> np.ndarray:
        """``[naux]`` predicted coefficients, projected to the number of electrons where the model does that (the default).

        What they hold before that says nothing: training sees the projected density alone.
        """
        import torch

        with torch.no_grad():
            output = self.model(self._graph(mol), compute_forces=False, compute_energy=False, compute_density=True)
        return output["density_coefficients"].detach().cpu().numpy().astype(np.float64)

    def _graph(self, mol: gto.Mole) -> dict[str, Any]:
        """The model's input."""
        import torch

        from mlip.data.neighbors import neighbor_list

        real = atomic_numbers(mol) > 0
        positions = np.ascontiguousarray(mol.atom_coords(unit="Angstrom")[real], dtype=np.float64)
        edges, shifts = neighbor_list(positions, np.zeros((3, 3)), np.zeros(3, dtype=bool), float(self.model.cutoff))
        _check_distances(positions, edges)
        arrays = {
            "atomic_numbers": real_numbers(mol),
            "positions": positions,
            "cell": np.zeros((1, 3, 3)),
            "pbc": np.zeros((1, 3), dtype=bool),
            "edge_index": edges,
            "edge_shift": shifts.astype(np.float64),
            "charge": np.array([mol.charge]),
            "spin": np.array([mol.spin]),
            "batch": np.zeros(len(positions), dtype=np.int64),
        }
        graph: dict[str, Any] = {key: torch.from_numpy(value).to(self.device) for key, value in arrays.items()}
        return {**graph, "num_graphs": 1}


def _check_distances(positions: np.ndarray, edges: np.ndarray) -> None:
    if edges.shape[1]:
        nearest = float(np.linalg.norm(positions[edges[0]] - positions[edges[1]], axis=1).min())
        if nearest < CLOSEST:
            raise PredictionError(f"two atoms are {nearest:.2f} Angstrom apart")


def _torch_dtype(name: str) -> Any:
    from mlip.models import parse_dtype

    return parse_dtype(name)


def trained_charges(model: Any) -> tuple[int, ...]:
    """Total charges that a model was trained on; 0 where it does not say."""
    reference = getattr(model, "density_reference", None)
    return tuple(getattr(reference, "charges", None) or (getattr(model, "metadata", None) or {}).get("charges") or (0,))


@functools.lru_cache(maxsize=4)
def _kept(path: str, modified: float, device: str, dtype: str | None) -> DensityPredictor:
    return DensityPredictor(path, device, dtype)  # ``modified``: a file that was written anew is loaded anew


def as_predictor(model: Any = None, device: str = "cpu", dtype: str | None = None) -> Predictor:
    """``model`` itself if it predicts densities, else a :class:`DensityPredictor`; models from files are loaded once."""
    if isinstance(model, Predictor):
        return model
    if model is None:
        from mlip.checkpoint import shipped_models

        model = shipped_models().get(DEFAULT_MODEL)
        if model is None:
            return DensityPredictor(None, device, dtype)
    if isinstance(model, str | Path):
        from mlip.checkpoint import find_model

        path = find_model(model)
        return _kept(str(path), path.stat().st_mtime, device, dtype)
    if not hasattr(model, "density_basis"):
        raise CheckpointError(
            f"a {type(model).__name__} predicts no densities; give the path or name of a checkpoint with a density head, "
            "or an object with the methods refusal, auxmol and coefficients"
        )
    return DensityPredictor(model, device, dtype)


class ExactPredictor:
    """The oracle: stock PySCF converges the molecule, and its density is fitted in the Coulomb metric.

    Args:
        method: makes the mean-field object of a molecule.
        auxbasis: fitting basis.
    """

    name = "exact fit"

    def __init__(self, method: Callable[[gto.Mole], Any], auxbasis: str = DEFAULT_AUXBASIS) -> None:
        self.method, self.auxbasis = method, auxbasis
        self._known: dict[tuple[Any, ...], np.ndarray] = {}

    def refusal(self, mol: gto.Mole) -> str | None:
        """Nothing is refused."""
        return None

    def auxmol(self, mol: gto.Mole) -> gto.Mole:
        return make_auxmol(mol, self.auxbasis)

    def coefficients(self, mol: gto.Mole) -> np.ndarray:
        """``[naux]``; kept for the molecules that were asked for."""
        key = _identity(mol)
        if key not in self._known:
            mf = self.method(mol)
            mf.kernel()
            self.remember(mol, mf.make_rdm1())
        return self._known[key]

    def remember(self, mol: gto.Mole, dm: np.ndarray) -> None:
        """Take ``dm`` as the converged density matrix of ``mol``."""
        self._known[_identity(mol)] = fit_density(mol, self.auxmol(mol), dm)


def _identity(mol: gto.Mole) -> tuple[Any, ...]:
    """What the density of a molecule depends on, its orbital basis aside; core potentials show in the electrons."""
    return mol.atom_coords().tobytes(), atomic_numbers(mol).tobytes(), mol.charge, mol.spin, mol.nelectron
