"""SCF acceleration for PySCF: labels, density fitting, the multilevel solver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scf_accel.multilevel import accelerate

__all__ = ["accelerate"]


def __getattr__(name: str) -> Any:
    """Import PySCF only when the solver is asked for."""
    if name == "accelerate":
        from scf_accel.multilevel import accelerate

        return accelerate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
