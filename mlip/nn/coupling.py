"""Couplings of three degrees (Wigner 3j symbols) for real spherical harmonics, in e3nn's sign and order.

Computed here because importing e3nn takes longer than torch itself: it loads torch's compiler.
"""

from __future__ import annotations

from functools import lru_cache
from math import comb

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=256)
def wigner_3j(l1: int, l2: int, l3: int) -> Tensor:
    """The invariant tensor C of three degrees, ``[2 l1 + 1, 2 l2 + 1, 2 l3 + 1]`` in float64, of norm 1; not to be written to.

    C(l1, l2, l3)[a, b, c] x_a y_b transforms as degree l3 where x and y transform as l1 and l2. Source: Clebsch-Gordan
    coefficients by Racah's sum in binomials (Varshalovich et al., "Quantum theory of angular momentum", 8.2), taken to the real
    basis.

    Raises:
        ValueError: the degrees break the triangle rule.
    """
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"degrees {l1}, {l2}, {l3} cannot be coupled: |l1 - l2| <= l3 <= l1 + l2 is needed")
    standard = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    for m1 in range(-l1, l1 + 1):
        for m2 in range(max(-l2, -l3 - m1), min(l2, l3 - m1) + 1):
            standard[l1 + m1, l2 + m2, l3 + m1 + m2] = _clebsch_gordan(l1, m1, l2, m2, l3)
    real = np.einsum("mnk,ma,nb,kc->abc", standard, _to_real(l1), _to_real(l2), _to_real(l3).conj()).real
    return torch.from_numpy(real / np.linalg.norm(real))


def _clebsch_gordan(l1: int, m1: int, l2: int, m2: int, l3: int) -> float:
    """<l1 m1 l2 m2 | l3 m1+m2> but for a positive factor that depends on the degrees alone."""
    a, b, c = l1 + l2 - l3, l1 - l2 + l3, l2 - l1 + l3
    first, last = max(0, l1 - m1 - b, l2 + m2 - c), min(a, l1 - m1, l2 + m2)
    total = sum((-1) ** k * comb(a, k) * comb(b, l1 - m1 - k) * comb(c, l2 + m2 - k) for k in range(first, last + 1))
    return total / (comb(2 * l1, l1 - m1) * comb(2 * l2, l2 - m2) * comb(2 * l3, l3 - m1 - m2)) ** 0.5


def _to_real(l: int) -> np.ndarray:
    """Columns: e3nn's real harmonics of degree ``l`` in terms of the complex ones with m = -l .. l (Condon-Shortley phase)."""
    change = np.zeros((2 * l + 1, 2 * l + 1), dtype=complex)
    change[l, l] = 1
    for m in range(1, l + 1):
        change[l - m, l + m], change[l + m, l + m] = 0.5**0.5, (-1) ** m * 0.5**0.5
        change[l - m, l - m], change[l + m, l - m] = -1j * 0.5**0.5, 1j * (-1) ** m * 0.5**0.5
    return (-1j) ** l * change
