"""Density labels in graphs and batches."""

import numpy as np
import pytest
import torch

from mlip.data.density import DensityBasis, Shell
from mlip.data.frame import Frame
from mlip.data.graph import GraphDataset, collate, density_pointer, frame_to_graph, graph_dict
from mlip.errors import DataError

BASIS = DensityBasis(
    "toy", {1: (Shell(0, (1.0,), (1.0,)),), 8: (Shell(0, (2.0,), (1.0,)), Shell(1, (1.0,), (1.0,)), Shell(2, (1.0,), (1.0,)))}
)


def labelled(numbers, seed=0):
    rng = np.random.default_rng(seed)
    numbers = np.array(numbers)
    coefficients = rng.normal(size=BASIS.offsets(numbers)[-1])
    return Frame(numbers, 3 * rng.random((len(numbers), 3)), density_coefficients=coefficients, id="water")


def test_labels_are_there_where_asked_for():
    frame = labelled([8, 1, 1])
    assert "density_coefficients" not in graph_dict(frame_to_graph(frame, 4.0))
    graph = graph_dict(frame_to_graph(frame, 4.0, density_basis=BASIS))
    assert graph["density_coefficients"].dtype == torch.float32
    np.testing.assert_allclose(graph["density_coefficients"], frame.density_coefficients, rtol=1e-7)
    assert graph["density_ptr"].tolist() == [0, 11]


def test_a_batch_has_the_labels_side_by_side_and_empty_ranges_where_there_are_none():
    frames = [labelled([8, 1]), Frame(np.array([1, 1]), np.eye(3)[:2]), labelled([1], 1), labelled([8], 2)]
    graph = graph_dict(collate([GraphDataset(frames, 4.0, density_basis=BASIS)[k] for k in range(4)]))
    assert graph["density_ptr"].tolist() == [0, 10, 10, 11, 20]
    for k, frame in enumerate(frames):
        part = graph["density_coefficients"][graph["density_ptr"][k] : graph["density_ptr"][k + 1]]
        np.testing.assert_allclose(part, [] if frame.density_coefficients is None else frame.density_coefficients, rtol=1e-6)


def test_a_filler_has_no_density():
    dataset = GraphDataset([labelled([8, 1])], 4.0, density_basis=BASIS)
    filler = dataset[-1]
    assert len(filler.density_coefficients) == 0 and filler.density_size.tolist() == [0]
    assert dataset[0].density_size.tolist() == [10], "the cached graph keeps its labels"


def test_coefficients_of_another_basis_are_named():
    frame = labelled([8, 1])
    frame.density_coefficients = frame.density_coefficients[:-1]
    with pytest.raises(DataError, match=r"water: 9 density coefficients, toy has 10"):
        frame_to_graph(frame, 4.0, density_basis=BASIS)


def test_offsets_start_at_zero():
    assert density_pointer(torch.tensor([3, 0, 2])).tolist() == [0, 3, 3, 5]
