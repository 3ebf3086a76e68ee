"""Blocks spread over threads: results in order, and BLAS as it was, whatever becomes of the one who asked for them."""

from __future__ import annotations

import numpy as np
import pytest
from pyscf import dft, gto, lib

from scf_accel import gridorbitals
from scf_accel.threads import _libraries, each, serial


def blas_threads() -> int:
    """What the loaded BLAS libraries may use now."""
    return max(blas.num_threads for blas in _libraries().lib_controllers if blas.user_api == "blas")


@pytest.fixture
def two_blas_threads():
    with _libraries().limit(limits=2, user_api="blas"):
        if blas_threads() != 2:
            pytest.skip("this BLAS has no threads")
        yield


@pytest.mark.parametrize("threads", [1, 2])
def test_results_are_in_order_and_made_with_one_blas_thread(threads, two_blas_threads):
    assert list(each(lambda item: (item, blas_threads()), range(20), threads)) == [(item, 1) for item in range(20)]
    assert blas_threads() == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_work_that_fails_leaves_blas_as_it_was(threads, two_blas_threads):
    with pytest.raises(ZeroDivisionError):
        list(each(lambda item: 1 // (item - 3), range(20), threads))
    assert blas_threads() == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_a_consumer_that_fails_leaves_blas_as_it_was(threads, two_blas_threads, monkeypatch):
    """Its generator may live on, as here in a list."""
    mol, kept = gto.M(atom="He 0 0 0", basis="6-31g", verbose=0), []
    monkeypatch.setattr(gridorbitals, "each", lambda *items: kept.append(each(*items)) or kept[-1])
    monkeypatch.setattr(gridorbitals, "matrix_of", lambda *_: np.zeros((7, 7)))
    with lib.with_omp_threads(threads):
        orbitals = gridorbitals.GridOrbitals(mol, dft.Grids(mol).set(level=0).build(with_non0tab=True), "LDA")
        with pytest.raises(ValueError, match="broadcast"):
            orbitals.matrix(np.zeros((1, 1, orbitals.points)))
    assert len(kept) == 1 and blas_threads() == 2


def test_nested_limits_end_with_the_last(two_blas_threads):
    with serial():
        list(each(lambda item: item, range(3), 1))
        assert blas_threads() == 1
    assert blas_threads() == 2
