"""The one place that knows how exact each law has to hold.

Energies in eV per atom, forces in eV/Angstrom, stress in eV/Angstrom^3, for models whose forces are of order 1 eV/Angstrom.
Density coefficients relative to the largest of the structure, electron counts relative to the number of electrons.
"""

from __future__ import annotations

# law -> (float64, float32)
TOLERANCES: dict[str, tuple[float, float]] = {
    "rotation": (1e-9, 2e-5),
    "reflection": (1e-9, 2e-5),
    "translation": (1e-9, 2e-5),
    "permutation": (1e-9, 2e-5),
    "batch_equals_single": (1e-9, 2e-5),
    "image_shift": (1e-9, 2e-5),
    "size_extensivity": (1e-9, 2e-5),
    "finite_difference_forces": (1e-6, 5e-3),
    "finite_difference_stress": (1e-6, 5e-3),
    "smooth_at_cutoff": (1e-6, 1e-4),
    "isolated_atom": (1e-9, 2e-5),
    "density_rotation": (1e-9, 2e-5),
    "density_reflection": (1e-9, 2e-5),
    "density_translation": (1e-9, 2e-5),
    "density_permutation": (1e-9, 2e-5),
    "density_batch_equals_single": (1e-9, 2e-5),
    "density_image_shift": (1e-9, 2e-5),
    "density_size_extensivity": (1e-9, 2e-5),
    "density_locality": (1e-9, 2e-5),
    "density_electron_count": (1e-12, 1e-5),
    "density_smooth_at_cutoff": (1e-6, 1e-4),
    "density_isolated_atom": (1e-9, 2e-5),
    # Both types are compared, whatever the model's own.
    "density_precision": (1e-5, 1e-5),
    # A fast path against the plain one, relative to the largest entry.
    "fast_path": (1e-12, 2e-6),
    # The recursion for spherical harmonics against e3nn's polynomials.
    "spherical_harmonics": (1e-12, 2e-6),
}

# Relative equivariance error of silu GridMix (RMS over outputs) for l_max 1 to 3, by oversampling: about 1.5 times the
# largest measured; tests/nn/test_grid.py measures and bounds it.
GRID_EQUIVARIANCE: dict[float, float] = {1.0: 1.1e-1, 2.0: 1.2e-2, 3.0: 2.5e-3}


def tolerance(law: str, dtype: str) -> float:
    """Tolerance of ``law`` for ``dtype`` ``float64`` or ``float32``."""
    double, single = TOLERANCES[law]
    return double if "64" in str(dtype) else single


def grid_tolerance(oversampling: float) -> float:
    """Bound of the relative equivariance error of the silu grid mixing."""
    return GRID_EQUIVARIANCE[oversampling]
