"""The training loop, top to bottom: phase, epoch, validation, log line, checkpoint."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from yolojax.files import find_run_folder, new_run_folder
from yolojax.freezing.labels import trainable_mask
from yolojax.freezing.phases import MOVEMENT
from yolojax.freezing.signals import movement
from yolojax.interrupts import Interrupt, interruptible
from yolojax.mesh import put_batch
from yolojax.training import plots, reporting, session
from yolojax.training.progress import EpochMeter, ProgressBar
from yolojax.training.session import Session
from yolojax.training.settings import TrainSettings
from yolojax.training.setup import prepare
from yolojax.training.step import TrainStep
from yolojax.training.validator import Validator
from yolojax.tree import partition

log = logging.getLogger(__name__)


def train(settings: TrainSettings) -> dict[str, Any]:
    """Train, or continue an interrupted run, and leave everything in the run folder.

    Returns:
      What ``results.json`` holds: the figures of the best and of the last epoch, timings and places.

    Raises:
      UserError: the input is wrong, the loss is no longer finite, or the disk is full.
      SystemExit: a signal asked to stop; the state is saved.
    """
    if settings.resume:
        run = find_run_folder(settings.resume, settings.project)
        job = prepare(session.read_settings(run))
        now = session.resume(job, run)
    else:
        job = prepare(settings)
        now = session.begin(job, new_run_folder(settings.project, settings.name, settings.exist_ok))
    reporting.describe(job, now.run, now.state, now.phase, session.image_sizes(job))
    dtype = jnp.bfloat16 if job.settings.dtype == "bfloat16" else None
    validate = Validator(job.spec, job.loss, job.names, job.mesh, dtype)
    step: TrainStep | None = None

    with interruptible() as interrupt, closing(job.stream):
        while now.progress.epoch < job.epochs:
            began = time.perf_counter()
            if session.next_phase(now) or step is None:
                step = session.make_step(job, now.phase)
            if MOVEMENT in job.strategy.needs and now.progress.batch == 0:
                now.epoch_start = _trained(now)
            if job.settings.image_weights:
                session.draw_images(now)
            meter = _train_epoch(now, step, interrupt)
            if interrupt:
                _save_and_exit(now, meter, interrupt, time.perf_counter() - began)
            moved = movement(now.epoch_start, _trained(now)) if now.epoch_start else {}
            skip = job.settings.noval and now.progress.epoch + 1 < job.epochs
            evaluation = None if skip else validate(now.averaged(), job.validation)
            if session.end_epoch(now, meter, evaluation, moved, time.perf_counter() - began):
                break
    return session.finish(now, validate)


def _train_epoch(now: Session, step: TrainStep, interrupt: Interrupt) -> EpochMeter:
    """Train from the next batch to the end of the epoch, or to an interruption."""
    job, progress = now.job, now.progress
    batches = job.schedule.batches_per_epoch
    meter = EpochMeter(job.schedule.batch_size, progress.sums, progress.batch)
    stream = job.stream.iterate(progress.epoch, progress.batch, session.workers(job))
    running: deque[Any] = deque()

    def collect() -> None:
        metrics, index = running.popleft()
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not values["finite"]:
            raise session.not_finite(now, meter.batches, index)
        meter.add(values)
        bar.update(meter)

    with ProgressBar(Console(), progress.epoch, job.epochs, batches, progress.batch) as bar:
        for number, batch in enumerate(
            islice(_timed(stream, meter, running), batches - progress.batch), progress.batch
        ):
            index = batch.pop("index")
            if progress.epoch == 0 and number < 3 and not job.settings.noplots:
                plots.draw_batch(batch, job.names, now.run / f"train_batch{number}.jpg")
            now.state, metrics = _logged(
                step, now, put_batch(batch, job.mesh), session.image_size(job, progress.epoch, number)
            )
            running.append((metrics, index))
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


def _logged(step: TrainStep, now: Session, batch: dict[str, Any], size: tuple[int, int] | None) -> Any:
    """Call the step; say so if this compiled it."""
    programs, start = step.program._cache_size(), time.perf_counter()
    result = step(now.state, batch, now.phase.factors, size=size)
    if step.program._cache_size() > programs:
        height, width = size or batch["images"].shape[1:3]
        seconds = time.perf_counter() - start
        log.info(
            "compiled the step for %d images of %d x %d px in %.1f s", len(batch["images"]), width, height, seconds
        )
        session.record_program(now, seconds, step.lower(result[0], batch, now.phase.factors, size=size))
    return result


def _save_and_exit(now: Session, meter: EpochMeter, interrupt: Interrupt, seconds: float) -> None:
    now.progress.batch, now.progress.sums = meter.batches, meter.sums
    now.progress.seconds += seconds
    now.save()
    now.checkpoints.close()
    log.info("saved; continue with: python train.py --resume %s", now.run)
    raise SystemExit(interrupt.status)


def _trained(now: Session) -> Any:
    """A copy of what trains."""
    return jax.tree.map(jnp.copy, partition(now.state.params, trainable_mask(now.phase.tree()))[0])
