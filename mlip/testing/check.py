"""Checking a model against the laws of the heads that it has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from ase import Atoms

from mlip.testing.density import DENSITY_LAWS
from mlip.testing.kit import LAWS
from mlip.testing.tolerances import tolerance


class LawError(AssertionError):
    """A model breaks a law."""


def laws_of(model: Any) -> list[str]:
    """Names of the laws that apply: those of potentials, of densities, or both."""
    names = list(LAWS) if getattr(model, "has_energy", True) else []
    return names + (list(DENSITY_LAWS) if getattr(model, "density_basis", None) is not None else [])


def check_all(model: Any, atoms: Atoms, seed: int = 0, laws: Iterable[str] | None = None) -> dict[str, float]:
    """Check the laws for one model and structure; return the errors.

    Raises:
        LawError: naming the law, the error and the tolerance.
    """
    errors = {}
    for name in laws or laws_of(model):
        errors[name] = {**LAWS, **DENSITY_LAWS}[name](model, atoms, np.random.default_rng(seed))
        allowed = tolerance(name, str(model.dtype))
        if not errors[name] <= allowed:
            raise LawError(f"{name}: error {errors[name]:.2e}, allowed {allowed:.0e} ({model.dtype})")
    return errors
