"""Validation of saved weights on a data set: what ``yolojax val`` does, and the files that it writes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich import get_console
from rich.progress import track

from yolojax.data.batches import ValidationBatches, validation_batches
from yolojax.data.config import DataConfig, load_data_config
from yolojax.data.sample import Sample
from yolojax.data.sources import open_split
from yolojax.errors import UserError
from yolojax.evaluation.coco import Picture
from yolojax.evaluation.evaluator import Evaluation, evaluate, true_boxes
from yolojax.evaluation.nms import NmsSettings
from yolojax.evaluation.plots import draw_sheet
from yolojax.inference.predictor import Predict, make_predict
from yolojax.inference.settings import ValSettings
from yolojax.inference.sinks import write_labels
from yolojax.mesh import make_mesh, split
from yolojax.model.spec import whole_strides
from yolojax.weights.find import EMBEDDED_WEIGHTS, load_weights
from yolojax.weights.store import Weights

log = logging.getLogger(__name__)

SHEETS = 3  # batches that are drawn
SHOWN = 0.25  # score above which a detection is drawn
FEW_IMAGES = 1000  # up to here threads load faster than processes start


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
      place: moves images to the devices.
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
    place: Callable[[np.ndarray], Any]

    def batches(self, image_size: int | None = None) -> ValidationBatches:
        """The images, as the network will see them; ``image_size`` in pixels instead of the settings'."""
        return validation_batches(
            self.samples,
            image_size=image_size or self.image_size,
            batch_size=self.batch_size,
            rectangular=self.rectangular,
            stride=max(max(item.spec.strides) for item in self.weights),
            pad=0.5,
        )

    def run(
        self,
        image_size: int | None = None,
        observe: Callable[..., None] | None = None,
        predict: Predict | None = None,
    ) -> Evaluation:
        """Measure.

        Args:
          image_size: pixels, instead of the settings'.
          observe: see ``evaluator.evaluate``.
          predict: what is measured, instead of the network itself: the same network in another form.
        """
        batches = self.batches(image_size)
        workers = min(self.settings.workers, os.cpu_count() or 1) if len(self.samples) > FEW_IMAGES else 0
        shown = get_console().is_terminal
        bar = track(batches.iterate(workers), "validating", len(batches), transient=True, disable=not shown)
        return evaluate(
            predict
            or make_predict(self.weights, dtype=jnp.dtype(self.settings.computation), augment=self.settings.augment),
            bar,
            self.names,
            self.nms,
            single_class=self.settings.single_cls,
            place=self.place,
            observe=observe,
        )

    def described(self) -> dict[str, Any]:
        """What an AP depends on, for the record and for the line below the table."""
        return {
            "weights": list(weights_of(self.settings)),
            "data": self.settings.data,
            "split": split_of(self.settings.task),
            "image_size": self.image_size,
            "rectangular": self.rectangular,
            "batch_size": self.batch_size,
            "confidence": self.nms.confidence,
            "iou": self.nms.iou,
            "max_detections": self.nms.max_detections,
            "multi_label": len(self.names) > 1,
            "single_class": self.settings.single_cls,
            "augment": self.settings.augment,
            "dtype": self.settings.computation,
        }


def weights_of(settings: ValSettings) -> tuple[str, ...]:
    """The weights that a user names, or the embedded ones."""
    return settings.weights or (EMBEDDED_WEIGHTS,)


def split_of(task: str) -> Literal["train", "val", "test"]:
    """The split that a task looks at."""
    return task if task in ("train", "test") else "val"  # type: ignore[return-value]


