"""Losses and errors against formulas written out by hand, with missing labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from training_toys import emt_structures

from mlip.config import LossSection, RunConfig
from mlip.data.graph import collate, frame_to_graph, graph_dict
from mlip.data.labels import AtomsReader
from mlip.training.evaluate import evaluate
from mlip.training.loader import evaluation_batches, merge_graphs
from mlip.training.losses import TERMS, label_differences, loss_sums, penalty, total_loss
from mlip.training.metrics import ErrorSums

NAN = float("nan")


def small_batch():
    """Two graphs of one and two atoms; the second lacks a force component, the first its stress."""
    graph = {
        "batch": torch.tensor([0, 1, 1]),
        "num_graphs": 2,
        "atomic_numbers": torch.tensor([1, 8, 1]),
        "energy": torch.tensor([1.0, 2.0], dtype=torch.float64),
        "forces": torch.tensor([[0.0, 0.0, 0.0], [1.0, NAN, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64),
        "stress": torch.tensor([[NAN] * 6, [0.1] * 6], dtype=torch.float64),
    }
    prediction = {
        "energy": torch.tensor([1.5, 1.0], dtype=torch.float64),
        "forces": torch.tensor([[0.1, 0.0, 0.0], [1.0, 5.0, 3.0], [0.0, 0.0, -0.4]], dtype=torch.float64),
        "stress": torch.tensor([[NAN] * 6, [0.1] * 5 + [0.4]], dtype=torch.float64),
    }
    return prediction, graph


@pytest.mark.parametrize("kind", ["l1", "l2", "huber"])
def test_penalties_by_hand(kind):
    delta, values = 0.5, [-2.0, -0.3, 0.0, 0.5, 1.0]
    by_hand = {
        "l1": lambda x: abs(x),
        "l2": lambda x: x * x,
        "huber": lambda x: 0.5 * x * x if abs(x) < delta else delta * (abs(x) - 0.5 * delta),
    }[kind]
    found = penalty(torch.tensor(values, dtype=torch.float64), kind, delta)
    assert found.tolist() == pytest.approx([by_hand(x) for x in values], abs=1e-15)
    if kind == "huber":
        reference = torch.nn.functional.huber_loss(torch.tensor(values), torch.zeros(5), delta=delta, reduction="none")
        assert torch.allclose(found.float(), reference)


def test_the_loss_is_the_weighted_mean_over_labels_that_exist():
    prediction, graph = small_batch()
    config = LossSection.model_validate(
        {part: {"weight": 1, "kind": kind} for part, kind in (("energy", "l1"), ("forces", "l2"), ("stress", "l1"))}
    )
    sums, counts = loss_sums(prediction, graph, config, TERMS[:3])
    assert counts.tolist() == [2, 8, 6, 0]
    weights = {"energy": 2.0, "forces": 3.0, "stress": 5.0}
    expected = 2 * (0.5 / 1 + 1.0 / 2) / 2 + 3 * (0.01 + 4.0 + 0.16) / 8 + 5 * 0.3 / 6
    assert float(total_loss(sums, counts, weights)) == pytest.approx(expected, abs=1e-14)


def test_energy_can_be_compared_in_total():
    prediction, graph = small_batch()
    assert label_differences(prediction, graph, "energy", per_atom=False).tolist() == [0.5, -1.0]
    assert label_differences(prediction, graph, "energy", per_atom=True).tolist() == [0.5, -0.5]


def test_a_term_that_is_not_active_needs_no_prediction():
    prediction, graph = small_batch()
    del prediction["stress"]
    assert set(loss_sums(prediction, graph, LossSection(), ("energy", "forces"))[0]) == {"energy", "forces"}


def test_a_weight_in_stage_two_alone_makes_a_term_active():
    def active(loss, stage):
        values = {"data": {"train": "x"}, "loss": loss, "training": {"max_epochs": 1, "stage_two": stage}}
        return RunConfig.model_validate(values).active_terms

    assert active({}, None) == active({}, {"stress": 0.0}) == ("energy", "forces")
    assert active({}, {"stress": 2.0}) == ("energy", "forces", "stress")
    assert active({"energy": {"weight": 0.0}}, {"stress": 1.0}) == ("forces", "stress")
    assert active({"energy": {"weight": 0.0}}, {"energy": 1.0}) == ("energy", "forces")
    assert active({}, {"forces": 0.0}) == ("energy", "forces")  # needed in the first part


def test_two_processes_average_to_one():
    """Gradients are averaged over processes: the mean of the two losses is the loss of the whole batch."""
    prediction, graph = small_batch()
    config = LossSection()
    terms = ("energy", "forces")
    whole, counts = loss_sums(prediction, graph, config, terms)
    weights = {"energy": 1.0, "forces": 1.0, "stress": 0.0}
    parts = []
    for index in (0, 1):
        rows = graph["batch"] == index
        part = {**{k: v[rows] for k, v in graph.items() if k in ("forces", "atomic_numbers")}, "num_graphs": 1}
        part |= {"batch": torch.zeros(int(rows.sum()), dtype=torch.int64), "energy": graph["energy"][[index]]}
        guess = {"energy": prediction["energy"][[index]], "forces": prediction["forces"][rows]}
        sums, _ = loss_sums(guess, part, config, terms)
        parts.append(total_loss(sums, counts, weights, world_size=2, reduce=lambda c: c))
    assert float(sum(parts)) / 2 == pytest.approx(float(total_loss(whole, counts, weights)), abs=1e-14)


def test_errors_against_numpy():
    rng = np.random.default_rng(0)
    sizes, numbers = [3, 2, 4], np.array([1, 8, 1, 6, 6, 8, 1, 1, 6])
    forces, energies = rng.normal(size=(9, 3)), rng.normal(size=3)
    forces[2] = NAN
    energies[1] = NAN
    guess_forces, guess_energies = rng.normal(size=(9, 3)), rng.normal(size=3)
    graph = {
        "batch": torch.repeat_interleave(torch.arange(3), torch.tensor(sizes)), "num_graphs": 3,
        "atomic_numbers": torch.from_numpy(numbers), "energy": torch.from_numpy(energies),
        "forces": torch.from_numpy(forces),
    }  # fmt: skip
    prediction = {"energy": torch.from_numpy(guess_energies), "forces": torch.from_numpy(guess_forces)}
    errors = ErrorSums([8, 1, 6])
    errors.add(prediction, graph)
    report = errors.report()
    de, df = guess_energies - energies, guess_forces - forces
    assert report["energy"]["mae"] == pytest.approx(1000 * np.nanmean(np.abs(de)))
    assert report["energy_per_atom"]["rmse"] == pytest.approx(1000 * np.sqrt(np.nanmean((de / sizes) ** 2)))
    assert report["forces"]["mae"] == pytest.approx(1000 * np.nanmean(np.abs(df)))
    assert report["forces"]["count"] == 24
    assert report["forces/H"]["rmse"] == pytest.approx(1000 * np.sqrt(np.nanmean(df[numbers == 1] ** 2)))
    assert "stress" not in report


def test_stress_is_reported_in_two_units():
    prediction, graph = small_batch()
    errors = ErrorSums([1, 8])
    errors.add(prediction, graph)
    report = errors.report()
    assert report["stress"]["mae"] == pytest.approx(1000 * 0.3 / 6)
    assert report["stress_GPa"]["mae"] == pytest.approx(160.21766 * 0.3 / 6, rel=1e-6)


class Scaled(torch.nn.Module):
    """Predicts what it is told, wrongly by a factor; has no forces of its own."""

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(1.1, dtype=torch.float64))

    def forward(self, graph, compute_forces=True, compute_stress=False):
        assert not self.training
        out = {name: graph[name] * self.factor for name in ("energy", "forces")}
        return out | ({"stress": graph["stress"] * self.factor} if compute_stress else {})


def frames(count):
    reader = AtomsReader("toys")
    return [reader.frame(atoms, index) for index, atoms in enumerate(emt_structures(count, seed=3))]


def test_evaluation_does_not_depend_on_the_batches():
    graphs = [frame_to_graph(frame, 3.0, index) for index, frame in enumerate(frames(7))]
    model = Scaled().train()
    config = LossSection.model_validate({"stress": {"weight": 1.0}})
    outcomes = []
    for size in (1, 3, 7):
        batches = [merge_graphs([graphs[i] for i in part]) for part in evaluation_batches([4] * 7, size)]
        outcomes.append(evaluate(model, batches, [29, 79], loss=config, collect=True))
    assert model.training
    for other in outcomes[1:]:
        assert torch.allclose(outcomes[0].errors.sums, other.errors.sums, rtol=1e-12)
        weights = {"energy": 1.0, "forces": 1.0, "stress": 1.0}
        assert outcomes[0].loss(weights) == pytest.approx(other.loss(weights), rel=1e-12)
    label, predicted = np.concatenate(outcomes[0].parity.forces, axis=1)
    assert np.abs(predicted - label).mean() * 1000 == pytest.approx(outcomes[0].errors.report()["forces"]["mae"])
    assert math.isclose(outcomes[0].errors.report()["stress"]["count"], 6 * 5)


def test_fast_merging_equals_pyg():
    graphs = [frame_to_graph(frame, 3.0, index) for index, frame in enumerate(frames(4))]
    plain, fast = graph_dict(collate(graphs)), merge_graphs(graphs)
    assert plain.keys() == fast.keys()
    for key, value in plain.items():
        same = torch.equal(torch.nan_to_num(value), torch.nan_to_num(fast[key])) if torch.is_tensor(value) else None
        assert same if same is not None else value == fast[key]


def test_evaluation_batches_hold_every_frame_once():
    sizes = [5, 300, 300, 2, 2, 900, 1]
    batches = evaluation_batches(sizes, None, max_atoms=512)
    assert [i for batch in batches for i in batch] == list(range(7))
    assert all(len(batch) == 1 or sum(sizes[i] for i in batch) <= 512 for batch in batches)
