"""Losses and errors of densities: zero at the label, quadratic, unchanged by rotations, sums over frames, masked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from density_toys import BASIS, density_frames
from scipy.spatial.transform import Rotation

from mlip.config import TERMS, LossSection
from mlip.data.density import metric_matrix
from mlip.errors import ConfigError
from mlip.models import density_statistics
from mlip.testing import rotate_coefficients
from mlip.training import graphs as graphs_module
from mlip.training.density import METRICS, difference, factor_key, metric_errors, shell_errors
from mlip.training.graphs import TrainingGraphs, frame_weights, metric_factor
from mlip.training.loader import merge_graphs
from mlip.training.losses import loss_sums, total_loss
from mlip.training.metrics import ErrorSums

pytest.importorskip("pyscf")
KINDS = ("coulomb", "overlap", "l1", "l2")
PLACE = TERMS.index("density")


def batch_of(frames, weights=None, cache=0, reference=None):
    """The batch of some frames, with both metrics."""
    reference = reference or density_statistics(density_frames(8, 0), BASIS)
    dataset = TrainingGraphs(frames, 3.0, cache, reference, METRICS, weights)
    return merge_graphs([dataset[index] for index in range(len(frames))])


def predicted(frames, errors):
    """A prediction that is off by ``errors`` (one array a frame) from each frame's made-up density."""
    values = []
    for frame, error in zip(frames, errors, strict=True):
        label = np.zeros(len(error)) if frame.density_coefficients is None else frame.density_coefficients
        values.append(torch.from_numpy(np.float32(label)).double() + torch.from_numpy(error))
    sizes = torch.tensor([len(v) for v in values])
    return {
        "density_coefficients": torch.cat(values),
        "density_ptr": torch.cat([sizes.new_zeros(1), torch.cumsum(sizes, 0)]),
        "density_electrons": torch.zeros(len(frames), dtype=torch.float64),
    }


def some_errors(frames, seed=0):
    rng = np.random.default_rng(seed)
    return [0.01 * rng.normal(size=BASIS.offsets(frame.atomic_numbers)[-1]) for frame in frames]


def loss(frames, errors, kind, **options):
    """Sum and count of the density's penalties."""
    config = LossSection.model_validate({"density": {"kind": kind}})
    sums, counts = loss_sums(predicted(frames, errors), batch_of(frames, **options), config, ["density"])
    return float(sums["density"]), float(counts[PLACE])


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_zero_at_the_label_with_a_gradient_of_zero(kind):
    frames = density_frames(3, 1)
    prediction, graph = predicted(frames, [0 * e for e in some_errors(frames)]), batch_of(frames)
    prediction["density_coefficients"].requires_grad_()
    sums, _ = loss_sums(prediction, graph, LossSection.model_validate({"density": {"kind": kind}}), ["density"])
    sums["density"].backward()
    assert float(sums["density"].detach()) == 0.0
    assert torch.equal(prediction["density_coefficients"].grad, torch.zeros_like(prediction["density_coefficients"]))


@pytest.mark.parametrize(("kind", "power"), [("coulomb", 2), ("overlap", 2), ("l1", 1), ("l2", 2)])
def test_it_grows_with_the_square_of_the_error_but_l1_with_the_error(kind, power):
    frames = density_frames(3, 1)
    errors = some_errors(frames)
    one, three = loss(frames, errors, kind)[0], loss(frames, [3 * e for e in errors], kind)[0]
    assert one > 0
    assert three == pytest.approx(3**power * one, rel=1e-9)


@pytest.mark.parametrize("kind", ["coulomb", "overlap"])
def test_metric_losses_against_the_full_matrix(kind):
    frames = density_frames(4, 2)
    errors = some_errors(frames)
    expected = 0.0
    for frame, error in zip(frames, errors, strict=True):
        matrix = metric_matrix(BASIS, frame.atomic_numbers, frame.positions, kind)
        charges = np.concatenate([BASIS.charges(int(z)) for z in frame.atomic_numbers])
        expected += 1000 * error @ matrix @ error / (charges @ frame.density_coefficients)  # mHa, 1e-3 Bohr^-3 per electron
    value, count = loss(frames, errors, kind)
    assert value == pytest.approx(expected, rel=1e-5)  # the factor is kept in single precision
    assert count == 4


