"""Names of functionals and basis sets, checked before any work; what ``scf-accel label`` and ``scf-accel run`` share."""

from __future__ import annotations

import difflib
import re
import warnings
from typing import Any

from mlip.errors import UserError

BASIS_HINT = "such as def2-svp (H to Rn)"
XC_HINT = "use PySCF's names, such as pbe, b3lyp, wb97x-v or hf"


def near(name: str, names: Any) -> str:
    """A question with the names that look like ``name``; empty where there are none."""
    found = difflib.get_close_matches(re.sub(r"[-_ ]", "", name.lower()), sorted(names), n=3)
    return f"did you mean {' or '.join(found)}?" if found else ""


def check_functional(xc: str) -> None:
    """Raise :class:`UserError` for a functional that PySCF does not know or cannot calculate."""
    from pyscf.dft import libxc

    if not xc.strip(" ,") or re.search(r"(^|[,+-])\s*\d+\s*($|[,+-])", re.sub(r"\([^)]*\)", "", xc)):
        what = "is a number" if xc.strip(" ,") else "is empty"
        raise UserError(f"--xc {xc}: PySCF does not know this functional, the name {what}; {XC_HINT}")
    try:
        libxc.parse_xc(xc)
        laplacian = libxc.needs_laplacian(xc)
    except NotImplementedError as error:
        raise UserError(f"--xc {xc}: {error}") from error
    except (KeyError, ValueError) as error:
        hint = near(xc, {name.lower() for name in (*libxc.XC_CODES, *libxc.XC_ALIAS)}) or XC_HINT
        raise UserError(f"--xc {xc}: PySCF does not know this functional; {hint}") from error
    if laplacian:
        raise UserError(f"--xc {xc} depends on the Laplacian of the density, which PySCF cannot calculate; give another one")


def load_basis(option: str, name: str, symbol: str) -> None:
    """Raise :class:`UserError` if PySCF has no functions of the basis for an element."""
    from pyscf import gto

    if re.match(r"gth", name.lower()):
        raise UserError(f"{option} {name}: GTH sets belong to the pseudopotentials of periodic codes; give one {BASIS_HINT}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # PySCF's advice to install more packages
            gto.basis.load(name, symbol)
    except Exception as error:
        if "not found for" in str(error):
            raise UserError(f"{option} {name} has no functions for {symbol}; give a basis that has, {BASIS_HINT}") from error
        hint = near(name, gto.basis.ALIAS) or f"give one {BASIS_HINT}"
        raise UserError(f"{option} {name}: PySCF does not know this basis set; {hint}") from error


def core_potential(basis: str, symbol: str) -> Any:
    """The effective core potential that a basis set is made for, in PySCF's internal format; None for all electrons."""
    from pyscf import gto

    plain = re.sub(r"[-_ ]", "", basis.lower())
    family = re.match(r"(bfd|ccecp\w*?)(?:aug)?(?:cc)?p?v[dtq56]z$", plain)  # these name their potential differently
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            potential = gto.basis.load_ecp(family[1] if family else basis, symbol)
    except Exception:
        potential = None
    if family and not potential:
        raise UserError(f"--basis {basis}: PySCF has no core potential of this family for {symbol}")
    return potential or None
