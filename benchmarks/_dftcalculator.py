"""The level of theory of datasets/organics as an ASE calculator."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from ase.calculators.calculator import Calculator, all_changes

from scf_accel import accelerate
from scf_accel.labels import HARTREE_TO_EV, LabelSettings, compute_forces, make_mean_field, make_molecule, run_scf


class DFTCalculator(Calculator):
    """Energy (eV) and forces (eV/Angstrom) of a neutral singlet, each SCF from the density of the last geometry."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

    def __init__(self, settings: LabelSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or LabelSettings()
        self._last: Any = None

    def calculate(self, atoms: Any = None, properties: Any = ("energy", "forces"), system_changes: Any = all_changes) -> None:
        """Both, whatever is asked for."""
        super().calculate(atoms, properties, system_changes)
        mol = make_molecule(self.atoms.numbers, self.atoms.positions, 0, 0, self.settings)
        mf = make_mean_field(mol, self.settings)
        if self._last is not None and self._last[0] == self.atoms.numbers.tolist():
            mf = accelerate(mf, start=self._last[1])
        run_scf(mf)
        mf._numint.clear()
        self._last = self.atoms.numbers.tolist(), np.asarray(mf.make_rdm1())
        self.results = {"energy": float(mf.e_tot) * HARTREE_TO_EV, "forces": compute_forces(mf)}
