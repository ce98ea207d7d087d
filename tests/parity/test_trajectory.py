"""Rungs 8 and 9 of the ladder: the rates of a run, and fifty steps on fixed batches.

The BatchNorm of frozen layers is on ``track``, as the original has it: batch statistics are used and running ones move.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeding
from summary import Summary

from yolojax.freezing.labels import trainable_mask
from yolojax.freezing.phases import make_phase
from yolojax.hyperparameters import load_hyperparameters
from yolojax.model.network import Network, abstract_variables
from yolojax.model.spec import load_spec
from yolojax.training.loss import LossSettings
from yolojax.training.optimizer import OptimizerSettings
from yolojax.training.schedule import Schedule
from yolojax.training.state import TrainState, abstract_state, create_state
from yolojax.training.step import TrainStep, make_train_step
from yolojax.tree import flatten

SCRATCH_LOW, FINETUNE = load_hyperparameters("scratch-low"), load_hyperparameters("finetune")
SIZE, CLASSES, BATCHES, BATCH, EPOCHS = 64, 80, 10, 4, 5
SCHEDULES = {
    "linear": (SCRATCH_LOW, {"epochs": 5, "batches_per_epoch": 40, "batch_size": 16}),
    "cosine": (FINETUNE, {"epochs": 5, "batches_per_epoch": 45, "batch_size": 24, "cosine": True}),
    "large-batch": (FINETUNE, {"epochs": 5, "batches_per_epoch": 30, "batch_size": 100}),
    # Greater gains than usual, so that the clip acts.
    "trajectory": (
        dataclasses.replace(SCRATCH_LOW, box=0.2, cls=2.0),
        {"epochs": EPOCHS, "batches_per_epoch": BATCHES, "batch_size": BATCH},
    ),
}


@pytest.mark.parametrize("case", SCHEDULES)
@pytest.mark.usefixtures("float64")
def test_rates_at_every_iteration(case, golden):
    hyp, arguments = SCHEDULES[case]
    schedule = Schedule.from_hyperparameters(hyp, **arguments)
    length = arguments["epochs"] * arguments["batches_per_epoch"]
    rates = jax.device_get(jax.vmap(lambda step: schedule.rates(step, jnp.float64))(jnp.arange(length)))
    expected = {key.split(".")[1]: values for key, values in golden("schedules").items() if key.startswith(case)}
    for name in ("learning_rate", "bias_learning_rate", "momentum"):
        ours = np.broadcast_to(getattr(rates, name), length)
        np.testing.assert_allclose(ours, expected[name], rtol=1e-12, atol=1e-15, err_msg=name)
    np.testing.assert_array_equal(rates.accumulate, expected["accumulate"])
    last, steps = -1, []
    for iteration, accumulate in enumerate(np.broadcast_to(rates.accumulate, length)):
        steps.append(iteration - last >= accumulate)
        last = iteration if steps[-1] else last
    np.testing.assert_array_equal(steps, expected["steps"])
    batch_size = arguments["batch_size"]
    decay = OptimizerSettings.from_hyperparameters(hyp, batch_size=batch_size).weight_decay
    assert decay == pytest.approx(float(expected["weight_decay"]), rel=1e-12)


@dataclass(frozen=True, eq=False)
class Program:
    """A compiled training step and what belongs to it; one serves both sets of weights."""

    step: Callable[..., tuple[TrainState, dict[str, Any]]]
    labels: Any
    optimizer: OptimizerSettings


@cache
def program(freeze: int, dtype: Any) -> Program:
    spec = load_spec("yolov5n", classes=CLASSES)
    variables = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), abstract_variables(spec))
    labels = make_phase(tuple(flatten(variables["params"])), freeze=freeze).tree()
    hyp, arguments = SCHEDULES["trajectory"]
    optimizer = OptimizerSettings.from_hyperparameters(hyp, batch_size=BATCH)
    loss = LossSettings.from_hyperparameters(hyp, spec, SIZE)
    schedule = Schedule.from_hyperparameters(hyp, **arguments)
    step = make_train_step(Network(spec), labels, loss, optimizer, schedule)
    # A hundred steps repay what the other tests save by not optimising.
    options = {"xla_backend_optimization_level": 1, "xla_llvm_disable_expensive_passes": True}
    lowered = step.lower(abstract_state(variables, labels, optimizer), batches("n")[0])
    compiled = lowered.compile(compiler_options=options)
    return Program(TrainStep(lambda *inputs, size: compiled(*inputs)), labels, optimizer)


@cache
def batches(name: str) -> list[dict[str, np.ndarray]]:
    result = []
    for index in range(BATCHES):
        key = f"trajectory_{name} {index}"
        boxes, mask = seeding.labels(key, BATCH, CLASSES)
        result.append({"images": seeding.images(key, BATCH, SIZE), "boxes": boxes, "mask": mask})
    return result


def train(name: str, freeze: int, network: Any, dtype: Any) -> tuple[np.ndarray, TrainState, dict[str, Any], Any]:
    """Losses ``(50, 4)``, the final state, the variables at the start and the mask of trainable parameters."""
    compiled = program(freeze, dtype)
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), network(name)[1])
    state = create_state(variables, compiled.labels, compiled.optimizer)
    fixed, losses = batches(name), []
    for iteration in range(EPOCHS * BATCHES):
        state, metrics = compiled.step(state, fixed[iteration % BATCHES])
        losses.append([metrics[key] for key in ("box", "obj", "cls", "loss")])
    return np.array(jax.device_get(losses)), jax.device_get(state), variables, trainable_mask(compiled.labels)


def slow(freeze: int) -> Any:
    """Every depth is a program of its own, which takes half a minute to compile."""
    return pytest.param(freeze, marks=pytest.mark.slow)


def compare(name: str, freeze: int, network: Any, dtype: Any, golden: Any) -> dict[str, Mapping[str, float]]:
    losses, state, start, trainable = train(name, freeze, network, dtype)
    expected = {
        key.removeprefix(f"{freeze}."): values
        for key, values in golden(f"trajectory_{name}").items()
        if key.startswith(f"{freeze}.")
    }
    assert state.whole.step == EPOCHS * BATCHES
    assert state.whole.ema_updates == expected["updates"]
    assert (losses > 0).all()
    relative = np.abs(losses - expected["losses"]) / np.abs(expected["losses"])
    errors: dict[str, Mapping[str, float]] = {
        "losses": {f"step {step}": row.max() for step, row in enumerate(relative)}
    }
    trainable = flatten(trainable)
    for part, params, statistics in (
        ("model", state.params, state.whole.batch_stats),
        ("average", state.whole.ema_params, state.whole.ema_batch_stats),
    ):
        params = flatten(params)
        for path, learns in trainable.items():
            if not learns:
                before = flatten(start["params"])[path]
                assert params[path].tobytes() == before.tobytes(), f"{path} is frozen and moved"
        moved = {path: values for path, values in params.items() if trainable[path]} | flatten(statistics)
        errors[part] = Summary.load(expected, part).errors(moved)
    return errors


@pytest.mark.parametrize("name", ["n", "real"])
@pytest.mark.parametrize("freeze", [slow(0), pytest.param(10, marks=pytest.mark.long), slow(24)])
@pytest.mark.usefixtures("float64")
def test_fifty_steps_in_double_precision(name, freeze, network, golden, worst):
    for part, errors in compare(name, freeze, network, np.float64, golden).items():
        assert worst(f"fifty steps, float64, freeze {freeze}: {part}", errors) <= 1e-6


@pytest.mark.parametrize("name", ["n", "real"])
@pytest.mark.parametrize("freeze", [slow(0), slow(10), slow(24)])
def test_fifty_steps_in_single_precision(name, freeze, network, golden, worst):
    for part, errors in compare(name, freeze, network, np.float32, golden).items():
        assert worst(f"fifty steps, float32, freeze {freeze}: {part}", errors) <= 1e-2
