"""A run: its arrays, its phase and where it stands; begun, saved and resumed from its own folder."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Set
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from yolojax.data.sample import samples_record
from yolojax.data.stream import image_weights
from yolojax.data.workers import loading_workers
from yolojax.errors import UserError
from yolojax.evaluation.evaluator import Evaluation
from yolojax.evaluation.metrics import fitness
from yolojax.features.shared import Shared
from yolojax.files import new_run_folder, run_folder_of
from yolojax.freezing.adapters import merge_adapters_on_host
from yolojax.freezing.phases import GRADIENT_NORMS, MOVEMENT, EpochRecord, History, Phase
from yolojax.freezing.signals import movement
from yolojax.hosts.agreement import check_alike, decided, is_first, meet, process_count
from yolojax.hosts.membership import run_folder
from yolojax.lock import locked
from yolojax.mesh import replicated
from yolojax.model.network import Variables
from yolojax.scores import known_scores
from yolojax.training.checkpoints import (
    RESULTS,
    CheckpointError,
    Checkpoints,
    folder_to_resume,
    has_checkpoint,
    on_host,
    refuse_finished,
    refuse_unfinished,
)
from yolojax.training.loss import gradient_norms
from yolojax.training.progress import EpochMeter, Position
from yolojax.training.settings import TrainSettings, read_settings, settings_to_resume, write_settings
from yolojax.training.setup import Job, prepare, prepare_to_resume
from yolojax.training.state import (
    TrainState,
    abstract_state,
    change_phase,
    create_state,
    divide,
    enter_phase,
    share_averages,
)
from yolojax.tree import Tree, flatten, partition
from yolojax.weights.delta import SUFFIX, Delta, save_delta, small_delta
from yolojax.weights.store import Weights, save_weights

log = logging.getLogger(__name__)

_GRADIENT_BATCHES = 4


@dataclasses.dataclass
class Run:
    """A run in progress.

    Attributes:
      job: what is trained, on what.
      folder: where everything of it is kept.
      state: the arrays of the step.
      phase: which parameters train.
      position: how far it is.
      checkpoints: of the folder.
      epoch_start: what trains, as it was when the epoch began; for strategies that watch movement.
      best: the best validation, if this process made it.
      is_new: whether it begins here.
      workers: processes that make batches; 0 for a thread of this one.
    """

    job: Job
    folder: Path
    state: TrainState
    phase: Phase
    position: Position
    checkpoints: Checkpoints
    epoch_start: Tree | None = None
    best: Evaluation | None = None
    is_new: bool = False
    workers: int = 0

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to train."""
        return self.position.stopped or self.position.epoch >= self.job.epochs

    @property
    def validates(self) -> bool:
        """Whether the epoch that was just trained is followed by a validation."""
        return not self.job.settings.noval or self.position.epoch + 1 >= self.job.epochs

    def enter_phase(self) -> bool:
        """Let the strategy decide about the coming epoch; whether its labels, and so the step, changed."""
        job, epoch = self.job, self.position.epoch
        if self.position.batch:  # decided when the epoch began
            return False
        before, self.phase = self.phase, job.strategy.phase(epoch, self.position.history, job.paths)
        if self.phase == before:
            return False
        key = jax.random.key(job.settings.seed + epoch)
        self.state = change_phase(self.state, self.phase, job.optimizer, key, job.mesh, job.fixed_bn(self.phase))
        return True

    def enter_epoch(self) -> None:
        """Note where movement begins, and sample images by weight, where the run asks for it."""
        job, position = self.job, self.position
        if MOVEMENT in job.strategy.needs and position.batch == 0:
            self.epoch_start = self._trained()
        if job.settings.image_weights:
            # By what the last validation found badly; classes that have no label count as all together.
            maps = [position.final.get("map50_95") or 0.0] * len(job.names)
            for row in position.final.get("per_class", ()):
                maps[row["class"]] = row["map50_95"]
            job.stream.draw(position.epoch, image_weights(job.stream.images.samples, maps))

    def pause(self, meter: EpochMeter, seconds: float) -> None:
        """Save in the middle of an epoch."""
        position = self.position
        position.batch, position.sums = meter.batches, meter.sums
        position.seconds += seconds
        self.checkpoints.wait()
        if int(self.state.moving.step) not in self.checkpoints.steps():  # else nothing was trained since
            self._state_to_save()()
            self.checkpoints.wait()

    def advance(self, meter: EpochMeter, evaluation: Evaluation | None, seconds: float) -> None:
        """Count an epoch that was trained, and validated if it was; nothing is saved yet."""
        job, position, epoch = self.job, self.position, self.position.epoch
        rate = float(job.schedule.rates((epoch + 1) * job.schedule.batches_per_epoch - 1).learning_rate)
        figures = {} if evaluation is None else known_scores(evaluation.figures())
        score = fitness(figures["map50"], figures["map50_95"]) if figures.get("instances") else None
        moved = {} if self.epoch_start is None else movement(self.epoch_start, self._trained())
        record = EpochRecord(fitness=score, loss=sum(meter.losses.values()), learning_rate=rate, movement=moved)
        position.history = dataclasses.replace(position.history, records=(*position.history.records, record))
        position.epoch, position.batch, position.sums = epoch + 1, 0, {}
        position.seconds += seconds
        position.timings.append({"seconds": seconds, **meter.figures()})
        position.final = {"epoch": epoch, "fitness": score, **figures} if figures else position.final
        if score is None:  # no validation, or not one box to find: nothing is better or worse than before
            return
        if score >= position.best_fitness:
            position.best_fitness, position.best_epoch, position.best = score, epoch, position.final
            self.best = evaluation
        patience = job.settings.patience
        position.stopped = bool(patience) and epoch - position.best_epoch >= patience

    def save(self) -> None:
        """Write the weights of the epoch that ``advance`` counted, and then a checkpoint, while the next epoch trains."""
        settings, position = self.job.settings, self.position
        if settings.nosave and not self.ended:
            return
        names = ["last"]
        if not position.best or position.best_epoch == position.epoch - 1:
            names.append("best")  # before anything is measured (--noval, no box) the newest weights are the best ones
        if settings.save_period > 0 and position.epoch % settings.save_period == 0:
            names.append(f"epoch{position.epoch - 1}")
        (weights, delta), save_state = self._weights(), self._state_to_save()

        def write() -> None:
            if is_first():
                first, *others = (self.folder / "weights" / name for name in names)
                save_weights(first, weights, others)
                for name in names:
                    if delta:
                        save_delta(self.folder / "weights" / f"{name}{SUFFIX}", delta)
            save_state()  # last, because a run that resumes from it does not write these weights again

        self.checkpoints.in_background(write)

    def averaged(self) -> Variables:
        """The averaged weights, without adapters: what is validated and saved."""
        averages = self.state.averages
        return {**averages, "params": merge_adapters_on_host(averages["params"])}

    def _state_to_save(self) -> Callable[[], None]:
        """What saves the state as it is now, whatever the run does until it is called."""
        arrays = {"state": self.state.whole, "epoch_start": self.epoch_start if self.position.batch else None}
        step, position = int(self.state.moving.step), dataclasses.asdict(self.position)
        return partial(self.checkpoints.save, step, on_host(arrays), position)

    def _weights(self) -> tuple[Weights, Delta | None]:
        """The averaged weights as they are now; and what was added to those of the start, where that is little."""
        job, averages = self.job, jax.tree.map(np.array, self.state.averages)
        plain = {**averages, "params": merge_adapters_on_host(averages["params"])}
        facts = {"run": self.folder.name, "epoch": self.position.epoch, "image_size": job.image_size}
        weights = Weights(spec=job.spec, names=job.names, variables=plain, source={**job.source, **facts})
        return weights, small_delta(weights, self.state.resting_paths, averages) if job.has_one_phase else None

    def _trained(self) -> Tree:
        """A copy of what trains."""
        return jax.tree.map(jnp.copy, partition(self.state.params, self.phase.mask)[0])


