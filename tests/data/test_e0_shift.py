"""Corrections of E0: constants are recovered, what the frames say nothing about stays, the order of elements is of no matter."""

from __future__ import annotations

import numpy as np
import pytest

from mlip.data.e0shift import counts_of, fit_shift, labelled_over_compositions, rank_of
from mlip.data.frame import Frame

RNG = np.random.default_rng(0)
COUNTS = RNG.integers(0, 6, (40, 4)).astype(float)
SHIFT = np.array([0.3, -900.0, 7.0, 0.02])
OLD = np.zeros(4, dtype=bool)
NEW = np.array([False, True, False, False])


@pytest.mark.parametrize("new", [OLD, NEW])
def test_a_constant_an_element_is_recovered(new):
    assert rank_of(COUNTS) == 4
    np.testing.assert_allclose(fit_shift(COUNTS, COUNTS @ SHIFT, new, True), SHIFT, atol=1e-9)


@pytest.mark.parametrize("frames", [1, 50])
def test_of_one_composition_the_sum_is_recovered_with_least_norm(frames):
    counts = np.tile([8.0, 5.0, 2.0], (frames, 1))
    shift = fit_shift(counts, np.full(frames, -3.0), OLD[:3], True)
    assert rank_of(counts) == 1
    if frames > 1:  # no scatter, so no penalty
        np.testing.assert_allclose(shift, -3.0 * counts[0] / (counts[0] @ counts[0]), rtol=1e-12)
    else:  # one frame shows no scatter: that of a model is assumed
        assert shift @ counts[0] == pytest.approx(-3.0, rel=0.02)


def test_a_new_element_takes_what_one_composition_leaves_open():
    counts = np.tile([8.0, 5.0, 1.0], (10, 1))
    shift = fit_shift(counts, counts @ np.array([0.0, 0.0, -70045.0]), np.array([False, False, True]), True)
    assert shift == pytest.approx([0.0, 0.0, -70045.0])


def test_what_is_predicted_for_new_elements_does_not_move_the_known_ones():
    """Frames with the new element (the second) are off by eV in every which way, the others by a constant an element."""
    shift = np.array([0.3, 5.0, -0.2, 0.1])
    missing = COUNTS @ shift + np.where(COUNTS[:, 1] > 0, 2.0 * RNG.normal(size=40), 0.0)
    known = ~NEW
    for known_too in (True, False):
        found = fit_shift(COUNTS, missing, NEW, known_too)
        np.testing.assert_allclose(found[known], shift[known], atol=1e-9)
        assert found[1] == pytest.approx(5.0, abs=0.5)
    found = fit_shift(COUNTS[COUNTS[:, 1] > 0], missing[COUNTS[:, 1] > 0], NEW, False)
    assert (found[known] == 0.0).all() and found[1] != 0.0


@pytest.mark.parametrize("errors", ["of frames", "of compositions"])
def test_noise_moves_a_known_element_little_where_the_frames_say_little(errors):
    """One frame in a hundred has another composition; or three compositions of two elements are off by errors of their own."""
    if errors == "of frames":
        counts = np.vstack([np.tile([8.0, 4.0], (100, 1)), [[9.0, 4.0]]])
        missing = 0.05 * RNG.normal(size=101)
        missing[-1] = 0.05
    else:
        counts = np.repeat([[8.0, 4.0], [9.0, 4.0], [8.0, 5.0]], 30, axis=0)
        missing = np.repeat([0.1, -0.2, -0.1], 30)
    plain = np.linalg.lstsq(counts, missing, rcond=None)[0]
    assert np.abs(fit_shift(counts, missing, OLD[:2], True)).max() < 0.6 * np.abs(plain).max()


@pytest.mark.parametrize("new", [OLD, NEW])
def test_the_order_of_elements_is_of_no_matter(new):
    missing = COUNTS @ SHIFT + RNG.normal(size=40)
    order = [2, 0, 3, 1]
    one, two = fit_shift(COUNTS[:, order], missing, new[order], True), fit_shift(COUNTS, missing, new, True)
    np.testing.assert_allclose(one, two[order], atol=1e-8)


def test_frames_are_taken_from_every_composition_and_only_with_an_energy():
    def frame(numbers, energy):
        return Frame(np.array(numbers), np.zeros((len(numbers), 3)), energy=energy)

    frames = [frame([1, 1], 1.0) for _ in range(20)]
    frames += [frame([1, 6], 2.0), frame([6, 1], 2.0), frame([8], None), frame([8, 1], np.nan)]
    chosen = labelled_over_compositions(frames, 4)
    assert len(chosen) == 4 and chosen == sorted(chosen) and {20, 21} <= set(chosen)
    assert len(labelled_over_compositions(frames, 100)) == 22
    np.testing.assert_array_equal(counts_of(frames[20:22], [6, 1]), [[1, 1], [1, 1]])
