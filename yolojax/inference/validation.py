"""Validation of saved weights on a data set: what ``yolojax val`` and ``yolojax bench`` measure."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich import get_console
from rich.progress import track

from yolojax.data.batches import ValidationBatches, validation_batches
from yolojax.data.config import DataConfig
from yolojax.data.sample import Sample
from yolojax.data.sources import load_data, open_split
from yolojax.errors import UserError
from yolojax.evaluation.evaluator import Evaluation, Program, evaluate, most_shapes
from yolojax.evaluation.nms import NmsSettings
from yolojax.hosts.agreement import is_first, process_count, process_index
from yolojax.inference.predictor import make_predict, suppressed_parts
from yolojax.inference.settings import ValSettings
from yolojax.mesh import check_divides, make_mesh, place_images, split
from yolojax.model.spec import whole_strides
from yolojax.scores import SCORES, known_scores
from yolojax.system import processors
from yolojax.weights.find import EMBEDDED_WEIGHTS, load_weights
from yolojax.weights.join import graft
from yolojax.weights.store import Weights

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class Validation:
    """Everything that a validation needs, checked; ``run`` measures.

    Attributes:
      settings: the user's.
      data: the data set's settings.
      weights: one network, or several.
      samples: of the split.
      names: of the classes.
      image_size: pixels, a multiple of the stride.
      batch_size: images of a batch over all devices.
      nms: thresholds.
      rectangular: whether batches have the shape of their images.
      classes: of the network, in the order of ``names``; None where it has those and no others.
      most_shapes: different shapes of batches at most; None for as many as there are.
      mesh: the devices.
    """

    settings: ValSettings
    data: DataConfig
    weights: tuple[Weights, ...]
    samples: Sequence[Sample]
    names: tuple[str, ...]
    image_size: int
    batch_size: int
    nms: NmsSettings
    rectangular: bool
    classes: tuple[int, ...] | None
    most_shapes: int | None
    mesh: Mesh

    def batches(self, image_size: int | None = None) -> ValidationBatches:
        """The images, as the network will see them; ``image_size`` in pixels instead of the settings'."""
        return validation_batches(
            self.samples,
            image_size=image_size or self.image_size,
            batch_size=self.batch_size,
            rectangular=self.rectangular,
            stride=math.lcm(*(item.spec.stride for item in self.weights)),
            pad=0.5,
            most_shapes=self.most_shapes,
            process_index=process_index(),
            process_count=process_count(),
        )

    def run(
        self,
        image_size: int | None = None,
        observe: Callable[..., None] | None = None,
        predict: Program | None = None,
    ) -> Evaluation:
        """Measure.

        Args:
          image_size: pixels, instead of the settings'.
          observe: see ``evaluator.evaluate``.
          predict: what is measured, instead of the network itself: the same network in another form.
        """
        batches = self.batches(image_size)
        threads = max(1, min(self.settings.workers, processors()))
        shown, several = get_console().is_terminal and is_first(), process_count() > 1
        bar = track(batches.iterate(threads=threads), "validating", len(batches), transient=True, disable=not shown)
        ahead: AbstractContextManager[None] = nullcontext()
        if predict is None:
            predict = own = make_predict(
                self.weights,
                dtype=jnp.dtype(self.settings.computation),
                augment=self.settings.augment,
                classes=self.classes,
                mesh=self.mesh if several else None,
            )
            if not several:
                shapes = [(self.batch_size, *shape, 3) for shape in dict.fromkeys(batches.shapes)]
                ahead = own.compiled_ahead(shapes, split(self.mesh))
        with ahead:
            return evaluate(
                predict,
                bar,
                self.names,
                self.nms,
                single_class=self.settings.single_cls,
                place=partial(place_images, mesh=self.mesh),
                observe=observe,
                shares=several,
            )

    def described(self) -> dict[str, Any]:
        """What an AP depends on, for the record and for the line below the table."""
        return {
            "weights": list(weights_of(self.settings)),
            "data": self.settings.data,
            "split": split_of(self.settings.task),
            "image_size": self.image_size,
            "rectangular": self.rectangular,
            "most_shapes": self.most_shapes,
            "batch_size": self.batch_size,
            "confidence": self.nms.confidence,
            "iou": self.nms.iou,
            "max_detections": self.nms.max_detections,
            "multi_label": len(self.names) > 1,
            "single_class": self.settings.single_cls,
            "augment": self.settings.augment,
            "dtype": self.settings.computation,
        }


def describe_settings(described: Mapping[str, Any]) -> str:
    """A line of what figures depend on, as ``Validation.described`` gives it; ``image_size`` may be a list."""
    sizes = described["image_size"]
    options = [
        f"{sizes} px" if isinstance(sizes, int) else f"{sizes[0]} to {sizes[-1]} px",
        _describe_shapes(described),
        f"batch {described['batch_size']}",
        f"confidence > {described['confidence']:g}",
        f"NMS IoU {described['iou']:g}",
        f"at most {described['max_detections']} detections",
        *(["all classes as one"] if described["single_class"] else []),
        *(["test-time augmentation"] if described["augment"] else []),
        described["dtype"],
    ]
    return f"{' + '.join(described['weights'])} on {described['data']} ({described['split']}), {', '.join(options)}"