@contextmanager
def open_run(settings: TrainSettings, given: Set[str], shared: Shared | None = None) -> Iterator[Run]:
    """A new run, or with ``settings.resume`` an interrupted one from its own folder; its folder is held until the end of the block.

    Args:
      settings: the user's.
      given: names of those that are more than defaults; see ``settings_to_resume``.
      shared: what runs of this process share.

    Raises:
      UserError: the input is wrong, the folder is in use, or there is nothing to resume.
    """
    variables: Variables | None = None
    changes: list[str] = []
    if settings.resume:
        folder = run_folder(lambda: folder_to_resume(settings, given), resumable=True)
        own_weights = run_folder_of(Path(settings.weights or "")) == folder
        now, changes = settings_to_resume(
            read_settings(folder), settings, given - {"weights"} if own_weights else given
        )
        refuse_finished(folder, now, extended="epochs" in given)
        if "data" not in given and Path(now.data).is_absolute() and not Path(now.data).is_file():
            raise UserError(f"{now.data}: the data set of this run is not there any more; --data names where it is now")
        if decided("checkpoint", lambda: str(has_checkpoint(folder))) == str(True):
            job = prepare_to_resume(now, folder, shared)
        else:
            log.info("%s has no checkpoint yet: starting it again", folder)
            job, variables = prepare(now, shared)
    else:
        if settings.exist_ok and is_first():
            refuse_unfinished(Path(settings.project, settings.name))
        job, variables = prepare(settings.with_absolute_paths(), shared)
        folder = run_folder(partial(new_run_folder, settings.project, settings.name, settings.exist_ok), resumable=True)
    _check_alike(job, variables)
    with closing(job.stream), locked(folder) if is_first() else nullcontext():
        run = resume(job, folder, changes) if variables is None else begin(job, folder, variables)
        try:
            yield run
        except BaseException:
            with suppress(Exception):  # what went wrong first is what counts
                run.checkpoints.close()
            raise
        run.checkpoints.close()


