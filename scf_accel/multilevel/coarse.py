"""The coarse model of a mean-field object: the same physics on a small grid and with fitted integrals, in single precision.

It gives *increments* ``V[D] - V[D_ref]`` of the effective potential, so that single precision costs a relative error of
1e-6 of the increment, however large the potential itself is. What the model does not contain (solvent, non-local
correlation, relativistic terms ...) is not in the increment; the solver finds it in the difference to the full operator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pyscf import df, dft, gto

from scf_accel.gridorbitals import COMPONENTS, GridOrbitals
from scf_accel.multilevel.fittedjk import FullFit, PackedFit, three_index
from scf_accel.multilevel.report import Settings
from scf_accel.storednumint import evaluate

AUXBASIS, HEAVY_AUXBASIS, NEON = "def2-universal-jfit", "def2-universal-jkfit", 10
GRID, FINER_GRID = (25, 86), (30, 110)  # (radial, angular) points an atom before pruning
THRESHOLD = 1e-5  # coarse orbital values below this are left out of a block
POINTS_PER_ATOM = 2500  # of the finer grid, at most, for the memory estimate


class CoarseModelError(Exception):
    """The coarse model cannot be made; the message says why."""


@dataclass(frozen=True)
class Reference:
    """The point that increments start from: density matrices, density and potential on the grid, exchange matrices."""

    dms: np.ndarray
    rho: np.ndarray | None
    vxc: np.ndarray | None
    exchange: np.ndarray | None


def exchange_terms(mf: Any) -> list[tuple[float, float]]:
    """``(factor, omega)`` of each exact-exchange term; ``omega`` 0: full Coulomb, > 0 long range, < 0 short range."""
    if not isinstance(mf, dft.rks.KohnShamDFT):
        return [(1.0, 0.0)]
    omega, alpha, hybrid = mf._numint.rsh_and_hybrid_coeff(mf.xc, spin=mf.mol.spin)
    if omega == 0:
        terms = [(hybrid, 0.0)]
    elif alpha == 0:
        terms = [(hybrid, -omega)]
    elif hybrid == 0:
        terms = [(alpha, omega)]
    else:
        terms = [(hybrid, 0.0), (alpha - hybrid, omega)]
    return [term for term in terms if abs(term[0]) > 1e-10]


def is_large(mol: Any) -> bool:
    """Whether the orbital basis has f functions or higher, which feel the errors of a small grid and fitting basis.

    Second orbital gradient in def2-TZVP: chlorobenzene (PBE) 3.6e-5 with (25, 86) points an atom, 1.9e-5 with (30, 110),
    benzene (B3LYP) 3.4e-5 and 3e-6; acetone (PBE, no density fitting) 5.5e-5 with def2-universal-jfit, 2.3e-5 with
    def2-universal-jkfit. Above 3e-5 a third full Fock matrix is needed.
    """
    return max(mol.bas_angular(shell) for shell in range(mol.nbas)) > 2


def fitting_bases(mf: Any) -> list[Any]:
    """Fitting bases of the coarse model, best first: a small one, before it a larger one where that pays.

    Beyond neon def2-universal-jfit, made for J alone, spoils exchange (DMSO, B3LYP without density fitting: orbital gradient
    of the first coarse solution 9e-2 with it, 3e-3 with def2-universal-jkfit on sulphur).
    """
    mol = mf.mol
    exact = not isinstance(getattr(mf, "with_df", None), df.DF)
    symbols = {mol.atom_symbol(atom) for atom in range(mol.natm)}  # with their labels, which "default" would go before
    heavy = {symbol: HEAVY_AUXBASIS for symbol in symbols if gto.charge(symbol) > NEON}
    return [*([HEAVY_AUXBASIS] if exact and is_large(mol) else []), {"default": AUXBASIS, **heavy}]


class CoarseModel:
    """Coarse effective potential of ``mf``; density matrices and potentials are ``[sets, nao, nao]`` with 1 or 2 sets.

    Args:
        mf: the mean-field object.
        settings: grid and fitting basis.
        max_bytes: memory that the model may take.
        dtype: of orbital values and integrals.
    """

    def __init__(self, mf: Any, settings: Settings, max_bytes: float, dtype: type = np.float32) -> None:
        self.mf, self.mol = mf, mf.mol
        self.exact = dtype is np.float64
        self.terms = exchange_terms(mf)
        self.kind = mf._numint._xc_type(mf.xc) if isinstance(mf, dft.rks.KohnShamDFT) else "HF"
        self._make_integrals(settings, max_bytes, dtype)
        if self.kind != "HF":
            self.orbitals = self._make_orbitals(settings, max_bytes, dtype)

    def _make_integrals(self, settings: Settings, max_bytes: float, dtype: type) -> None:
        nao = self.mol.nao
        with_df = getattr(self.mf, "with_df", None)
        shared = with_df._cderi if isinstance(with_df, df.DF) and isinstance(with_df._cderi, np.ndarray) else None
        pairs, size = nao * (nao + 1) // 2, np.dtype(dtype).itemsize
        omegas = [omega for _, omega in self.terms]
        others = [omega for omega in omegas if omega != 0.0]
        each, whole = (1 + len(others)) * pairs * size, len(omegas) * nao * nao * size  # bytes a fitting function
        values = 0 if self.kind == "HF" else POINTS_PER_ATOM * self.mol.natm * nao * COMPONENTS[self.kind] * size
        most = (max_bytes - values) / (each + whole)
        auxbasis, naux = (None, len(shared)) if shared is not None else self._fitting(settings, most)
        packed, full, need = naux * pairs * size, naux * nao * nao * size, naux * each
        if need > max_bytes:
            raise CoarseModelError(
                f"its integrals need {need / 1e6:.1f} MB and mf.max_memory leaves {max_bytes / 1e6:.1f} MB: raise it"
            )
        roomy = packed * (1 + bool(others)) + len(omegas) * full < max_bytes
        own = shared if shared is not None else three_index(self.mol, auxbasis, 0.0, dtype)
        self.fit = PackedFit(own, nao, dtype)
        self.exchangers: list[PackedFit | FullFit] = []
        for omega in omegas:
            fit = self.fit if omega == 0.0 else PackedFit(three_index(self.mol, auxbasis, omega, dtype), nao, dtype)
            self.exchangers.append(FullFit(fit.integrals, nao, dtype) if roomy else fit)
        self.integral_bytes = self.fit.integrals.nbytes + sum(x.integrals.nbytes for x in self.exchangers if x is not self.fit)

    def _fitting(self, settings: Settings, most: float) -> tuple[Any, int]:
        """The best fitting basis of at most ``most`` functions, where all fits in memory, or else the last choice; its size."""
        for auxbasis in fitting_bases(self.mf) if settings.auxbasis is None else [settings.auxbasis]:
            try:
                naux = df.addons.make_auxmol(self.mol, auxbasis).nao
            except Exception:  # PySCF raises several kinds for an element that a fitting basis lacks
                auxbasis = df.make_auxbasis(self.mol)
                naux = df.addons.make_auxmol(self.mol, auxbasis).nao
            if naux <= most:
                break
        return auxbasis, naux

    def _make_orbitals(self, settings: Settings, max_bytes: float, dtype: type) -> GridOrbitals:
        grids = dft.Grids(self.mol)
        grids.verbose = 0
        points = settings.grid if settings.grid is not None else FINER_GRID if is_large(self.mol) else GRID
        if isinstance(points, int):
            grids.level = points
        else:
            grids.atom_grid = tuple(points)
        grids.build(with_non0tab=True)
        return GridOrbitals(self.mol, grids, self.kind, dtype, max_bytes - self.integral_bytes, THRESHOLD)

    @property
    def size(self) -> str:
        """Fitting functions and grid points, for the log."""
        points = 0 if self.kind == "HF" else self.orbitals.points
        return f"{len(self.fit.integrals)} fitting functions, {points} grid points"

    def _potential(self, rho: np.ndarray) -> np.ndarray:
        return evaluate(self.mf._numint, self.mf.xc, self.kind, rho, self.orbitals.threads)[1]

    def exchange(self, orbitals: list[np.ndarray]) -> np.ndarray | None:
        """``[sets, nao, nao]``: the functional's exact exchange of ``D = C C^T``, ``C[nao, n]`` a set; None without any."""
        if not self.terms:
            return None
        out = np.zeros((len(orbitals), self.mol.nao, self.mol.nao))
        for (factor, _), part in zip(self.terms, self.exchangers, strict=True):
            for matrix, occupied in zip(out, orbitals, strict=True):
                matrix += factor * part.exchange(occupied)
        return out

    def reference(self, dms: np.ndarray, exchange: np.ndarray | None) -> Reference:
        """The point of ``dms`` with its :meth:`exchange`, to start increments from."""
        rho = vxc = None
        if self.kind != "HF":
            rho = self.orbitals.density(dms)
            vxc = self._potential(rho)
        return Reference(dms, rho, vxc, exchange)

    def increment(self, dms: np.ndarray, exchange: np.ndarray | None, start: Reference | None) -> np.ndarray:
        """``V[dms] - V[start]``; with ``start`` None the whole potential."""
        delta = dms if start is None else dms - start.dms
        coulomb = self.fit.coulomb(delta.sum(axis=0), exact=start is None)
        out = np.repeat(coulomb[None], len(dms), axis=0)
        if exchange is not None:
            share = 0.5 if len(dms) == 1 else 1.0
            out -= share * (exchange if start is None else exchange - start.exchange)
        if self.kind != "HF":
            rho = self.orbitals.density(delta)
            if start is None:
                out += self.orbitals.matrix(self._potential(rho))
            else:
                out += self.orbitals.matrix(self._potential(rho + start.rho) - start.vxc)
        return out


