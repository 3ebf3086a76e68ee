"""PySCF gradient objects that take the exchange-correlation and the fitted Coulomb part from this package."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pyscf import lib
from pyscf.df.addons import make_auxmol
from pyscf.df.grad import rks as df_rks
from pyscf.df.grad import uks as df_uks
from pyscf.grad import rks, uks

from scf_accel.gradient.coulomb import coulomb_gradient
from scf_accel.gradient.functional import functional_gradient
from scf_accel.gradient.partition import applies


def nuclear_gradient(mf: Any) -> Any:
    """``mf.nuc_grad_method()``, faster where that can be: the same options, scanners and numbers (to rounding).

    Faster are restricted and unrestricted Kohn-Sham objects of LDA and GGA functionals, hybrids among them, with and without
    density fitting: PBE with fitting 1.8 to 3.6 times (benchmarks/gradient_cost.py), hybrids less, whose exchange stays PySCF's.
    What is not covered (range separation, meta-GGA, non-local correlation, other grids than Becke's in the grid's response) is
    PySCF's own. That is decided anew in each call.

    Other numbers than PySCF's: the grid's response with effective core potentials or ghost atoms, where PySCF's is not the slope of
    its energy (:mod:`scf_accel.gradient.partition`).
    """
    return faster(mf.nuc_grad_method())


def faster(gradient: Any) -> Any:
    """A PySCF gradient object, of the kind that :func:`nuclear_gradient` gives where it covers this one."""
    known = CLASSES.get(type(gradient))
    return gradient if known is None else lib.view(gradient, known)


class _Faster:
    """Mixin: whole contributions by atom in place of the matrices of which PySCF takes traces."""

    _keys: ClassVar[set[str]] = {"_by_atom"}
    _by_atom: np.ndarray | None = None
    base: Any
    grids: Any
    mol: Any
    grid_response: bool

    def grad_elec(self, *args: Any, **kwargs: Any) -> Any:
        """PySCF's electronic gradient, within which :meth:`get_veff` leaves out what comes by atom."""
        self._by_atom = np.zeros((self.mol.natm, 3))
        try:
            return super().grad_elec(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._by_atom = None

    def get_veff(self, mol: Any = None, dm: Any = None) -> Any:
        """PySCF's; within :meth:`grad_elec` what is left to contract: exchange, and Coulomb where it is not fitted."""
        mol = self.mol if mol is None else mol
        dm = self.base.make_rdm1() if dm is None else dm
        if self._by_atom is None or np.iscomplexobj(dm) or not self._covered(mol):
            return super().get_veff(mol, dm)  # type: ignore[misc]
        grids = self.base.grids if self.grids is None else self.grids
        if grids.coords is None:
            grids.build(with_non0tab=True)
        dms = np.asarray(dm).reshape(-1, mol.nao, mol.nao)
        self._by_atom = functional_gradient(self.base, grids, dms, self.grid_response)
        left, aux = self._interaction(mol, dm, dms, self._by_atom)
        return lib.tag_array(left, exc1_grid=np.zeros((mol.natm, 3)), aux=aux)

    def _interaction(self, mol: Any, dm: Any, dms: np.ndarray, by_atom: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Matrices of Coulomb and exchange, and the response of the fitting functions; what is neither goes to ``by_atom``."""
        none, shape = np.zeros_like(by_atom), (*np.shape(dm)[:-2], 3, mol.nao, mol.nao)
        hybrid = self.base._numint.rsh_and_hybrid_coeff(self.base.xc, spin=mol.spin)[2]
        if not hybrid and isinstance(self, df_rks.Gradients | df_uks.Gradients) and self.auxbasis_response and not mol.cart:  # type: ignore[attr-defined]
            fit = self.base.with_df
            auxmol = make_auxmol(fit.mol, fit.auxbasis) if fit.auxmol is None else fit.auxmol
            by_atom += coulomb_gradient(mol, auxmol, dms.sum(axis=0))
            return np.zeros(shape), none
        if hybrid:
            vj, vk = self.get_jk(mol, dm)  # type: ignore[attr-defined]
        else:
            vj, vk = self.get_j(mol, dm), None  # type: ignore[attr-defined]
        left = np.broadcast_to(np.reshape(vj, (-1, *shape[-3:])).sum(axis=0), shape).copy()
        aux = vj.aux.sum((0, 1)) if hasattr(vj, "aux") else none
        if vk is not None:
            share = hybrid * (0.5 if len(dms) == 1 else 1.0)  # one matrix holds both spins
            left -= share * np.asarray(vk)
            if hasattr(vk, "aux"):
                aux = aux - share * sum(vk.aux[spin, spin] for spin in range(len(vk.aux)))
        return left, aux

    def _covered(self, mol: Any) -> bool:
        mf, ni, grids = self.base, self.base._numint, self.base.grids if self.grids is None else self.grids
        return (
            ni._xc_type(mf.xc) in ("LDA", "GGA")
            and ni.rsh_and_hybrid_coeff(mf.xc, spin=mol.spin)[0] == 0
            and not mf.do_nlc()
            and mol is mf.mol is grids.mol
            and (not self.grid_response or applies(grids))
        )

    def extra_force(self, atom_id: int, envs: dict[str, Any]) -> Any:
        """The contributions that are no traces."""
        force = super().extra_force(atom_id, envs)  # type: ignore[misc]
        return force if self._by_atom is None else force + self._by_atom[atom_id]


class RKSGradients(_Faster, rks.Gradients):
    """Restricted."""


class UKSGradients(_Faster, uks.Gradients):
    """Unrestricted."""


class FittedRKSGradients(_Faster, df_rks.Gradients):
    """Restricted, density-fitted."""


class FittedUKSGradients(_Faster, df_uks.Gradients):
    """Unrestricted, density-fitted."""


CLASSES: dict[type, type] = {
    rks.Gradients: RKSGradients,
    uks.Gradients: UKSGradients,
    df_rks.Gradients: FittedRKSGradients,
    df_uks.Gradients: FittedUKSGradients,
}