def test_the_coulomb_loss_is_in_mha_twice_the_error_that_is_reported():
    frames = density_frames(4, 2)
    errors, sums = some_errors(frames), ErrorSums([1, 6, 8], [0, 1, 2])
    sums.add(predicted(frames, errors), batch_of(frames))
    value, count = loss(frames, errors, "coulomb")
    assert value / count == pytest.approx(2 * sums.report()["density_coulomb"]["mae"], rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_rotating_molecule_label_and_prediction_changes_nothing(kind):
    frames = density_frames(4, 3)
    errors = some_errors(frames)
    matrix = Rotation.random(random_state=4).as_matrix()
    turned, turned_errors = density_frames(4, 3), []
    for frame, error in zip(turned, errors, strict=True):
        frame.positions = frame.positions @ matrix.T
        turn = {"basis": BASIS, "numbers": frame.atomic_numbers, "matrix": matrix}
        frame.density_coefficients = rotate_coefficients(coefficients=frame.density_coefficients, **turn)
        turned_errors.append(rotate_coefficients(coefficients=error, **turn))
    assert loss(turned, turned_errors, kind)[0] == pytest.approx(loss(frames, errors, kind)[0], rel=1e-5)


def test_turning_the_error_alone_changes_the_metric_losses():
    frames = density_frames(1, 3)
    error = some_errors(frames)[0]
    turned = rotate_coefficients(BASIS, frames[0].atomic_numbers, error, Rotation.random(random_state=4).as_matrix())
    for kind in ("coulomb", "overlap"):
        assert loss(frames, [turned], kind)[0] != pytest.approx(loss(frames, [error], kind)[0], rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_the_sum_of_its_frames_and_weights_count_frames_again(kind):
    frames = density_frames(4, 4)
    errors = some_errors(frames)
    singles = [loss([frame], [error], kind) for frame, error in zip(frames, errors, strict=True)]
    assert loss(frames, errors, kind) == pytest.approx(tuple(map(sum, zip(*singles, strict=True))), rel=1e-9)
    weights = np.array([1.0, 3.0, 0.5, 1.0])
    values, counts = zip(*singles, strict=True)
    assert loss(frames, errors, kind, weights=weights) == pytest.approx((float(weights @ values), sum(counts)), rel=1e-9)


def test_in_a_batch_of_one_the_gradient_goes_with_the_weight():
    """All terms; the rules' weights are relative, so their mean over the training set leaves the step as it is."""
    frames = density_frames(1, 4)
    found = []
    for weight in (1.0, 3.0):
        graph, prediction = batch_of(frames, weights=np.array([weight])), predicted(frames, some_errors(frames))
        prediction |= {"energy": graph["energy"] + 0.1, "forces": graph["forces"] + 0.1}
        values = [prediction[name].requires_grad_() for name in ("energy", "forces", "density_coefficients")]
        sums, counts = loss_sums(prediction, graph, LossSection(), ["energy", "forces", "density"])
        total = total_loss(sums, counts, dict.fromkeys(TERMS, 1.0))
        found.append(torch.cat([part.flatten() for part in torch.autograd.grad(total, values)]))
    assert found[0].abs().min() > 0
    torch.testing.assert_close(found[1], 3.0 * found[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_without_a_density_are_left_out(kind):
    frames = density_frames(4, 5)
    errors = some_errors(frames)
    expected = loss([frames[0], frames[3]], [errors[0], errors[3]], kind)
    frames[1].density_coefficients = frames[2].density_coefficients = None
    assert loss(frames, errors, kind) == pytest.approx(expected, rel=1e-12)
    prediction = predicted(frames, errors)
    prediction["density_coefficients"].requires_grad_()
    sums, _ = loss_sums(prediction, batch_of(frames), LossSection.model_validate({"density": {"kind": kind}}), ["density"])
    sums["density"].backward()
    first, second, third, last = prediction["density_coefficients"].grad.split([len(e) for e in errors])
    assert not (second.any() or third.any()) and first.any() and last.any()


def test_a_batch_without_any_density_and_a_filler_count_nothing():
    frames = density_frames(2, 5, density=False)
    for kind in KINDS:
        assert loss(frames, some_errors(frames), kind) == (0.0, 0.0)
    frames = density_frames(2, 5)
    dataset = TrainingGraphs(frames, 3.0, 1 << 20, density_statistics(frames, BASIS), METRICS, np.array([2.0, 5.0]))
    kept = dataset[1]
    graph = merge_graphs([dataset[-2]])
    assert graph["weight"].tolist() == [5.0] and not torch.isfinite(graph["energy"]).any()
    sums, counts = loss_sums(predicted(frames[1:], some_errors(frames[1:])), graph, LossSection(), ["density"])
    assert float(sums["density"]) == float(counts[PLACE]) == 0.0
    assert dataset[1] is kept and len(kept["density_factor_coulomb"]) > 0  # the frame itself is untouched


def test_energies_and_forces_are_weighted_by_frame_too():
    frames = density_frames(2, 6)
    graph = batch_of(frames, weights=np.array([2.0, 3.0]))
    sizes = [len(frame) for frame in frames]
    prediction = {"energy": graph["energy"] + torch.tensor([1.0, 10.0]) * torch.tensor(sizes), "forces": graph["forces"] + 1.0}
    config = LossSection.model_validate({name: {"kind": "l1"} for name in ("energy", "forces")})
    sums, counts = loss_sums(prediction, graph, config, ["energy", "forces"])
    assert float(sums["energy"]) == pytest.approx(2 * 1 + 3 * 10) and counts[0] == 2
    assert float(sums["forces"]) == pytest.approx(3 * (2 * sizes[0] + 3 * sizes[1])) and counts[1] == 3 * sum(sizes)


def test_a_shell_s_error_is_the_root_mean_square_of_its_components():
    frames = density_frames(1, 7)
    errors = some_errors(frames)
    reference = density_statistics(density_frames(8, 0), BASIS)
    squares, owner = shell_errors(difference(predicted(frames, errors), batch_of(frames)), "l2")
    expected, start = [], 0
    for z in frames[0].atomic_numbers.tolist():
        for l, scale in zip(BASIS.degrees(z), reference.scales[z], strict=True):
            expected.append(np.mean((errors[0][start : start + 2 * l + 1] / scale) ** 2))
            start += 2 * l + 1
    assert squares.tolist() == pytest.approx(expected, rel=1e-9) and not owner.any()


def test_the_gradient_reaches_a_network_in_single_precision():
    frames = density_frames(2, 8)
    prediction, graph = predicted(frames, some_errors(frames)), batch_of(frames)
    single = prediction["density_coefficients"].float().requires_grad_()
    prediction["density_coefficients"] = single
    sums, _ = loss_sums(prediction, graph, LossSection(), ["density"])
    sums["density"].backward()
    found = difference(prediction, graph)
    matrix = metric_matrix(BASIS, frames[0].atomic_numbers, frames[0].positions, "coulomb")
    own = found.values.detach()[: len(matrix)].numpy()
    expected = 1000 * 2 * matrix @ own / float(found.electrons[0])
    assert single.grad.dtype == torch.float32
    np.testing.assert_allclose(single.grad[: len(matrix)].numpy(), expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


def test_matrices_are_kept_within_the_budget_or_made_again(monkeypatch):
    frames, made = density_frames(4, 9), []
    plain = graphs_module.metric_factor
    monkeypatch.setattr(graphs_module, "metric_factor", lambda *a: (made.append(1), plain(*a))[1])
    reference = density_statistics(frames, BASIS)
    counts, budgets = [], [1 << 24, 0, 0]
    for turn in range(3):
        dataset, made[:] = TrainingGraphs(frames, 3.0, budgets[turn], reference, ("coulomb",)), []
        first, second = ([dataset[index]["density_factor_coulomb"] for index in range(4)] for _ in range(2))
        assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
        assert dataset._room >= 0
        counts.append(len(made))
        if turn == 0:
            budgets[1] = (budgets[0] - dataset._room) // 2
    assert counts[0] == 4 and 4 < counts[1] < 8 and counts[2] == 8


def test_a_metric_that_is_not_positive_by_rounding_still_gives_a_factor(monkeypatch):
    frame = density_frames(1, 1)[0]
    matrix = metric_matrix(BASIS, frame.atomic_numbers, frame.positions, "coulomb")
    values, vectors = np.linalg.eigh(matrix)
    values[0] = -1e-14
    singular = vectors @ np.diag(values) @ vectors.T
    monkeypatch.setattr(graphs_module, "metric_matrix", lambda *_: singular)
    factor = metric_factor(BASIS, frame, "coulomb")
    np.testing.assert_allclose(factor @ factor.T, singular, atol=1e-12)


def test_without_pyscf_the_way_out_is_named(monkeypatch):
    def missing(*_):
        raise ImportError("no pyscf")

    monkeypatch.setattr(graphs_module, "metric_matrix", missing)
    with pytest.raises(ConfigError, match=r"needs PySCF: pip install .*loss\.density\.kind l1 or l2"):
        metric_factor(BASIS, density_frames(1, 1)[0], "coulomb")


def test_errors_against_numpy():
    frames = density_frames(4, 10)
    errors = some_errors(frames)
    frames[2].density_coefficients = None
    graph, prediction = batch_of(frames), predicted(frames, errors)
    prediction["density_electrons"] = graph["density_wanted"] + torch.tensor([0.1, -0.3, 7.0, 0.2])
    sums = ErrorSums([1, 6, 8], [0, 1, 2])
    sums.add(prediction, graph)
    report = sums.report()
    reference = density_statistics(density_frames(8, 0), BASIS)
    by_frame, rows = {"coulomb": [], "overlap": []}, []
    for frame, error in zip(frames, errors, strict=True):
        if frame.density_coefficients is None:
            continue
        label, numbers = np.float32(frame.density_coefficients).astype(float), frame.atomic_numbers
        coulomb, overlap = (metric_matrix(BASIS, numbers, frame.positions, metric) for metric in ("coulomb", "overlap"))
        electrons = np.concatenate([BASIS.charges(int(z)) for z in numbers]) @ label
        by_frame["coulomb"].append(500 * error @ coulomb @ error / electrons)
        by_frame["overlap"].append(100 * np.sqrt(error @ overlap @ error / (label @ overlap @ label)))
        kinds = [(z, l, s) for z in numbers.tolist() for l, s in zip(BASIS.degrees(z), reference.scales[z], strict=True)]
        kinds = [kind for kind in kinds for _ in range(2 * kind[1] + 1)]
        rows += [(z, l, e / s) for (z, l, s), e in zip(kinds, error, strict=True)]
    for metric, values in by_frame.items():
        assert report[f"density_{metric}"]["mae"] == pytest.approx(np.mean(values), rel=1e-5)
        assert report[f"density_{metric}"]["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(values))), rel=1e-5)
        assert report[f"density_{metric}"]["count"] == 3
    assert report["density_electrons"]["mae"] == pytest.approx(200.0)
    for name, chosen in (("H", [r for r in rows if r[0] == 1]), ("l=2", [r for r in rows if r[1] == 2])):
        errors_of = np.array([r[2] for r in chosen])
        assert report[f"density/{name}"]["rmse"] == pytest.approx(np.sqrt(np.mean(errors_of**2)), rel=1e-6)
        assert report[f"density/{name}"]["count"] == len(chosen)
    assert {factor_key(metric) for metric in METRICS} <= set(graph)
    assert len(metric_errors(difference(prediction, graph), graph, "coulomb")) == 3


def test_weights_go_by_the_start_of_an_extra():
    frames = density_frames(4, 0)
    assert frame_weights(frames, {"origin": {"mmff": 3.0}}).tolist() == [1.5, 0.5, 1.5, 0.5]  # mean 1
    rules = {"origin": {"lang": 2.0, "langevin 300": 0.5}, "molecule": {"H2O": 10.0}}
    assert (3 * frame_weights(frames, rules)).tolist() == [10, 0.5, 1, 0.5]  # the longest start; several extras multiply
    with pytest.raises(ConfigError, match=r"data\.weights\.source: no training frame has the extra 'source'"):
        frame_weights(frames, {"source": {"a": 2.0}})
    with pytest.raises(ConfigError, match=r"data\.weights\.origin: no frame's origin begins with 'uff'.*langevin 300 K"):
        frame_weights(frames, {"origin": {"uff": 2.0}})