def factors(dms: np.ndarray, half: np.ndarray, inverse_half: np.ndarray) -> list[np.ndarray]:
    """``C[nao, n]`` of each of ``dms[sets, nao, nao]`` with ``D = C C^T`` (negative occupations are left out).

    ``half`` and ``inverse_half`` are the overlap matrix to the powers 1/2 and -1/2.
    """
    out = []
    for dm in dms:
        occupations, vectors = np.linalg.eigh(half @ dm @ half)
        keep = occupations > 1e-8
        out.append(inverse_half @ vectors[:, keep] * np.sqrt(occupations[keep]))
    return out


def determinant(dms: np.ndarray, half: np.ndarray, inverse_half: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Orbitals ``[sets, nao, nao]`` and integer occupations ``[sets, nao]`` of ``dms`` where it is a determinant, else None."""
    full = 2.0 if len(dms) == 1 else 1.0
    coefficients, occupations = [], []
    for dm in dms:
        values, vectors = np.linalg.eigh(half @ dm @ half)
        rounded = np.where(values > 0.5 * full, full, 0.0)
        if np.abs(values - rounded).max() > 1e-6:
            return None
        coefficients.append(inverse_half @ vectors[:, ::-1])
        occupations.append(rounded[::-1])
    return np.stack(coefficients), np.stack(occupations)


def occupied(mo_coeff: np.ndarray, mo_occ: np.ndarray, sets: int) -> list[np.ndarray]:
    """``C[nao, n]`` a set: orbitals times the root of their occupation, of restricted, unrestricted or ROHF orbitals."""
    coefficients, occupations = np.asarray(mo_coeff), np.asarray(mo_occ)
    if sets == 1:
        pairs = [(coefficients, occupations)]
    elif coefficients.ndim == 2:
        pairs = [(coefficients, (occupations > 0) * 1.0), (coefficients, (occupations == 2) * 1.0)]
    else:
        pairs = list(zip(coefficients, occupations, strict=True))
    return [c[:, n > 1e-12] * np.sqrt(n[n > 1e-12]) for c, n in pairs]
