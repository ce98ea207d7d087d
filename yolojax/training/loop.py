"""The training loop, top to bottom: phase, step, validation, log line, checkpoint."""

from __future__ import annotations

import dataclasses
import json
import logging
import shlex
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, TypeAlias

import jax
import numpy as np
from rich.console import Console

from yolojax.errors import UserError
from yolojax.features.kept import KeptFeatures
from yolojax.features.shared import Shared
from yolojax.hosts.agreement import gathered, is_first, process_count
from yolojax.hosts.stopping import CommonStop
from yolojax.interrupts import interruptible
from yolojax.mesh import local_rows, place_everywhere, put_batch
from yolojax.model.network import Network
from yolojax.runtime import device_peak_bytes
from yolojax.system import processors
from yolojax.training import plots, report
from yolojax.training.progress import EpochMeter, ProgressBar, program_record
from yolojax.training.run import Run, open_run
from yolojax.training.settings import TrainSettings
from yolojax.training.setup import BATCHES_OF_ONE_SIZE, Job
from yolojax.training.state import TrainState
from yolojax.training.step import BatchMaker, Dispatch, Pace, make_step_function, shared_step_function
from yolojax.training.trackers import require_trackers
from yolojax.training.validator import Validator

log = logging.getLogger(__name__)

# The loss is scaled by 65,536 at first and by half after each overflow; no healthy gradient brings it down to this.
LEAST_SCALE = 2.0**-10
STEPS_WITHOUT_MEASURING = 8


def train(settings: TrainSettings, given: Set[str] | None = None, shared: Shared | None = None) -> dict[str, Any]:
    """Train, or continue an interrupted run, and leave everything in the run folder.

    Args:
      settings: of the run; with ``resume`` those of its folder hold, see ``settings.settings_to_resume``.
      given: names of the settings that are asked for and no mere defaults; by default those that differ from the defaults.
      shared: what runs of this process share, where several come one after the other; it is added to.

    Returns:
      What ``results.json`` holds: the figures of the best and of the last epoch, timings and places.

    Raises:
      UserError: the input is wrong, the loss is no longer finite, or the disk is full.
      SystemExit: a signal asked to stop; the state is saved.
    """
    asked = _changed(settings) if given is None else given
    if is_first():
        require_trackers(settings)
    with open_run(settings, asked, shared) as run, interruptible(tell=is_first()) as interrupt:
        job, step = run.job, None
        stop = CommonStop(interrupt, job.mesh)
        trackers = report.beginning(run)
        validate = Validator(job.spec, job.loss, job.names, job.mesh, job.dtype, shared)
        while not run.ended:
            started = time.perf_counter()
            if run.enter_phase():
                report.phase(run)
                step, run.position.steps_per_dispatch = None, None
            step = step or Step(run, shared)
            run.enter_epoch()
            meter = _train_epoch(run, step, stop)
            if stop:
                status = stop.status
                run.pause(meter, time.perf_counter() - started)
                log.info("saved; continue with: python train.py --resume %s", shlex.quote(str(run.folder)))
                raise SystemExit(status)
            batches = (step.features and step.features.validation) or job.validation
            evaluation = validate(run.averaged(), batches, _threads(job)) if run.validates else None
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
    """The steps of a phase, which tell and record what they compile.

    Attributes:
      compiled: whether the last call compiled.
      pace: how many steps go into a dispatch, where the devices make the batches.
      features: what is read in place of images; None where images are.
    """

    def __init__(self, run: Run, shared: Shared | None = None) -> None:
        """Take the state of the run over; they compile at their first call, unless ``shared`` has their program."""
        job, phase = run.job, run.phase
        self.features = _enter_features(run)
        network = Network(
            job.spec,
            dtype=job.dtype,
            fixed_bn=job.fixed_bn(phase),
            start=run.position.features_start,
            remat=job.settings.remat,
        )
        settings = job.loss, job.optimizer, job.schedule
        factors: Mapping[str, Any] = phase.factors
        if shared is None:
            function = make_step_function(network, phase.tree(), *settings, job.mesh, job.exchange)
        else:
            function, numbers = shared_step_function(network, phase, settings, job.mesh, job.exchange, shared)
            factors = {"factors": dict(factors), "numbers": numbers}
        self._run = run
        teacher = None if job.teacher is None else place_everywhere(job.teacher.variables, job.mesh)
        self._dispatch = Dispatch(function, run.state, factors, job.schedule, job.mesh, job.maker, shared, teacher)
        self.compiled, self._recorded = False, False
        self.pace = _pace(job, run.position.steps_per_dispatch)

    @property
    def state(self) -> TrainState:
        """The state of the run after the last step."""
        return self._dispatch.state

    def __call__(self, feed: Feed) -> dict[str, Any]:
        """Train on what is on the devices; the metrics."""
        run = self._run
        size = run.job.size_on_device(run.position.epoch, feed.first)
        programs, start = self._dispatch.traces, time.perf_counter()
        if not programs:
            log.info("compiling the step; the first time this takes up to a minute")
        with jax.transfer_guard("disallow"):  # nothing goes to a device, or comes back, unseen
            metrics = self._dispatch(feed.content, size, feed.steps)
        self.compiled = self._dispatch.traces > programs
        if self.compiled or not self._recorded:
            self._record(feed, size, time.perf_counter() - start if self.compiled else 0.0)
        return metrics

    def _record(self, feed: Feed, size: tuple[int, int] | None, seconds: float) -> None:
        """Tell and write down what the program costs that was just compiled."""
        run, job = self._run, self._run.job
        made_here = feed.steps or self.features
        side = (job.image_size,) * 2 if made_here else feed.content["images"].shape[1:3]
        height, width = size or side
        shape = f"the step for {job.batch_size} images of {width} x {height} px"
        log.info(
            f"compiled {shape} in {seconds:.1f} s" if self.compiled else f"{shape}: compiled by a run before this one"
        )
        self._recorded = True
        trainable, total = report.trainable_parameters(run)
        run.position.programs.append(
            {
                "epoch": run.position.epoch,
                "phase": run.phase.name,
                "trainable": trainable,
                "parameters": total,
                "compile_seconds": seconds,
                "features_start": run.position.features_start,
                **program_record(self._dispatch.lower(feed.content, size, feed.steps)),
            }
        )