def _check_alike(job: Job, variables: Variables | None) -> None:
    """Make sure that all processes train the same network on the same images.

    Raises:
      UserError: they would not.
    """
    if process_count() == 1:
        return
    meet(job.mesh)
    own = ("data", "data_root", "workers", "weights", "replay", "distil")  # of a machine; what is there is compared
    flags = {f"--{name}": value for name, value in dataclasses.asdict(job.settings).items() if name not in own}
    leaves = {} if variables is None else flatten(variables)
    weights = sha256(b"".join(path.encode() + np.asarray(leaves[path]).tobytes() for path in sorted(leaves)))
    records = {f"the images of {split}": samples_record(samples)["sha256"] for split, samples in job.samples.items()}
    records["the teacher"] = "" if job.teacher is None else job.teacher.arrays_sha256
    check_alike({**flags, **records, "the anchors": job.spec.anchors, "the weights": weights.hexdigest()})


def begin(job: Job, folder: Path, variables: Variables) -> Run:
    """Start at the first step."""
    history = History(epochs=job.epochs, network=job.spec.name)
    if GRADIENT_NORMS in job.strategy.needs:
        batches = (made.batch._asdict() for made in islice(job.stream.iterate(), _GRADIENT_BATCHES))
        gradients, parameters = gradient_norms(job.spec, job.loss, variables, batches, job.mesh)
        history = dataclasses.replace(history, gradient_norms=gradients, parameter_norms=parameters)
    phase = job.strategy.phase(0, history, job.paths)
    entered = enter_phase(variables, phase, jax.random.key(job.settings.seed))
    workers = loading_workers(job.settings.workers, job.batch_size, job.image_size)
    if job.features is None and not job.settings.image_weights:
        job.stream.start(workers=workers)  # the first batch is made while the arrays of the step are
    state = create_state(entered, phase.tree(), job.optimizer, job.mesh, job.fixed_bn(phase), job.scaled)
    if is_first():  # what another run left in the folder would be taken for this one's
        (folder / RESULTS).unlink(missing_ok=True)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return Run(job, folder, state, phase, Position(0, history), Checkpoints(folder), is_new=True, workers=workers)