def _describe_shapes(described: Mapping[str, Any]) -> str:
    if not described["rectangular"]:
        return "square"
    most = described.get("most_shapes")
    return "rectangular" if most is None else f"rectangular in at most {most} shapes"


def measure_sizes(validation: Validation, sizes: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Measure at one image size (pixels) after the other.

    Yields:
      ``image_size precision recall map50 map50_95 preprocess_ms inference_ms nms_ms``; scores are None where there is no box to find.
    """
    for size in sizes:
        evaluation = validation.run(image_size=size)
        figures = known_scores(evaluation.figures())
        yield {
            "image_size": size,
            **{name: figures[name] for name in SCORES},
            **{f"{part}_ms": value for part, value in evaluation.speed_ms.items()},
        }


def weights_of(settings: ValSettings) -> tuple[str, ...]:
    """The weights that a user names, or the embedded ones."""
    if settings.trunk is not None:
        return (f"{settings.head} on {settings.trunk}",)
    return settings.weights or (EMBEDDED_WEIGHTS,)


def _load(settings: ValSettings) -> tuple[Weights, ...]:
    if settings.trunk is not None and settings.head is not None:
        return (graft(load_weights(settings.trunk), load_weights(settings.head), settings.split),)
    return tuple(load_weights(source, settings.delta) for source in weights_of(settings))


def _known_classes(joined: Weights, data: DataConfig) -> tuple[int, ...] | None:
    """The classes of a joined network that a data set asks for, by their names; None where it names them all in this order."""
    missing = [name for name in data.names if name not in joined.names]
    if missing:
        raise UserError(
            f"{data.file}: no branch of {joined.spec.name} has a class {missing[0]!r}; it has {', '.join(joined.names[:8])}"
            + (" …" if len(joined.names) > 8 else "")
        )
    classes = tuple(joined.names.index(name) for name in data.names)
    return None if classes == tuple(range(joined.spec.classes)) else classes


def split_of(task: str) -> Literal["train", "val", "test"]:
    """The split that a task looks at."""
    return task if task in ("train", "test") else "val"  # type: ignore[return-value]


def prepare_validation(settings: ValSettings, devices: Sequence[jax.Device]) -> Validation:
    """Read and check everything; nothing is written.

    Raises:
      UserError: something does not fit; the message says what, where and what to do.
    """
    data = load_data(settings.data, settings.data_root)
    sources = weights_of(settings)
    weights = _load(settings)
    names = ("item",) if settings.single_cls else data.names
    classes = _known_classes(weights[0], data) if weights[0].spec.branches and not settings.single_cls else None
    for source, item in zip(sources, weights, strict=True):
        if classes is not None:
            continue
        if item.spec.classes != len(data.names) and not settings.single_cls:
            single = item.spec.classes == 1
            remedy = "choose the data set that the weights were trained on"
            raise UserError(
                f"--weights: {source} has {item.spec.classes} class{'' if single else 'es'}, but {data.file} names "
                f"{len(data.names)}; {'give --single-cls if they were trained with it, else ' if single else ''}{remedy}"
            )
        elif item.names != data.names and not settings.single_cls:
            first, second = next(pair for pair in zip(item.names, data.names, strict=True) if pair[0] != pair[1])
            log.warning(
                "--weights: the classes of %s are named otherwise than those of %s: '%s', not '%s'",
                source,
                data.file,
                first,
                second,
            )
        if item.spec.classes != weights[0].spec.classes:
            raise UserError("--weights: the networks of an ensemble must have the same classes")
    if settings.conf_thres > ValSettings.conf_thres and settings.task != "speed":
        log.warning(
            "--conf-thres %g: the curves end where detections are cut off, so mAP is too low and not comparable; it is measured at %g",
            settings.conf_thres,
            ValSettings.conf_thres,
        )
    batch_size = settings.batch_size or data.defaults.get("batch", 32)
    check_divides(batch_size, devices)
    speed = settings.task == "speed"
    samples = open_split(data, split_of(settings.task), single_class=settings.single_cls).samples
    size = settings.imgsz or data.defaults.get("img", 640)
    return Validation(
        settings=settings,
        data=data,
        weights=weights,
        samples=samples,
        names=names,
        image_size=whole_strides(size, math.lcm(*(item.spec.stride for item in weights))),
        batch_size=batch_size,
        nms=NmsSettings(
            confidence=0.25 if speed else settings.conf_thres,
            iou=0.45 if speed else settings.iou_thres,
            max_detections=settings.max_det,
            agnostic=settings.single_cls,
            parts=suppressed_parts(weights, settings.single_cls, classes),
        ),
        classes=classes,
        rectangular=not speed,
        most_shapes=most_shapes(devices),
        mesh=make_mesh(devices),
    )
