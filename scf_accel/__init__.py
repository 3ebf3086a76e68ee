"""SCF acceleration for PySCF: labels, density fitting, predicted initial guesses, the multilevel solver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scf_accel.gradient import nuclear_gradient
    from scf_accel.multilevel import accelerate
    from scf_accel.warmstart import guess_density_matrix, predict_density, warm_start

__all__ = ["accelerate", "guess_density_matrix", "nuclear_gradient", "predict_density", "warm_start"]


def __getattr__(name: str) -> Any:
    """Import PySCF only when a function is asked for."""
    if name == "accelerate":
        from scf_accel.multilevel import accelerate

        return accelerate
    if name == "nuclear_gradient":
        from scf_accel.gradient import nuclear_gradient

        return nuclear_gradient
    if name in ("guess_density_matrix", "predict_density", "warm_start"):
        from scf_accel import warmstart

        return getattr(warmstart, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
