"""What the parts share: a step that is ready to run, rows of results, and the reason why something is left out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.batch import batch_of
from yolojax.freezing.phases import Phase, make_phase
from yolojax.hyperparameters import Hyperparameters
from yolojax.mesh import make_mesh, put_batch, replicated
from yolojax.model.network import Network, init_variables
from yolojax.model.spec import ModelSpec, load_spec
from yolojax.training.loss import LossSettings
from yolojax.training.optimizer import OptimizerSettings
from yolojax.training.schedule import Schedule
from yolojax.training.state import TrainState, create_state
from yolojax.training.step import TrainStep, fixed_modules, make_train_step
from yolojax.tree import flatten

CLASSES = 20
ROWS = 64
# Layers 0 to 4 are its backbone, 6 is Detect: a network that a CPU compiles in seconds.
SMALL_NETWORK = """
nc: 2
anchors: [[8, 8, 16, 12, 12, 16], [20, 20, 32, 24, 24, 32]]
backbone:
  - [-1, 1, Conv, [8, 6, 2, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, C3, [16]]
  - [-1, 1, Conv, [24, 3, 2]]
  - [-1, 1, SPPF, [24, 5]]
head:
  - [-1, 1, Conv, [32, 3, 2]]
  - [[4, 5], 1, Detect, []]
"""


class AbsentError(Exception):
    """This machine lacks something; the message is the reason."""


def row(what: str, result: str, *, limit: str = "", passes: bool | None = None, **figures: Any) -> dict[str, Any]:
    """A line of the table, with the figures that it is made of; ``passes`` is None where nothing is asked."""
    return {"what": what, "result": result, "limit": limit, "passes": passes, **figures}


def network_of(case: Mapping[str, Any]) -> ModelSpec:
    """The network that a case names; ``small`` is the one above."""
    if case["model"] != "small":
        return load_spec(case["model"], classes=CLASSES)
    file = Path(case["folder"]) / "small.yaml"
    file.write_text(SMALL_NETWORK, encoding="utf-8")
    return load_spec(str(file), classes=CLASSES)


def title(case: Mapping[str, Any]) -> str:
    """A case in a line of the table."""
    words = [case["model"], f"{case['size']} px", f"batch {case['batch']}", f"freeze {case['freeze']}", case["dtype"]]
    return ", ".join(map(str, words))


@dataclass(kw_only=True)
class Bench:
    """A training step on the first device, its state, and a batch that lies there."""

    spec: ModelSpec
    phase: Phase
    step: TrainStep
    state: TrainState
    batch: Any
    optimizer: OptimizerSettings
    fixed: frozenset[str]
    device: jax.Device
    sharding: jax.sharding.Sharding

    def lower(self) -> jax.stages.Lowered:
        """The program, before it is compiled."""
        return self.step.lower(self.state, self.batch)

    def run(self, program: Any, steps: int) -> dict[str, jax.Array]:
        """So many steps of a compiled program; the metrics of the last, which may not be ready."""
        metrics: dict[str, jax.Array] = {}
        for _ in range(steps):
            moving, metrics = program(self.state.moving, self.state.resting, self.batch, {})
            self.state = TrainState(moving, self.state.resting)
        return metrics

    def times(self, program: Any, blocks: int, steps: int) -> list[float]:
        """Seconds per step of every block of steps; the device is waited for once in a block."""
        seconds = []
        for _ in range(blocks):
            start = time.perf_counter()
            jax.block_until_ready(self.run(program, steps))
            seconds.append((time.perf_counter() - start) / steps)
        return seconds


def make_bench(case: Mapping[str, Any]) -> Bench:
    """A step as a case describes it: ``model size batch freeze dtype``, and ``frozen_bn optimizer crowded`` where they differ from the usual."""
    device = jax.devices()[0]
    spec, mesh, hyp = network_of(case), make_mesh([device]), Hyperparameters()
    variables = init_variables(spec, jax.random.key(0))
    phase = make_phase(tuple(flatten(variables["params"])), freeze=case["freeze"])
    fixed = fixed_modules(phase, case.get("frozen_bn", "fixed"))
    optimizer = OptimizerSettings(name=case.get("optimizer", "SGD"), accumulates=False)
    step = make_train_step(
        Network(spec, dtype=jnp.dtype(case["dtype"]), fixed_bn=fixed),
        phase.tree(),
        LossSettings.from_hyperparameters(hyp, spec, case["size"]),
        optimizer,
        Schedule(
            epochs=100, batches_per_epoch=30, batch_size=64
        ),  # a short warm-up, so that every leaf moves in a few steps
        mesh,
    )
    state = create_state(variables, phase.tree(), optimizer, mesh, fixed, scaled=case["dtype"] == "float16")
    batch = put_batch(batch_of(case["batch"], case["size"], CLASSES, ROWS, case.get("crowded", False)), mesh)
    return Bench(
        spec=spec,
        phase=phase,
        step=step,
        state=state,
        batch=batch,
        optimizer=optimizer,
        fixed=fixed,
        device=device,
        sharding=replicated(mesh),
    )


def same_bits(first: Any, second: Any) -> bool:
    """Whether two arrays are equal to the bit, signed zeros included."""
    return np.asarray(first).tobytes() == np.asarray(second).tobytes()


def half_precision() -> str:
    """The narrow type that the device multiplies fast: bfloat16, or float16 on GPUs before compute capability 8.0."""
    device = jax.devices()[0]
    capability = float(getattr(device, "compute_capability", None) or 8)
    return "bfloat16" if capability >= 8 else "float16"
