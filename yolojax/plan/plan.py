"""What training would cost, before it is started: a row for every freeze and target.

Each target has a process of its own (see ``devices``), which reads a request from its standard input and prints a row per line as soon as it has one:
``python -m yolojax.plan.plan``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from yolojax.errors import UserError
from yolojax.freezing.load import load_strategy, rehearse
from yolojax.freezing.phases import Phase
from yolojax.model.network import parameter_sizes
from yolojax.model.spec import ModelSpec
from yolojax.plan.cost import (
    FeatureCost,
    StepShape,
    feature_cost,
    largest_batch,
    step_cost,
    training_peak,
    validation_bytes,
)
from yolojax.plan.devices import Target, dtype_on, load_target, open_device, target_environment, usable_bytes
from yolojax.plan.process import ask
from yolojax.plan.settings import PlanSettings


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a step costs with one freeze on one target.

    Attributes:
      freeze: as it was written.
      start: the first epoch of the phase, where a strategy has several.
      target: as it was written.
      batch: images per step.
      img: side of an image in pixels.
      dtype: of the computation.
      parameters: of the network, adapters included.
      trainable: how many of them train.
      flops: of one step, as ``cost.step_flops`` counts them.
      peak_bytes: see ``cost.Memory``; None where the compiler refuses because it does not fit, and does not say what it would need.
      temp_bytes: likewise.
      validation_bytes: see ``cost.validation_bytes``; None too where the largest batch was not looked for.
      optimizer_bytes: of the optimizer's state.
      weight_gradient_ops: operations that compute a gradient of a convolution kernel; None where the compiler refuses.
      memory_bytes: what the target has for a program.
      fits: whether there is a program and its peak is not above it.
      largest_batch: whose step and validation fit; 0 if none does, None if it was not looked for.
      compile_seconds: what compiling for the target took here.
      features: what ``--cache features`` saves and takes; None where nothing is frozen in front.
    """

    freeze: str
    start: int
    target: str
    batch: int
    img: int
    dtype: str
    parameters: int
    trainable: int
    flops: float
    peak_bytes: int | None
    temp_bytes: int | None
    validation_bytes: int | None
    optimizer_bytes: int
    weight_gradient_ops: int | None
    memory_bytes: int
    fits: bool
    largest_batch: int | None
    compile_seconds: float
    features: FeatureCost | None


def plan(settings: PlanSettings, spec: ModelSpec) -> Iterator[Row]:
    """Compile the step for every freeze and target.

    Args:
      settings: of the command.
      spec: the network, with its number of classes.

    Yields:
      Rows, by target and then by freeze, each as soon as it is known.

    Raises:
      UserError: a freeze or target is wrong, before anything is compiled; or a target cannot be compiled for.
    """
    if settings.imgsz % spec.stride:
        raise UserError(f"--img {settings.imgsz}: must be a multiple of the stride {spec.stride}")
    targets = [load_target(name) for name in dict.fromkeys(settings.target)]
    planned_phases(settings, spec)
    for target in targets:
        yield from _rows_of(target, settings, spec)


def planned_phases(settings: PlanSettings, spec: ModelSpec) -> list[tuple[str, int, Phase]]:
    """Every freeze with the first epoch of a phase and the phase: its first one, or all of them where the settings say so."""
    sizes = parameter_sizes(spec)
    planned = []
    for word in dict.fromkeys(settings.freeze):
        phases = rehearse(load_strategy(word, sizes=lambda: sizes), tuple(sizes), settings.epochs, spec.name)
        planned += [(word, start, phase) for start, phase in phases[: None if settings.phases else 1]]
    return planned


def _rows_of(target: Target, settings: PlanSettings, spec: ModelSpec) -> Iterator[Row]:
    """The rows of one target, from a process that was started for it."""
    request = {"settings": dataclasses.asdict(settings), "spec": spec.to_dict(), "target": target.name}
    try:
        for content in ask("yolojax.plan.plan", request, target_environment(target)):
            features = content["features"] and FeatureCost(**content["features"])
            yield Row(**{**content, "features": features})
    except ChildProcessError as error:
        raise UserError(f"--target {target.name}: compiling failed ({error})") from error


def main() -> None:
    """Answer a request on standard input with rows, or an ``error``, on standard output; one JSON object per line."""
    request = json.load(sys.stdin)
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in request["settings"].items()
    }
    settings = PlanSettings(**values)
    try:
        for row in _answer(settings, ModelSpec.from_dict(request["spec"]), load_target(request["target"])):
            print(json.dumps(dataclasses.asdict(row)), flush=True)
    except UserError as error:
        print(json.dumps({"error": str(error)}), flush=True)


def _answer(settings: PlanSettings, spec: ModelSpec, target: Target) -> Iterator[Row]:
    device = open_device(target)
    limit = usable_bytes(target, device)
    shape = StepShape(
        batch=settings.batch_size,
        size=settings.imgsz,
        dtype=dtype_on(target, device, settings.dtype),
        boxes=settings.boxes,
        frozen_bn=settings.frozen_bn,
        optimizer=settings.optimizer,
        remat=settings.remat,
    )
    for word, start, phase in planned_phases(settings, spec):
        cost = step_cost(spec, phase, shape, device)
        memory = cost.memory
        largest = validating = None
        if not settings.quick:
            validating = validation_bytes(spec, phase, shape, device)
            peak = None if memory is None or validating is None else max(memory.peak, validating)
            largest = largest_batch(partial(_peak, spec, phase, shape, device), limit, {shape.batch: peak})
        yield Row(
            freeze=word,
            start=start,
            target=target.name,
            batch=shape.batch,
            img=shape.size,
            dtype=shape.dtype,
            parameters=cost.parameters,
            trainable=cost.trainable,
            flops=cost.flops,
            peak_bytes=memory.peak if memory else None,
            temp_bytes=memory.temporary if memory else None,
            validation_bytes=validating,
            optimizer_bytes=cost.optimizer_bytes,
            weight_gradient_ops=None if cost.weight_gradients is None else sum(cost.weight_gradients.values()),
            memory_bytes=limit,
            fits=cost.weight_gradients is not None and memory is not None and memory.peak <= limit,
            largest_batch=largest,
            compile_seconds=cost.compile_seconds,
            features=feature_cost(spec, phase, shape),
        )


def _peak(spec: ModelSpec, phase: Phase, shape: StepShape, device: jax.Device, batch: int) -> int | None:
    return training_peak(spec, phase, dataclasses.replace(shape, batch=batch), device)


if __name__ == "__main__":
    main()
