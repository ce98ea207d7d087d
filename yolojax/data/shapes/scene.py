"""One image of the embedded data set, drawn in integers.

Two variants share one generator and nothing that can be seen: ``shapes`` is what a first run trains on,
``shapes-pretraining`` (other classes, fills and backgrounds) is what the embedded checkpoint was trained
on. Every image is a function of (variant, seed, split, index), computed in integers, so that every
machine draws the same one: random numbers come from ``RandomState``, whose stream NumPy keeps for ever
(NEP 19), and rotations from a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from yolojax.data.shapes.outlines import OUTLINES, Contours
from yolojax.data.shapes.textures import COSINE, SINE, TEXTURES

SMALLEST, LARGEST = 8, 200  # side of a box in pixels
VISIBLE = 65  # percent of an object that other objects and the border leave to see, at least
OBJECTS = (3, 9)  # in an image, at least and at most; fewer where they find no place
CONTRAST = 150  # sum over the channels between an object's colours and the background's, at least
SUPERSAMPLING = 4

Integers = NDArray[np.int64]
ShapesSplit = Literal["train", "val"]


@dataclass(frozen=True, kw_only=True)
class ShapesSettings:
    """What to draw: the ``options`` of a data YAML of format ``shapes``. Counts are images; ``size`` is their side in pixels."""

    variant: str = "shapes"
    train: int = 300
    val: int = 100
    size: int = 256
    seed: int = 0


@dataclass(frozen=True)
class Variant:
    """What images are made of: class names, textures of objects and textures of backgrounds."""

    classes: tuple[str, ...]
    fills: tuple[str, ...]
    backgrounds: tuple[str, ...]


@dataclass(frozen=True)
class ShapesScene:
    """An image and what is in it.

    Attributes:
      image: ``(size, size, 3)`` uint8 RGB.
      boxes: ``(n, 5)`` float32, class and ``x y w h`` (centre based, 0 to 1) around the visible pixels of each object.
      owner: ``(size, size)`` int16, the row of ``boxes`` that each pixel belongs to, soft edges included, -1 for the background.
      background: the image without its objects.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    owner: NDArray[np.int16]
    background: NDArray[np.uint8]


# fmt: off
VARIANTS: Mapping[str, Variant] = {
    "shapes": Variant(
        classes=("circle", "square", "triangle", "star", "cross", "heart", "arrow", "crescent"),
        fills=("plain", "stripes", "checks"),
        backgrounds=("clouds", "weave", "grass"),
    ),
    "shapes-pretraining": Variant(
        classes=("gear", "trapezoid", "drop", "clover", "letter-t", "chevron", "bolt", "letter-u"),
        fills=("gradient", "dots", "zigzag"),
        backgrounds=("bricks", "ripples", "patches", "speckle"),
    ),
}
# fmt: on

# The longer side of an object, log-spaced; the draw below prefers about 50 pixels and makes few of the smallest, in which a class is hard to tell.
_SIDES = [round(SMALLEST * (LARGEST / SMALLEST) ** (k / 60)) for k in range(61)]


