"""Auxiliary basis sets of PySCF as a :class:`~mlip.data.density.DensityBasis`, and back.

A name is any that PySCF knows (``def2-universal-jfit``, ``def2-universal-jkfit``, ...) or ``etb:ORBITAL_BASIS:BETA``: functions
with exponents ``a_min BETA^n`` that span the products of the functions of an orbital basis (PySCF's ``df.aug_etb``).

How the parts of a molecule map:

- General contractions: PySCF stores ``[l, [a, d1, d2], ...]`` as all functions of ``d1``, then all of ``d2``. Each becomes a
  :class:`~mlip.data.density.Shell` of its own, in this order, so coefficients keep their places.
- Atoms with a core potential carry the same functions as without; the density is that of the electrons which are not in it.
- Ghost atoms carry no auxiliary functions and no coefficients: to a model they do not exist. (PySCF's ``make_auxmol`` gives
  them those of their element.)
- Auxiliary functions are spherical also where the orbitals are Cartesian.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlip.data.density import DensityBasis, Shell, real_harmonics, to_irreps
from mlip.errors import UserError
from scf_accel.theory import near

if TYPE_CHECKING:
    from pyscf import gto

DEFAULT_AUXBASIS = "def2-universal-jfit"
_BETA_RANGE = (1.2, 10.0)  # below, neighbours are one function to double precision; above, the fit has gaps
_HINT = "such as def2-universal-jfit (H to Rn), def2-universal-jkfit or etb:def2-svp:2.0"


def load_density_basis(name: str, elements: Iterable[int | str]) -> DensityBasis:
    """The auxiliary basis ``name`` for some elements.

    Args:
        name: PySCF's name, or ``etb:ORBITAL_BASIS:BETA`` with BETA from 1.2 to 10.
        elements: atomic numbers or symbols; repetitions are fine.

    Raises:
        UserError: PySCF does not know the basis, it has no functions for an element, or BETA is bad.
    """
    from pyscf.data import elements as table

    name = name.strip()
    numbers = sorted({table.charge(e) if isinstance(e, str) else int(e) for e in elements})
    symbols = {z: table.ELEMENTS[z] for z in numbers if 0 < z < len(table.ELEMENTS)}
    if len(symbols) != len(numbers):
        raise UserError(f"auxiliary basis {name}: {numbers} are to be atomic numbers from 1 to {len(table.ELEMENTS) - 1}")
    if name.lower().startswith("etb:"):
        name, entries = _even_tempered(name.lower(), list(symbols.values()))
    elif name.lower() in ("autoaux", "autoabs", ""):
        raise UserError(f"auxiliary basis {name!r} depends on the orbital basis; name one, {_HINT}")
    else:
        entries = {symbol: _load("auxiliary basis", name, symbol) for symbol in symbols.values()}
    return DensityBasis(name, {z: _shells(entries[symbol]) for z, symbol in symbols.items()})


def basis_of_auxmol(auxmol: gto.Mole, name: str = "custom") -> DensityBasis:
    """The basis that an auxiliary molecule carries; :class:`UserError` if it differs between atoms of one element."""
    shells: dict[int, tuple[Shell, ...]] = {}
    for atom, z in enumerate(atomic_numbers(auxmol)):
        label = auxmol.atom_symbol(atom)
        entries = auxmol._basis.get(label, auxmol._basis.get(auxmol.atom_pure_symbol(atom)))
        if entries is None or z == 0:
            if z == 0 and np.any(auxmol._bas[:, 0] == atom):
                raise UserError(f"ghost atom {atom} ({label}) carries auxiliary functions, which no density basis can say")
            continue
        found = _shells(entries)
        if shells.setdefault(int(z), found) != found:
            raise UserError(f"atom {atom} ({label}) has other auxiliary functions than atoms of its element before it")
    return DensityBasis(name, dict(sorted(shells.items())))


def make_auxmol(mol: gto.Mole, auxbasis: str | DensityBasis = DEFAULT_AUXBASIS) -> gto.Mole:
    """The auxiliary molecule: ``mol``'s atoms with the functions of ``auxbasis``, in data order; ghosts carry none."""
    from pyscf.gto.mole import PTR_ENV_START

    numbers = atomic_numbers(mol)
    if isinstance(auxbasis, str):
        auxbasis = load_density_basis(auxbasis, (int(z) for z in numbers if z))
    entries = {z: _entries(auxbasis.of(z)) for z in {int(z) for z in numbers} if z}
    auxmol = mol.copy(deep=False)
    auxmol.cart = False
    auxmol.basis = auxmol._basis = {atom[0]: entries.get(int(z), []) for atom, z in zip(mol._atom, numbers, strict=True)}
    # the head of _env holds the range separation and the gauge origin
    auxmol._atm, auxmol._bas, auxmol._env = auxmol.make_env(mol._atom, auxmol._basis, mol._env[:PTR_ENV_START])
    auxmol._built = True
    return auxmol


def atomic_numbers(mol: gto.Mole) -> np.ndarray:
    """``[n_atoms]`` atomic numbers: of the element also where a core potential stands, 0 for ghost atoms."""
    from pyscf.data.elements import charge

    return np.array([charge(atom[0]) for atom in mol._atom], dtype=np.int64)


def element_irreps(basis: DensityBasis, z: int) -> str:
    """The coefficients of one atom in e3nn's notation, e.g. ``4x0e+2x1o+1x2e``; shells of l have the parity (-1)^l."""
    runs: list[list[int]] = []
    for l in basis.degrees(z):
        if runs and runs[-1][1] == l:
            runs[-1][0] += 1
        else:
            runs.append([1, l])
    return "+".join(f"{count}x{l}{'eo'[l % 2]}" for count, l in runs)


