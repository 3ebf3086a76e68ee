"""Index arithmetic for stacked spherical components: l occupies rows l^2 .. (l+1)^2."""

from __future__ import annotations


def num_components(l_max: int) -> int:
    """Number of real spherical components up to ``l_max``: (l_max + 1)^2."""
    return (l_max + 1) ** 2


def block(l: int) -> slice:
    """Rows of degree ``l`` in a stacked feature."""
    return slice(l * l, (l + 1) ** 2)
