"""Graphs and batches: the tensors of the contract, and every frame exactly once, whatever the number of ranks."""

import logging
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mlip.data.batching import BudgetBatchSampler
from mlip.data.frame import Frame
from mlip.data.graph import GraphDataset, collate, frame_to_graph, graph_dict
from mlip.data.hdf5 import HDF5Frames, write_frames
from mlip.errors import ConfigError


def make_frames(count=12, seed=0):
    rng = np.random.default_rng(seed)
    frames = []
    for k in range(count):
        n = int(rng.integers(1, 9))
        cell, periodic = np.diag(rng.uniform(3, 6, 3)), k % 3 != 0
        frame = Frame(rng.integers(1, 9, n), rng.random((n, 3)) @ cell, cell, np.array([periodic] * 3), charge=k % 2)
        frame.energy = None if k == 1 else float(k)
        frame.forces = None if k == 2 else rng.normal(size=(n, 3))
        frame.stress = None if k == 4 else rng.normal(size=6)
        frames.append(frame)
    return frames


def test_graph_holds_the_contract():
    frame = make_frames()[5]
    graph = frame_to_graph(frame, 4.0, index=5)
    n, e = len(frame), graph.edge_index.shape[1]
    double, whole = torch.float64, torch.int64
    expected = {
        "atomic_numbers": ((n,), whole), "positions": ((n, 3), double), "cell": ((1, 3, 3), double),
        "pbc": ((1, 3), torch.bool), "edge_index": ((2, e), whole), "edge_shift": ((e, 3), double),
        "charge": ((1,), whole), "spin": ((1,), whole), "energy": ((1,), double), "forces": ((n, 3), double),
        "stress": ((1, 6), double), "frame_index": ((1,), whole),
    }  # fmt: skip
    assert {key: (tuple(graph[key].shape), graph[key].dtype) for key in expected} == expected
    assert graph.num_nodes == n and e > 0
    sender, receiver = graph.edge_index
    vectors = graph.positions[sender] - graph.positions[receiver] + graph.edge_shift @ graph.cell[0]
    assert (vectors.norm(dim=1) <= 4.0).all()


def test_missing_labels_are_nan():
    frames = make_frames()
    assert frame_to_graph(frames[1], 3.0).energy.isnan().all()
    assert frame_to_graph(frames[2], 3.0).forces.isnan().all()
    assert frame_to_graph(frames[4], 3.0).stress.isnan().all()
    assert frame_to_graph(frames[3], 3.0).stress.isnan().all(), "a frame that is not periodic has no stress"
    assert not frame_to_graph(frames[5], 3.0).stress.isnan().any()


def test_a_batch_is_its_graphs_side_by_side():
    dataset = GraphDataset(make_frames(), 4.0)
    graphs = [dataset[k] for k in (7, 2, 5)]
    batch = graph_dict(collate(graphs))
    assert batch["num_graphs"] == 3 and batch["frame_index"].tolist() == [7, 2, 5]
    start, edges = 0, 0
    for k, graph in enumerate(graphs):
        n, e = graph.num_nodes, graph.edge_index.shape[1]
        assert (batch["batch"][start : start + n] == k).all()
        torch.testing.assert_close(batch["edge_index"][:, edges : edges + e], graph.edge_index + start)
        torch.testing.assert_close(batch["positions"][start : start + n], graph.positions)
        torch.testing.assert_close(batch["cell"][k], graph.cell[0])
        start, edges = start + n, edges + e
    assert (batch["edge_index"][1].diff() >= 0).all()
    single = graph_dict(graphs[0])
    assert single["num_graphs"] == 1 and not single["batch"].any()


def test_cache_is_transparent_and_bounded():
    frames = make_frames()
    cached, plain = GraphDataset(frames, 4.0), GraphDataset(frames, 4.0, cache_bytes=0)
    small = GraphDataset(frames, 4.0, cache_bytes=4000)
    np.testing.assert_array_equal(cached.num_edges, [plain[k].edge_index.shape[1] for k in range(len(frames))])
    assert cached[3] is cached[3] and plain[3] is not plain[3]
    small.num_edges  # noqa: B018
    assert 0 < len(small._cache) < len(frames)
    assert cached.avg_num_neighbors == pytest.approx(cached.num_edges.sum() / cached.num_atoms.sum())


