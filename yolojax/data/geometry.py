"""Moving images and their boxes together: resize, letterbox, random perspective, flips.

Everything here is a function of a ``Scene`` (and, where there is chance, of a generator) that returns a new scene and leaves its input alone.
Distributions and order of the draws are those of YOLOv5 (``docs/yolov5.md`` §1.9).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from yolojax.data.sample import Boxes, Pixels, Polygons
from yolojax.hyperparameters import Hyperparameters

GREY = 114  # fill of whatever the image does not cover
SMALLEST_SIDE = 2.0  # pixels; a box that gets smaller is dropped
LEAST_BOX_AREA = 0.1  # of the box before; one that is cut to less is dropped
_LEAST_POLYGON_AREA = 0.01
GREATEST_ASPECT = 100.0
_OUTLINE_POINTS = 1000
EPSILON = 1e-16
EDGE = 1e-3  # pixels that boxes keep from the right and lower edge


@dataclass(frozen=True, eq=False)
class Scene:
    """An image under construction.

    Attributes:
      image: uint8 RGB ``(height, width, 3)``.
      boxes: ``(n, 5)`` float32: class, left, top, right, bottom in pixels.
      polygons: nothing, or one outline ``(k, 2)`` in pixels per box; None for a box that has none.
    """

    image: Pixels
    boxes: Boxes
    polygons: Polygons = ()


def make_scene(image: Pixels, boxes: Boxes, polygons: Polygons = ()) -> Scene:
    """A scene from an image and boxes and outlines in fractions of it (see ``Sample``)."""
    height, width = image.shape[:2]
    corners = np.empty_like(boxes)
    corners[:, 0] = boxes[:, 0]
    corners[:, 1:3] = (boxes[:, 1:3] - boxes[:, 3:5] / 2) * (width, height)
    corners[:, 3:5] = (boxes[:, 1:3] + boxes[:, 3:5] / 2) * (width, height)
    size = np.array([width, height], np.float32)
    return Scene(image, corners, tuple(None if polygon is None else polygon * size for polygon in polygons))


def fraction_boxes(scene: Scene) -> Boxes:
    """Boxes of a scene, clipped to it: ``(n, 5)`` float32 class, x, y, width, height as fractions of the image."""
    height, width = scene.image.shape[:2]
    corners = scene.boxes[:, 1:].astype(np.float64)
    corners[:, 0::2] = corners[:, 0::2].clip(0, width - EDGE)
    corners[:, 1::2] = corners[:, 1::2].clip(0, height - EDGE)
    low, high = corners[:, :2], corners[:, 2:]
    size = (width, height)
    return np.concatenate([scene.boxes[:, :1], (low + high) / 2 / size, (high - low) / size], 1).astype(np.float32)


def resized_shape(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """(height, width) after the longer side of (height, width) is brought to ``size``; rounded up."""
    ratio = size / max(shape)
    return shape if ratio == 1 else (math.ceil(shape[0] * ratio), math.ceil(shape[1] * ratio))


def resize_long_side(image: Pixels, size: int, *, smooth: bool) -> Pixels:
    """The image with its longer side brought to ``size`` pixels.

    Args:
      image: uint8 ``(height, width, 3)``.
      size: pixels.
      smooth: whether to average areas when shrinking (validation); training interpolates, as the original does.
    """
    height, width = resized_shape(image.shape[:2], size)
    if (height, width) == image.shape[:2]:
        return image
    shrinks = size < max(image.shape[:2])
    return _resize(image, width, height, cv2.INTER_AREA if smooth and shrinks else cv2.INTER_LINEAR)


def _resize(image: Pixels, width: int, height: int, interpolation: int = cv2.INTER_LINEAR) -> Pixels:
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), np.uint8)


def shift(scene: Scene, scale: tuple[float, float], offset: tuple[float, float], image: Pixels) -> Scene:
    """The scene on another image: every coordinate (x, y) times ``scale`` plus ``offset``, both (x, y)."""
    boxes = scene.boxes.copy()
    boxes[:, 1:] = boxes[:, 1:] * (scale * 2) + offset * 2
    moved = (None if polygon is None else (polygon * scale + offset).astype(np.float32) for polygon in scene.polygons)
    return Scene(image, boxes, tuple(moved))


def letterbox(scene: Scene, shape: tuple[int, int], *, enlarge: bool) -> tuple[Scene, float, tuple[float, float]]:
    """Fit a scene into a shape, on grey, in the middle.

    Args:
      scene: any size.
      shape: (height, width) wanted.
      enlarge: whether an image smaller than ``shape`` grows (training), or only gets borders (validation).

    Returns:
      The scene, its scale, and the left and upper border in pixels: half of what is free, so possibly ``.5`` more than where the image was
      pasted, as in the original.
    """
    height, width = scene.image.shape[:2]
    ratio = min(shape[0] / height, shape[1] / width)
    if not enlarge:
        ratio = min(ratio, 1.0)
    new_height, new_width = round(height * ratio), round(width * ratio)
    left, top = (shape[1] - new_width) / 2, (shape[0] - new_height) / 2
    image = scene.image
    if (new_height, new_width) != (height, width):
        image = _resize(image, new_width, new_height)
    canvas = np.full((*shape, 3), GREY, np.uint8)
    y, x = round(top - 0.1), round(left - 0.1)
    canvas[y : y + new_height, x : x + new_width] = image
    return shift(scene, (ratio, ratio), (left, top), canvas), ratio, (left, top)


def random_perspective(
    scene: Scene, rng: np.random.Generator, settings: Hyperparameters, shape: tuple[int, int]
) -> Scene:
    """Turn, scale, shear, tilt and move a scene at random, about its centre, into an image of another shape.

    Args:
      scene: any size; for a mosaic twice ``shape``.
      rng: source of chance.
      settings: ``degrees``, ``translate``, ``scale``, ``shear``, ``perspective``.
      shape: (height, width) of the result.

    Returns:
      A scene in which every box is the upright rectangle around its moved corners (or outline), clipped to the image. Boxes that get
      under 2 pixels, thinner than 1:100, or lose over 90 % of their area (outlined ones: 99 %) are dropped.
    """
    matrix, scale = perspective_matrix(rng, settings, scene.image.shape[:2], shape)
    image, (height, width) = scene.image, shape
    if image.shape[:2] != shape or (matrix != np.eye(3)).any():
        warp, rows = (cv2.warpPerspective, 3) if settings.perspective else (cv2.warpAffine, 2)
        image = np.asarray(warp(image, matrix[:rows], (width, height), borderValue=(GREY, GREY, GREY)), np.uint8)
    if not len(scene.boxes):
        return Scene(image, scene.boxes)
    boxes = scene.boxes.copy()
    x1, y1, x2, y2 = scene.boxes[:, 1:].astype(np.float64).T
    corners = _transform(np.stack([x1, y1, x2, y2, x1, y2, x2, y1], 1).reshape(-1, 2), matrix).reshape(-1, 4, 2)
    boxes[:, 1:] = np.concatenate([corners.min(1), corners.max(1)], 1).clip(0, (width, height) * 2)
    polygons = [None if polygon is None else _transform(_resample(polygon), matrix) for polygon in scene.polygons]
    least_area = np.full(len(boxes), LEAST_BOX_AREA)
    for index, polygon in enumerate(polygons):
        if polygon is not None:
            boxes[index, 1:] = _outline_box(polygon, shape)
            least_area[index] = _LEAST_POLYGON_AREA
    keep = _worth_keeping(scene.boxes[:, 1:].astype(np.float64) * scale, boxes[:, 1:].astype(np.float64), least_area)
    kept = tuple(
        None if polygon is None else polygon.astype(np.float32)
        for polygon, good in zip(polygons, keep, strict=False)
        if good
    )
    return Scene(image, boxes[keep], kept)


def perspective_matrix(
    rng: np.random.Generator, settings: Hyperparameters, source: tuple[int, int], shape: tuple[int, int]
) -> tuple[NDArray[np.float64], float]:
    """A random projective map from images of shape ``source`` to ``shape``, both (height, width), and its scale.

    Source: ``docs/yolov5.md`` §1.9, M = T·S·R·P·C.
    """
    centre, tilt, turn, shear, move = (np.eye(3) for _ in range(5))
    centre[:2, 2] = -source[1] / 2, -source[0] / 2
    tilt[2, :2] = rng.uniform(-settings.perspective, settings.perspective, 2)
    angle = rng.uniform(-settings.degrees, settings.degrees)
    scale = rng.uniform(1 - settings.scale, 1 + settings.scale)
    turn[:2] = cv2.getRotationMatrix2D((0, 0), angle, scale)
    shear[0, 1], shear[1, 0] = np.tan(np.radians(rng.uniform(-settings.shear, settings.shear, 2)))
    move[:2, 2] = rng.uniform(0.5 - settings.translate, 0.5 + settings.translate, 2) * (shape[1], shape[0])
    return move @ shear @ turn @ tilt @ centre, scale


def _transform(points: NDArray[np.floating], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points ``(n, 2)`` through a projective map."""
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    return moved[:, :2] / moved[:, 2:]


