"""What a validation counts on the host: boxes moved back to the photos, matches, the confusion matrix; whole batches at once, NumPy alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from yolojax.evaluation.confusion import confusion
from yolojax.evaluation.metrics import IOU_THRESHOLDS, Curves, match, precision_recall_curves

Batch = Mapping[str, Any]  # see ``evaluator.evaluate``


class Tally:
    """Counts batch after batch.

    Attributes:
      images: how many were counted.
      confusion: ``(nc + 1, nc + 1)``; see ``confusion.confusion``.
    """

    def __init__(self, classes: int, *, single_class: bool = False) -> None:
        """Nothing is counted yet; with ``single_class`` all detections and labels count as class 0."""
        self.images = 0
        self.confusion = np.zeros((classes + 1, classes + 1), np.int64)
        self._classes, self._single_class = classes, single_class
        self._correct = [np.zeros((0, len(IOU_THRESHOLDS)), bool)]
        self._detections = [np.zeros((0, 2), np.float32)]
        self._labels = [np.zeros(0, np.float32)]

    def add(self, batch: Batch, rows: Sequence[int], detections: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Count a batch.

        Args:
          batch: as for ``evaluator.evaluate``.
          rows: of its valid images, ascending.
          detections: those of each of these, ``(n, 6)`` ``x1 y1 x2 y2 score class``, best first, in pixels of the network's input.

        Returns:
          The detections of every image of the batch in pixels of the photo; none where it is not valid.
        """
        sizes = np.zeros(len(batch["valid"]), int)
        sizes[list(rows)] = [len(boxes) for boxes in detections]
        detected = np.concatenate([np.zeros((0, 6), np.float32), *detections])
        images = np.repeat(np.arange(len(sizes)), sizes)
        detected = to_photo(detected, batch, images)
        true, true_images = _true_boxes(batch, batch["mask"] & batch["valid"][:, None])
        if self._single_class:
            detected[:, 5] = true[:, 0] = 0
        self._correct.append(match(detected, true, (images, true_images)))
        self._detections.append(detected[:, 4:])
        self._labels.append(true[:, 0])
        self.confusion += confusion(detected, true, self._classes, (images, true_images))
        self.images += len(rows)
        return np.split(detected, sizes.cumsum()[:-1])

    def absorb(self, shares: Callable[[Mapping[str, np.ndarray]], Sequence[Mapping[str, np.ndarray]]]) -> None:
        """Count what other processes have counted of the same batches.

        Args:
          shares: gives the arrays of every process, in their order, for those of this one.
        """
        lists: dict[str, list[np.ndarray]] = {
            "correct": self._correct,
            "detections": self._detections,
            "labels": self._labels,
        }
        own: dict[str, np.ndarray] = {"images": np.array(self.images), "confusion": self.confusion}
        told = shares(own | {name: np.concatenate(parts) for name, parts in lists.items()})
        self.images = int(sum(share["images"] for share in told))
        self.confusion = np.sum([share["confusion"] for share in told], 0)
        for name, parts in lists.items():
            parts[:] = [share[name] for share in told]  # no figure depends on the order of images

    def curves(self) -> Curves:
        """Precision, recall and AP over all batches."""
        scores, classes = np.concatenate(self._detections).T
        return precision_recall_curves(np.concatenate(self._correct), scores, classes, np.concatenate(self._labels))


def to_photo(boxes: np.ndarray, batch: Batch, images: int | np.ndarray) -> np.ndarray:
    """Boxes from pixels of the network's input to pixels of the photo, clipped to it.

    Args:
      boxes: ``(n, 4 or more)``, the first four columns ``x1 y1 x2 y2``.
      batch: where the images are from.
      images: the row of the one that they are all of, or ``(n,)``, that of each.

    Returns:
      A copy; further columns are untouched.

    Source: ``docs/yolov5.md`` §1.11: one gain, that of the height, for both axes.
    """
    rows = np.broadcast_to(images, len(boxes))
    border, gain, size = (
        np.asarray(batch[key])[rows].astype(boxes.dtype) for key in ("padding", "gain", "original_size")
    )
    corners = (boxes[:, :4] - np.tile(border, 2)) / gain[:, :1]
    return np.concatenate([corners.clip(0, np.tile(size[:, ::-1], 2)), boxes[:, 4:]], 1)


def true_boxes(batch: Batch, image: int) -> np.ndarray:
    """Labels of one image of a batch.

    They go through the network's input and back, like the detections: its size is rounded to whole pixels, so the two axes are scaled a little differently, and
    the way back takes one gain for both.

    Args:
      batch: where the image is from.
      image: its row.

    Returns:
      ``(m, 5)`` ``class x1 y1 x2 y2`` in pixels of the photo.
    """
    return _true_boxes(batch, batch["mask"] & (np.arange(len(batch["mask"])) == image)[:, None])[0]


def _true_boxes(batch: Batch, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The labels that ``chosen`` ``(B, M)`` names, as ``true_boxes``, and the row of the image of each."""
    height, width = batch["images"].shape[1:3]
    boxes, images = batch["boxes"][chosen], np.nonzero(chosen)[0]
    centre, half = boxes[:, 1:3], boxes[:, 3:5] / 2
    corners = np.concatenate([centre - half, centre + half], 1) * np.array([width, height] * 2, boxes.dtype)
    return np.concatenate([boxes[:, :1], to_photo(corners, batch, images)], 1), images
