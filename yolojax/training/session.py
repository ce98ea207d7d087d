"""Where a run stands, and everything about it that is not the loop: begin, resume, describe, save, finish."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from yolojax.config import from_mapping, read_yaml
from yolojax.data.pipeline import image_weights
from yolojax.errors import UserError
from yolojax.evaluation.evaluator import Evaluation
from yolojax.evaluation.metrics import fitness
from yolojax.files import write_json
from yolojax.freezing.adapters import merge_adapters
from yolojax.freezing.labels import trainable_mask
from yolojax.freezing.phases import GRADIENT_NORMS, MOVEMENT, EpochRecord, History, Phase
from yolojax.mesh import replicated
from yolojax.model.network import Network, Variables
from yolojax.training import reporting
from yolojax.training.checkpoints import Checkpoints
from yolojax.training.optimizer import OptimizerSettings
from yolojax.training.phases import change_phase, enter_phase, fixed_modules, gradient_norms
from yolojax.training.progress import EpochMeter
from yolojax.training.settings import TrainSettings
from yolojax.training.setup import Job
from yolojax.training.state import TrainState, abstract_state, create_state, divide, share_averages
from yolojax.training.step import TrainStep, device_peak_bytes, make_train_step, program_record
from yolojax.training.trackers import Trackers, open_trackers
from yolojax.training.validator import Validator
from yolojax.tree import partition
from yolojax.weights.find import load_weights
from yolojax.weights.store import Weights, save_weights

log = logging.getLogger(__name__)

_GRADIENT_BATCHES = 4


@dataclass
class Progress:
    """Where a run stands, beside its arrays; saved with every checkpoint.

    Attributes:
      epoch: the next epoch to train, or the one that was interrupted.
      history: what strategies decide from.
      batch: the next batch of the epoch.
      sums: loss sums of its finished batches.
      best_fitness: of all validations so far.
      best_epoch: where it was reached.
      best: figures of the best validation, as ``results.json`` has them.
      final: those of the last validation.
      seconds: time of training and validation so far.
      programs: a row for every compiled step: epoch, phase, parameters that train, compile time, operations, memory.
      timings: a row for every finished epoch: seconds, images per second, the part spent waiting for data.
    """

    epoch: int
    history: History
    batch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best_fitness: float = 0.0
    best_epoch: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    programs: list[dict[str, Any]] = field(default_factory=list)
    timings: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Progress:
        """Read what ``dataclasses.asdict`` made."""
        return cls(**{**content, "history": History.from_dict(content["history"])})


@dataclass
class Session:
    """A run in progress: its arrays, its phase, and where it stands."""

    job: Job
    run: Path
    state: TrainState
    phase: Phase
    progress: Progress
    checkpoints: Checkpoints
    epoch_start: Any = None  # what trains, as it was when the epoch began; for strategies that watch movement
    trackers: Trackers = field(default_factory=Trackers)
    best: Evaluation | None = None  # the best validation, if this process made it

    def save(self) -> None:
        """Save the state for ``--resume``, in the background."""
        arrays = {"state": self.state.whole, "epoch_start": self.epoch_start if self.progress.batch else None}
        self.checkpoints.save(int(self.state.moving.step), arrays, dataclasses.asdict(self.progress))

    def averaged(self) -> Variables:
        """The averaged weights, without adapters: what is validated and saved."""
        whole = self.state.whole
        return {"params": merge_adapters(whole.ema_params), "batch_stats": whole.ema_batch_stats}

    def save_weights(self, name: str) -> None:
        """Write the averaged weights to ``weights/name``."""
        if jax.process_index() == 0:
            source = {
                **self.job.source,
                "run": self.run.name,
                "epoch": self.progress.epoch,
                "image_size": self.job.settings.imgsz,
            }
            weights = Weights(
                spec=self.job.spec, names=self.job.names, variables=jax.device_get(self.averaged()), source=source
            )
            save_weights(self.run / "weights" / name, weights)


def begin(job: Job, run: Path) -> Session:
    """Start at the first step."""
    history = History(epochs=job.epochs, network=job.spec.name)
    if GRADIENT_NORMS in job.strategy.needs:
        gradients, parameters = gradient_norms(
            job.spec, job.loss, job.variables, islice(job.stream.iterate(), _GRADIENT_BATCHES)
        )
        history = dataclasses.replace(history, gradient_norms=gradients, parameter_norms=parameters)
    phase = job.strategy.phase(0, history, job.paths)
    variables = enter_phase(job.variables, phase, jax.random.key(job.settings.seed))
    fixed_bn = fixed_modules(phase, job.settings.frozen_bn)
    state = create_state(variables, phase.tree(), optimizer_settings(job), job.mesh, fixed_bn)
    if jax.process_index() == 0:
        reporting.write_beginning(job, run, phase, state.params)
    return Session(job, run, state, phase, Progress(0, history), Checkpoints(run), trackers=_open_trackers(job, run, 0))


def _open_trackers(job: Job, run: Path, epoch: int) -> Trackers:
    return open_trackers(job.settings, run, epoch) if jax.process_index() == 0 else Trackers()


def resume(job: Job, run: Path) -> Session:
    """Continue from the newest checkpoint that can be read; from the start if the run was killed before its first."""
    checkpoints = Checkpoints(run)
    found = checkpoints.restore(lambda content: _template(job, Progress.from_json(content)))
    if found is None:
        log.info("%s has no checkpoint yet: starting it again", run)
        checkpoints.close()
        return begin(job, run)
    arrays, content, damaged = found
    for sentence in damaged:
        log.warning("%s; the one before it is used", sentence)
    progress = Progress.from_json(content)
    log.info("continuing %s with epoch %d, batch %d", run, progress.epoch + 1, progress.batch + 1)
    phase, trackers = _phase_of(job, progress), _open_trackers(job, run, progress.epoch)
    fixed_bn = fixed_modules(phase, job.settings.frozen_bn)
    state = share_averages(divide(arrays["state"], phase.tree(), fixed_bn))
    return Session(job, run, state, phase, progress, checkpoints, arrays["epoch_start"], trackers)


def read_settings(run: Path) -> TrainSettings:
    """The settings that a run was started with."""
    content = read_yaml(run / "settings.yaml")
    freeze = tuple(map(str, content.pop("freeze", ["0"])))
    return dataclasses.replace(from_mapping(TrainSettings, content, run / "settings.yaml"), freeze=freeze)


def optimizer_settings(job: Job) -> OptimizerSettings:
    """The optimizer of a run."""
    return OptimizerSettings.from_hyperparameters(
        job.hyperparameters, batch_size=job.schedule.batch_size, name=job.settings.optimizer or "SGD"
    )


def make_step(job: Job, phase: Phase) -> TrainStep:
    """The step of a phase; it compiles at its first call."""
    dtype = jnp.bfloat16 if job.settings.dtype == "bfloat16" else None
    network = Network(job.spec, dtype=dtype, fixed_bn=fixed_modules(phase, job.settings.frozen_bn))
    return make_train_step(network, phase.tree(), job.loss, optimizer_settings(job), job.schedule, job.mesh)


def next_phase(session: Session) -> bool:
    """Let the strategy decide about the coming epoch; whether its labels, and so the step, changed."""
    job, epoch = session.job, session.progress.epoch
    before, session.phase = session.phase, job.strategy.phase(epoch, session.progress.history, job.paths)
    if session.phase == before:
        return False
    log.info("epoch %d: phase '%s': %s", epoch + 1, session.phase.name, reporting.count(session.state, session.phase))
    key = jax.random.key(job.settings.seed + epoch)
    fixed_bn = fixed_modules(session.phase, job.settings.frozen_bn)
    session.state = change_phase(session.state, session.phase, optimizer_settings(job), key, job.mesh, fixed_bn)
    return True


def record_program(session: Session, seconds: float, lowered: Any) -> None:
    """Write down what a step that was just compiled costs."""
    trainable, total = reporting.trainable_parameters(session.state, session.phase)
    session.progress.programs.append(
        {
            "epoch": session.progress.epoch,
            "phase": session.phase.name,
            "trainable": trainable,
            "parameters": total,
            "compile_seconds": seconds,
            **program_record(lowered),
        }
    )


def end_epoch(
    session: Session, meter: EpochMeter, evaluation: Evaluation | None, moved: Mapping[str, float], seconds: float
) -> bool:
    """Write an epoch down, save, and move on to the next; whether training should stop early."""
    job, progress = session.job, session.progress
    epoch = progress.epoch
    rate = float(job.schedule.rates((epoch + 1) * job.schedule.batches_per_epoch - 1).learning_rate)
    score = None if evaluation is None else fitness(evaluation.map50, evaluation.map50_95)
    record = EpochRecord(fitness=score, loss=sum(meter.losses.values()), learning_rate=rate, movement=moved)
    progress.history = dataclasses.replace(progress.history, records=(*progress.history.records, record))
    progress.epoch, progress.batch, progress.sums = epoch + 1, 0, {}
    progress.seconds += seconds
    speed = meter.images_per_second if meter.seconds else None
    progress.timings.append({"seconds": seconds, "images_per_second": speed, "waiting": meter.waited})
    best = evaluation is not None and score is not None and score >= progress.best_fitness
    if evaluation is not None and score is not None:
        progress.final = {"epoch": epoch, "fitness": score, **evaluation.figures()}
        if best:
            progress.best_fitness, progress.best_epoch, progress.best = score, epoch, progress.final
            session.best = evaluation
    patience = job.settings.patience
    stop = bool(patience) and evaluation is not None and epoch - progress.best_epoch >= patience
    last = stop or progress.epoch == job.epochs
    if jax.process_index() == 0:
        reporting.write_epoch(job, session.run, session.trackers, epoch, meter, evaluation)
    if last or not job.settings.nosave:
        session.save_weights("last")
        if best or not progress.best:  # before the first validation (--noval) the newest weights are the best ones
            session.save_weights("best")
        if job.settings.save_period > 0 and progress.epoch % job.settings.save_period == 0:
            session.save_weights(f"epoch{epoch}")
        session.save()
    log.info("%s", reporting.epoch_line(job, epoch, meter, evaluation, seconds))
    if stop:
        log.info("no improvement in %d epochs: stopping", patience)
    return stop


def finish(session: Session, validate: Validator) -> dict[str, Any]:
    """Show the best epoch and write ``results.json``.

    Returns:
      Its content.
    """
    session.checkpoints.close()
    progress, job = session.progress, session.job
    weights = session.run / "weights" / "best"
    if not weights.is_dir():  # --nosave, and the last epoch was not the best one
        weights = weights.with_name("last")
    elif session.best is None and progress.best:  # it was reached before the run was resumed
        session.best = validate(load_weights(weights).variables, job.validation)
    if session.best is not None and jax.process_index() == 0:
        reporting.show_best(job, session.run, progress.best_epoch, session.best)
    session.trackers.close(session.run)
    unreadable = list(dict.fromkeys([*job.stream.unreadable, *job.validation.unreadable]))
    if unreadable:
        log.warning("%d images could not be decoded and were left out: results.json names them", len(unreadable))
    results = {
        "run": str(session.run),
        "weights": str(weights),
        "model": job.spec.name,
        "freeze": job.strategy.name,
        "frozen_bn": job.settings.frozen_bn,
        "epochs": progress.epoch,
        "seconds": progress.seconds,
        "train_images": len(job.stream.pictures.samples),
        "batch_size": job.schedule.batch_size,
        "device_peak_bytes": device_peak_bytes(job.mesh.local_devices[0]),
        "programs": progress.programs,
        "timings": progress.timings,
        "best_epoch": progress.best_epoch,
        "unreadable_images": unreadable,
        "best": progress.best,
        "final": progress.final,
    }
    if jax.process_index() == 0:
        write_json(session.run / "results.json", results)
    return results


def image_sizes(job: Job) -> tuple[int, ...]:
    """The sides that ``--multi-scale`` draws from: seven between half and one and a half of the image size, in whole strides."""
    size, stride = job.settings.imgsz or 640, max(job.spec.strides)
    return tuple(sorted({max(round(factor * size / stride), 1) * stride for factor in np.linspace(0.5, 1.5, 7)}))


def image_size(job: Job, epoch: int, batch: int) -> tuple[int, int] | None:
    """The size of a batch's images on the device; None for that of the input stream."""
    if not job.settings.multi_scale:
        return None
    side = int(np.random.default_rng([job.settings.seed, epoch, batch]).choice(image_sizes(job)))
    return side, side


