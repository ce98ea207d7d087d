"""Several steps in one call of the device, on batches that it makes: the same bits, the same messages, and how many steps a call has."""

import os
import signal
from functools import partial

import jax
import numpy as np
import pytest

from yolojax.errors import UserError
from yolojax.freezing.labels import fixed_bn
from yolojax.freezing.phases import make_phase
from yolojax.hyperparameters import Hyperparameters
from yolojax.mesh import make_mesh, replicated
from yolojax.model.network import Network, abstract_variables, init_variables
from yolojax.training.loop import train
from yolojax.training.loss import LossSettings
from yolojax.training.optimizer import OptimizerSettings
from yolojax.training.progress import EpochMeter
from yolojax.training.schedule import Schedule
from yolojax.training.settings import TrainSettings
from yolojax.training.state import create_state
from yolojax.training.step import MOST_STEPS, Dispatch, Pace, make_step_function
from yolojax.tree import flatten
from yolojax.weights.find import load_weights


class Stacked:
    """Batches of one epoch that lie on the devices; they stand for those that are made there."""

    def __init__(self, batches, mesh):
        stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
        self._batches = jax.device_put(stacked, replicated(mesh))

    def source(self, epoch):
        return self._batches

    def make(self, source, epoch, number):
        return {name: array[number] for name, array in source.items()}


# --- The program -----------------------------------------------------------------------------------------------------------------


def check_bits(spec, make_batch):
    """Eight steps, from the host, one by one and four by four on the devices; however they are grouped there, what they end with is the same to the bit."""
    mesh, hyp = make_mesh(), Hyperparameters()
    labels = make_phase(tuple(flatten(abstract_variables(spec)["params"])), freeze=1).tree()
    schedule = Schedule.from_hyperparameters(hyp, epochs=5, batches_per_epoch=8, batch_size=2)
    optimizer = OptimizerSettings.from_hyperparameters(hyp, batch_size=2)
    network, loss = Network(spec, fixed_bn=fixed_bn(labels)), LossSettings.from_hyperparameters(hyp, spec, 64)
    step = make_step_function(network, labels, loss, optimizer, schedule, mesh)
    variables = init_variables(spec, jax.random.key(0))
    batches = [make_batch(number) for number in range(8)]
    maker = Stacked(batches, mesh)
    ends = []
    for groups in ([None] * 8, [1] * 8, [4, 4], [1, 5, 2]):
        state = create_state(variables, labels, optimizer, mesh, network.fixed_bn)
        dispatch = Dispatch(step, state, {}, schedule, mesh, maker)
        source, losses = maker.source(0), []
        for number, steps in enumerate(groups):
            feed = source if steps else jax.device_put(batches[number], replicated(mesh))
            with jax.transfer_guard("disallow"):
                metrics = dispatch(feed, None, steps)
            losses += np.atleast_1d(jax.device_get(metrics["loss"]))[:steps].tolist()
        assert dispatch.traces == 1  # whatever the number of steps
        assert len(losses) == 8
        leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(dispatch.state.whole)]
        ends.append((losses, leaves))
    assert len(set(ends[0][0])) == 8
    host, singly, *several = ends
    np.testing.assert_allclose(singly[0], host[0], rtol=1e-5)  # another program, which rounds otherwise
    assert several == [singly, singly]


@pytest.mark.long
def test_steps_of_one_dispatch_have_the_bits_of_single_ones_on_two_devices(on_devices):
    on_devices(2, "test_dispatch.check_bits")


# --- How many steps ------------------------------------------------------------------------------------------------------------------


def paced(seconds_per_step, overhead, most=1000, steps=None):
    """The steps of each of twenty dispatches on a device that takes so many seconds per step and Python so many per dispatch."""
    pace, taken = Pace(steps, most), []
    for _ in range(20):
        taken.append(pace.steps)
        pace.finished(pace.steps, max(overhead, pace.steps * seconds_per_step))
    return taken


@pytest.mark.parametrize(
    ("seconds", "overhead", "most", "steps"),
    [
        (0.020, 0.002, 1000, [1, 5]),
        (
            0.0004,
            0.002,
            1000,
            [1, 50, 250],
        ),  # what one step takes alone is Python's time, so that it is looked at again
        (0.3, 0.002, 1000, [1]),
        (0.0004, 0.002, 10, [1, 10]),
        (1e-9, 0.0, 64, [1, 64]),
    ],
)
def test_a_dispatch_takes_fifty_to_a_hundred_milliseconds(seconds, overhead, most, steps):
    taken = paced(seconds, overhead, most)
    assert list(dict.fromkeys(taken)) == steps
    assert steps[-1] * seconds <= max(0.1, seconds)


def test_a_number_that_is_asked_for_is_taken():
    assert set(paced(0.02, 0.002, steps=6)) == {6}
    assert set(paced(0.02, 0.002, most=3, steps=6)) == {3}