def prepare(settings: ValSettings, devices: Sequence[jax.Device]) -> Validation:
    """Read and check everything; nothing is written.

    Raises:
      UserError: something does not fit; the message says what, where and what to do.
    """
    data = load_data_config(settings.data, settings.data_root)
    sources = weights_of(settings)
    weights = tuple(map(load_weights, sources))
    names = ("item",) if settings.single_cls else data.names
    for source, item in zip(sources, weights, strict=True):
        if item.spec.classes != len(data.names) and not settings.single_cls:
            raise UserError(
                f"--weights: {source} has {item.spec.classes} classes, "
                f"but {data.file} names {len(data.names)}; choose the data set that the weights were trained on"
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
    batch_size = settings.batch_size or data.defaults.get("batch", 32)
    if batch_size % len(devices):
        raise UserError(f"--batch-size {batch_size}: must be a multiple of the {len(devices)} devices")
    speed = settings.task == "speed"
    samples = open_split(data, split_of(settings.task), single_class=settings.single_cls).samples
    size = settings.imgsz or data.defaults.get("img", 640)
    return Validation(
        settings=settings,
        data=data,
        weights=weights,
        samples=samples,
        names=names,
        image_size=whole_strides(size, max(max(item.spec.strides) for item in weights)),
        batch_size=batch_size,
        nms=NmsSettings(
            confidence=0.25 if speed else settings.conf_thres,
            iou=0.45 if speed else settings.iou_thres,
            max_detections=settings.max_det,
            agnostic=settings.single_cls,
        ),
        rectangular=not speed,
        place=partial(jax.device_put, device=split(make_mesh(devices))),
    )


class Recorder:
    """Writes what ``--save-txt`` and the plots ask for while images go by, and keeps what COCO's files need."""

    def __init__(self, validation: Validation, folder: Path) -> None:
        """Nothing is written yet; ``folder`` exists."""
        settings = validation.settings
        self.samples, self.names, self.folder = validation.samples, validation.names, folder
        self.txt, self.scores = settings.save_txt, settings.save_conf
        self.keep, self.draw = settings.save_json, not settings.noplots
        self.pictures: list[Picture] = []
        self.batches = 0

    def __call__(self, batch: Any, found: list[np.ndarray]) -> None:
        """See one batch and its detections."""
        for image in np.flatnonzero(batch["valid"]).tolist():
            sample = self.samples[int(batch["index"][image])]
            if self.txt:
                path = self.folder / "labels" / f"{Path(sample.name).stem}.txt"
                write_labels(path, found[image], batch["original_size"][image], self.scores)
            if self.keep:
                size = tuple(int(side) for side in batch["original_size"][image])
                self.pictures.append(Picture(sample.name, size, found[image], true_boxes(batch, image)))  # type: ignore[arg-type]
        if self.draw and self.batches < SHEETS:
            self._draw(batch, found)
        self.batches += 1

    def _draw(self, batch: Any, found: list[np.ndarray]) -> None:
        height, width = batch["images"].shape[1:3]
        valid = np.flatnonzero(batch["valid"]).tolist()
        true, true_texts, shown, texts = [], [], [], []
        for image in valid:
            boxes = batch["boxes"][image][batch["mask"][image]]
            corners = np.concatenate([boxes[:, 1:3] - boxes[:, 3:] / 2, boxes[:, 1:3] + boxes[:, 3:] / 2], 1)
            true.append(np.concatenate([corners * np.array([width, height] * 2), boxes[:, :1]], 1))
            true_texts.append([self.names[int(label)] for label in boxes[:, 0]])
            seen = found[image][found[image][:, 4] > SHOWN]
            corners = seen[:, :4] * batch["gain"][image][0] + np.tile(batch["padding"][image], 2)
            shown.append(np.concatenate([corners, seen[:, 5:]], 1))
            texts.append([f"{self.names[int(label)]} {score:.2f}" for score, label in seen[:, 4:]])
        captions = [Path(self.samples[int(batch["index"][image])].name).name for image in valid]
        images = batch["images"][valid]
        draw_sheet(images, true, true_texts, captions, self.folder / f"val_batch{self.batches}_labels.jpg")
        draw_sheet(images, shown, texts, captions, self.folder / f"val_batch{self.batches}_pred.jpg")
