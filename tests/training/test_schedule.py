"""Rates, against a plain loop that keeps books as the original's optimizer and scheduler do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yolojax.hyperparameters import Hyperparameters
from yolojax.training.schedule import Schedule

FIELDS = ("learning_rate", "bias_learning_rate", "momentum", "accumulate")


def simulated(schedule):
    """Rates of every iteration: a scheduler that multiplies the rate after each epoch, and a warm-up that overwrites it."""
    s = schedule

    def factor(epoch):
        if s.shape == "cosine":
            return (1 - np.cos(epoch * np.pi / s.epochs)) / 2 * (s.final_fraction - 1) + 1
        return (1 - epoch / s.epochs) * (1 - s.final_fraction) + s.final_fraction

    span = [0, max(round(s.warmup_epochs * s.batches_per_epoch), 100)]
    weight = bias = s.initial * factor(0)
    momentum, accumulate = s.momentum, max(round(64 / s.batch_size), 1)
    rows = []
    for epoch in range(s.epochs):
        for index in range(s.batches_per_epoch):
            iteration = index + s.batches_per_epoch * epoch
            if iteration <= span[1]:
                accumulate = max(1, np.interp(iteration, span, [1, 64 / s.batch_size]).round())
                weight = np.interp(iteration, span, [0.0, s.initial * factor(epoch)])
                bias = np.interp(iteration, span, [s.warmup_bias_rate, s.initial * factor(epoch)])
                momentum = np.interp(iteration, span, [s.warmup_momentum, s.momentum])
            rows.append((weight, bias, momentum, accumulate))
        weight = bias = s.initial * factor(epoch)  # the scheduler has counted this epoch only now
    return np.array(rows).T


CASES = {
    "linear": Schedule(epochs=5, batches_per_epoch=40, batch_size=16),
    "cosine": Schedule(epochs=5, batches_per_epoch=45, batch_size=24, shape="cosine", warmup_epochs=2.6),
    "whole epochs": Schedule(epochs=6, batches_per_epoch=101, batch_size=8, warmup_epochs=2.0),
    "ends on the last batch": Schedule(epochs=5, batches_per_epoch=101, batch_size=8, warmup_epochs=1.0 - 1 / 101),
    "never ends": Schedule(epochs=5, batches_per_epoch=10, batch_size=4),
    "large batch": Schedule(epochs=5, batches_per_epoch=30, batch_size=100),
    "ties": Schedule(epochs=3, batches_per_epoch=60, batch_size=16, warmup_epochs=2.0),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("wide", [False, True])
def test_rates_are_those_of_the_original_at_every_iteration(case, wide):
    schedule = CASES[case]
    expected = simulated(schedule)
    with jax.enable_x64(wide):
        rates = jax.jit(jax.vmap(schedule.rates))(jnp.arange(expected.shape[1]))
    for field, values in zip(FIELDS, expected, strict=True):
        rate = np.asarray(getattr(rates, field))
        assert np.ptp(values) > 0 or (field == "accumulate" and case == "large batch")
        if field == "accumulate":
            np.testing.assert_array_equal(rate, values)
        else:
            np.testing.assert_allclose(rate, values, rtol=1e-14 if wide else 3e-6, atol=1e-17 if wide else 1e-9)


def test_the_rate_lags_one_epoch_as_published():
    # Public results of a 64-epoch cosine run to 10 %, whose warm-up ended in epoch 4.
    schedule = Schedule(
        epochs=64, batches_per_epoch=200, batch_size=20, final_fraction=0.1, shape="cosine", warmup_epochs=4.5
    )
    published = {4: 0.0099135, 5: 0.0099135, 6: 0.0098651, 10: 0.009568, 30: 0.0061603}
    for epoch, rate in published.items():
        last = epoch * 200 + 199
        np.testing.assert_allclose(schedule.rates(last).learning_rate, rate, rtol=1e-5)


def test_first_iteration_moves_biases_only():
    rates = CASES["linear"].rates(0)
    assert rates.learning_rate == 0
    np.testing.assert_allclose(rates.bias_learning_rate, 0.1)
    np.testing.assert_allclose(rates.momentum, 0.8)


def test_accumulation_after_warm_up_is_the_nominal_batch():
    for batch, accumulate in {1: 64, 8: 8, 16: 4, 24: 3, 48: 1, 64: 1, 128: 1}.items():
        schedule = Schedule(epochs=9, batches_per_epoch=50, batch_size=batch)
        assert schedule.accumulate == accumulate
        assert schedule.rates(400).accumulate == accumulate


def test_the_seed_command_warms_up_690_iterations():
    hyp = Hyperparameters(warmup_epochs=2.0)
    assert Schedule.from_hyperparameters(hyp, epochs=50, batches_per_epoch=345, batch_size=48).warmup == 690
    assert Schedule.from_hyperparameters(hyp, epochs=50, batches_per_epoch=20, batch_size=48).warmup == 100
