"""Layout of density coefficients: which Gaussians stand on each element, in which order, and how they rotate.

The density is ``rho(r) = sum_P c_P chi_P(r)``, electrons per Bohr^3, with

    chi_P(r) = Y_lm(r) r^l sum_k d_k N_l(a_k) exp(-a_k r^2),    N_l(a) = [Gamma(l + 3/2) / (2 (2a)^(l + 3/2))]^(-1/2)

scaled so that ``<chi_P|chi_P> = 1`` (``r`` from the atom, in Bohr; ``Y_lm`` real and orthonormal on the sphere).

*Data order* is PySCF's: atoms in order, shells in order, then l = 1 as x, y, z and any other l as m = -l .. l, with z the
polar axis. *Irreps order* is e3nn's: the same functions with y the polar axis. :func:`to_irreps` turns one into the other;
it is orthogonal, so norms and inner products stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, get_args

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from mlip.errors import DataError

Metric = Literal["overlap", "coulomb"]
_INTEGRALS = {"overlap": "int1e_ovlp_sph", "coulomb": "int2c2e_sph"}


@dataclass(frozen=True)
class Shell:
    """One contracted shell: 2l + 1 functions with the same radial part.

    Attributes:
        l: angular momentum.
        exponents: ``a_k`` in Bohr^-2.
        coefficients: ``d_k``, of normalised primitives; their common scale is of no effect.
    """

    l: int
    exponents: tuple[float, ...]
    coefficients: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.l < 0 or not self.exponents or len(self.exponents) != len(self.coefficients):
            raise ValueError(f"a shell needs l >= 0 and as many coefficients as exponents, got {self}")
        if min(self.exponents) <= 0 or not any(self.coefficients):
            raise ValueError(f"a shell needs positive exponents and a coefficient that is not zero, got {self}")

    @property
    def size(self) -> int:
        """Number of functions, 2l + 1."""
        return 2 * self.l + 1

    @cached_property
    def radial(self) -> np.ndarray:
        """``[n_primitive]`` factors of ``r^l exp(-a_k r^2)``, all normalisation included."""
        a, power = np.array(self.exponents), self.l + 1.5
        raw = np.array(self.coefficients) / np.sqrt(math.gamma(power) / (2.0 * (2.0 * a) ** power))
        norm = raw @ (math.gamma(power) / (2.0 * (a[:, None] + a) ** power)) @ raw
        return raw / np.sqrt(norm)

    @property
    def charge(self) -> float:
        """Integral over space of one function, in electrons: ``sqrt(4 pi) sum_k R_k sqrt(pi) / (4 a_k^1.5)``; 0 for l > 0."""
        if self.l > 0:
            return 0.0
        return float(np.sqrt(4.0) * np.pi / 4.0 * self.radial @ np.array(self.exponents) ** -1.5)

    @property
    def self_repulsion(self) -> float:
        """``(chi|1/r12|chi)`` in Hartree; see :func:`repulsion`."""
        return repulsion(self, self)


def repulsion(one: Shell, other: Shell) -> float:
    """``(P|1/r12|Q)`` in Hartree of two shells of one degree on one centre, for each of the 2l + 1 components.

    ``pi/2 Gamma(l + 1/2) sum_kk' R_k R'_k' / (a_k a'_k' (a_k + a'_k')^(l + 1/2))``
    """
    if one.l != other.l:
        raise ValueError(f"shells of degree {one.l} and {other.l} do not repel each other on one centre")
    a, b, power = np.array(one.exponents), np.array(other.exponents), one.l + 0.5
    return float(np.pi / 2.0 * math.gamma(power) * (one.radial / a) @ (a[:, None] + b) ** -power @ (other.radial / b))


@dataclass(frozen=True)
class DensityBasis:
    """The auxiliary basis of a density: its name and the shells of each element.

    Attributes:
        name: e.g. ``def2-universal-jfit``.
        shells: atomic number -> shells in data order.
    """

    name: str
    shells: Mapping[int, tuple[Shell, ...]]

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers, rising."""
        return tuple(sorted(self.shells))

    @property
    def l_max(self) -> int:
        return max((shell.l for shells in self.shells.values() for shell in shells), default=0)

    def of(self, z: int) -> tuple[Shell, ...]:
        """The shells of one element; :class:`DataError` if the basis has none."""
        try:
            return self.shells[int(z)]
        except KeyError:
            known = " ".join(chemical_symbols[k] for k in self.elements)
            raise DataError(f"density basis {self.name} has no functions for {_symbol(z)}; it covers {known}") from None

    def degrees(self, z: int) -> tuple[int, ...]:
        """l of each shell."""
        return tuple(shell.l for shell in self.of(z))

    def num_functions(self, z: int) -> int:
        """Number of coefficients of an atom, the sum of 2l + 1."""
        return sum(shell.size for shell in self.of(z))

    def offsets(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """``[n_atoms + 1]``: the coefficients of atom ``i`` are ``offsets[i]:offsets[i + 1]``."""
        sizes = {z: self.num_functions(z) for z in {int(z) for z in numbers}}
        return np.concatenate([[0], np.cumsum([sizes[int(z)] for z in numbers], dtype=np.int64)]).astype(np.int64)

    def charges(self, z: int) -> np.ndarray:
        """``[num_functions]`` integrals of the functions over space, electrons."""
        return np.concatenate([np.full(shell.size, shell.charge) for shell in self.of(z)])

    def metric_diagonal(self, z: int, metric: Metric) -> np.ndarray:
        """``[num_functions]`` diagonal of the metric matrix: 1 for overlap, self-repulsion in Hartree for Coulomb."""
        _check_metric(metric)
        coulomb = metric == "coulomb"
        return np.concatenate([np.full(shell.size, shell.self_repulsion if coulomb else 1.0) for shell in self.of(z)])

    def onsite_repulsion(self, z: int, l: int) -> np.ndarray:
        """``[n, n]`` repulsion in Hartree between an element's n shells of degree ``l`` (one component of each) on one atom."""
        shells = [shell for shell in self.of(z) if shell.l == l]
        return np.array([[repulsion(one, other) for other in shells] for one in shells]).reshape(len(shells), len(shells))

    def subset(self, elements: Iterable[int]) -> DensityBasis:
        """The same basis for some of its elements."""
        return DensityBasis(self.name, {z: self.of(z) for z in sorted({int(z) for z in elements})})

    def pyscf_basis(self) -> dict[str, list[Any]]:
        """``{"H": [[l, [a, d], ...], ...]}`` for ``gto.M(basis=...)`` and ``df.addons.make_auxmol``."""
        return {chemical_symbols[z]: [_plain(shell) for shell in self.shells[z]] for z in self.elements}

    def to_dict(self) -> dict[str, Any]:
        """JSON types only; see :meth:`from_dict`."""
        return {"name": self.name, "shells": self.pyscf_basis()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> DensityBasis:
        """The inverse of :meth:`to_dict`; :class:`DataError` if ``stored`` is something else."""
        try:
            shells = {
                atomic_numbers[symbol]: tuple(
                    Shell(int(l), tuple(float(a) for a, _ in terms), tuple(float(d) for _, d in terms)) for l, *terms in entries
                )
                for symbol, entries in stored["shells"].items()
            }
            return cls(str(stored["name"]), {z: shells[z] for z in sorted(shells)})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"not a density basis as DensityBasis.to_dict() writes it: {error!r}") from None

    @cached_property
    def _libcint(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Per element: rows ``[n_shell, 8]`` of libcint's ``bas`` (pointers from 0) and their numbers, normalised."""
        return {z: _libcint_shells(shells) for z, shells in self.shells.items()}


def metric_matrix(basis: DensityBasis, numbers: Sequence[int] | np.ndarray, positions: np.ndarray, metric: Metric) -> np.ndarray:
    """``[K, K]`` float64 inner products of all functions of a molecule, in data order.

    Calls PySCF's integral library (libcint) on arrays put together here: no ``gto.Mole`` is built.

    Args:
        basis: of the coefficients.
        numbers: ``[n]`` atomic numbers.
        positions: ``[n, 3]`` Angstrom.
        metric: ``overlap``, ``<P|Q>``, or ``coulomb``, ``(P|1/r12|Q)`` in Hartree.
    """
    from pyscf.data import nist
    from pyscf.gto import moleintor

    _check_metric(metric)
    atm, bas, env = _libcint_arrays(basis, numbers, np.asarray(positions, dtype=np.float64) / nist.BOHR)
    return moleintor.getints(_INTEGRALS[metric], atm, bas, env, hermi=1)


@lru_cache(maxsize=32)
def to_irreps(l: int) -> np.ndarray:
    """``[2l+1, 2l+1]`` orthogonal matrix T (read-only): ``c_irreps = T @ c_data``, and ``c_data = T.T @ c_irreps``.

    e3nn's harmonics are the usual real ones of the point (z, x, y): T holds the matrix elements between the two sets. It is
    the identity for l = 0 and 1 (both store x, y, z) and mixes m for l > 1.
    """
    if l < 0:
        raise ValueError(f"l = {l}: allowed are 0 and above")
    points = np.random.default_rng(l).normal(size=(8 * l + 8, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    data = real_harmonics(l, points)
    irreps = _polar_harmonics(l, points[:, [2, 0, 1]])
    matrix = np.linalg.lstsq(data, irreps, rcond=None)[0].T  # irreps(r) = T data(r), and so for coefficients: T is orthogonal
    matrix[np.abs(matrix) < 1e-13] = 0.0
    matrix.setflags(write=False)
    return matrix


def component_order(l: int) -> np.ndarray:
    """``[2l+1]`` places in m = -l .. l of the components as data order has them: x, y, z for l = 1, else 0 .. 2l."""
    return np.array([2, 0, 1]) if l == 1 else np.arange(2 * l + 1)


def real_harmonics(l: int, unit: np.ndarray) -> np.ndarray:
    """Real orthonormal harmonics ``[n, 2l+1]`` in data order, as PySCF signs them, of unit vectors ``[n, 3]``."""
    return _polar_harmonics(l, unit)[:, component_order(l)]


def _polar_harmonics(l: int, unit: np.ndarray) -> np.ndarray:
    """Orthonormal real harmonics ``[n, 2l+1]``, m = -l .. l, polar axis z, no Condon-Shortley phase, of unit vectors."""
    x, y, z = unit.T
    columns = {}
    for m in range(l + 1):
        lower, value = np.zeros_like(z), np.full_like(z, math.prod(range(1, 2 * m, 2)))  # P_m^m / sin^m
        for k in range(m + 1, l + 1):
            lower, value = value, ((2 * k - 1) * z * value - (k + m - 1) * lower) / (k - m)
        norm = math.sqrt((2 * l + 1) / (4 * math.pi) * math.factorial(l - m) / math.factorial(l + m) * (2 if m else 1))
        azimuth = (x + 1j * y) ** m  # sin^m(theta) e^(i m phi)
        columns[m] = norm * value * azimuth.real
        if m:
            columns[-m] = norm * value * azimuth.imag
    return np.stack([columns[m] for m in range(-l, l + 1)], axis=1)


def _libcint_shells(shells: Sequence[Shell]) -> tuple[np.ndarray, np.ndarray]:
    rows, env, end = [], [], 0
    for shell in shells:
        n = len(shell.exponents)
        rows.append([0, shell.l, n, 1, 0, end, end + n, 0])  # atom, l, primitives, contractions, kappa, exponents, factors
        env += [np.array(shell.exponents), shell.radial]
        end += 2 * n
    return np.array(rows, dtype=np.int32).reshape(-1, 8), np.concatenate(env) if env else np.zeros(0)


def _libcint_arrays(
    basis: DensityBasis, numbers: Sequence[int] | np.ndarray, bohr: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """libcint's ``atm``, ``bas`` and ``env``; its first 20 numbers are options and stay 0."""
    elements = [int(z) for z in numbers]
    if bohr.shape != (len(elements), 3):
        raise ValueError(f"positions have shape {bohr.shape}; {(len(elements), 3)} expected")
    atm = np.zeros((len(elements), 6), dtype=np.int32)
    atm[:, 0], atm[:, 1] = elements, 20 + 3 * np.arange(len(elements))
    parts, end, shells = [np.zeros(20), bohr.ravel()], 20 + bohr.size, {}
    for z in dict.fromkeys(elements):
        basis.of(z)
        rows, numbers_of_z = basis._libcint[z]
        rows = rows.copy()
        rows[:, 5:7] += end
        shells[z] = rows
        parts.append(numbers_of_z)
        end += len(numbers_of_z)
    bas = np.concatenate([shells[z] for z in elements])
    bas[:, 0] = np.repeat(np.arange(len(elements)), [len(shells[z]) for z in elements])
    return atm, bas, np.concatenate(parts)


def _plain(shell: Shell) -> list[Any]:
    return [shell.l, *([a, d] for a, d in zip(shell.exponents, shell.coefficients, strict=True))]


def _check_metric(metric: str) -> None:
    if metric not in _INTEGRALS:
        raise ValueError(f"unknown metric {metric!r}: allowed is {' or '.join(map(repr, get_args(Metric)))}")


def _symbol(z: int) -> str:
    return chemical_symbols[z] if 0 < z < len(chemical_symbols) else f"atomic number {z}"
