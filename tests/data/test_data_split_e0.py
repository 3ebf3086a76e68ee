"""Splits are reproducible and keep groups whole; reference energies solve what the compositions determine."""

import logging

import numpy as np
import pytest

from mlip.data.e0 import fit_e0, isolated_atom_energies
from mlip.data.frame import Frame, FrameSubset
from mlip.data.split import split_digest, split_frames, split_indices
from mlip.errors import DataError

E0 = {1: -13.6, 6: -1030.0, 8: -2040.0}


def molecule(*numbers, energy=None, **fields):
    numbers = np.array(numbers)
    total = sum(E0[z] for z in numbers.tolist()) if energy is None else energy
    return Frame(numbers, np.zeros((len(numbers), 3)), energy=total, **fields)


@pytest.mark.parametrize(("count", "fraction", "held"), [(100, 0.1, 10), (7, 0.2, 1), (2, 0.9, 1), (1000, 0.25, 250)])
def test_split_sizes(count, fraction, held):
    train, valid = split_indices(count, fraction, seed=4)
    assert abs(len(valid) - held) <= 1 and len(train) >= 1
    assert sorted([*train, *valid]) == list(range(count))
    again = split_indices(count, fraction, seed=4)
    assert (again[1] == valid).all()


def test_other_seed_other_split():
    assert (split_indices(100, 0.2, seed=1)[1] != split_indices(100, 0.2, seed=2)[1]).any()


def test_groups_stay_together():
    rng = np.random.default_rng(0)
    frames = [molecule(1, extras={"molecule": f"m{rng.integers(40)}"}) for _ in range(400)]
    train, valid = split_frames(frames, 0.2, seed=1, by="molecule")
    names = [{frame.extras["molecule"] for frame in part} for part in (train, valid)]
    assert not names[0] & names[1] and len(train) + len(valid) == 400
    assert 50 < len(valid) < 110
    with pytest.raises(DataError, match="scaffold"):
        split_frames(frames, 0.2, by="scaffold")


def held_out(names, fraction, seed=0):
    return {names[k] for k in split_indices(len(names), fraction, seed, names)[1]}


def test_a_set_that_grows_keeps_its_split():
    names = [f"m{k // 2}" for k in range(800)]
    few = held_out(names[:600], 0.1)
    many = held_out(names, 0.1)
    assert len(few) == 30 and len(many) == 40
    old = set(names[:600])
    assert len(few ^ (many & old)) <= 6  # only at the border
    assert held_out(names[::-1], 0.1) == many and held_out(names, 0.1, seed=1) != many
    assert many < held_out(names, 0.15) and few < held_out(names, 0.2)


def test_the_digest_tells_what_is_held_out():
    frames = [molecule(1, id=str(k)) for k in range(20)]
    rest, test = split_frames(frames, 0.2, seed=1)
    _, valid = split_frames(rest, 0.2, seed=1)
    digest = split_digest(test, valid)
    assert digest == split_digest(FrameSubset(frames, test.indices), FrameSubset(frames, rest.indices[valid.indices]))
    others = split_digest(valid, test), split_digest(test), split_digest(test, FrameSubset(frames, valid.indices[:-1]))
    assert digest not in others and len({digest, *others}) == 4


@pytest.mark.parametrize(("count", "fraction"), [(10, 0.0), (10, 1.0), (1, 0.5)])
def test_impossible_splits(count, fraction):
    with pytest.raises(DataError):
        split_indices(count, fraction)


def test_subset_of_subset():
    frames = [molecule(1, id=str(k)) for k in range(10)]
    subset = FrameSubset(frames, [7, 5, 3])
    assert subset[1].id == "5" and [frame.id for frame in subset[1:]] == ["5", "3"]


def test_fit_recovers_reference_energies(caplog):
    frames = [molecule(1, 1), molecule(6, 1, 1, 1, 1), molecule(8, 1, 1), molecule(6, 8), molecule(1, energy=None)]
    frames.append(Frame(np.array([8, 8]), np.zeros((2, 3))))
    with caplog.at_level(logging.WARNING):
        found, rank = fit_e0(frames)
    assert rank == 3 and not caplog.records
    assert found == pytest.approx(E0)


def test_rank_deficiency_is_said_out_loud(caplog):
    frames = [molecule(6, 8, 1, 1)] * 5
    with caplog.at_level(logging.WARNING):
        found, rank = fit_e0(frames, [1, 6, 8])
    assert rank == 1 and "not determined: 3 elements (H C O)" in caplog.text
    assert 2 * found[1] + found[6] + found[8] == pytest.approx(frames[0].energy)


def test_fit_refuses_what_it_cannot_do():
    with pytest.raises(DataError, match="O"):
        fit_e0([molecule(8, 1)], [1])
    with pytest.raises(DataError, match="no frame has an energy"):
        fit_e0([Frame(np.array([1]), np.zeros((1, 3)))])


def test_isolated_atoms():
    """Charged atoms, atoms of a crystal and molecules do not count; of several energies the lowest does."""
    box = {"pbc": np.ones(3, bool)}
    frames = [
        molecule(1), molecule(1, energy=-13.0), molecule(8, cell=np.eye(3) * 12, **box), molecule(1, 1),
        molecule(6, cell=np.eye(3) * 3, **box), molecule(6, energy=-1.0, charge=1),
    ]  # fmt: skip
    assert isolated_atom_energies(frames) == {1: -13.6, 8: -2040.0}
