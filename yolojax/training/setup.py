"""Everything that is decided before the first step: files read, sizes checked, weights placed, strategy rehearsed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jax.sharding import Mesh

from yolojax.config import configs_root
from yolojax.data.anchors import check_anchors
from yolojax.data.batches import StreamSettings, ValidationBatches, validation_batches
from yolojax.data.check import require_clean
from yolojax.data.colour import load_effects
from yolojax.data.config import DataConfig
from yolojax.data.sample import Sample
from yolojax.data.sources import load_data, open_split
from yolojax.data.stream import TrainingStream, training_stream
from yolojax.errors import UserError
from yolojax.freezing.load import Strategy, load_strategy, rehearse
from yolojax.hyperparameters import Hyperparameters, load_hyperparameters
from yolojax.mesh import make_mesh
from yolojax.model.network import Variables, init_variables
from yolojax.model.spec import ModelSpec, load_spec, whole_strides
from yolojax.runtime import select_devices
from yolojax.training.loss import LossSettings
from yolojax.training.schedule import Schedule
from yolojax.training.settings import TrainSettings
from yolojax.tree import flatten
from yolojax.weights.find import EMBEDDED_WEIGHTS, load_weights
from yolojax.weights.store import Weights, transfer

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A training run, ready to start.

    Attributes:
      settings: the user's, with every default filled in.
      data: the data set's settings.
      hyperparameters: of the file that ``--hyp`` names.
      spec: the network; its anchors are those that are trained with.
      names: of the classes.
      variables: the parameters and statistics to start from, NumPy float32.
      source: where they come from, for the record beside the trained weights.
      stream: training batches.
      validation: validation batches.
      schedule: of rates.
      loss: gains and options.
      strategy: who trains when.
      mesh: the devices.
    """

    settings: TrainSettings
    data: DataConfig
    hyperparameters: Hyperparameters
    spec: ModelSpec
    names: tuple[str, ...]
    variables: Variables
    source: dict[str, object]
    stream: TrainingStream
    validation: ValidationBatches
    schedule: Schedule
    loss: LossSettings
    strategy: Strategy
    mesh: Mesh

    @property
    def paths(self) -> tuple[str, ...]:
        """Every parameter path."""
        return tuple(flatten(self.variables["params"]))

    @property
    def epochs(self) -> int:
        """How many epochs are planned."""
        return self.schedule.epochs


def prepare(settings: TrainSettings) -> Job:
    """Read and check everything that a run needs; nothing is written but caches.

    Raises:
      UserError: something does not fit; the message says what, where and what to do.
    """
    devices = select_devices(settings.device)
    data = load_data(settings.data, settings.data_root)
    settings = settings.with_defaults(data)
    _tell_defaults(settings, data)
    hyperparameters = load_hyperparameters(settings.hyp or "scratch-low")
    strategy = load_strategy(settings.freeze)
    names = ("item",) if settings.single_cls else data.names
    weights = _initial_weights(settings)
    spec = _architecture(settings, weights, len(names))
    image_size = whole_strides(settings.imgsz or 640, max(spec.strides))
    batch_size = settings.batch_size or 16
    if batch_size % len(devices):
        raise UserError(f"--batch-size {batch_size}: must be a multiple of the {len(devices)} devices")
    if settings.albumentations:
        load_effects()
    if settings.strict:
        require_clean(data, ("train", "val"))
    train = open_split(data, "train", single_class=settings.single_cls, needs_boxes=True)
    val = open_split(data, "val", single_class=settings.single_cls)
    spec = _fit_anchors(settings, hyperparameters, spec, train.samples, image_size)
    variables, source = _place(weights, spec, settings.seed)
    rehearse(strategy, tuple(flatten(variables["params"])), settings.epochs or 1, spec.name)
    stream = training_stream(
        train.samples,
        hyperparameters,
        StreamSettings(
            image_size=image_size,
            batch_size=batch_size,
            epochs=settings.epochs or 1,
            seed=settings.seed,
            effects=settings.albumentations,
            rectangular=settings.rect,
            stride=max(spec.strides),
            cache=None if settings.cache == "val" else settings.cache,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ),
    )
    return Job(
        settings=replace(settings, imgsz=image_size),
        data=data,
        hyperparameters=hyperparameters,
        spec=spec,
        names=names,
        variables=variables,
        source=source,
        stream=stream,
        validation=validation_batches(
            val.samples,
            image_size=image_size,
            batch_size=2 * batch_size,
            stride=max(spec.strides),
            cache="ram" if settings.cache == "val" else settings.cache,
        ),
        schedule=Schedule.from_hyperparameters(
            hyperparameters,
            epochs=settings.epochs or 1,
            batches_per_epoch=stream.batches_per_epoch,
            batch_size=batch_size,
            cosine=settings.cos_lr,
        ),
        loss=LossSettings.from_hyperparameters(hyperparameters, spec, image_size, settings.label_smoothing),
        strategy=strategy,
        mesh=make_mesh(devices),
    )


def _tell_defaults(settings: TrainSettings, data: DataConfig) -> None:
    if data.defaults:
        taken = f"{settings.imgsz} px, {settings.epochs} epochs, batch {settings.batch_size}, {settings.hyp}, {settings.optimizer}"
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


def _place(weights: Weights | None, spec: ModelSpec, seed: int) -> tuple[Variables, dict[str, object]]:
    """The arrays to start from, and what to record of where they come from."""
    key = jax.random.key(seed)
    if weights is None:
        log.info("%s with %d classes starts from random weights", spec.name, spec.classes)
        return jax.tree.map(np.asarray, init_variables(spec, key)), {"file": None, "trained_by": "yolojax"}
    moved = transfer(weights, spec, key)
    total = len(moved.transferred) + len(moved.initialised)
    log.info(
        "%s: %d of %d arrays taken from %s",
        spec.name,
        len(moved.transferred),
        total,
        weights.source.get("file", "the weights"),
    )
    if moved.initialised:
        modules = sorted({path.split("/")[0] for path in moved.initialised}, key=lambda name: int(name.split("_")[1]))
        reason = (
            f" ({weights.spec.classes} classes before, {spec.classes} now)"
            if weights.spec.classes != spec.classes
            else ""
        )
        log.info("newly initialised%s: %s", reason, ", ".join(modules))
    return moved.variables, {**weights.source, "trained_by": "yolojax", "trained_from": weights.source.get("file")}


def _fit_anchors(
    settings: TrainSettings,
    hyperparameters: Hyperparameters,
    spec: ModelSpec,
    samples: Sequence[Sample],
    image_size: int,
) -> ModelSpec:
    """The network with anchors that fit the boxes: its own where they do, or where ``--noautoanchor`` says so."""
    if settings.noautoanchor:
        return spec
    anchors = spec.anchors
    if hyperparameters.anchors:
        # As in the original, the key asks for this many anchors of no use, which are then always replaced.
        sides = range(1, 2 * round(hyperparameters.anchors), 2)
        anchors = tuple(tuple((float(side), float(side + 1)) for side in sides) for _ in spec.anchors)
    check = check_anchors(samples, anchors, image_size, hyperparameters.anchor_t, settings.seed)
    if check.anchors is None:
        log.info(check.reason)
        return spec
    shown = " | ".join(" ".join(f"{w:g},{h:g}" for w, h in level) for level in check.anchors)
    log.warning("%s; they replace those of %s (--noautoanchor keeps them): %s", check.reason, spec.name, shown)
    return spec.with_anchors(check.anchors)
