"""Which functional of the density stands in for the exchange and correlation of a mean-field object in its guess.

A fitted density gives ``rho`` and its gradient, no orbitals, so LDA and GGA functionals are used as they are, and all
others are replaced: meta-GGAs (which need the kinetic energy density), hybrids, range-separated hybrids and
Hartree-Fock (which need the density matrix). Non-local correlation (VV10) is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyscf import dft

from mlip.errors import ConfigError
from scf_accel.theory import near

DEFAULT = "pbe"
KINDS = ("LDA", "GGA")


@dataclass(frozen=True)
class Functional:
    """A semilocal functional.

    Attributes:
        xc: name, as PySCF reads it.
        kind: ``"LDA"`` or ``"GGA"``.
        integrator: PySCF's ``NumInt`` that evaluates it: that of ``mf`` for its own functional (it may be the user's).
    """

    xc: str
    kind: str
    integrator: Any


def functional_of(mf: Any, surrogate: str = DEFAULT) -> Functional:
    """The functional of ``mf`` where it is an LDA or a GGA without exact exchange, else ``surrogate``.

    Raises:
        ConfigError: ``surrogate`` is not the name of an LDA or GGA.
    """
    if isinstance(mf, dft.rks.KohnShamDFT):
        integrator = mf._numint
        kind = integrator._xc_type(mf.xc)
        if kind in KINDS and not integrator.libxc.is_hybrid_xc(mf.xc):
            return Functional(mf.xc, kind, integrator)
    integrator = dft.numint.NumInt()
    try:
        kind = integrator._xc_type(surrogate)
        hybrid = integrator.libxc.is_hybrid_xc(surrogate)
    except (KeyError, ValueError) as error:
        hint = near(surrogate, {name.lower() for name in integrator.libxc.XC_CODES}) or "use pbe"
        raise ConfigError(f"surrogate {surrogate!r}: PySCF does not know this functional; {hint}") from error
    if kind not in KINDS or hybrid:
        what = "a hybrid" if hybrid else f"of type {kind}"
        raise ConfigError(f"surrogate {surrogate!r} is {what}; allowed is an LDA or GGA without exact exchange, such as pbe")
    return Functional(surrogate, kind, integrator)
