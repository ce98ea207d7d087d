"""Detection on images: what ``yolojax.load`` gives, and what ``yolojax detect`` runs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageOps

from yolojax.data.geometry import Scene, letterbox
from yolojax.data.sample import ImageError, Pixels, no_boxes
from yolojax.errors import UserError
from yolojax.evaluation.evaluator import Stopwatch, suppress_rows
from yolojax.evaluation.nms import NmsSettings
from yolojax.evaluation.tally import to_photo
from yolojax.inference.buckets import Shape, choose_buckets, smallest_bucket
from yolojax.inference.predictor import Predictor, make_predict, suppressed_parts
from yolojax.inference.results import Detections, Results, unknown_name
from yolojax.inference.settings import InferenceSettings
from yolojax.inference.sources import read_image_from
from yolojax.model.spec import whole_strides
from yolojax.runtime import select_devices
from yolojax.weights.find import EMBEDDED_WEIGHTS, load_weights
from yolojax.weights.store import Weights

Image = str | Path | NDArray[Any] | PIL.Image.Image
Images = Image | Sequence[Image]

# What torch.hub's YOLOv5 lets one set or call after loading, and the argument of ``yolojax.load`` that says it here.
_OF_LOAD = {
    "conf": "confidence=…",
    "iou": "iou=…",
    "max_det": "max_detections=…",
    "classes": "classes=…",
    "agnostic": "agnostic=…",
    "amp": "dtype='bfloat16'",
    "half": "dtype='bfloat16'",
    "to": "device=…",
    "cpu": "device='cpu'",
    "cuda": "device='gpu'",
}


@dataclass(eq=False, kw_only=True)
class Detector:
    """A network that is ready to detect; made by ``make_detector``, and never changed afterwards.

    Attributes:
      weights: one network, or several whose predictions are put together.
      names: class names, by index.
      image_size: (height, width) that an image is scaled into; multiples of the stride.
      batch_size: images that are computed at once.
      nms: thresholds.
      predict: the compiled network.
      augment: whether it predicts at several sizes (test-time augmentation).
      device: where it runs.
      stopwatch: time per image so far.
    """

    weights: tuple[Weights, ...]
    names: tuple[str, ...]
    image_size: tuple[int, int]
    batch_size: int
    nms: NmsSettings
    predict: Predictor
    augment: bool
    device: jax.Device
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def __getattr__(self, name: str) -> Any:
        """Say what a name of torch.hub's model is called here."""
        raise AttributeError(self._unknown(name))

    def __setattr__(self, name: str, value: Any) -> None:
        """Let ``__init__`` alone set attributes: a later change would not reach the compiled network."""
        if name in self.__dict__:
            raise AttributeError(f"'{name}' of a detector cannot change; yolojax.load makes another detector")
        if name not in self.__dataclass_fields__:
            raise AttributeError(self._unknown(name))
        super().__setattr__(name, value)

    def _unknown(self, name: str) -> str:
        argument = _OF_LOAD.get(name)
        return unknown_name(self, name, argument and f"yolojax.load(…, {argument})")

    def __call__(self, images: Images) -> Results:
        """Detect objects in images.

        Args:
          images: a path or web address, an array ``(H, W, 3)`` uint8 RGB, a grey one ``(H, W)``, one with an alpha channel ``(H, W, 4)`` (which is
            dropped), an image of Pillow, or several of them in a list; also an array ``(B, H, W, 3)``.

        Returns:
          What was found in each image, in their order; a list also for a single one.

        Raises:
          UserError: an image cannot be read, or an array is no image.
        """
        several = isinstance(images, list | tuple) or (isinstance(images, np.ndarray) and images.ndim == 4)
        given: Sequence[Any] = images if several else [images]  # type: ignore[assignment]
        pixels = [_pixels(image) for image in given]
        buckets = self.buckets((image.shape[0], image.shape[1]) for image in pixels)
        return Results(
            self.describe(photo, rows, _path(image))
            for image, photo, rows in zip(given, pixels, self.detect(pixels, buckets), strict=True)
        )

    def describe(self, image: Pixels, rows: NDArray[np.float32], path: str) -> Detections:
        """The rows that ``detect`` found in an image, with names."""
        return Detections(
            image=image,
            boxes=rows[:, :4],
            scores=rows[:, 4],
            classes=rows[:, 5].astype(np.int64),
            names=self.names,
            path=path,
        )

    @property
    def stride(self) -> int:
        """Pixels of which the sides of what is computed are multiples."""
        return math.lcm(*(item.spec.stride for item in self.weights))

    def buckets(self, sizes: Iterable[tuple[int, int]]) -> tuple[Shape, ...]:
        """The shapes in which to compute photos of these sizes (height, width), in the order in which they are needed; none with test-time augmentation."""
        shapes = [fitted_sizes(size, self.image_size, self.stride)[1] for size in sizes]
        return () if self.augment else choose_buckets(shapes, self.image_size, self.stride)

    def detect(self, images: Sequence[Pixels], buckets: Collection[Shape] | None = ()) -> list[NDArray[np.float32]]:
        """Detect objects in images, those that get one shape together.

        The network is compiled once per shape. What an image does not fill of its shape has no effect on what is found in it.

        Args:
          images: uint8 RGB of any sizes.
          buckets: an image is computed in the smallest of these shapes that holds it, or of the few that there are for all images; None, or with test-time
            augmentation, in the smallest shape of all, for which a program is compiled.

        Returns:
          Per image ``(n, 6)`` x1 y1 x2 y2 score class, best first, in pixels of the image.
        """
        detections: list[NDArray[np.float32]] = [np.zeros((0, 6), np.float32)] * len(images)
        self.stopwatch.start()
        fitted = [fit(image, self.image_size, self.stride) for image in images]
        groups: dict[Shape, list[int]] = {}
        for index, (image, _) in enumerate(fitted):
            shape = (image.shape[0], image.shape[1])
            if buckets is not None and not self.augment:
                shape = smallest_bucket(shape, self.image_size, self.stride, buckets)
            groups.setdefault(shape, []).append(index)
        for shape, members in groups.items():
            for start in range(0, len(members), self.batch_size):
                chosen = members[start : start + self.batch_size]
                batch = np.zeros((self.batch_size, *shape, 3), np.uint8)
                sizes = np.zeros((self.batch_size, 2), np.int32)
                for row, index in enumerate(chosen):
                    image = fitted[index][0]
                    sizes[row] = image.shape[:2]
                    batch[row, : image.shape[0], : image.shape[1]] = image
                inputs = (batch,) if buckets is None or self.augment else (batch, sizes)
                for index, rows in zip(chosen, self._run(inputs, len(chosen)), strict=True):
                    detections[index] = to_photo(rows, fitted[index][1], 0)
        return detections

    def _run(self, inputs: tuple[NDArray[Any], ...], used: int) -> list[NDArray[np.float32]]:
        placed = jax.device_put(inputs, self.device)
        self.stopwatch.lap("preprocess")
        predictions, _ = jax.block_until_ready(self.predict(*placed))
        self.stopwatch.lap("inference")
        rows = suppress_rows(predictions, range(used), self.nms, self.device.platform != "cpu")
        self.stopwatch.lap("nms")
        self.stopwatch.finish(inputs[0].shape, used)
        return rows