def draw_images(session: Session) -> None:
    """Draw the images of the coming epoch by what the last validation found badly, for ``--image-weights``."""
    job, final = session.job, session.progress.final
    maps = [final.get("map50_95", 0.0)] * len(job.names)  # that of all classes for those that have no label
    for row in final.get("per_class", ()):
        maps[row["class"]] = row["map50_95"]
    job.stream.draw(session.progress.epoch, image_weights(job.stream.pictures.samples, maps))


def workers(job: Job) -> int:
    """Data loading processes: what the user asked for, but no more than processors or images of a batch."""
    return min(job.settings.workers, os.cpu_count() or 1, job.schedule.batch_size if job.schedule.batch_size > 1 else 0)


def not_finite(session: Session, batch: int, index: np.ndarray) -> UserError:
    """The error for a loss that is NaN or infinite."""
    files = [session.job.stream.pictures.samples[number].name for number in index.tolist()]
    saved = session.checkpoints.newest()
    good = "there is no checkpoint yet" if saved is None else f"the last good checkpoint is {saved}"
    step = session.progress.epoch * session.job.schedule.batches_per_epoch + batch + 1
    return UserError(
        f"epoch {session.progress.epoch + 1}, batch {batch + 1} (step {step}): the loss is not finite; {good}; "
        f"lower lr0 in the --hyp file or look at these images (and those of their mosaics): {', '.join(files)}"
    )


def _phase_of(job: Job, progress: Progress) -> Phase:
    """The phase that a checkpoint was saved in: that of the epoch before where the checkpoint stands between two."""
    epoch = progress.epoch if progress.batch else max(progress.epoch - 1, 0)
    history = dataclasses.replace(progress.history, records=progress.history.records[:epoch])
    return job.strategy.phase(epoch, history, job.paths)


def _template(job: Job, progress: Progress) -> dict[str, Any]:
    phase = _phase_of(job, progress)
    variables = jax.eval_shape(lambda: enter_phase(job.variables, phase, jax.random.key(0)))
    state = abstract_state(variables, phase.tree(), optimizer_settings(job)).whole
    everywhere = replicated(job.mesh)
    template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), state)
    watched = MOVEMENT in job.strategy.needs and progress.batch > 0
    start = partition(template.params, trainable_mask(phase.tree()))[0] if watched else None
    return {"state": template, "epoch_start": start}
