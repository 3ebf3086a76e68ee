"""Couplings of three degrees against e3nn's."""

import pytest
import torch
from e3nn import o3

from mlip.nn.coupling import wigner_3j


def test_matches_e3nn_for_every_degree_that_a_model_can_have():
    triples = [(a, b, c) for a in range(5) for b in range(5) for c in range(abs(a - b), min(a + b, 4) + 1)]
    for triple in [*triples, (4, 2, 6), (4, 4, 6), (5, 1, 6)]:
        torch.testing.assert_close(wigner_3j(*triple), o3.wigner_3j(*triple, dtype=torch.float64), rtol=0, atol=1e-14)


def test_degrees_that_cannot_be_coupled():
    with pytest.raises(ValueError, match="1, 1, 3"):
        wigner_3j(1, 1, 3)
