"""The learning rate, the clock, the running average, the groups of weight decay, and steps that are not finite."""

from __future__ import annotations

import io
import itertools
import math

import pytest
import torch
from rich.console import Console

from mlip.config import RunConfig, TrainingSection
from mlip.errors import UserError
from mlip.training.conductor import Conductor
from mlip.training.ema import WeightAverage
from mlip.training.module import MAX_BAD_STEPS, PotentialModule
from mlip.training.optimizer import decays, make_optimizer
from mlip.training.progress import LiveProgress
from mlip.training.report import warn_of_skipped
from mlip.training.schedule import Budget, learning_rate
from mlip.training.state import progress_of


def options(**values):
    return TrainingSection(**{"max_epochs": 10, "lr": 1e-2, "min_lr": 1e-4, "warmup": 0.1, **values})


def test_the_rate_warms_up_peaks_and_ends_at_its_minimum():
    config = options()
    rates = [learning_rate(step / 1000, config) for step in range(1001)]
    assert rates[0] <= 1e-4 and rates[50] == pytest.approx(0.5e-2)
    assert max(rates) == rates[100] == pytest.approx(1e-2)
    assert all(a >= b for a, b in itertools.pairwise(rates[100:]))
    assert rates[-1] == pytest.approx(1e-4) and learning_rate(7.0, config) == pytest.approx(1e-4)
    assert rates[550] == pytest.approx(1e-4 + 0.5 * (1e-2 - 1e-4) * (1 + math.cos(math.pi / 2)))
    assert learning_rate(0.9, options(schedule="constant")) == 1e-2
    assert learning_rate(0.0, options(warmup=0.0)) == 1e-2


def test_a_budget_keeps_time_for_the_end_and_goes_on_when_resumed():
    budget = Budget(100.0)
    assert budget.usable == 100.0
    budget.reserve = 20.0
    assert budget.usable == 80.0 and budget.progress(40.0) == 0.5
    budget.reserve = 90.0
    assert budget.usable == 50.0  # never more than half
    budget.resume(70.0)
    assert 70.0 <= budget.elapsed < 75.0
    resumed = Budget(100.0, spent=6.0)  # importing torch took that long
    resumed.resume(70.0)
    assert 76.0 <= resumed.elapsed < 81.0
    assert Budget(None).usable is None and Budget(None).progress(1e9) == 0.0


def test_min_delta_says_when_to_stop_not_which_weights_to_keep(tmp_path):
    training = {"max_epochs": 9, "early_stopping": {"patience": 3, "min_delta": 1.0}}
    config = RunConfig.model_validate({"data": {"train": "x"}, "training": training})
    conductor = Conductor(config, lambda model: None, Budget(None), tmp_path / "none.ckpt")
    seen = []
    for epoch, value in enumerate((5.0, 4.5, 4.7, 3.9, 3.5, float("nan"))):
        conductor.progress.epoch = epoch
        if kept := conductor._judge(value):
            conductor.best = {"weight": torch.zeros(1)}
        seen.append((kept, conductor.progress.best_value, conductor.progress.stale))
    assert seen == [(True, 5.0, 0), (True, 4.5, 1), (False, 4.5, 2), (True, 3.9, 0), (True, 3.5, 1), (False, 3.5, 2)]
    assert conductor.progress.best_epoch == 4


def test_a_checkpoint_of_before_the_reference_value_still_loads():
    old = {"step": 7, "best_value": 0.5, "best_epoch": 2, "stale": 3, "history": [], "finished": ""}
    assert progress_of({"progress": old}).reference == 0.5
    assert progress_of({"progress": {**old, "reference": 0.7}}).reference == 0.7


def test_steps_that_are_left_out_are_told_at_the_end_of_an_epoch(tmp_path):
    config = RunConfig.model_validate({"data": {"train": "x"}})
    conductor = Conductor(config, lambda model: None, Budget(None), tmp_path / "none.ckpt")
    console = Console(file=io.StringIO(), width=200)
    live = LiveProgress(console, conductor)
    progress = conductor.progress
    for progress.skipped, progress.batch, progress.epoch in ((0, 0, 1), (2, 1, 1), (2, 0, 2), (2, 0, 3), (3, 0, 4)):
        live._warn_of_skipped()
    lines = console.file.getvalue().splitlines()
    assert [line.split(": ")[1] for line in lines] == ["2 steps left out in epoch 2", "1 steps left out in epoch 4"]
    warn_of_skipped(console, progress)
    assert "3 of 0 steps were left out" in console.file.getvalue()


def test_the_average_follows_its_recurrence():
    module = torch.nn.Linear(2, 1).double()
    average = WeightAverage(module, 0.8)
    expected = module.weight.detach().clone()
    for n in range(30):
        with torch.no_grad():
            module.weight += 0.1
        average.update()
        decay = min(0.8, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    assert torch.allclose(average.average[0], expected, rtol=1e-12)


def test_the_average_is_lent_and_returned():
    module = torch.nn.Linear(2, 1)
    average = WeightAverage(module, 0.9)
    start = module.weight.detach().clone()
    with torch.no_grad():
        module.weight += 1.0
    own = module.weight.detach().clone()
    with pytest.raises(ZeroDivisionError), average.applied():
        assert torch.equal(module.weight, start)
        raise ZeroDivisionError
    assert torch.equal(module.weight, own)


def test_the_average_restores():
    module = torch.nn.Linear(2, 1)
    first, second = WeightAverage(module, 0.9), WeightAverage(module, 0.9)
    with torch.no_grad():
        module.weight += 1.0
    first.update()
    second.load_state_dict(first.state_dict())
    assert second.updates == 1 and torch.equal(first.average[0], second.average[0])


def test_no_decay_on_norms_biases_and_scalars():
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    module.alpha = torch.nn.Parameter(torch.zeros(3))
    module.flat = torch.nn.Parameter(torch.ones(7))  # e3nn keeps matrices flat
    decayed = {name for name, parameter in module.named_parameters() if decays(module, name, parameter)}
    assert decayed == {"0.weight", "flat"}
    groups = make_optimizer(module, options(weight_decay=0.3)).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(2, 0.3), (4, 0.0)]


def test_a_step_that_is_not_finite_is_left_out_and_many_are_an_error():
    model = torch.nn.Linear(2, 1)
    config = RunConfig.model_validate({"data": {"train": "x"}})
    module = PotentialModule(model, config, [1])
    optimizer = make_optimizer(model, config.training)
    before = model.weight.detach().clone()

    def step(value):
        (model(torch.ones(1, 2)).sum() * value).backward()
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
        optimizer.zero_grad()

    step(float("nan"))
    assert module.skipped and torch.equal(model.weight, before)
    step(1.0)
    assert not module.skipped and not torch.equal(model.weight, before)
    assert bool(torch.isfinite(model.weight).all())
    with pytest.raises(UserError, match=r"not finite in .* lower training\.lr"):
        for _ in range(MAX_BAD_STEPS):
            step(float("inf"))
    assert bool(torch.isfinite(model.weight).all())


def test_gradients_are_clipped_by_norm():
    model = torch.nn.Linear(2, 1, bias=False)
    config = RunConfig.model_validate({"data": {"train": "x"}, "training": {"max_epochs": 1, "gradient_clip": 0.5}})
    module = PotentialModule(model, config, [1])
    (1000 * model(torch.ones(1, 2)).sum()).backward()
    module.configure_gradient_clipping(torch.optim.SGD(model.parameters(), lr=1.0))
    assert float(model.weight.grad.norm()) == pytest.approx(0.5, rel=1e-4)
