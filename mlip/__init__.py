"""Equivariant interatomic potentials: train, evaluate, relax, run MD.

``MLIPCalculator``, ``build`` and ``load_model`` are loaded at first use, so that ``import mlip`` costs next to nothing and
imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlip.calculator import MLIPCalculator
    from mlip.checkpoint import load_model
    from mlip.models import build

__version__ = "0.1.0"
__all__ = ["MLIPCalculator", "__version__", "build", "load_model"]


def __getattr__(name: str) -> Any:
    if name == "MLIPCalculator":
        from mlip.calculator import MLIPCalculator

        return MLIPCalculator
    if name == "build":
        from mlip.models import build

        return build
    if name == "load_model":
        from mlip.checkpoint import load_model

        return load_model
    raise AttributeError(f"module 'mlip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