def data_to_irreps(basis: DensityBasis, numbers: Sequence[int] | np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Coefficients ``[K]`` or ``[K, n]`` from PySCF's to e3nn's order of components; atoms and shells keep their places."""
    return _apply(basis, numbers, coefficients, {l: to_irreps(l) for l in range(basis.l_max + 1)})


def irreps_to_data(basis: DensityBasis, numbers: Sequence[int] | np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """The inverse of :func:`data_to_irreps`."""
    return _apply(basis, numbers, coefficients, {l: to_irreps(l).T for l in range(basis.l_max + 1)})


def rotate_coefficients(
    basis: DensityBasis, numbers: Sequence[int] | np.ndarray, coefficients: np.ndarray, rotation: np.ndarray
) -> np.ndarray:
    """Coefficients ``[K]`` or ``[K, n]`` of the density that moves along when the molecule's positions become ``rotation @ x``.

    ``rotation``: ``[3, 3]`` orthogonal, reflections too.
    """
    return _apply(basis, numbers, coefficients, {l: rotation_matrix(l, rotation) for l in range(basis.l_max + 1)})


def rotation_matrix(l: int, rotation: np.ndarray) -> np.ndarray:
    """``[2l+1, 2l+1]`` in data order: ``Y_l(R r) = D Y_l(r)`` for real harmonics and any orthogonal ``R``."""
    rotation = np.asarray(rotation, dtype=np.float64)
    if rotation.shape != (3, 3) or not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-8):
        raise ValueError("a rotation is an orthogonal 3 x 3 matrix; orthogonalise this one first")
    points = np.random.default_rng(l).normal(size=(8 * l + 8, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return np.linalg.lstsq(real_harmonics(l, points), real_harmonics(l, points @ rotation.T), rcond=None)[0].T


def _apply(
    basis: DensityBasis, numbers: Sequence[int] | np.ndarray, coefficients: np.ndarray, matrices: dict[int, np.ndarray]
) -> np.ndarray:
    """Each shell's components times the matrix of its l."""
    source = np.asarray(coefficients, dtype=np.float64)
    offsets = basis.offsets(numbers)
    if len(source) != offsets[-1]:
        raise ValueError(f"{len(source)} coefficients; this molecule has {offsets[-1]} in basis {basis.name}")
    result, start = np.empty_like(source), 0
    for z in numbers:
        for l in basis.degrees(int(z)):
            part = slice(start, start + 2 * l + 1)
            result[part] = matrices[l] @ source[part]
            start = part.stop
    return result


def _load(what: str, name: str, symbol: str) -> list[Any]:
    """One element of a named basis in PySCF's internal format, sorted by l as every molecule has it."""
    from pyscf import gto
    from pyscf.gto.basis import ALIAS

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # PySCF's advice to install more packages
            return gto.mole.format_basis({symbol: name})[symbol]
    except Exception as error:
        known = re.sub(r"[-_+() ]", "", name.lower())
        if known in {re.sub(r"[-_+() ]", "", alias.lower()) for alias in ALIAS} or "not found for" in str(error):
            raise UserError(f"{what} {name} has no functions for {symbol}; give a basis that has, {_HINT}") from error
        hint = near(name, ALIAS) or f"give one {_HINT}"
        raise UserError(f"{what} {name}: PySCF does not know this basis set; {hint}") from error


def _even_tempered(name: str, symbols: list[str]) -> tuple[str, dict[str, list[Any]]]:
    """The canonical name and the functions of ``etb:ORBITAL_BASIS:BETA``."""
    from pyscf import df, gto

    parts = name.split(":")
    if len(parts) != 3 or not parts[1]:
        raise UserError(f"auxiliary basis {name}: write etb:ORBITAL_BASIS:BETA, such as etb:def2-svp:2.0")
    orbital, low, high = parts[1], *_BETA_RANGE
    try:
        beta = float(parts[2])
    except ValueError:
        beta = float("nan")
    if not low <= beta <= high:
        raise UserError(f"auxiliary basis {name}: BETA is {parts[2]!r}; give a number from {low} to {high}, such as 2.0")
    mol = gto.Mole()
    mol.atom = [(symbol, (0.0, 0.0, 10.0 * place)) for place, symbol in enumerate(symbols)]
    mol.basis = {symbol: _load("orbital basis of an even-tempered set,", orbital, symbol) for symbol in symbols}
    mol.spin, mol.verbose = None, 0
    mol.build(dump_input=False, parse_arg=False)
    return f"etb:{orbital}:{beta}", gto.mole.format_basis(df.aug_etb(mol, beta=beta)) if symbols else {}


def _shells(entries: list[Any]) -> tuple[Shell, ...]:
    """PySCF's internal format -> shells, one a contraction; primitives that a contraction does not use are left out."""
    shells = []
    for l, *rest in entries:
        terms = rest[1:] if isinstance(rest[0], (int, np.integer)) else rest  # an integer here is kappa, of spinors only
        exponents = [float(term[0]) for term in terms]
        for column in range(1, len(terms[0])):
            used = [(a, float(term[column])) for a, term in zip(exponents, terms, strict=True) if term[column] != 0]
            shells.append(Shell(int(l), tuple(a for a, _ in used), tuple(d for _, d in used)))
    return tuple(shells)


def _entries(shells: Sequence[Shell]) -> list[Any]:
    return [[s.l, *([a, d] for a, d in zip(s.exponents, s.coefficients, strict=True))] for s in shells]
