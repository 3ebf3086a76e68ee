"""Neighbour lists against ASE's, over random cells, boundary conditions and cutoffs."""

import numpy as np
import pytest
from ase.geometry import complete_cell
from ase.neighborlist import primitive_neighbor_list

from mlip.data.neighbors import neighbor_list
from mlip.errors import StructureError


def ase_edges(positions, cell, pbc, cutoff):
    i, j, shifts = primitive_neighbor_list("ijS", pbc, complete_cell(cell), positions, cutoff)
    return sorted(map(tuple, np.column_stack([j, i, shifts]).tolist()))


def our_edges(positions, cell, pbc, cutoff):
    edge_index, shifts = neighbor_list(positions, cell, pbc, cutoff)
    assert edge_index.dtype == shifts.dtype == np.int64
    assert (np.diff(edge_index[1]) >= 0).all(), "sorted by receiver"
    lengths = np.linalg.norm(positions[edge_index[0]] - positions[edge_index[1]] + shifts @ cell, axis=1)
    assert (lengths <= cutoff).all() and (lengths > 0).all()
    assert not shifts[:, ~np.asarray(pbc)].any()
    return sorted(map(tuple, np.column_stack([*edge_index, shifts]).tolist()))


@pytest.mark.parametrize("seed", range(60))
def test_same_edges_as_ase(seed):
    """Mixed pbc, skewed cells, cells smaller than the cutoff, one atom, atoms outside the cell."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 12))
    pbc = rng.random(3) < 0.5
    cell = np.diag(rng.uniform(1.5, 8, 3)) + rng.normal(size=(3, 3)) * rng.choice([0, 0.5, 1.5])
    positions = rng.uniform(-1.5, 2.5, (count, 3)) @ cell
    if abs(np.linalg.det(cell)) < 4:
        cell = np.diag(np.abs(np.diag(cell)) + 1.0)
    if seed % 3 == 0:
        cell[~pbc] = 0.0  # a missing vector in an open direction
    cutoff = rng.uniform(1, 6)
    assert our_edges(positions, cell, pbc, cutoff) == ase_edges(positions, cell, pbc, cutoff)


def test_no_cell_and_one_atom():
    zero = np.zeros((3, 3))
    assert neighbor_list(np.zeros((1, 3)), zero, [False] * 3, 5.0)[0].shape == (2, 0)
    pair = np.array([[0, 0, 0], [0, 0, 1.5]])
    assert our_edges(pair, zero, np.zeros(3, bool), 2.0) == [(0, 1, 0, 0, 0), (1, 0, 0, 0, 0)]
    chain = our_edges(np.zeros((1, 3)), np.diag([2.0, 0, 0]), np.array([True, False, False]), 4.5)
    assert chain == [(0, 0, s, 0, 0) for s in (-2, -1, 1, 2)]


def test_whole_vectors_leave_the_edges_alone():
    """Moving atoms by lattice vectors changes the shifts only, not the vectors."""
    rng = np.random.default_rng(1)
    cell = np.diag([4.0, 5.0, 6.0]) + 0.7 * rng.normal(size=(3, 3))
    positions = rng.random((6, 3)) @ cell
    moved = positions + rng.integers(-3, 4, (6, 3)) @ cell

    def vectors(x):
        (sender, receiver), shifts = neighbor_list(x, cell, [True] * 3, 4.0)
        rows = np.column_stack([receiver, sender, np.round(x[sender] - x[receiver] + shifts @ cell, 8) + 0.0])
        return rows[np.lexsort(rows.T)]

    np.testing.assert_allclose(vectors(positions), vectors(moved), atol=1e-7)


@pytest.mark.parametrize("open_axes", [(0, 1, 2), (0, 1), (2,)])
def test_far_flung_atoms(open_axes):
    """An exploded structure is searched at once: clusters 10^5 Angstrom apart keep exactly their own edges."""
    rng = np.random.default_rng(3)
    pbc = np.array([axis not in open_axes for axis in range(3)])
    cell = np.diag([6.0, 7.0, 8.0]) * pbc
    cluster = rng.random((5, 3)) * 4
    far = [cluster + 1e5 * k * ~pbc * rng.permutation([1, -2, 3]) for k in range(4)]
    expected = len(our_edges(cluster, cell, pbc, 3.0))
    edges = our_edges(np.concatenate(far), cell, pbc, 3.0)
    assert len(edges) == 4 * expected and all(sender // 5 == receiver // 5 for sender, receiver, *_ in edges)


@pytest.mark.parametrize(
    ("positions", "cell", "pbc", "text"),
    [
        ([[0, 0, np.nan]], np.eye(3), [False] * 3, "not finite"),
        ([[0, 0, np.inf]], np.eye(3), [True] * 3, "not finite"),
        ([[0, 0, 0]], np.eye(3) * np.nan, [True] * 3, "not finite"),
        ([[0, 0, 0]], np.zeros((3, 3)), [True] * 3, "zero or parallel"),
        ([[0, 0, 0]], np.ones((3, 3)), [True, True, False], "zero or parallel"),
    ],
)
def test_impossible_structures_are_refused(positions, cell, pbc, text):
    with pytest.raises(StructureError, match=text):
        neighbor_list(np.array(positions, dtype=float), cell, pbc, 3.0)