def _enter_features(run: Run) -> KeptFeatures | None:
    """The features that a phase reads; None where it reads images. Notes where it starts, for those who resume."""
    job, position = run.job, run.position
    if job.features is None:
        return None
    variables = {"params": run.state.params, "batch_stats": run.state.whole.batch_stats}
    position.features_start = job.features.enter(
        run.phase, job.fixed_bn(run.phase), variables, run.state.averages, position.features_start
    )
    return job.features if position.features_start else None


@dataclass(frozen=True)
class Feed:
    """What one dispatch trains on.

    Attributes:
      first: number of its first batch in the epoch.
      steps: how many batches the devices make of it; None for one batch from the host.
      content: on the devices: the batch, or what batches are made from.
      samples: the sample that each image of its n-th batch begins with.
    """

    first: int
    steps: int | None
    content: Any
    samples: Callable[[int], np.ndarray]


Running: TypeAlias = deque[tuple[dict[str, Any], Feed]]


def _train_epoch(run: Run, step: Step, stop: CommonStop) -> EpochMeter:
    """Train from the next batch to the end of the epoch, or to an interruption."""
    job, position = run.job, run.position
    batches = job.schedule.batches_per_epoch
    meter = EpochMeter(job.batch_size, position.sums, position.batch)
    ended: float | None = None
    running: Running = deque()

    def collect() -> None:
        nonlocal ended
        metrics, feed = running.popleft()
        values = {name: np.atleast_1d(value)[: feed.steps] for name, value in jax.device_get(metrics).items()}
        stop.see(values)
        _check(run, feed, values)
        meter.add(values)
        bar.update(meter)
        before, ended = ended, time.perf_counter()
        if before is not None:
            step.pace.finished(feed.steps or 1, ended - before)

    if step.features is not None:
        feeds = _feature_feeds(run, step.features, stop)
    elif job.maker is not None:
        feeds = _device_feeds(run, job.maker, step.pace)
    else:
        feeds = _host_feeds(run, meter, running)
    with ProgressBar(Console(quiet=not is_first()), position.epoch, job.epochs, batches, position.batch) as bar:
        for feed in feeds:
            if flag := stop.feed():
                feed = dataclasses.replace(feed, content=feed.content | flag)
            try:
                running.append((step(feed), feed))
            except jax.errors.JaxRuntimeError:
                if not stop:
                    raise
                break  # a signal to all processes of the terminal ends the compiler of a GPU's kernels too; the state is as it was
            if step.compiled:
                meter.restart()
            if len(running) > 1:  # one dispatch runs while the next one is prepared
                collect()
            if stop:
                break
        while running:
            collect()
    run.state = step.state
    if job.maker is not None and step.pace.settled:
        position.steps_per_dispatch = step.pace.steps
    if position.step_peak_bytes is None:  # no validation has raised it yet
        position.step_peak_bytes = device_peak_bytes(job.mesh.local_devices[0])
    return meter


