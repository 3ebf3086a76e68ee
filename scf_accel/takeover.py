"""What the mixins of this package share: making an object out of the user's without sharing what ``reset`` changes."""

from __future__ import annotations

from typing import Any

from pyscf import lib

PARTS = ("grids", "nlcgrids", "with_df", "with_solvent", "with_x2c")


def take_over(new: Any, mf: Any) -> None:
    """Give ``new`` the attributes of ``mf``; parts that ``reset()`` and ``build()`` of one object change are copied."""
    new.__dict__.update(mf.__dict__)
    new.scf_summary = {}
    for name in PARTS:
        if isinstance(new.__dict__.get(name), lib.StreamObject):
            new.__dict__[name] = new.__dict__[name].copy()