def _resample(polygon: NDArray[np.floating]) -> NDArray[np.float64]:
    """The closed outline with many points, so that clipping and warping follow its edges."""
    closed = np.concatenate([polygon, polygon[:1]])
    places = np.linspace(0, len(closed) - 1, _OUTLINE_POINTS)
    return np.stack([np.interp(places, np.arange(len(closed)), closed[:, axis]) for axis in (0, 1)], 1)


def _outline_box(polygon: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Corners of the part of an outline that lies in the image; zeros where none does."""
    inside = polygon[((polygon >= 0) & (polygon <= (shape[1], shape[0]))).all(1)]
    return np.concatenate([inside.min(0), inside.max(0)]) if len(inside) else np.zeros(4)


def _worth_keeping(
    before: NDArray[np.float64], after: NDArray[np.float64], least_area: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which boxes ``(n, 4)`` (corners) are still worth learning; ``before`` is already scaled, so that only what was cut off counts."""
    size_before, size = before[:, 2:] - before[:, :2], after[:, 2:] - after[:, :2]
    aspect = np.maximum(size[:, 0] / (size[:, 1] + EPSILON), size[:, 1] / (size[:, 0] + EPSILON))
    area = size.prod(1) / (size_before.prod(1) + EPSILON)
    return (size > SMALLEST_SIDE).all(1) & (area > least_area) & (aspect < GREATEST_ASPECT)


def flip_left_right(scene: Scene) -> Scene:
    """The scene in a mirror."""
    return _flip(scene, axis=0)


def flip_up_down(scene: Scene) -> Scene:
    """The scene upside down."""
    return _flip(scene, axis=1)


def _flip(scene: Scene, axis: int) -> Scene:
    length = scene.image.shape[1 - axis]
    image = np.asarray(cv2.flip(scene.image, 1 - axis), np.uint8)
    boxes = scene.boxes.copy()
    boxes[:, 1 + axis] = length - scene.boxes[:, 3 + axis]
    boxes[:, 3 + axis] = length - scene.boxes[:, 1 + axis]
    polygons = []
    for polygon in scene.polygons:
        if polygon is not None:
            polygon = polygon.copy()
            polygon[:, axis] = length - polygon[:, axis]
        polygons.append(polygon)
    return Scene(image, boxes, tuple(polygons))
