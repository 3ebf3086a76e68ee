"""The potential as an ASE calculator."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.data import chemical_symbols

from mlip.data.skin import Edges, SkinNeighborList
from mlip.defaults import DEFAULT_POTENTIAL
from mlip.device import usable_device
from mlip.electrons import known_charge_and_spin, read_charge_and_spin
from mlip.errors import CheckpointError, ConfigError, StructureError
from mlip.evaluator import STD_KEYS, deviations, evaluator, hash_weights
from mlip.memory import keep_freed_memory

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class MLIPCalculator(Calculator):
    """ASE calculator of a trained (or untrained) potential.

    Results, in ASE's units: ``energy`` and ``free_energy`` (eV, equal: the potential has no electronic entropy),
    ``energies`` (``[n]`` eV, their sum is the energy), ``forces`` (``[n, 3]`` eV/Angstrom) and, for cells periodic in
    three directions, ``stress`` (``[6]`` eV/Angstrom^3, tension positive, xx yy zz yz xz xy). Positions, edge vectors
    and energy sums are float64 whatever the dtype of the network.

    The total charge is ``atoms.info["charge"]`` or else the rounded sum of the initial charges; the number of unpaired
    electrons is ``atoms.info["spin"]``. A value that the model was not made for (its metadata lists ``charges`` and
    ``spins``; by default 0 alone) is an error, and so is a molecule whose number of electrons these do not fit, where those of the
    training set fitted (``spins_fit``; single atoms, metals and cells are not looked at). Initial magnetic moments are not read.

    Everything comes from one forward and one backward pass, whichever property is asked for first; the stress costs
    next to nothing beside the forces.

    On the CPU the process keeps the memory that it frees, for the next step (:func:`mlip.memory.keep_freed_memory`).

    How unsure the model is (:mod:`mlip.models.uncertainty`), where ``mlip train`` has fitted it: ``energy_std`` (eV, of the total
    energy) and ``forces_std`` (``[n]`` eV/Angstrom, of one component of each atom's force). ``get_property("forces_std", atoms)``
    computes them when they are asked for; with ``uncertainty=True`` they are in ``results`` after every calculation.

    Args:
        model: path of a checkpoint, name of a shipped model (default: ``organics-energy``, for small organic molecules), or a
            ``Potential``, of which a frozen copy is taken; or the path of a compiled model of ``mlip export``, which ends in .pt2.
            The latter holds native code that runs here: give only files whose makers you trust.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        dtype: ``"float32"`` or ``"float64"``; ``None`` keeps the checkpoint's own. Use ``"float64"`` for tight
            relaxations, phonons and finite differences.
        skin: how much further than the cutoff neighbours are searched, Angstrom, so that the list can be kept for
            several steps.
        min_distance: two atoms closer than this, Angstrom, are an error (no data and no bond comes near 0.2).
        compile: ``True``: compile the network before the first step (a minute or two with a C++ compiler, once a model and
            machine: the code is kept in ``~/.cache/mlip``). ``"auto"``: the same, but where that is not possible or no faster,
            one log line says so and the network runs uncompiled. On the CPU only.
        uncertainty: compute ``energy_std`` and ``forces_std`` every time: from the same pass; beside a compiled network, which does
            not give them, in a pass of their own.
        check_electrons: ``False``: a molecule with an odd number of electrons is computed as the closed shell that it is not.

    Raises:
        StructureError: unknown element, overlapping atoms, positions that are not finite, unknown charge or spin, no
            atoms.
        CheckpointError: ``model`` cannot be read.
        ConfigError: an impossible ``dtype`` or ``device``; ``compile=True`` where it cannot be done; ``uncertainty=True`` for a
            model that has none.
    """

    name = "mlip"
    implemented_properties: list[str] = ["energy", "free_energy", "energies", "forces", "stress", *STD_KEYS]  # noqa: RUF012 (ASE's type)

    def __init__(
        self,
        model: str | Path | torch.nn.Module = DEFAULT_POTENTIAL,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        skin: float = 0.5,
        min_distance: float = 0.2,
        compile: bool | str = False,
        uncertainty: bool = False,
        check_electrons: bool = True,
    ) -> None:
        super().__init__()
        if compile not in (True, False, "auto"):
            raise ConfigError(f'compile is {compile!r}; choose True, False or "auto"')
        self.device = usable_device(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.compile, self.uncertainty = compile, bool(uncertainty)
        self.model: Any = _frozen_model(model, self.device, _known_dtype(dtype))
        self._prepare()
        self.min_distance, self.check_electrons = float(min_distance), bool(check_electrons)
        self._neighbors = SkinNeighborList(float(self.model.cutoff), skin)
        self._charge_spin: tuple[int, int] | None = None
        self._forget_tensors()

    def _prepare(self) -> None:
        """Arrange the model for evaluation; later changes of its weights do not count."""
        with_std = self.uncertainty and not self.compile
        self._evaluate = evaluator(self.model, self.compile, with_std)
        self._deviations: Any = None
        if self.uncertainty and not with_std:
            self._deviations = deviations(self.model)

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that the model knows."""
        return [int(z) for z in self.model.elements]

    def fingerprint(self) -> str:
        """A hash of the model's weights and dtypes; runs with the same fingerprint follow the same forces.

        Compiled code adds up in another order: it has a fingerprint of its own.
        """
        if isinstance(known := getattr(self.model, "fingerprint", None), str):
            return known
        digest = hashlib.sha256()
        hash_weights(digest, self.model)
        return digest.hexdigest()[:16] + {False: "", True: "-compiled", "auto": "-auto"}[self.compile]

    # -- ASE's interface ----------------------------------------------------------------------------------------------

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What changed since the last calculation, compared exactly: ``tol`` is not used (ASE's own way costs more).

        A new total charge or spin is reported as ``initial_charges``; magnetic moments do not matter here.
        """
        old = self.atoms
        if old is None:
            return list(all_changes)
        changes = [key for key in ("positions", "numbers") if not np.array_equal(old.arrays[key], atoms.arrays[key])]
        changes += ["cell"] * (not np.array_equal(old.cell.array, atoms.cell.array))
        changes += ["pbc"] * (not np.array_equal(old.pbc, atoms.pbc))
        changes += ["initial_charges"] * (self._charge_spin != read_charge_and_spin(atoms))
        return changes

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Evaluate the network once and fill ``self.results``."""
        if atoms is None:
            if self.atoms is None:
                raise StructureError("the calculator has no structure yet; attach it with atoms.calc = calculator")
            atoms = self.atoms
        elif self.atoms is None or self.atoms is not atoms:
            self.atoms = atoms.copy()
        wanted = [key for key in properties if key in STD_KEYS]
        if wanted and not system_changes and "energy" in self.results:
            self.results |= self._standard_deviations(self._graph(atoms))
            return
        self.results = {}
        periodic = bool(atoms.pbc.all())
        if "stress" in properties and not periodic:
            raise PropertyNotImplementedError(
                f"stress needs a cell that is periodic in three directions; found pbc = {atoms.pbc.tolist()}"
            )
        graph = self._graph(atoms)
        output = self._evaluate(graph, periodic)
        results = self._read_output(output, periodic)
        if (wanted or self.uncertainty) and not set(STD_KEYS) <= results.keys():
            results |= self._standard_deviations(graph)
        self.results = results

    def _standard_deviations(self, graph: dict[str, Any]) -> dict[str, Any]:
        """``energy_std`` and ``forces_std`` in a pass of their own."""
        if self._deviations is None:
            try:
                self._deviations = deviations(self.model)
            except ConfigError as error:
                raise PropertyNotImplementedError(str(error)) from error
        return _read_deviations(self._deviations(graph))

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in self.__dict__.items() if k not in ("_tensors", "_neighbors", "_evaluate", "_deviations", "model")}
        state["skin"] = self._neighbors.skin
        state["model"] = _pack_model(self.model)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        skin = state.pop("skin")
        packed = state.pop("model")
        self.__dict__.update(state)
        self.model = _unpack_model(packed, self.device)
        self._prepare()
        self._neighbors = SkinNeighborList(float(self.model.cutoff), skin)
        self._forget_tensors()

    # -- structure to tensors -----------------------------------------------------------------------------------------

    def _forget_tensors(self) -> None:
        """Drop what is kept between steps: the tensors, and the arrays they were made from."""
        self._tensors: dict[str, Any] = {}
        self._numbers: np.ndarray | None = None
        self._cell: np.ndarray | None = None
        self._pbc = np.zeros(3, dtype=bool)

    def _graph(self, atoms: Atoms) -> dict[str, Any]:
        """The model's input; tensors that did not change since the last step are used again."""
        if not np.isfinite(atoms.positions).all():
            bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
            raise StructureError(
                f"positions of {len(bad)} of {len(atoms)} atoms are not finite (first: atom {bad[0]}); "
                "correct the structure, or shorten the time step that led to it"
            )
        tensors = self._tensors
        if self._numbers is None or not np.array_equal(self._numbers, atoms.numbers):
            self._check_elements(atoms.numbers)
            self._numbers = atoms.numbers.copy()
            tensors["atomic_numbers"] = self._send(self._numbers.astype(np.int64))
            tensors["batch"] = torch.zeros(len(atoms), dtype=torch.int64, device=self.device)
            tensors["num_graphs"] = 1
        charge_spin = known_charge_and_spin(atoms, getattr(self.model, "metadata", None) or {}, self.check_electrons)
        if "charge" not in tensors or charge_spin != self._charge_spin:
            tensors["charge"], tensors["spin"] = (self._send(np.array([value])) for value in charge_spin)
            self._charge_spin = charge_spin
        cell, pbc = atoms.cell.array, atoms.pbc
        if self._cell is None or not (np.array_equal(cell, self._cell) and np.array_equal(pbc, self._pbc)):
            self._cell, self._pbc = cell.copy(), pbc.copy()
            tensors["cell"] = self._send(self._cell.reshape(1, 3, 3))
            tensors["pbc"] = self._send(self._pbc.reshape(1, 3))
        edges = self._neighbors.update(atoms.positions, cell, pbc)
        if not (edges.same_pairs and "edge_index" in tensors):
            tensors["edge_index"] = self._send(edges.edge_index)
            tensors["edge_shift"] = self._send(edges.shifts.astype(np.float64))
        self._check_distances(edges)  # after the update: a caller may catch the error and go on with other positions
        return {**tensors, "positions": self._send(atoms.positions.copy())}

    def _send(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _check_elements(self, numbers: np.ndarray) -> None:
        if len(numbers) == 0:
            raise StructureError("the structure has no atoms; give at least one")
        allowed = set(self.elements)
        unknown = sorted({int(z) for z in numbers} - allowed)
        if unknown:
            found = ", ".join(chemical_symbols[z] for z in unknown)
            known = ", ".join(chemical_symbols[z] for z in sorted(allowed))
            raise StructureError(f"the model does not know {found}; it was made for {known}; use a model that has them")

    def _check_distances(self, edges: Edges) -> None:
        if edges.min_distance < self.min_distance and edges.closest is not None:
            i, j = edges.closest
            what = f"atoms {i} and {j} are" if i != j else f"atom {i} and its own periodic image are"
            raise StructureError(
                f"{what} {edges.min_distance:.3f} Angstrom apart, below {self.min_distance} Angstrom; "
                "correct overlapping atoms, the cell or its units"
            )

    # -- tensors to results -------------------------------------------------------------------------------------------

    @staticmethod
    def _read_output(output: dict[str, torch.Tensor], with_stress: bool) -> dict[str, Any]:
        def array(key: str) -> np.ndarray:
            return output[key].detach().cpu().numpy().astype(np.float64)

        energy, forces = float(array("energy")[0]), array("forces")
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            raise StructureError(
                "the model's energy or forces are not finite for this structure; "
                "it lies far outside of what the model knows"
            )
        results: dict[str, Any] = {"energy": energy, "free_energy": energy, "forces": forces}
        results["energies"] = array("energies")
        if with_stress:
            results["stress"] = array("stress")[0]
        return results | _read_deviations(output)


def _read_deviations(output: dict[str, torch.Tensor]) -> dict[str, Any]:
    if "energy_std" not in output:
        return {}
    energy, forces = (output[key].detach().cpu().numpy().astype(np.float64) for key in STD_KEYS)
    return {"energy_std": float(energy[0]), "forces_std": forces}


def _known_dtype(dtype: str | torch.dtype | None) -> str | None:
    """The dtype's one-word name."""
    if dtype is None:
        return None
    word = str(dtype).removeprefix("torch.")
    if word not in _DTYPES:
        raise ConfigError(f"dtype is {word!r}; choose float32 or float64")
    return word


def _exported_model(path: str | Path, device: torch.device, dtype: str | None) -> Any:
    from mlip.exported import ExportedPotential

    model = ExportedPotential(path)
    if device.type != "cpu":
        raise ConfigError(f"{path} was compiled for the CPU; device is {device}: use the checkpoint there")
    if dtype not in (None, model.dtype):
        raise ConfigError(f"{path} computes in {model.dtype}, and dtype is {dtype}: leave dtype out, or export it in {dtype}")
    return model


def _frozen_model(model: str | Path | torch.nn.Module, device: torch.device, dtype: str | None) -> Any:
    """A private copy of the model in eval mode whose parameters need no gradient; or an exported one."""
    if isinstance(model, str | Path) and str(model).endswith(".pt2"):
        return _exported_model(model, device, dtype)
    if isinstance(model, torch.nn.Module):
        missing = [name for name in ("cutoff", "elements") if not hasattr(model, name)]
        if missing:
            raise CheckpointError(
                f"a {type(model).__name__} has no {' and no '.join(missing)}; give a Potential, a path or a name"
            )
        frozen = copy.deepcopy(model).to(device)
        if dtype is not None:
            frozen = frozen.to(_DTYPES[dtype])
    else:
        from mlip.checkpoint import load_model

        frozen = load_model(model, dtype=dtype, device=str(device))
    if not getattr(frozen, "has_energy", True):
        name = f"the model {model}" if isinstance(model, str | Path) else "this model"
        raise ConfigError(
            f"{name} has no energy head: it predicts electron densities only (scf_accel.warm_start takes it); "
            "a calculator needs a model that was trained on energies"
        )
    return frozen.eval().requires_grad_(False)


def _pack_model(model: Any) -> Any:
    """A Potential as the bytes of its checkpoint (safetensors + JSON), any other module as it is."""
    from mlip.models import Potential

    if not isinstance(model, Potential):
        return model
    import tempfile

    from mlip.checkpoint import save_model

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_model(model, path, model.metadata)
        return path.read_bytes()


def _unpack_model(packed: Any, device: torch.device) -> Any:
    if not isinstance(packed, bytes):
        return packed.to(device) if isinstance(packed, torch.nn.Module) else packed
    import tempfile

    from mlip.checkpoint import load_model

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(packed)
        return load_model(path, device=str(device)).eval().requires_grad_(False)
