"""The one place that knows the layout of the project's data file: HDF5 with flat ragged arrays and offsets.

Schema (``N`` frames, ``A`` atoms, ``K`` density coefficients in all)::

    atomic_numbers[A]  positions[A,3]  atom_ptr[N+1]  cell[N,3,3]  pbc[N,3]  charge[N]  spin[N]  id[N]
    energy[N]  forces[A,3]  stress[N,6]  density_coefficients[K]  density_ptr[N+1]  and any further <extra>[N]

Atoms of frame ``i`` are the rows ``atom_ptr[i]:atom_ptr[i+1]``. A label that a frame lacks is NaN (density: an empty
range; an extra: NaN, the smallest int64, or an empty string), never 0. Units: eV and Angstrom, stated in
:data:`ROOT_ATTRIBUTES`. The root attribute ``density_basis`` says which functions the coefficients are of
(:meth:`mlip.data.density.DensityBasis.from_dict`), ``level_of_theory`` what made the labels.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

FORMAT = "mlip-frames"
FORMAT_VERSION = 1
ROOT_ATTRIBUTES: dict[str, Any] = {
    "format": FORMAT,
    "format_version": FORMAT_VERSION,
    "length_unit": "Angstrom",
    "energy_unit": "eV",
    "stress_convention": "eV/Angstrom^3, tension positive (ASE), Voigt xx yy zz yz xz xy",
}
SCHEMA: dict[str, tuple[str, tuple[int, ...]]] = {  # name: (what a row is, shape of a row)
    "atomic_numbers": ("atom", ()),
    "positions": ("atom", (3,)),
    "forces": ("atom", (3,)),
    "cell": ("frame", (3, 3)),
    "pbc": ("frame", (3,)),
    "charge": ("frame", ()),
    "spin": ("frame", ()),
    "energy": ("frame", ()),
    "stress": ("frame", (6,)),
    "id": ("frame", ()),
    "density_coefficients": ("coefficient", ()),
    "atom_ptr": ("pointer", ()),
    "density_ptr": ("pointer", ()),
}
REQUIRED = ("atomic_numbers", "positions", "atom_ptr")
MISSING_INT = np.iinfo(np.int64).min


_KINDS: dict[str, str] = {  # NumPy's dtype.kind; the default: numbers
    "atomic_numbers": "iu", "charge": "iu", "spin": "iu", "atom_ptr": "iu", "density_ptr": "iu", "pbc": "biu", "id": "OSU",
}  # fmt: skip


def holds(name: str, dtype: np.dtype) -> bool:
    """Whether values of ``dtype`` can stand in the dataset ``name``; an extra may be numbers or text."""
    return dtype.kind in _KINDS.get(name, "fiu" if name in SCHEMA else "fiubOSU")


def is_missing(value: Any) -> bool:
    """Whether a stored extra stands for "this frame has none"."""
    if isinstance(value, str):
        return value == ""
    if isinstance(value, np.integer):
        return int(value) == MISSING_INT
    return bool(np.isnan(value))


def encode_attribute(value: Any) -> Any:
    """A root attribute as HDF5 stores it: scalars and text as they are, anything else as JSON text."""
    return value if isinstance(value, (str, bool, int, float, np.generic)) else json.dumps(value)


def decode_attribute(value: Any) -> Any:
    """The inverse of :func:`encode_attribute`."""
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value.item() if isinstance(value, np.generic) else value
