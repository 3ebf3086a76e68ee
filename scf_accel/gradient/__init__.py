"""Nuclear gradients of Kohn-Sham energies: PySCF's numbers to rounding, at a fraction of its time."""

from scf_accel.gradient.plugin import nuclear_gradient

__all__ = ["nuclear_gradient"]