def fitted_sizes(size: tuple[int, int], whole: Shape, stride: int) -> tuple[tuple[int, int], Shape]:
    """Of a photo (height, width), what it is scaled to, to fit into ``whole``, and the smallest shape in whole strides that holds that."""
    ratio = min(whole[0] / size[0], whole[1] / size[1])
    height, width = (max(1, round(side * ratio)) for side in size)
    return (height, width), (-(-height // stride) * stride, -(-width // stride) * stride)


def fit(image: Pixels, size: tuple[int, int], stride: int) -> tuple[Pixels, dict[str, NDArray[Any]]]:
    """Scale an image into a size and pad it with grey to the next whole strides.

    Args:
      image: uint8 RGB ``(H, W, 3)``.
      size: (height, width) in which it must fit, whole strides; smaller images grow.
      stride: of the coarsest level.

    Returns:
      The smallest rectangle of whole strides that holds the scaled image, and a batch of one (``original_size gain padding``) for ``to_photo``.

    Source: ``docs/yolov5.md`` §1.12; gain and borders are computed from the sizes alone, as the original does,
    which may differ by a fraction of a pixel from what was resized and pasted.
    """
    height, width = image.shape[:2]
    scaled, (rows, columns) = fitted_sizes((height, width), size, stride)
    if scaled != (height, width):
        image = np.asarray(cv2.resize(image, scaled[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)
    scene, _, _ = letterbox(Scene(image, no_boxes()), (rows, columns), enlarge=False)
    gain = min(rows / height, columns / width)
    facts = {
        "original_size": np.array([[height, width]]),
        "gain": np.array([[gain, gain]]),
        "padding": np.array([[(columns - width * gain) / 2, (rows - height * gain) / 2]]),
    }
    return scene.image, facts


def make_detector(settings: InferenceSettings) -> Detector:
    """Load weights and start a device.

    Raises:
      UserError: something does not fit; the message says what and what to do.
    """
    device = select_devices(settings.device)[0]
    weights = tuple(load_weights(source, settings.delta) for source in settings.weights or (EMBEDDED_WEIGHTS,))
    names = weights[0].names
    for item in weights:
        if item.names != names:
            raise UserError("--weights: the networks of an ensemble must have the same classes, in the same order")
    with jax.default_device(device):
        predict = make_predict(weights, dtype=jnp.dtype(settings.computation), augment=settings.augment)
    return Detector(
        weights=weights,
        names=names,
        image_size=choose_image_size(settings.imgsz, weights),
        batch_size=settings.batch_size,
        nms=NmsSettings(
            confidence=settings.conf_thres,
            iou=settings.iou_thres,
            max_detections=settings.max_det,
            multi_label=False,
            agnostic=settings.agnostic_nms,
            classes=_class_indices(settings.classes, names),
            parts=suppressed_parts(weights, settings.agnostic_nms),
        ),
        predict=predict,
        augment=settings.augment,
        device=device,
    )


def choose_image_size(wanted: tuple[int, ...] | None, weights: Sequence[Weights]) -> tuple[int, int]:
    """(height, width) in whole strides: what the user wants, else what the weights were trained at, else 640."""
    stride = math.lcm(*(item.spec.stride for item in weights))
    sides = wanted or (int(weights[0].source.get("image_size", 640)),)
    whole = {side: whole_strides(side, stride) for side in sides}
    return whole[sides[0]], whole[sides[-1]]


def _class_indices(wanted: Sequence[str] | None, names: Sequence[str]) -> tuple[int, ...] | None:
    """Indices of classes that are given by index or name."""
    if wanted is None:
        return None
    indices = {name: index for index, name in enumerate(names)} | {str(index): index for index in range(len(names))}
    for text in wanted:
        if text not in indices:
            listed = ", ".join(f"{index} {name}" for index, name in enumerate(names))
            raise UserError(f"--classes {text}: no such class; there are {listed}")
    return tuple(sorted({indices[text] for text in wanted}))


def _path(image: Any) -> str:
    """Where an image is from; empty for an array."""
    return "" if isinstance(image, np.ndarray) else getattr(image, "filename", "") if _is_pillow(image) else str(image)


def _is_pillow(image: Any) -> bool:
    return isinstance(image, PIL.Image.Image)


def _pixels(image: Any) -> Pixels:
    """uint8 RGB ``(H, W, 3)`` of whatever a user hands in; see ``Detector.__call__``."""
    if isinstance(image, str | Path):
        try:
            return read_image_from(str(image))
        except ImageError as error:
            raise UserError(f"{image}: {error}") from error
    if _is_pillow(image):
        if image.mode.startswith(("I", "F")):
            raise UserError(
                f"an image of Pillow's mode {image.mode} has no 8 bits per channel; scale it to 0 … 255 first"
            )
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    channels = image.shape[2:] if isinstance(image, np.ndarray) and image.ndim in (2, 3) else (0,)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or channels not in ((), (1,), (3,), (4,)):
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(
            f"an image is a path, an image of Pillow, or a uint8 RGB array (height, width, 3) or (height, width), not {what}"
        )
    if not image.size:
        raise UserError(f"an image of shape {image.shape} has no pixel")
    if channels in ((), (1,)):
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, 2)
    return image if channels == (3,) else np.ascontiguousarray(image[:, :, :3])
