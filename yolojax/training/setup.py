"""Everything that is decided before the first step: files read, sizes checked, weights placed, strategy rehearsed."""

from __future__ import annotations

import json
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
from yolojax.data.sample import Split
from yolojax.data.sources import load_data, open_split
from yolojax.errors import UserError
from yolojax.evaluation.evaluator import most_shapes
from yolojax.freezing.load import Strategy, load_strategy, rehearse
from yolojax.freezing.phases import Phase
from yolojax.freezing.random_layers import frozen_random, random_sentence
from yolojax.hosts.agreement import gathered, process_count, process_index
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
from yolojax.training.validator import validation_batch
from yolojax.tree import flatten
from yolojax.weights.find import EMBEDDED_WEIGHTS, load_weights
from yolojax.weights.start import RandomArrays, start_variables, with_fitting_anchors
from yolojax.weights.store import Weights

log = logging.getLogger(__name__)

# In a run folder, for those who resume.
HYPERPARAMETERS = "hyp.yaml"
NETWORK = "network.json"
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

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Every parameter path."""
        return tuple(flatten(self.shapes["params"]))

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


@dataclass(frozen=True, eq=False)
class NetworkRecord:
    """The network of a run, as its folder keeps it.

    Attributes:
      spec: with the anchors that are trained with.
      names: of the classes.
      source: where the initial weights come from.
    """

    spec: ModelSpec
    names: tuple[str, ...]
    source: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, under the names that ``weights.json`` has too; ``read_network`` reads it back."""
        return {"architecture": self.spec.to_dict(), "classes": list(self.names), "source": dict(self.source)}