def resume(job: Job, folder: Path, changes: list[str]) -> Run:
    """Continue from the newest checkpoint that can be read.

    Args:
      job: of ``prepare_to_resume``.
      folder: of the run.
      changes: sentences about settings that are not as they were.

    Raises:
      UserError: the data has changed, or no checkpoint can be read.
    """
    checkpoints = Checkpoints(folder)
    position, phase, arrays = _restore(job, checkpoints)
    if job.epochs > position.history.epochs:
        longer = f"; from here on the schedule is that of {job.epochs} epochs"
        changes = [change + longer if change.startswith("--epochs") else change for change in changes]
        position.history = dataclasses.replace(position.history, epochs=job.epochs)
        position.stopped = False
    _check_data(job, folder)
    for change in changes:
        log.info("%s", change)
    log.info("continuing %s with epoch %d, batch %d", folder, position.epoch + 1, position.batch + 1)
    if is_first():
        (folder / RESULTS).unlink(missing_ok=True)  # of the run before it was extended
        write_settings(job.settings, folder)
    state = share_averages(divide(arrays["state"], phase.tree(), job.fixed_bn(phase)))
    workers = loading_workers(job.settings.workers, job.batch_size, job.image_size)
    return Run(job, folder, state, phase, position, checkpoints, arrays["epoch_start"], workers=workers)


def _restore(job: Job, checkpoints: Checkpoints) -> tuple[Position, Phase, dict[str, Any]]:
    """The newest checkpoint that can be read; those that cannot are told and set aside."""
    damaged: dict[int, str] = {}
    for step in checkpoints.steps():
        try:
            position = Position.from_json(checkpoints.progress(step))
            phase = _phase_of(job, position)
            arrays = checkpoints.restore(step, _template(job, position, phase))
        except CheckpointError as error:
            damaged[step] = str(error)
            continue
        for later, sentence in damaged.items():
            log.warning("%s; it is moved to %s, and the one before it is used", sentence, checkpoints.set_aside(later))
        return position, phase, arrays
    sentences = "; ".join(damaged.values())
    raise UserError(f"no checkpoint of this run can be read; start it again without --resume: {sentences}")


def _phase_of(job: Job, position: Position) -> Phase:
    """The phase that a checkpoint was saved in: that of the epoch before where the checkpoint stands between two."""
    epoch = position.epoch if position.batch else max(position.epoch - 1, 0)
    history = dataclasses.replace(position.history, records=position.history.records[:epoch])
    return job.strategy.phase(epoch, history, job.paths)


def _template(job: Job, position: Position, phase: Phase) -> dict[str, Any]:
    """Shapes of what a checkpoint holds."""
    variables = jax.eval_shape(lambda plain: enter_phase(plain, phase, jax.random.key(0)), job.shapes)
    state = abstract_state(variables, phase.tree(), job.optimizer, scaled=job.scaled).whole
    everywhere = replicated(job.mesh)
    template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), state)
    watched = MOVEMENT in job.strategy.needs and position.batch > 0
    start = partition(template.params, phase.mask)[0] if watched else None
    return {"state": template, "epoch_start": start}


def _check_data(job: Job, folder: Path) -> None:
    """Compare the images, and the teacher, with those that the run began with."""
    try:
        record = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        before, teacher = record["data"], record.get("teacher", {})
    except (OSError, ValueError, KeyError):
        return
    for split, samples in job.samples.items():
        file = job.settings.replay if split == "replay" else job.data.file
        now = samples_record(samples)
        if split != "val" and now["images"] != before[split]["images"]:
            raise UserError(
                f"{file}: has {now['images']} training images, and the run began with "
                f"{before[split]['images']}; --data, --data-root or --replay names those, or begin a new run"
            )
        if now["sha256"] != before[split]["sha256"]:
            log.warning("%s: its %s images or boxes are not those that the run began with", file, split)
    if job.teacher and job.teacher.arrays_sha256 != teacher.get("arrays_sha256"):
        raise UserError(f"--distil {job.settings.distil}: is not the teacher that the run began with; name that one")
