"""Laws of the reused neighbour list: always the pairs of a fresh list, in the same order, and rarely searched anew."""

from __future__ import annotations

import numpy as np
import pytest

from mlip.data.neighbors import neighbor_list
from mlip.data.skin import SkinNeighborList
from mlip.errors import StructureError

CUTOFF = 3.0


def pairs(index, shifts):
    return sorted(map(tuple, np.vstack([index, shifts.T]).T.tolist()))


def walk(rng, steps, pbc, cell_noise, move):
    """Positions and cells of a random walk, with drift, shear and stretch."""
    cell = np.array([[6.0, 0, 0], [1.5, 5.5, 0], [-0.7, 0.9, 6.5]])
    positions = rng.uniform(0, 6, (14, 3))
    for _ in range(steps):
        positions = positions + move * rng.standard_normal((14, 3)) + 0.05
        if cell_noise:
            strain = np.eye(3) + cell_noise * rng.standard_normal((3, 3))
            cell, positions = cell @ strain, positions @ strain
        yield positions, cell, np.array(pbc)


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (False, False, False)])
@pytest.mark.parametrize("cell_noise", [0.0, 0.004])
def test_same_pairs_as_a_fresh_list_along_a_walk(pbc, cell_noise):
    rng = np.random.default_rng(3)
    reused = SkinNeighborList(CUTOFF, skin=0.8)
    for positions, cell, periodic in walk(rng, 120, pbc, cell_noise, 0.04):
        edges = reused.update(positions, cell, periodic)
        assert pairs(edges.edge_index, edges.shifts) == pairs(*neighbor_list(positions, cell, periodic, CUTOFF))
        fresh = SkinNeighborList(CUTOFF, skin=0.0).update(positions, cell, periodic)
        np.testing.assert_array_equal(edges.edge_index, fresh.edge_index)
        np.testing.assert_array_equal(edges.shifts, fresh.shifts)
        assert (np.diff(edges.edge_index[1]) >= 0).all()
    if not cell_noise:
        assert reused.builds < 50, "the list must be reused, drift notwithstanding"
    if all(pbc):
        assert reused.builds < 90, "small strains must not force a new search"


def test_a_fast_atom_and_a_squeezed_cell_are_noticed():
    positions = np.array([[0.0, 0, 0], [5.0, 0, 0], [0, 4.0, 0]])
    cell, pbc = np.eye(3) * 12.0, np.ones(3, dtype=bool)
    reused = SkinNeighborList(CUTOFF, skin=1.0)
    assert reused.update(positions, cell, pbc).edge_index.shape[1] == 0
    moved = positions + np.array([[0, 0, 0], [-2.5, 0, 0], [0, 0, 0]])
    assert reused.update(moved, cell, pbc).edge_index.shape[1] == 2
    squeezed = reused.update(positions * 0.7, cell * 0.7, pbc)
    assert squeezed.edge_index.shape[1] == 2


def test_too_small_a_rebuild_criterion_would_be_caught(monkeypatch):
    """The walk of the first test fails when the list is never searched anew: the test can fail."""
    never = lambda self, *args: self._positions is not None  # noqa: E731
    monkeypatch.setattr(SkinNeighborList, "_still_complete", never)
    with pytest.raises(AssertionError):
        test_same_pairs_as_a_fresh_list_along_a_walk((True, True, True), 0.0)


def test_impossible_settings_are_refused():
    with pytest.raises(StructureError, match="cutoff"):
        SkinNeighborList(0.0)
