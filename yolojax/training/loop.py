"""The training loop, top to bottom: phase, step, validation, log line, checkpoint."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Set
from itertools import islice
from typing import Any

import jax
import numpy as np
from rich.console import Console

from yolojax.data.workers import affordable_workers
from yolojax.errors import UserError
from yolojax.interrupts import Interrupt, interruptible
from yolojax.mesh import put_batch, replicated
from yolojax.model.network import Network
from yolojax.training import plots, report
from yolojax.training.progress import EpochMeter, ProgressBar
from yolojax.training.run import Run, open_run
from yolojax.training.settings import TrainSettings
from yolojax.training.setup import Job
from yolojax.training.step import TrainStep, make_train_step, program_record
from yolojax.training.validator import Validator

log = logging.getLogger(__name__)


def train(settings: TrainSettings, given: Set[str] | None = None) -> dict[str, Any]:
    """Train, or continue an interrupted run, and leave everything in the run folder.

    Args:
      settings: of the run; with ``resume`` those of its folder hold, see ``settings.settings_to_resume``.
      given: names of the settings that are asked for and no mere defaults; by default those that differ from the defaults.

    Returns:
      What ``results.json`` holds: the figures of the best and of the last epoch, timings and places.

    Raises:
      UserError: the input is wrong, the loss is no longer finite, or the disk is full.
      SystemExit: a signal asked to stop; the state is saved.
    """
    with open_run(settings, _changed(settings) if given is None else given) as run, interruptible() as interrupt:
        job, step, workers = run.job, None, _workers(run.job)
        trackers = report.beginning(run)
        validate = Validator(job.spec, job.loss, job.names, job.mesh, job.dtype)
        while not run.ended:
            started = time.perf_counter()
            if run.enter_phase():
                report.phase(run)
                step = None
            step = step or Step(run)
            run.enter_epoch()
            meter = _train_epoch(run, step, workers, interrupt)
            if interrupt:
                run.pause(meter, time.perf_counter() - started)
                log.info("saved; continue with: python train.py --resume %s", run.folder)
                raise SystemExit(interrupt.status)
            evaluation = validate(run.averaged(), job.validation, _threads(job)) if run.validates else None
            run.advance(meter, evaluation, time.perf_counter() - started)
            report.epoch(run, trackers, meter, evaluation)
            run.save()
        return report.end(run, trackers, validate)


def _changed(settings: TrainSettings) -> set[str]:
    defaults = TrainSettings()
    return {
        item.name
        for item in dataclasses.fields(settings)
        if getattr(settings, item.name) != getattr(defaults, item.name)
    }


class Step:
    """The step of a phase, which tells and records what it compiles."""

    def __init__(self, run: Run) -> None:
        """Prepare; it compiles at its first call."""
        job, phase = run.job, run.phase
        network = Network(job.spec, dtype=job.dtype, fixed_bn=job.fixed_bn(phase))
        self._run = run
        self._step: TrainStep = make_train_step(network, phase.tree(), job.loss, job.optimizer, job.schedule, job.mesh)
        self._compiled: set[Any] = set()

    def __call__(self, batch: dict[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
        """Train on a batch that is on the devices; its metrics. ``size`` is what the step resizes the images to."""
        run = self._run
        factors = jax.device_put(dict(run.phase.factors), replicated(run.job.mesh))
        shapes = (size, *((name, array.shape) for name, array in batch.items()))
        start = time.perf_counter()
        with jax.transfer_guard("disallow"):  # nothing goes to a device, or comes back, unseen
            run.state, metrics = self._step(run.state, batch, factors, size=size)
        if shapes not in self._compiled:
            self._compiled.add(shapes)
            self._record(batch, size, factors, time.perf_counter() - start)
        return metrics

    def _record(self, batch: dict[str, Any], size: tuple[int, int] | None, factors: Any, seconds: float) -> None:
        """Tell and write down what the step costs that was just compiled."""
        run = self._run
        height, width = size or batch["images"].shape[1:3]
        count = len(batch["images"])
        log.info("compiled the step for %d images of %d x %d px in %.1f s", count, width, height, seconds)
        trainable, total = report.trainable_parameters(run)
        run.position.programs.append(
            {
                "epoch": run.position.epoch,
                "phase": run.phase.name,
                "trainable": trainable,
                "parameters": total,
                "compile_seconds": seconds,
                **program_record(self._step.lower(run.state, batch, factors, size=size)),
            }
        )


def _train_epoch(run: Run, step: Step, workers: int, interrupt: Interrupt) -> EpochMeter:
    """Train from the next batch to the end of the epoch, or to an interruption."""
    job, position = run.job, run.position
    batches = job.schedule.batches_per_epoch
    meter = EpochMeter(job.batch_size, position.sums, position.batch)
    stream = job.stream.iterate(position.epoch, position.batch, workers)
    running: deque[tuple[dict[str, Any], np.ndarray]] = deque()

    def collect() -> None:
        metrics, index = running.popleft()
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not values["finite"]:
            raise _not_finite(run, meter.batches, index)
        meter.add(values)
        bar.update(meter)

    with ProgressBar(Console(), position.epoch, job.epochs, batches, position.batch) as bar:
        timed = _timed(stream, meter, running)
        for number, made in enumerate(islice(timed, batches - position.batch), position.batch):
            batch = made.batch._asdict()
            if position.epoch == 0 and number < 3 and not job.settings.noplots:
                plots.draw_batch(batch, job.names, run.folder / f"train_batch{number}.jpg")
            metrics = step(put_batch(batch, job.mesh), job.size_on_device(position.epoch, number))
            running.append((metrics, made.indices))
            if len(running) > 1:  # one step runs while the next batch is fetched
                collect()
            if interrupt:
                break
        while running:
            collect()
    return meter


def _timed(stream: Iterator[Any], meter: EpochMeter, running: deque[Any]) -> Iterator[Any]:
    """The stream; the time that a batch takes counts as waiting if the device has nothing left to do when it comes."""
    while True:
        start = time.perf_counter()
        batch = next(stream, None)
        if batch is None:
            return
        if all(metrics["loss"].is_ready() for metrics, _ in running):
            meter.waited_for(time.perf_counter() - start)
        yield batch


def _workers(job: Job) -> int:
    """Data loading processes: what the user asked for, but no more than processors, images of a batch, or what shared memory has room for."""
    wanted = min(job.settings.workers, os.cpu_count() or 1, job.batch_size if job.batch_size > 1 else 0)
    workers, reason = affordable_workers(wanted, 3 * job.image_size**2 * job.batch_size)
    if reason:
        log.warning("%s", reason)
    return workers


def _threads(job: Job) -> int:
    """Threads that load the images of a validation."""
    return max(1, min(job.settings.workers, os.cpu_count() or 1))


def _not_finite(run: Run, batch: int, index: np.ndarray) -> UserError:
    """The error for a loss that is NaN or infinite."""
    job, epoch = run.job, run.position.epoch
    files = [job.stream.images.samples[number].name for number in index.tolist()]
    saved = run.checkpoints.newest()
    good = "there is no checkpoint yet" if saved is None else f"the last good checkpoint is {saved}"
    step = epoch * job.schedule.batches_per_epoch + batch + 1
    return UserError(
        f"epoch {epoch + 1}, batch {batch + 1} (step {step}): the loss is not finite; {good}; "
        f"lower lr0 in the --hyp file or look at these images (and those of their mosaics): {', '.join(files)}"
    )
