"""What training would cost, before it is started: a row for every freeze and target.

Each target has a process of its own (see ``devices``), which reads a request from its standard input and prints a row per line as soon as it has one:
``python -m yolojax.plan.plan``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
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
from yolojax.plan.cost import StepShape, largest_batch, step_cost, step_memory
from yolojax.plan.devices import Target, load_target, open_device, target_environment, usable_bytes
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
      optimizer_bytes: of the optimizer's state.
      weight_gradient_ops: operations that compute a gradient of a convolution kernel; None where the compiler refuses.
      memory_bytes: what the target has for a program.
      fits: whether there is a program and its peak is not above it.
      largest_batch: that fits; 0 if none does, None if it was not looked for.
      compile_seconds: what compiling for the target took here.
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
    optimizer_bytes: int
    weight_gradient_ops: int | None
    memory_bytes: int
    fits: bool
    largest_batch: int | None
    compile_seconds: float


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
    with tempfile.TemporaryFile("w+") as words, tempfile.TemporaryFile("w+") as errors:
        json.dump(request, words)
        words.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-m", "yolojax.plan.plan"],
            env=os.environ | target_environment(target),
            stdin=words,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                content = json.loads(line)
                if "error" in content:
                    raise UserError(content["error"])
                yield Row(**content)
            status = process.wait()
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if status:
            errors.seek(0)
            last = [line.strip() for line in errors if line.strip()][-1:]
            raise UserError(f"--target {target.name}: compiling failed ({last[0] if last else f'status {status}'})")


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
        dtype=settings.dtype,
        boxes=settings.boxes,
        frozen_bn=settings.frozen_bn,
        optimizer=settings.optimizer,
    )
    for word, start, phase in planned_phases(settings, spec):
        cost = step_cost(spec, phase, shape, device)
        memory = cost.memory
        largest = None
        if not settings.quick:
            measure = partial(_peak, spec, phase, shape, device)
            largest = largest_batch(measure, limit, {shape.batch: memory.peak if memory else None})
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
            optimizer_bytes=cost.optimizer_bytes,
            weight_gradient_ops=None if cost.weight_gradients is None else sum(cost.weight_gradients.values()),
            memory_bytes=limit,
            fits=cost.weight_gradients is not None and memory is not None and memory.peak <= limit,
            largest_batch=largest,
            compile_seconds=cost.compile_seconds,
        )


def _peak(spec: ModelSpec, phase: Phase, shape: StepShape, device: jax.Device, batch: int) -> int | None:
    memory = step_memory(spec, phase, dataclasses.replace(shape, batch=batch), device)
    return memory.peak if memory else None


if __name__ == "__main__":
    main()
