"""Run a network over validation batches and say how good it is.

``evaluate`` knows neither the network nor the data set: it takes a function from images to predictions, and batches as plain dictionaries.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from yolojax.evaluation.metrics import Curves
from yolojax.evaluation.nms import NmsSettings, suppress, suppress_batch
from yolojax.evaluation.tally import Batch, Tally
from yolojax.hosts.agreement import gathered_arrays, process_count
from yolojax.mesh import local_rows, local_shards

Program = Callable[[Any], tuple[Any, Any]]  # images to predictions and heads; see ``evaluate``
Loss = Callable[[Any, np.ndarray, np.ndarray, np.ndarray], Mapping[str, Any]]

# An accelerator takes seconds to compile for each shape, and little time for the wider borders of fewer ones.
_SHAPES_ON_ACCELERATORS = 3

_suppress_on_device = jax.jit(suppress_batch, static_argnums=1)


@dataclass(frozen=True)
class Evaluation:
    """How good the predictions were.

    Attributes:
      curves: everything per class; see ``metrics.Curves``.
      names: class names.
      images: number of images seen.
      confusion: ``(nc + 1, nc + 1)``; see ``confusion.confusion``.
      speed_ms: milliseconds per image: ``preprocess`` (waiting for the batch and moving it), ``inference``, ``nms``. The first batch of every image shape
        is left out because it compiles, unless there is no other.
      losses: mean over batches of each loss part, if a loss was given.
      shapes: distinct shapes of image batches, so the number of programs compiled for ``predict``.
    """

    curves: Curves
    names: tuple[str, ...]
    images: int
    confusion: np.ndarray
    speed_ms: Mapping[str, float]
    losses: Mapping[str, float]
    shapes: int

    @property
    def precision(self) -> float:
        """Mean precision of the classes at the confidence of the best F1 score."""
        return self.curves.mean_precision

    @property
    def recall(self) -> float:
        """Mean recall of the classes at the confidence of the best F1 score."""
        return self.curves.mean_recall

    @property
    def map50(self) -> float:
        """Mean AP at IoU .5."""
        return self.curves.map50

    @property
    def map50_95(self) -> float:
        """Mean AP over IoU .5 to .95."""
        return self.curves.map50_95

    @property
    def instances(self) -> int:
        """Number of labels."""
        return int(self.curves.instances.sum())

    def per_class(self) -> list[dict[str, Any]]:
        """One row per class that has labels: ``class name instances precision recall map50 map50_95``."""
        curves = self.curves
        return [
            {
                "class": int(label),
                "name": self.names[label],
                "instances": int(curves.instances[row]),
                "precision": float(curves.precision[row, curves.best]),
                "recall": float(curves.recall[row, curves.best]),
                "map50": float(curves.ap[row, 0]),
                "map50_95": float(curves.ap[row].mean()),
            }
            for row, label in enumerate(curves.classes)
        ]

    def figures(self) -> dict[str, Any]:
        """What ``--json`` writes."""
        return {
            "precision": self.precision,
            "recall": self.recall,
            "map50": self.map50,
            "map50_95": self.map50_95,
            "images": self.images,
            "instances": self.instances,
            "per_class": self.per_class(),
            "speed_ms": dict(self.speed_ms),
        }


def most_shapes(devices: Sequence[jax.Device]) -> int | None:
    """How many different shapes of batches a validation on these devices may have; None for as many as its images ask for."""
    return None if devices[0].platform == "cpu" else _SHAPES_ON_ACCELERATORS


def evaluate(
    predict: Program,
    batches: Iterable[Batch],
    names: Sequence[str],
    settings: NmsSettings | None = None,
    *,
    loss: Loss | None = None,
    single_class: bool = False,
    nms_on_device: bool | None = None,
    place: Callable[[np.ndarray], Any] = jax.device_put,
    observe: Callable[[Batch, list[np.ndarray]], None] | None = None,
    shares: bool = False,
) -> Evaluation:
    """Predict, suppress, match and average.

    A thread matches and observes a batch while the next one is predicted. Images that are not ``valid`` (they fill the last batch up, so that it needs no
    program of its own) are predicted like the others and counted nowhere.

    Args:
      predict: ``(B, H, W, 3)`` uint8 RGB to predictions ``(B, N, 5 + nc)`` (``x y w h`` in pixels of the image, objectness, class probabilities) and the heads
        that ``loss`` takes, a tree of arrays with leading axis ``B``; jitted.
      batches: dictionaries with ``images`` ``(B, H, W, 3)`` uint8 (where they hold ``features``, these go to ``predict``, and ``images`` only tell a shape);
        ``boxes`` ``(B, M, 5)`` ``class x y w h`` relative to that image, and ``mask`` ``(B, M)``;
        ``valid`` ``(B,)``; ``original_size`` ``(B, 2)`` height and width of the photo; ``gain`` ``(B, 2)`` pixels of the image per pixel of the photo, in y and
        x; ``padding`` ``(B, 2)`` left and upper border in pixels.
      names: class names; their number is the number of classes.
      settings: of the suppression; validation's by default.
      loss: heads, boxes, mask and ``valid`` of a batch to its named parts, those of its valid images alone.
      single_class: all predictions and labels count as class 0.
      nms_on_device: suppress in JAX; by default on every platform but the CPU, where NumPy is faster.
      place: moves the images or features of a batch to the device or devices.
      observe: is called with every batch and the detections of each of its images, ``(n, 6)`` ``x1 y1 x2 y2 score class`` in pixels of the photo; none where
        the image is not valid. The thread calls it.
      shares: whether the batches are this process' parts of larger ones, whose other parts other processes evaluate at the same time; ``place`` then gives
        the images of the whole batch, divided among all devices, and ``loss`` nothing where none of them is valid. All get the figures of the whole.

    Returns:
      The figures over all images.

    Source: ``docs/yolov5.md`` §1.11.
    """
    settings = settings or NmsSettings()
    on_device = jax.default_backend() != "cpu" if nms_on_device is None else nms_on_device
    tally = Tally(len(names), single_class=single_class)
    stopwatch = Stopwatch()
    loss_parts: list[Mapping[str, Any]] = []

    def count(batch: Batch, rows: Sequence[int], detections: Sequence[np.ndarray]) -> None:
        detected = tally.add(batch, rows, detections)
        if observe is not None:
            observe(batch, detected)

    with ThreadPoolExecutor(1, "yolojax-tally") as host:
        counting: Future[None] | None = None
        stopwatch.start()
        for batch in batches:
            inputs = place(batch.get("features", batch["images"]))
            stopwatch.lap("preprocess")
            predictions, heads = jax.block_until_ready(predict(inputs))
            stopwatch.lap("inference")
            valid = np.flatnonzero(batch["valid"]).tolist()
            detections = suppress_rows(predictions, valid, settings, on_device)
            stopwatch.lap("nms")
            if counting is not None:  # one batch waits at most, and an error comes out
                counting.result()
            counting = host.submit(count, batch, valid, detections)
            if loss is not None and (valid or shares):
                parts = jax.device_get(loss(heads, batch["boxes"], batch["mask"], batch["valid"]))
                loss_parts += [{name: float(part) for name, part in parts.items()}] if parts else []
            stopwatch.finish(batch["images"].shape, len(valid))
        if counting is not None:
            counting.result()
    if shares:
        tally.absorb(gathered_arrays)
    return Evaluation(
        curves=tally.curves(),
        names=tuple(names),
        images=tally.images,
        confusion=tally.confusion,
        # Each process sees its part alone, in the time that all parts take.
        speed_ms={part: value / (process_count() if shares else 1) for part, value in stopwatch.per_image().items()},
        losses={name: float(np.mean([parts[name] for parts in loss_parts])) for name in (loss_parts or [{}])[0]},
        shapes=len(stopwatch.shapes),
    )


def suppress_rows(predictions: Any, rows: Sequence[int], settings: NmsSettings, on_device: bool) -> list[np.ndarray]:
    """Detections of some images of a batch.

    Args:
      predictions: ``(B, N, 5 + nc)`` as for ``evaluate``.
      rows: which images, of those that this process has.
      settings: of the suppression.
      on_device: suppress in JAX, else in NumPy; both give the same (see ``nms``).

    Returns:
      Per image ``(n, 6)`` ``x1 y1 x2 y2 score class``, best first, in pixels of the network's input.
    """
    if on_device and getattr(predictions, "is_fully_addressable", True):
        detections, sizes = jax.device_get(_suppress_on_device(predictions, settings))
        return [detections[row, : sizes[row]] for row in rows]
    if on_device:  # each device what lies on it: as one program, devices of several machines would wait for each other again and again
        parts = [_suppress_on_device(shard.data, settings) for shard in local_shards(predictions)]
        detections, sizes = map(np.concatenate, zip(*jax.device_get(parts), strict=True))
        return [detections[row, : sizes[row]] for row in rows]
    on_host = local_rows(predictions)
    return [suppress(on_host[row], settings) for row in rows]


class Stopwatch:
    """Time per image of each part of the work; the first batch of a shape is kept apart, because it compiles."""

    parts = ("preprocess", "inference", "nms")

    def __init__(self) -> None:
        self.shapes: set[tuple[int, ...]] = set()
        self.first = dict.fromkeys(self.parts, 0.0)
        self.later = dict.fromkeys(self.parts, 0.0)
        self.images = [0, 0]  # in the first batches, in the later ones

    def start(self) -> None:
        """Begin a batch."""
        self.laps: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, part: str) -> None:
        """End a part of the work on a batch."""
        moment = time.perf_counter()
        self.laps[part] = moment - self.last
        self.last = moment

    def finish(self, shape: tuple[int, ...], images: int) -> None:
        """End a batch of ``shape`` that held so many images, and begin the next."""
        seen_before = shape in self.shapes
        self.shapes.add(shape)
        self.images[seen_before] += images
        total = self.later if seen_before else self.first
        for part, seconds in self.laps.items():
            total[part] += seconds
        self.start()

    def per_image(self) -> dict[str, float]:
        """Milliseconds of each part."""
        total, images = (self.later, self.images[1]) if self.images[1] else (self.first, self.images[0])
        return {part: 1000 * total[part] / max(images, 1) for part in self.parts}