def _pace(job: Job, earlier: int | None) -> Pace:
    """How many steps go into a dispatch; ``earlier`` is the number of an earlier process for this phase."""
    settings, most = job.settings, job.schedule.batches_per_epoch
    if settings.multi_scale:
        most = min(most, BATCHES_OF_ONE_SIZE)
    if settings.steps_per_dispatch != "auto":
        return Pace(int(settings.steps_per_dispatch), most)
    # What is measured differs from process to process, and all of them have to take the same number.
    return Pace(STEPS_WITHOUT_MEASURING if process_count() > 1 else earlier, most)


def _host_feeds(run: Run, meter: EpochMeter, running: Running) -> Iterator[Feed]:
    """The rest of the epoch, batch by batch, as the input stream makes them."""
    job, position = run.job, run.position
    stream = _timed(job.stream.iterate(position.epoch, position.batch, run.workers), meter, running)
    rest = islice(stream, job.schedule.batches_per_epoch - position.batch)
    for number, made in enumerate(rest, position.batch):
        batch = made.batch._asdict()
        if position.epoch == 0 and number < 3 and not job.settings.noplots and is_first():
            plots.draw_batch(batch, job.names, run.folder / f"train_batch{number}.jpg")
        yield Feed(number, None, put_batch(batch, job.mesh), [made.indices].__getitem__)


def _feature_feeds(run: Run, features: KeptFeatures, stop: CommonStop) -> Iterator[Feed]:
    """The rest of the epoch, batch by batch, whose features are kept."""
    job, position = run.job, run.position
    if position.epoch == position.batch == 0 and not job.settings.noplots:
        for number in range(min(3, job.schedule.batches_per_epoch)):
            shown = features.images(number)
            plots.draw_batch(shown, job.names, run.folder / f"train_batch{number}.jpg")
    made = features.batches(position.epoch, position.batch, run.workers, stop.__bool__)
    for number, each in enumerate(made, position.batch):
        yield Feed(number, None, put_batch(each.batch, job.mesh), [each.indices].__getitem__)


def _device_feeds(run: Run, maker: BatchMaker, pace: Pace) -> Iterator[Feed]:
    """The rest of the epoch, several steps at a time, whose batches the devices make."""
    epoch, number, end = run.position.epoch, run.position.batch, run.job.schedule.batches_per_epoch
    if epoch == number == 0 and not run.job.settings.noplots:
        for shown, made in enumerate(islice(run.job.stream.iterate(), min(3, end))):
            if is_first():
                batch = {name: local_rows(array) for name, array in made.batch._asdict().items()}
                plots.draw_batch(batch, run.job.names, run.folder / f"train_batch{shown}.jpg")
    alike = BATCHES_OF_ONE_SIZE if run.job.settings.multi_scale else end
    source = maker.source(epoch)
    while number < end:
        steps = pace.take(min(alike - number % alike, end - number))
        yield Feed(number, steps, source, partial(_samples_after, maker, epoch, number))
        number += steps


def _samples_after(maker: BatchMaker, epoch: int, first: int, place: int) -> np.ndarray:
    return maker.samples(epoch, first + place)


def _timed(stream: Iterator[Any], meter: EpochMeter, running: Running) -> Iterator[Any]:
    """The stream; the time that a batch takes counts as waiting if the device has nothing left to do when it comes."""
    while True:
        start = time.perf_counter()
        batch = next(stream, None)
        if batch is None:
            return
        if all(metrics["loss"].is_ready() for metrics, _ in running):
            meter.waited_for(time.perf_counter() - start)
        yield batch


def _threads(job: Job) -> int:
    """Threads that load the images of a validation."""
    return max(1, min(job.settings.workers, processors()))


def _check(run: Run, feed: Feed, values: dict[str, np.ndarray]) -> None:
    """Refuse to go on with a loss that is NaN or infinite, and with gradients that leave float16 however small the loss is scaled."""
    what = remedy = ""
    broken = ~values["finite"]
    if broken.any():
        what = "the loss is not finite"
    elif "overflows" in values:
        broken = values["overflows"] & (values["loss_scale"] < LEAST_SCALE)
        what = f"the gradient leaves float16 even with the loss scaled by {values['loss_scale'].min():.2g}"
        remedy = "begin again with --dtype float32, "
    if not broken.any():
        return
    job, epoch, place = run.job, run.position.epoch, int(broken.argmax())
    own = [job.stream.name(number) for number in feed.samples(place).tolist()]
    told = map(json.loads, gathered("images of a batch", json.dumps(own)))  # each process may know its part alone
    saved = run.checkpoints.newest()
    good = "there is no checkpoint yet" if saved is None else f"the last good checkpoint is {saved}"
    batch = feed.first + place + 1
    raise UserError(
        f"epoch {epoch + 1}, batch {batch} (step {epoch * job.schedule.batches_per_epoch + batch}): {what}; {good}; "
        f"{remedy}lower lr0 in the --hyp file or look at these images (and those of their mosaics): {', '.join(dict.fromkeys(chain(*told)))}"
    )