def draw_scene(settings: ShapesSettings, split: ShapesSplit, index: int) -> ShapesScene:
    """Draw one image.

    Args:
      settings: what to draw.
      split: ``train`` or ``val``; their random streams are separate.
      index: which image of the split.

    Returns:
      The image with its labels: at least one object, of each at least ``VISIBLE`` percent visible, with sides of 8 to 200 pixels.
    """
    variant, size = VARIANTS[settings.variant], settings.size
    random = RandomState([settings.seed, list(VARIANTS).index(settings.variant), ("train", "val").index(split), index])
    ground, tint = _background_colours(random)
    background = _blend(ground, tint, TEXTURES[_choose(random, variant.backgrounds)](random, size, size))
    image, owner = background.copy(), np.full((size, size), -1, np.int16)
    classes: list[int] = []
    areas: list[int] = []
    wanted = random.randint(OBJECTS[0], OBJECTS[1] + 1)
    attempts = 0
    while len(classes) < wanted and (attempts < 40 or not classes):
        attempts += 1
        label = random.randint(len(variant.classes))
        coverage = _turned(random, OUTLINES[variant.classes[label]], size * LARGEST // 256)
        height, width = coverage.shape
        corner = (
            random.randint(-height // 4, size - height * 3 // 4 + 1),
            random.randint(-width // 4, size - width * 3 // 4 + 1),
        )
        area = int(np.count_nonzero(coverage))
        placed = owner.copy()
        view, part = _overlap(placed, coverage, corner)
        view[part > 0] = len(classes)
        if _fair(placed, [*areas, area]):
            owner = placed
            classes.append(label)
            areas.append(area)
            texture = TEXTURES[_choose(random, variant.fills)](random, height, width)
            _paint(image, _surface(random, coverage, texture, ground, tint), coverage, corner)
    boxes = [(label, *_box(owner == row)) for row, label in enumerate(classes)]
    scale = np.array([1, size, size, size, size], np.float32)
    return ShapesScene(image, np.array(boxes, np.float32) / scale, owner, background)


def _choose(random: RandomState, names: Sequence[str]) -> str:
    return names[random.randint(len(names))]


def _blend(first: NDArray[Any], second: NDArray[Any], field: NDArray[Any]) -> NDArray[np.uint8]:
    """``first`` where the field is 0, ``second`` where it is 255: ``(h, w, 3)``."""
    first, second, share = (values.astype(np.uint16) for values in (first, second, field[..., None]))
    return ((first * (255 - share) + second * share + 127) // 255).astype(np.uint8)  # at most 65152, so 16 bits hold it


def _background_colours(random: RandomState) -> tuple[Integers, Integers]:
    """Two colours near each other."""
    ground = random.randint(20, 236, 3)
    return ground, np.clip(ground + random.randint(-70, 71, 3), 0, 255)


def _object_colour(random: RandomState, others: Sequence[Integers], contrast: int) -> Integers:
    """A colour that differs from each of the ``others``."""
    while True:
        colour = random.randint(0, 256, 3)
        if all(abs(colour - other).sum() >= contrast for other in others):
            return colour


def _turned(random: RandomState, contours: Contours, largest: int) -> Integers:
    """An outline stretched, turned and scaled at random, to at most ``largest`` pixels.

    Returns:
      How much of each pixel it covers, 0 to 255, in an array that fits it closely.
    """
    stretch = random.randint(800, 1251, 2)
    angle = random.randint(360)
    cosine, sine = COSINE[angle], SINE[angle]
    turned = [points * stretch @ np.array([[cosine, sine], [-sine, cosine]]) for points in contours]
    corner = np.concatenate(turned).min(0)
    extent = np.concatenate(turned).max(0) - corner
    first, second, third = random.randint(len(_SIDES), size=3)
    side = min(_SIDES[(max(first, second) + third) // 2], largest)
    fine = [(points - corner) * side * SUPERSAMPLING // extent.max() for points in turned]
    width, height = extent * side // extent.max() + 1
    inside = _fill(fine, height * SUPERSAMPLING, width * SUPERSAMPLING)
    blocks = inside.reshape(height, SUPERSAMPLING, width, SUPERSAMPLING)
    return blocks.sum((1, 3), dtype=np.int64) * 255 // SUPERSAMPLING**2


def _fill(contours: Sequence[Integers], height: int, width: int) -> NDArray[np.uint8]:
    """1 where a pixel's centre lies inside an odd number of contours (OpenCV's ``fillPoly`` differs between its versions)."""
    x, y = np.concatenate(contours).T * 2  # in half pixels: vertices are even, centres odd, and never meet
    next_x, next_y = np.concatenate([np.roll(points, -1, 0) for points in contours]).T * 2
    centre = 2 * np.arange(height)[:, None] + 1
    row, edge = np.nonzero((y < centre) != (next_y < centre))
    crossing = x[edge] + (2 * row + 1 - y[edge]) * (next_x - x)[edge] // (next_y - y)[edge]
    right_of = row * (width + 1) + (crossing + 1) // 2
    crossings = np.bincount(right_of, minlength=height * (width + 1)).reshape(height, width + 1)
    return crossings.astype(np.uint8).cumsum(1, dtype=np.uint8)[:, :-1] % 2


def _overlap(image: NDArray[Any], patch: NDArray[Any], corner: tuple[int, int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The part of ``image`` under a patch whose top left corner (y, x) may lie outside, and the part of the patch over it."""
    (top, left), (height, width) = corner, patch.shape[:2]
    view = image[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)]
    down, right = max(0, -top), max(0, -left)
    return view, patch[down : down + view.shape[0], right : right + view.shape[1]]


def _fair(owner: NDArray[np.int16], areas: Sequence[int]) -> bool:
    """Whether enough of every object can be seen, at a size that can be recognised."""
    seen = np.bincount(owner.ravel() + 1, minlength=len(areas) + 1)[1:]
    if (seen * 100 < np.array(areas) * VISIBLE).any():
        return False
    sides = np.array([_box(owner == row)[2:] for row in range(len(areas))])
    return bool((sides >= SMALLEST).all() and (sides <= LARGEST).all())


def _box(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Centre, width and height, in pixels, of the pixels that are true."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    return (left + right) / 2, (top + bottom) / 2, float(right - left), float(bottom - top)


def _surface(
    random: RandomState,
    coverage: Integers,
    texture: Integers,
    ground: Integers,
    tint: Integers,
) -> NDArray[np.uint8]:
    """The colours of an object, ``(h, w, 3)``: two that stand out from the background, and for some an edge in a third."""
    first = _object_colour(random, [ground, tint], CONTRAST)
    second = _object_colour(random, [ground, tint, first], CONTRAST)
    surface = _blend(first, second, texture)
    if random.randint(3) == 0:
        edge = _object_colour(random, [ground, tint, first, second], CONTRAST // 2)
        thickness = 1 + min(coverage.shape) // 20
        surface = _blend(edge, surface, _shrunk(coverage, thickness))
    return surface


def _shrunk(coverage: Integers, thickness: int) -> Integers:
    """The least coverage within ``thickness`` pixels, up, down and sideways."""
    window, (height, width) = 2 * thickness + 1, coverage.shape
    padded = np.pad(coverage, thickness)
    rows = np.minimum.reduce([padded[shift : shift + height] for shift in range(window)])
    return np.minimum.reduce([rows[:, shift : shift + width] for shift in range(window)])


def _paint(image: NDArray[np.uint8], surface: NDArray[np.uint8], coverage: Integers, corner: tuple[int, int]) -> None:
    """Lay an object over the image."""
    view, over = _overlap(image, surface, corner)
    _, share = _overlap(image, coverage, corner)
    view[:] = _blend(view, over, share)
