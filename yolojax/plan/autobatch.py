"""The largest batch that a training fits into the memory of its devices with: what ``--batch -1`` asks for.

It is looked for before the training, in a process of its own, so that the device is free again when the training starts.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from functools import partial
from typing import Any

import jax

from yolojax.augmentation.feeding import RESIDENT_SHARE
from yolojax.augmentation.resident import resident_bytes
from yolojax.errors import UserError
from yolojax.freezing.load import rehearse
from yolojax.freezing.phases import Phase
from yolojax.plan.cost import StepShape, largest_batch, training_peak
from yolojax.plan.devices import load_target, usable_bytes
from yolojax.plan.process import ask
from yolojax.runtime import select_devices
from yolojax.training.settings import TrainSettings
from yolojax.training.setup import Job, prepare

log = logging.getLogger(__name__)

# As the original leaves it: the workspace of cuDNN and what is lost between arrays find room in the rest.
PART_OF_MEMORY = 0.8
_FIRST = 8  # images per device that the search starts with


def with_fitting_batch(settings: TrainSettings) -> TrainSettings:
    """Settings of a new run with the batch size that ``--batch -1`` means, which is told.

    Raises:
      UserError: something does not fit that ``setup.prepare`` would refuse too, or not even one image per device fits.
    """
    # A program that comes from JAX's cache does not tell its memory.
    environment = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    try:
        (answer,) = ask("yolojax.plan.autobatch", dataclasses.asdict(settings.with_absolute_paths()), environment)
    except ChildProcessError as error:
        raise UserError(f"--batch-size -1: no batch could be tried ({error}); name a number") from error
    log.info("--batch-size -1: %s", answer["reason"])
    return dataclasses.replace(settings, batch_size=answer["batch"])


def main() -> None:
    """Answer settings on standard input with a ``batch`` and a ``reason``, or an ``error``, on standard output."""
    content = json.load(sys.stdin)
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
    }
    try:
        batch, reason = fitting_batch(TrainSettings(**values))
        print(json.dumps({"batch": batch, "reason": reason}))
    except UserError as error:
        print(json.dumps({"error": str(error)}))


def fitting_batch(settings: TrainSettings) -> tuple[int, str]:
    """The batch over all devices, and why it is that.

    Raises:
      UserError: as ``with_fitting_batch``.
    """
    devices = select_devices(settings.device, settings.deterministic)
    count, device = len(devices), devices[0]
    job, _ = prepare(dataclasses.replace(settings, batch_size=count, cache=None))
    if device.platform == "cpu":
        usual = job.data.defaults.get("batch", 16)
        return usual, f"{usual}, as without it: a CPU has no memory of its own to fill"
    limit = int(PART_OF_MEMORY * usable_bytes(load_target(device.platform), device))
    if settings.cache in ("auto", "device"):
        needed = (resident_bytes(job.stream.images.samples, job.image_size, parts) for parts in (1, count))
        limit -= next((size for size in needed if size <= RESIDENT_SHARE * limit), 0)  # else the host keeps them
    largest = largest_on_one(job, device, limit)
    if not largest:
        raise UserError(
            f"--batch-size -1: not even one image of {job.image_size} px fits into {limit / 1e9:.1f} GB; choose a smaller --img or freeze more"
        )
    kept = ", images that stay there included" if settings.cache in ("auto", "device") else ""
    reason = f"{count * largest}, which takes at most {PART_OF_MEMORY:.0%} of what {device.device_kind} has for a program{kept}"
    images = len(job.stream.images.samples)
    if count * largest > images:
        largest = max(images // count, 1)
        reason = f"{count * largest}, because there are no more than {images} training images"
    return count * largest, reason


def largest_on_one(job: Job, device: jax.Device, limit: int) -> int:
    """The largest batch of one device whose step and validation need no more than ``limit`` bytes in any phase; 0 if there is none."""
    size = max(job.image_sizes) if job.settings.multi_scale else job.image_size
    shape = StepShape(
        batch=_FIRST,
        size=size,
        dtype=job.settings.dtype,
        boxes=job.stream.max_boxes,
        frozen_bn=job.settings.frozen_bn,
        optimizer=job.optimizer.name,
        remat=job.settings.remat,
    )

    def peak(phase: Phase, batch: int) -> int | None:
        return training_peak(job.spec, phase, dataclasses.replace(shape, batch=batch), device)

    phases = [phase for _, phase in rehearse(job.strategy, job.paths, job.epochs, job.spec.name)]
    needs = [peak(phase, _FIRST) for phase in phases]
    # The phase that needs most of a few images needs most of many.
    hungriest = max(range(len(phases)), key=lambda number: float("inf") if (need := needs[number]) is None else need)
    return largest_batch(partial(peak, phases[hungriest]), limit, {_FIRST: needs[hungriest]})


if __name__ == "__main__":
    main()
