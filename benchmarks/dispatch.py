"""The time that Python needs to send training steps to a device, beside the time that the device needs for them.

    python -m benchmarks.dispatch

The state is that of a real training, with all its arrays; the program that it goes through does nothing but count, so that what is left is what the
thread of Python does for a dispatch: hand the state over, take it back, fetch the metrics. Waiting is left out, because the clock is that of the
thread. Columns: arrays in and out, and milliseconds per dispatch, median and quartiles; ``trees`` is the same with the trees of the state taken apart at
every call, as ``TrainStep`` does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from yolojax.freezing.phases import make_phase
from yolojax.hyperparameters import Hyperparameters
from yolojax.mesh import make_mesh
from yolojax.model.network import abstract_variables
from yolojax.model.spec import load_spec
from yolojax.runtime import select_devices
from yolojax.training.optimizer import OptimizerSettings
from yolojax.training.schedule import Schedule
from yolojax.training.state import Resting, TrainState, WholeState, create_state
from yolojax.training.step import Batch, Dispatch, TrainStep, fixed_modules
from yolojax.tree import flatten

METRICS = ("loss", "box", "obj", "cls", "gradient_norm", "finite")


def count(
    moving: WholeState, resting: Resting, batch: Batch, factors: Mapping[str, Any], size: tuple[int, int] | None
) -> tuple[WholeState, dict[str, Array]]:
    """A step that trains nothing."""
    return moving._replace(step=moving.step + 1), {name: jnp.float32(moving.step) for name in METRICS}


class NoBatches:
    """A maker of batches that makes none."""

    def source(self, epoch: int) -> Any:
        """Nothing."""
        return {}

    def samples(self, epoch: int, number: int) -> np.ndarray:
        """Of nothing."""
        return np.zeros(0, int)

    def make(self, source: Any, epoch: Array, number: Array) -> Batch:
        """Nothing."""
        return {}


def measure(model: str, freeze: int, steps: int, calls: int) -> dict[str, Any]:
    """Milliseconds of Python per dispatch, for one freeze."""
    spec, mesh = load_spec(model), make_mesh(select_devices())
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_variables(spec))
    phase = make_phase(tuple(flatten(variables["params"])), freeze=freeze)
    hyp = Hyperparameters()
    optimizer = OptimizerSettings.from_hyperparameters(hyp, batch_size=16)
    schedule = Schedule.from_hyperparameters(hyp, epochs=100, batches_per_epoch=1000, batch_size=16)
    start = partial(create_state, variables, phase.tree(), optimizer, mesh, fixed_modules(phase, "fixed"))
    state = start()
    dispatch = Dispatch(count, state, phase.factors, schedule, mesh, NoBatches())
    row = {
        "freeze": freeze,
        "arrays": len(jax.tree.leaves(state)),
        "moving": len(jax.tree.leaves(state.moving)),
        **_figures("dispatch", lambda: dispatch({}, None, steps), calls),
    }
    held: list[TrainState] = [start()]
    trees = TrainStep(jax.jit(count, donate_argnums=0, static_argnames="size", keep_unused=True))

    def call() -> dict[str, Array]:
        held[0], metrics = trees(held[0], {}, phase.factors)
        return metrics

    return row | _figures("trees", call, calls)


def _figures(name: str, call: Callable[[], dict[str, Array]], calls: int) -> dict[str, float]:
    times = []
    for number in range(calls + 5):
        started = time.thread_time()
        metrics = call()
        spent = time.thread_time() - started
        jax.block_until_ready(metrics)
        started = time.thread_time()
        jax.device_get(metrics)
        if number >= 5:  # the first compile and fill caches
            times.append(1000 * (spent + time.thread_time() - started))
    low, middle, high = statistics.quantiles(times, n=4)
    return {f"{name}_ms": middle, f"{name}_low_ms": low, f"{name}_high_ms": high}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="yolov5n")
    parser.add_argument("--freeze", type=int, nargs="+", default=[0, 10, 24])
    parser.add_argument("--steps", type=int, default=8, help="steps of a dispatch")
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = [measure(arguments.model, freeze, arguments.steps, arguments.calls) for freeze in arguments.freeze]
    print("| freeze | arrays, moving | dispatch, ms | trees, ms |\n|-|-|-|-|")
    for row in rows:
        times = (
            f"{row[f'{name}_ms']:.2f} ({row[f'{name}_low_ms']:.2f}–{row[f'{name}_high_ms']:.2f})"
            for name in ("dispatch", "trees")
        )
        print(f"| {row['freeze']} | {row['arrays']}, {row['moving']} | {' | '.join(times)} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
