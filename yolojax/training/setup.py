"""Everything that is decided before the first step: files read, sizes checked, weights placed, strategy rehearsed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from yolojax.augmentation.feeding import Stream, cache_in_use, open_stream
from yolojax.augmentation.stream import DeviceStream
from yolojax.config import configs_root
from yolojax.data.batches import StreamSettings, ValidationBatches, validation_batches
from yolojax.data.check import require_clean
from yolojax.data.colour import load_effects
from yolojax.data.config import DataConfig
from yolojax.data.replay import NO_REPLAY, Replay, open_replay
from yolojax.data.sample import Sample, Split
from yolojax.data.sources import load_data, open_split
from yolojax.data.stream import TrainingStream
from yolojax.errors import UserError
from yolojax.evaluation.evaluator import most_shapes
from yolojax.exchange import Exchange
from yolojax.features.front import require_front
from yolojax.features.kept import KeptFeatures
from yolojax.features.shared import Shared
from yolojax.freezing.load import Strategy, load_strategy, rehearse
from yolojax.freezing.phases import Phase
from yolojax.freezing.random_layers import frozen_random, random_sentence
from yolojax.hosts.agreement import process_count, process_index
from yolojax.hyperparameters import Hyperparameters, load_hyperparameters
from yolojax.mesh import check_divides, make_mesh
from yolojax.model.network import Variables, abstract_variables, parameter_sizes
from yolojax.model.spec import ModelSpec, load_spec, whole_strides
from yolojax.runtime import computation_dtype, select_devices
from yolojax.training.loss import LossSettings
from yolojax.training.optimizer import OptimizerSettings
from yolojax.training.schedule import Schedule
from yolojax.training.settings import LARGEST, Resolved, TrainSettings
from yolojax.training.step import BatchMaker, fixed_modules
from yolojax.training.validator import fitting_validation_batch
from yolojax.tree import flatten
from yolojax.weights.find import EMBEDDED_WEIGHTS, find_weights, load_weights
from yolojax.weights.record import NetworkRecord, read_network
from yolojax.weights.start import RandomArrays, start_variables, with_fitting_anchors
from yolojax.weights.store import Weights
from yolojax.weights.teacher import Teacher, make_teacher

log = logging.getLogger(__name__)

# In a run folder, for those who resume.
HYPERPARAMETERS = "hyp.yaml"
# With --multi-scale, where the devices make the batches: so many after another have one size. A power of two.
BATCHES_OF_ONE_SIZE = 16
STRATEGY = "strategy"  # a folder, so that the file keeps its name, which is that of the strategy


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A training run, ready to start or to go on.

    Attributes:
      settings: the user's, with every default filled in.
      data: the data set's settings.
      hyperparameters: of the file that ``--hyp`` names.
      spec: the network; its anchors are those that are trained with.
      names: of the classes.
      shapes: shapes and dtypes of its parameters and statistics.
      source: where the initial weights come from, for the record beside the trained ones.
      image_size: pixels of a square image's side, whole strides.
      batch_size: images per step over all devices.
      dtype: of the computation; None for that of the parameters, float32.
      stream: training batches.
      validation: validation batches.
      schedule: of rates.
      optimizer: its settings.
      loss: gains and options.
      strategy: which parameters train in which epoch.
      mesh: the devices.
      features: what frozen layers compute, where it is kept.
      replay: what comes again from a second data set.
      teacher: of the classes that are not to be forgotten, where there is one.
    """

    settings: TrainSettings
    data: DataConfig
    hyperparameters: Hyperparameters
    spec: ModelSpec
    names: tuple[str, ...]
    shapes: Variables
    source: Mapping[str, Any]
    image_size: int
    batch_size: int
    dtype: DTypeLike | None
    stream: Stream
    validation: ValidationBatches
    schedule: Schedule
    optimizer: OptimizerSettings
    loss: LossSettings
    strategy: Strategy
    mesh: Mesh
    features: KeptFeatures | None = None
    replay: Replay = NO_REPLAY
    teacher: Teacher | None = None

    @property
    def samples(self) -> dict[str, Sequence[Sample]]:
        """The images that the run reads, by what they are for."""
        images = {"train": self.stream.images.samples, "val": self.validation.images.samples}
        return images | ({"replay": self.replay.samples} if self.replay.images else {})

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Every parameter path."""
        return tuple(flatten(self.shapes["params"]))

    @property
    def exchange(self) -> Exchange:
        """What the devices tell each other in a step."""
        return Exchange.of_flags(self.settings.sync_bn, self.settings.gradient_sum, self.dtype)

    @property
    def maker(self) -> BatchMaker | None:
        """What makes training batches on the devices; None where the host makes them."""
        return self.stream if isinstance(self.stream, DeviceStream) else None

    @property
    def scaled(self) -> bool:
        """Whether the loss is scaled, so that small gradients do not vanish in float16."""
        return self.dtype == jnp.float16

    def fixed_bn(self, phase: Phase) -> frozenset[str]:
        """The BatchNorm modules that keep their statistics in a phase."""
        return fixed_modules(phase, self.settings.frozen_bn)

    @cached_property
    def has_one_phase(self) -> bool:
        """Whether the same parameters train from the first epoch to the last."""
        return not self.strategy.needs and len(rehearse(self.strategy, self.paths, self.epochs, self.spec.name)) == 1

    @property
    def epochs(self) -> int:
        """How many epochs are planned."""
        return self.schedule.epochs

    @property
    def image_sizes(self) -> tuple[int, ...]:
        """The sides that ``--multi-scale`` samples from: seven between half and one and a half of the image size, in whole strides."""
        stride = self.spec.stride
        factors = np.linspace(0.5, 1.5, 7)
        return tuple(sorted({max(round(factor * self.image_size / stride), 1) * stride for factor in factors}))

    def size_on_device(self, epoch: int, batch: int) -> tuple[int, int] | None:
        """(height, width) that the step resizes a batch to; None for that of the input stream. Batches of one dispatch have one size."""
        if not self.settings.multi_scale:
            return None
        alike = 1 if self.maker is None else BATCHES_OF_ONE_SIZE
        rng = np.random.default_rng([self.settings.seed, epoch, batch // alike])
        side = int(rng.choice(self.image_sizes))
        return side, side


def prepare(settings: TrainSettings, shared: Shared | None = None) -> tuple[Job, Variables]:
    """Read and check everything that a new run needs; nothing is written but caches.

    Args:
      settings: of the run.
      shared: what runs of this process share.

    Returns:
      The job, and the parameters and statistics that it starts from, NumPy float32.

    Raises:
      UserError: something does not fit; the message says what, where and what to do.
    """
    devices, data = _devices_and_data(settings)
    resolved = settings.resolve(data)
    if data.defaults:
        taken = f"{resolved.imgsz} px, {resolved.epochs} epochs, batch {resolved.batch_size}, {resolved.hyp}, {resolved.optimizer}"
        log.info("%s: %s (its own defaults hold where no flag is given)", data.file.name, taken)
    hyperparameters = load_hyperparameters(resolved.hyp)
    names = ("item",) if settings.single_cls else data.names
    weights = _initial_weights(settings)
    spec = _architecture(settings, weights, len(names))
    strategy = load_strategy(settings.freeze, sizes=partial(parameter_sizes, spec))
    image_size = whole_strides(resolved.imgsz, spec.stride)
    _check_batch_size(resolved.batch_size, devices)
    if settings.strict:
        require_clean(data, ("train", "val"))
        if settings.replay is not None:
            require_clean(load_data(settings.replay), ("train",))
    train = open_split(data, "train", single_class=settings.single_cls, needs_boxes=True)
    val = open_split(data, "val", single_class=settings.single_cls)
    keep = settings.noautoanchor or bool(spec.branches)  # those of a branch belong to the boxes that it was trained on
    spec = with_fitting_anchors(
        spec, weights, train.samples, image_size, hyperparameters, keep=keep, seed=settings.seed
    )
    variables, source, fresh = start_variables(
        weights, spec, settings.seed, names, settings.init_head, settings.same_as_classes
    )
    _check_random_layers(settings, strategy, resolved.epochs, spec, tuple(flatten(variables["params"])), fresh)
    resolved = replace(resolved, imgsz=image_size)
    network = NetworkRecord(spec, names, source)
    job = _make_job(settings, resolved, data, hyperparameters, network, strategy, (train, val), devices, shared)
    return job, variables


def prepare_to_resume(settings: TrainSettings, folder: Path, shared: Shared | None = None) -> Job:
    """Read and check everything that an interrupted run needs: its own folder and the data, no initial weights.

    Args:
      settings: of the run, with what is to change.
      folder: of the run.
      shared: what runs of this process share.

    Raises:
      UserError: as ``prepare``; or the data set has other classes than the run.
    """
    devices, data = _devices_and_data(settings)
    network = read_network(folder)
    resolved = settings.resolve(data)
    hyperparameters = load_hyperparameters(folder / HYPERPARAMETERS)
    kept = sorted((folder / STRATEGY).glob("*"))
    strategy = load_strategy(str(kept[0]) if kept else settings.freeze, sizes=partial(parameter_sizes, network.spec))
    names = ("item",) if settings.single_cls else data.names
    if names != network.names:
        raise UserError(
            f"{data.file}: its classes ({', '.join(names[:8])}) are not those of the run ({', '.join(network.names[:8])})"
        )
    _check_batch_size(resolved.batch_size, devices)
    train = open_split(data, "train", single_class=settings.single_cls, needs_boxes=True)
    val = open_split(data, "val", single_class=settings.single_cls)
    return _make_job(settings, resolved, data, hyperparameters, network, strategy, (train, val), devices, shared)


def _devices_and_data(settings: TrainSettings) -> tuple[Sequence[jax.Device], DataConfig]:
    """Of a run; what other flags name is looked for here too, before images are read, which takes long."""
    devices = select_devices(settings.device, settings.deterministic)
    if settings.replay is not None:
        load_data(settings.replay)
    if settings.distil is not None:
        find_weights(settings.distil)
    if settings.albumentations:
        load_effects()
    return devices, load_data(settings.data, settings.data_root)


def _make_job(
    settings: TrainSettings,
    resolved: Resolved,
    data: DataConfig,
    hyperparameters: Hyperparameters,
    network: NetworkRecord,
    strategy: Strategy,
    splits: tuple[Split, Split],
    devices: Sequence[jax.Device],
    shared: Shared | None,
) -> Job:
    spec, (train, val), dtype = network.spec, splits, _dtype(settings.dtype, devices)
    shapes, stride = abstract_variables(spec), spec.stride
    phases = [phase for _, phase in rehearse(strategy, tuple(flatten(shapes["params"])), resolved.epochs, spec.name)]
    if settings.kept_views is not None:
        require_front(spec, strategy.name, {phase: fixed_modules(phase, settings.frozen_bn) for phase in phases})
    replay, teacher = _against_forgetting(settings, resolved.batch_size, network)
    mesh = make_mesh(devices)
    share: dict[str, Any] = {"process_index": process_index(), "process_count": process_count()}
    stream = open_stream(
        train.samples,
        hyperparameters,
        StreamSettings(
            image_size=resolved.imgsz,
            batch_size=resolved.batch_size,
            epochs=resolved.epochs,
            seed=settings.seed,
            effects=settings.albumentations,
            rectangular=settings.rect,
            stride=stride,
            replay=replay,
            **share,
        ),
        settings.cache,
        mesh,
    )
    validation = validation_batches(
        val.samples,
        image_size=resolved.imgsz,
        batch_size=fitting_validation_batch(spec, resolved.batch_size, resolved.imgsz, devices),
        stride=stride,
        most_shapes=most_shapes(devices),
        cache=settings.host_cache,
        **share,
    )
    width, features = None if dtype == "float32" else jnp.dtype(dtype), None
    if settings.kept_views is not None and isinstance(stream, TrainingStream):
        features = KeptFeatures(spec, width, mesh, stream, validation, settings.kept_views, shared)
    schedule = Schedule.from_hyperparameters(
        hyperparameters,
        epochs=resolved.epochs,
        batches_per_epoch=stream.batches_per_epoch,
        batch_size=resolved.batch_size,
        cosine=settings.cos_lr,
    )
    return Job(
        settings=replace(settings, **asdict(resolved), dtype=dtype, cache=cache_in_use(settings.cache, stream)),
        data=data,
        hyperparameters=hyperparameters,
        spec=spec,
        names=network.names,
        shapes=shapes,
        source=network.source,
        image_size=resolved.imgsz,
        batch_size=resolved.batch_size,
        dtype=width,
        stream=stream,
        validation=validation,
        schedule=schedule,
        optimizer=OptimizerSettings.from_hyperparameters(
            hyperparameters, batch_size=resolved.batch_size, name=resolved.optimizer
        ),
        loss=LossSettings.from_hyperparameters(
            hyperparameters,
            spec,
            resolved.imgsz,
            settings.label_smoothing,
            None if teacher is None else teacher.distillation,
        ),
        strategy=strategy,
        mesh=mesh,
        features=features,
        replay=replay,
        teacher=teacher,
    )


def _against_forgetting(
    settings: TrainSettings, batch_size: int, network: NetworkRecord
) -> tuple[Replay, Teacher | None]:
    """What ``--replay`` and ``--distil`` ask for."""
    replay, teacher, names = NO_REPLAY, None, network.names
    if settings.replay is not None:
        share, single = settings.replay_share, settings.single_cls
        replay = open_replay(settings.replay, share, batch_size, names, single_class=single)
    if settings.distil is not None:
        flag = f"--distil {settings.distil}"
        teacher = make_teacher(load_weights(settings.distil), network.spec, names, settings.distil_gain, flag)
    return replay, teacher


def _dtype(asked: str, devices: Sequence[jax.Device]) -> Any:
    dtype = computation_dtype(asked, devices)
    if asked == "auto" and dtype != "float32":
        scaled = ", with a loss scale" if dtype == "float16" else ""
        log.info("--dtype auto: %s%s, which %s is made for", dtype, scaled, devices[0].device_kind)
    return dtype


def _check_batch_size(batch_size: int, devices: Sequence[jax.Device]) -> None:
    if batch_size == LARGEST:
        raise UserError(
            "--batch-size -1: 'yolojax train' finds it; from Python, plan.autobatch.with_fitting_batch does"
        )
    check_divides(batch_size, devices)


def _initial_weights(settings: TrainSettings) -> Weights | None:
    if settings.weights == "":
        return None
    if settings.weights is None:
        return None if settings.cfg else load_weights(configs_root() / "weights" / EMBEDDED_WEIGHTS, settings.delta)
    return load_weights(settings.weights, settings.delta)


def _architecture(settings: TrainSettings, weights: Weights | None, classes: int) -> ModelSpec:
    if settings.cfg:
        return load_spec(settings.cfg, classes)
    if weights is None:
        raise UserError("training from scratch needs an architecture: add --cfg yolov5n (s, m, l, x, or a YAML file)")
    return weights.spec.with_classes(classes)


def _check_random_layers(
    settings: TrainSettings, strategy: Strategy, epochs: int, spec: ModelSpec, paths: Sequence[str], fresh: RandomArrays
) -> None:
    """Warn of layers that start from random numbers and never train; with ``--strict`` refuse them."""
    phases = (phase for _, phase in rehearse(strategy, paths, epochs, spec.name))
    if random := frozen_random(phases, fresh.paths):
        sentence = random_sentence(strategy, random, fresh.reason)
        if settings.strict:
            raise UserError(sentence)
        log.warning("%s (--strict refuses this)", sentence)
