"""Several scenes on one canvas: four side by side, two over each other, objects pasted a second time."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from yolojax.data.geometry import GREY, Scene, shift
from yolojax.data.sample import Polygons

_MIX_CONCENTRATION = 32.0  # both parameters of the Beta distribution
_MOST_COVERED = 0.30  # share of an existing box that a pasted object may hide


def mosaic4(scenes: Sequence[Scene], rng: np.random.Generator, size: int) -> Scene:
    """Four scenes around a random point of a canvas twice ``size``.

    Args:
      scenes: four, whose longer side is ``size``; they go to the upper left, upper right, lower left and lower right.
      rng: source of chance: the point is uniform in the middle half of the canvas, y before x.
      size: pixels.

    Returns:
      A scene of ``2 * size`` squared; boxes are clipped to it.
    """
    side = 2 * size
    canvas = np.full((side, side, 3), GREY, np.uint8)
    centre_y, centre_x = (int(rng.uniform(0.5 * size, 1.5 * size)) for _ in range(2))
    placed = []
    for number, scene in enumerate(scenes):
        height, width = scene.image.shape[:2]
        left = centre_x - width if number % 2 == 0 else centre_x
        top = centre_y - height if number < 2 else centre_y
        x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + width, side), min(top + height, side)
        canvas[y1:y2, x1:x2] = scene.image[y1 - top : y2 - top, x1 - left : x2 - left]
        placed.append(shift(scene, (1, 1), (left, top), canvas))
    boxes = np.concatenate([scene.boxes for scene in placed])
    boxes[:, 1:] = boxes[:, 1:].clip(0, side)
    return Scene(canvas, boxes, _join_polygons(placed, side))


def _join_polygons(scenes: Sequence[Scene], side: int) -> Polygons:
    if not any(scene.polygons for scene in scenes):
        return ()
    joined = (polygon for scene in scenes for polygon in scene.polygons or (None,) * len(scene.boxes))
    return tuple(None if polygon is None else polygon.clip(0, side) for polygon in joined)


def mix_up(scene: Scene, other: Scene, rng: np.random.Generator) -> Scene:
    """One scene seen through another of the same size; the boxes of both.

    Source: Zhang et al. 2018 (arXiv:1710.09412); the share is Beta(32, 32) (``docs/yolov5.md`` §1.9).
    """
    share = rng.beta(_MIX_CONCENTRATION, _MIX_CONCENTRATION)
    image = (scene.image * np.float32(share) + other.image * np.float32(1 - share)).astype(np.uint8)
    return Scene(image, np.concatenate([scene.boxes, other.boxes]))


def copy_paste(scene: Scene, rng: np.random.Generator, probability: float) -> Scene:
    """Paste mirrored copies of outlined objects where they hide little of what is there.

    Args:
      scene: boxes without outline are never copied.
      rng: source of chance.
      probability: share of the objects that is tried.

    Source: Ghiasi et al. 2021 (arXiv:2012.07177), in the form of ``docs/yolov5.md`` §1.9.
    """
    outlined = [index for index, polygon in enumerate(scene.polygons) if polygon is not None]
    count = round(probability * len(outlined))
    if not count:
        return scene
    width = scene.image.shape[1]
    boxes, polygons = list(scene.boxes), list(scene.polygons)
    mask = np.zeros(scene.image.shape[:2], np.uint8)
    for index in rng.choice(outlined, count, replace=False):
        label, left, top, right, bottom = scene.boxes[index]
        box = np.array([label, width - right, top, width - left, bottom], np.float32)
        if (_covered(box, np.array(boxes)) < _MOST_COVERED).all():
            outline = scene.polygons[index]
            assert outline is not None
            mirrored = np.stack([width - outline[:, 0], outline[:, 1]], 1).astype(np.float32)
            boxes.append(box)
            polygons.append(mirrored)
            cv2.drawContours(mask, [mirrored.astype(np.int32)], -1, 1, cv2.FILLED)
    image = np.where(mask[..., None] > 0, cv2.flip(scene.image, 1), scene.image)
    return Scene(image, np.array(boxes), tuple(polygons))


def _covered(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Share of each of ``boxes`` ``(n, 5)`` that ``box`` ``(5,)`` hides."""
    low, high = np.maximum(boxes[:, 1:3], box[1:3]), np.minimum(boxes[:, 3:], box[3:])
    return (high - low).clip(0).prod(1) / ((boxes[:, 3:] - boxes[:, 1:3]).prod(1) + 1e-16)