def read_network(folder: Path) -> NetworkRecord:
    """The network of a run, from its folder.

    Raises:
      UserError: the folder does not hold it, or what it holds is damaged.
    """
    # Version 0.1 kept it beside the weights alone, which it wrote after the first epoch.
    places = [folder / NETWORK, *(folder / "weights" / name / "weights.json" for name in ("last", ".last.replaced"))]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise UserError(
            f"{folder}: holds no {NETWORK}; it was begun by yolojax 0.1 and stopped in its first epoch: "
            "continue it with that version, or begin a new run"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        spec = ModelSpec.from_dict(content["architecture"], file)
        return NetworkRecord(spec, tuple(map(str, content["classes"])), dict(content["source"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: is damaged ({error!r}), so that the run cannot go on; begin a new one") from error


def prepare(settings: TrainSettings) -> tuple[Job, Variables]:
    """Read and check everything that a new run needs; nothing is written but caches.

    Returns:
      The job, and the parameters and statistics that it starts from, NumPy float32.

    Raises:
      UserError: something does not fit; the message says what, where and what to do.
    """
    devices = select_devices(settings.device, settings.deterministic)
    data = load_data(settings.data, settings.data_root)
    resolved = settings.resolve(data)
    if data.defaults:
        _tell_defaults(resolved, data)
    hyperparameters = load_hyperparameters(resolved.hyp)
    names = ("item",) if settings.single_cls else data.names
    weights = _initial_weights(settings)
    spec = _architecture(settings, weights, len(names))
    strategy = load_strategy(settings.freeze, sizes=partial(parameter_sizes, spec))
    image_size = whole_strides(resolved.imgsz, spec.stride)
    _check_batch_size(resolved.batch_size, devices)
    if settings.albumentations:
        load_effects()
    if settings.strict:
        require_clean(data, ("train", "val"))
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
    job = _make_job(settings, resolved, data, hyperparameters, network, strategy, (train, val), devices)
    return job, variables


def prepare_to_resume(settings: TrainSettings, folder: Path) -> Job:
    """Read and check everything that an interrupted run needs: its own folder and the data, no initial weights.

    Args:
      settings: of the run, with what is to change.
      folder: of the run.

    Raises:
      UserError: as ``prepare``; or the data set has other classes than the run.
    """
    devices = select_devices(settings.device, settings.deterministic)
    data = load_data(settings.data, settings.data_root)
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
    if settings.albumentations:
        load_effects()
    train = open_split(data, "train", single_class=settings.single_cls, needs_boxes=True)
    val = open_split(data, "val", single_class=settings.single_cls)
    return _make_job(settings, resolved, data, hyperparameters, network, strategy, (train, val), devices)


def _make_job(
    settings: TrainSettings,
    resolved: Resolved,
    data: DataConfig,
    hyperparameters: Hyperparameters,
    network: NetworkRecord,
    strategy: Strategy,
    splits: tuple[Split, Split],
    devices: Sequence[jax.Device],
) -> Job:
    spec, (train, val), dtype = network.spec, splits, _dtype(settings.dtype, devices)
    shapes, stride = abstract_variables(spec), spec.stride
    rehearse(strategy, tuple(flatten(shapes["params"])), resolved.epochs, spec.name)
    mesh, share = make_mesh(devices), (process_index(), process_count())
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
            process_index=share[0],
            process_count=share[1],
        ),
        settings.cache,
        mesh,
    )
    validation = validation_batches(
        val.samples,
        image_size=resolved.imgsz,
        batch_size=fitting_validation_batch(spec, resolved, devices),
        stride=stride,
        most_shapes=most_shapes(devices),
        cache=settings.host_cache,
        process_index=share[0],
        process_count=share[1],
    )
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
        dtype=None if dtype == "float32" else jnp.dtype(dtype),
        stream=stream,
        validation=validation,
        schedule=schedule,
        optimizer=OptimizerSettings.from_hyperparameters(
            hyperparameters, batch_size=resolved.batch_size, name=resolved.optimizer
        ),
        loss=LossSettings.from_hyperparameters(hyperparameters, spec, resolved.imgsz, settings.label_smoothing),
        strategy=strategy,
        mesh=mesh,
    )


def _dtype(asked: str, devices: Sequence[jax.Device]) -> Any:
    dtype = computation_dtype(asked, devices)
    if asked == "auto" and dtype != "float32":
        scaled = ", with a loss scale" if dtype == "float16" else ""
        log.info("--dtype auto: %s%s, which %s is made for", dtype, scaled, devices[0].device_kind)
    return dtype


def fitting_validation_batch(spec: ModelSpec, resolved: Resolved, devices: Sequence[jax.Device]) -> int:
    """Images of a validation batch: ``validation_batch``, or what half of the memory of the devices holds.

    An image is counted with the outputs of all layers at once in float32, which is more than prediction and suppression need.
    """
    on_cpu = devices[0].platform == "cpu"
    wanted = validation_batch(resolved.batch_size, resolved.imgsz, len(devices), on_cpu=on_cpu)
    local = next(device for device in devices if device.process_index == jax.process_index())
    limits = gathered("memory", str((local.memory_stats() or {}).get("bytes_limit", 0)))
    limit = min(map(float, limits))
    if limit == 0:
        return wanted
    values = sum(layer.channels / layer.reduction**2 for layer in spec.resolved)
    image_bytes = (resolved.imgsz + spec.stride) ** 2 * values * 4
    return min(wanted, max(int(limit / 2 / image_bytes), 1) * len(devices))


def _check_batch_size(batch_size: int, devices: Sequence[jax.Device]) -> None:
    if batch_size == LARGEST:
        raise UserError(
            "--batch-size -1: 'yolojax train' finds it; from Python, plan.autobatch.with_fitting_batch does"
        )
    check_divides(batch_size, devices)


def _tell_defaults(resolved: Resolved, data: DataConfig) -> None:
    taken = f"{resolved.imgsz} px, {resolved.epochs} epochs, batch {resolved.batch_size}, {resolved.hyp}, {resolved.optimizer}"
    log.info("%s: %s (its own defaults hold where no flag is given)", data.file.name, taken)


def _initial_weights(settings: TrainSettings) -> Weights | None:
    if settings.weights == "":
        return None
    if settings.weights is None:
        return None if settings.cfg else load_weights(configs_root() / "weights" / EMBEDDED_WEIGHTS)
    return load_weights(settings.weights)


def _architecture(settings: TrainSettings, weights: Weights | None, classes: int) -> ModelSpec:
    if settings.cfg:
        return load_spec(settings.cfg, classes)
    if weights is None:
        raise UserError(
            "training from scratch needs an architecture: add --cfg yolov5n (or s, m, l, x, or a YAML file)"
        )
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