def test_filler_has_structure_but_no_labels():
    dataset = GraphDataset(make_frames(), 4.0)
    filler = dataset[-1 - 5]
    torch.testing.assert_close(filler.positions, dataset[5].positions)
    assert all(filler[key].isnan().all() for key in ("energy", "forces", "stress"))
    assert not dataset[5].energy.isnan().any(), "the cached graph keeps its labels"


def test_workers_read_an_hdf5_file(tmp_path):
    """A lazy file, opened in the parent first, serves forked workers and pickles."""
    frames = make_frames(30)
    write_frames(tmp_path / "a.h5", frames)
    dataset = GraphDataset(HDF5Frames(tmp_path / "a.h5"), 4.0, cache_bytes=0)
    sampler = BudgetBatchSampler(dataset.num_atoms, dataset.num_edges, max_atoms=30, seed=1)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=2, collate_fn=collate)
    seen = {}
    for batch in loader:
        for index, energy in zip(batch.frame_index.tolist(), batch.energy.tolist(), strict=True):
            seen[index] = energy
    assert sorted(seen) == list(range(30))
    assert all(frames[k].energy is None or seen[k] == frames[k].energy for k in seen)
    assert len(pickle.loads(pickle.dumps(dataset))) == 30


SIZES = np.random.default_rng(0).integers(1, 40, 200)
EDGES = SIZES * 17


@pytest.mark.parametrize("limits", [{"max_atoms": 100}, {"max_edges": 900}, {"max_atoms": 120, "max_edges": 1500},
                                    {"batch_size": 7}, {"batch_size": 7, "max_atoms": 100}])  # fmt: skip
@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_cover_everything_once_within_the_budget(limits, shuffle):
    sampler = BudgetBatchSampler(SIZES, EDGES, shuffle=shuffle, seed=3, **limits)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        order = [index for batch in batches for index in batch]
        assert sorted(order) == list(range(200)) and (order == list(range(200))) != shuffle
        for batch in batches:
            assert SIZES[batch].sum() <= limits.get("max_atoms", np.inf)
            assert EDGES[batch].sum() <= limits.get("max_edges", np.inf)
            assert len(batch) <= limits.get("batch_size", np.inf)


def test_batches_follow_from_seed_and_epoch():
    def batches(seed, epoch, start=0):
        sampler = BudgetBatchSampler(SIZES, max_atoms=100, seed=seed)
        sampler.set_epoch(epoch, start)
        return list(sampler)

    assert batches(1, 4) == batches(1, 4)
    assert batches(1, 4) != batches(1, 5) and batches(1, 4) != batches(2, 4)
    assert batches(1, 4)[3:] == batches(1, 4, start=3)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("limits", [{"max_atoms": 60}, {"batch_size": 4}])
def test_ranks_together_see_the_single_process_batch(world_size, limits):
    single = BudgetBatchSampler(SIZES, EDGES, seed=5, **limits)
    limits = {**limits, "world_size": world_size}
    ranks = [BudgetBatchSampler(SIZES, EDGES, seed=5, rank=rank, **limits) for rank in range(world_size)]
    for sampler in (single, *ranks):
        sampler.set_epoch(2)
    for batch, *parts in zip(single, *ranks, strict=True):
        assert all(parts), "no rank is without work"
        assert sorted(batch) == sorted(index for part in parts for index in part if index >= 0)
        loads = [SIZES[[i for i in part if i >= 0]].sum() for part in parts]
        assert max(loads) - min(loads) <= SIZES[batch].max(), "balanced"


def test_an_oversized_frame_goes_alone_with_one_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="mlip.data.batching"):
        sampler = BudgetBatchSampler([5, 500, 5, 5], max_atoms=100, shuffle=False)
        assert list(sampler) == list(sampler) == [[0], [1], [2, 3]]
    assert len(caplog.records) == 1 and "1 frames exceed max_atoms" in caplog.text


def test_drop_last_and_bad_limits():
    assert [len(b) for b in BudgetBatchSampler(SIZES, batch_size=60, drop_last=True)] == [60, 60, 60]
    for kwargs, text in (({}, "limit"), ({"max_atoms": 0}, "at least 1"), ({"max_edges": 5}, "edges"),
                         ({"batch_size": 1, "rank": 2, "world_size": 2}, "rank")):  # fmt: skip
        with pytest.raises(ConfigError, match=text):
            BudgetBatchSampler([1, 2], **kwargs)