@pytest.mark.parametrize(("left", "steps"), [(11, 4), (4, 4), (3, 3)])
def test_a_dispatch_ends_where_the_epoch_does(left, steps):
    assert Pace(4, 100).take(left) == steps


def test_a_dispatch_has_no_more_steps_than_its_metrics_have_room_for():
    assert Pace(10 * MOST_STEPS, 100 * MOST_STEPS).steps == MOST_STEPS


@pytest.mark.parametrize("value", ["0", "-1", "two", ""])
def test_steps_that_no_dispatch_can_have_are_refused(value):
    with pytest.raises(UserError, match=r"--steps-per-dispatch .*: must be auto or a number from 1 on"):
        TrainSettings(steps_per_dispatch=value)


def test_a_meter_counts_all_batches_of_a_dispatch_and_none_that_compile():
    meter = EpochMeter(batch_size=4)
    figures = {name: np.ones(3) for name in ("box", "obj", "cls")}
    meter.add(figures)
    assert (meter.batches, meter.images_per_second) == (3, None)
    meter.add(figures)
    assert meter.images_per_second == pytest.approx(3 * 4 / meter.seconds)
    meter.restart()
    meter.add(figures)
    assert (meter.batches, meter.images_per_second) == (9, None)
    assert meter.losses == {"box": 1, "obj": 1, "cls": 1}


# --- Whole runs -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(tiny_model, tiny_data, tmp_path):
    """Settings of a small run whose batches are made on the device."""
    fixed = {"weights": "", "cfg": str(tiny_model), "data": str(tiny_data), "imgsz": 64, "batch_size": 4, "epochs": 3}
    fixed |= {"workers": 0, "freeze": ("2",), "project": str(tmp_path), "noplots": True, "cache": "device"}
    return partial(TrainSettings, **fixed)


def bits(run):
    """What a run ends with."""
    weights = load_weights(run / "weights" / "last").variables
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(weights)], (run / "results.csv").read_bytes()


@pytest.mark.long
def test_a_run_has_the_same_bits_for_any_number_of_steps_per_dispatch_stopped_and_resumed(
    settings, tmp_path, monkeypatch
):
    results = train(settings(name="singly", steps_per_dispatch="1"))
    (single,) = results["programs"]
    results = train(settings(name="pairs", steps_per_dispatch="2"))
    (pair,) = results["programs"]  # one program for two steps and for the last one of an epoch
    assert pair["flops"] == single["flops"]  # of one step
    expected = bits(tmp_path / "singly")
    assert bits(tmp_path / "pairs") == expected

    take, taken = Pace.take, []

    def stops_in_the_second_epoch(pace, left):
        taken.append(take(pace, left))
        if len(taken) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return taken[-1]

    monkeypatch.setattr(Pace, "take", stops_in_the_second_epoch)
    with pytest.raises(SystemExit):
        train(settings(name="stopped", steps_per_dispatch="2"))
    assert taken == [2, 1, 2]  # what was begun is finished, and nothing else
    train(
        TrainSettings(resume=str(tmp_path / "stopped"), steps_per_dispatch="1"), given={"resume", "steps_per_dispatch"}
    )
    assert bits(tmp_path / "stopped") == expected


@pytest.mark.long
def test_a_signal_that_ends_the_compiler_too_stops_the_run_like_any_other(settings, tmp_path, monkeypatch):
    train(settings(name="whole"))
    call, calls = Dispatch.__call__, []

    def compiler_ends(dispatch, *arguments):
        calls.append(arguments)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            raise jax.errors.JaxRuntimeError("INTERNAL: ptxas exited with non-zero error code 15, output:")
        return call(dispatch, *arguments)

    monkeypatch.setattr(Dispatch, "__call__", compiler_ends)
    with pytest.raises(SystemExit):
        train(settings(name="stopped"))
    train(TrainSettings(resume=str(tmp_path / "stopped")))
    assert bits(tmp_path / "stopped") == bits(tmp_path / "whole")


def test_an_error_of_the_device_without_a_signal_is_an_error(settings, monkeypatch):
    def fails(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: ptxas exited with non-zero error code 1")

    monkeypatch.setattr(Dispatch, "__call__", fails)
    with pytest.raises(jax.errors.JaxRuntimeError, match="ptxas"):
        train(settings(name="broken"))


@pytest.mark.long
def test_a_loss_that_is_not_finite_is_named_within_its_dispatch(settings, tmp_path):
    hyp = tmp_path / "hyp.yaml"
    hyp.write_text("warmup_bias_lr: 1.0e+30\n")
    with pytest.raises(UserError, match=r"epoch 1, batch 2 \(step 2\): the loss is not finite; .*\d\.png"):
        train(settings(hyp=str(hyp), steps_per_dispatch="2"))
