"""The embedded data set: pictures of shapes, drawn on first use.

Two variants share one generator and nothing that can be seen: ``shapes`` is what a first run trains on, ``shapes-pretraining`` (other classes,
fills and backgrounds) is what the embedded checkpoint was trained on. Every picture is a function of (variant, seed, split, index), computed in
integers, so that every machine draws the same one: random numbers come from ``RandomState``, whose stream NumPy keeps for ever (NEP 19), rotations
from a table, and OpenCV only writes the files.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from yolojax.config import from_mapping
from yolojax.data.config import DataConfig
from yolojax.errors import UserError
from yolojax.files import complete_folder
from yolojax.runtime import cache_folder

log = logging.getLogger(__name__)

VERSION = 2  # raise it whenever a pixel or a label changes: caches made before are then left alone

SMALLEST, LARGEST = 8, 200  # side of a box in pixels
VISIBLE = 65  # percent of an object that other objects and the border leave to see, at least
OBJECTS = (3, 9)  # in a picture, at least and at most; fewer where they find no place
CONTRAST = 150  # sum over the channels between an object's colours and the background's, at least
SUPERSAMPLING = 4

Integers = NDArray[np.int64]
Contours = tuple[Integers, ...]
Texture = Callable[[RandomState, int, int], Integers]
Split = Literal["train", "val"]


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
    """What pictures are made of: class names, textures of objects and textures of backgrounds."""

    classes: tuple[str, ...]
    fills: tuple[str, ...]
    backgrounds: tuple[str, ...]


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it.

    Attributes:
      image: ``(size, size, 3)`` uint8 RGB.
      boxes: ``(n, 5)`` float32, class and ``x y w h`` (centre based, 0 to 1) around the visible pixels of each object.
      owner: ``(size, size)`` int16, the row of ``boxes`` that each pixel belongs to, soft edges included, -1 for the background.
      background: the picture without its objects.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    owner: NDArray[np.int16]
    background: NDArray[np.uint8]


# --- Outlines: contours on a grid of about -1000 to 1000; where contours overlap there is a hole. ---


def _polar(radius: Callable[[int], float], points: int = 60) -> Contours:
    """The closed curve through ``radius(k)`` at ``points`` equal angles, the first one pointing up."""
    turns = [2 * math.pi * k / points for k in range(points)]
    return _contours([(radius(k) * math.sin(turn), -radius(k) * math.cos(turn)) for k, turn in enumerate(turns)])


def _contours(*contours: Sequence[tuple[float, float]]) -> Contours:
    return tuple(np.array([(round(x), round(y)) for x, y in contour], np.int64) for contour in contours)


def _arc(
    centre: tuple[float, float], radius: float, start: float, stop: float, points: int = 30
) -> list[tuple[float, float]]:
    """Points on a circle from ``start`` to ``stop`` degrees; 0 points right, 90 down."""
    angles = [math.radians(start + (stop - start) * k / (points - 1)) for k in range(points)]
    return [(centre[0] + radius * math.cos(angle), centre[1] + radius * math.sin(angle)) for angle in angles]


def _heart() -> Contours:
    turns = [2 * math.pi * k / 60 for k in range(60)]
    wave = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
    return _contours([(1000 * math.sin(t) ** 3, -62 * y) for t, y in zip(turns, wave, strict=True)])


def _spiral() -> Contours:
    edge = [(200 + 850 * k / 72, math.radians(9 * k)) for k in range(73)]
    outer = [(r * math.cos(t), r * math.sin(t)) for r, t in edge]
    inner = [((r - 260) * math.cos(t), (r - 260) * math.sin(t)) for r, t in reversed(edge)]
    return _contours(outer + inner)


OUTLINES: dict[str, Contours] = {
    "circle": _polar(lambda k: 1000),
    "square": _contours([(-1000, -1000), (1000, -1000), (1000, 1000), (-1000, 1000)]),
    "triangle": _polar(lambda k: 1000, 3),
    "star": _polar(lambda k: 1000 if k % 2 == 0 else 430, 10),
    "cross": _contours(
        [(-330, -1000), (330, -1000), (330, -330), (1000, -330), (1000, 330), (330, 330)]
        + [(330, 1000), (-330, 1000), (-330, 330), (-1000, 330), (-1000, -330), (-330, -330)]
    ),
    "heart": _heart(),
    "arrow": _contours([(0, -1000), (750, -150), (290, -150), (290, 1000), (-290, 1000), (-290, -150), (-750, -150)]),
    "crescent": _contours(_arc((0, 0), 1000, 55, 305) + _arc((480, 0), 825, 277, 83)),
    "ring": _contours(_arc((0, 0), 1000, 0, 360, 60), _arc((0, 0), 540, 0, 360, 60)),
    "semicircle": _contours(_arc((0, 450), 1000, 180, 360)),
    "drop": _contours([(0, -1250), *_arc((0, 250), 750, -30, 210)]),
    "hexagon": _polar(lambda k: 1000, 6),
    "trapezoid": _contours([(-450, -600), (450, -600), (1000, 600), (-1000, 600)]),
    "chevron": _contours([(-1000, 100), (0, -800), (1000, 100), (1000, 800), (0, -100), (-1000, 800)]),
    "hourglass": _contours([(-800, -1000), (800, -1000), (150, 0), (800, 1000), (-800, 1000), (-150, 0)]),
    "bolt": _contours([(200, -1000), (-700, 150), (-80, 150), (-250, 1000), (700, -200), (60, -200), (500, -1000)]),
    "spiral": _spiral(),
    "gear": _polar(lambda k: 1000 if k % 6 < 3 else 700, 48),
    "clover": _polar(lambda k: 660 + 340 * math.cos(2 * math.pi * k * 3 / 60)),
    "letter-e": _contours(
        [(-700, -1000), (700, -1000), (700, -560), (-240, -560), (-240, -220), (500, -220)]
        + [(500, 220), (-240, 220), (-240, 560), (700, 560), (700, 1000), (-700, 1000)]
    ),
    "letter-h": _contours(
        [(-850, -1000), (-350, -1000), (-350, -240), (350, -240), (350, -1000), (850, -1000)]
        + [(850, 1000), (350, 1000), (350, 240), (-350, 240), (-350, 1000), (-850, 1000)]
    ),
    "letter-l": _contours([(-700, -1000), (-150, -1000), (-150, 480), (700, 480), (700, 1000), (-700, 1000)]),
    "letter-t": _contours(
        [(-950, -1000), (950, -1000), (950, -500), (270, -500)]
        + [(270, 1000), (-270, 1000), (-270, -500), (-950, -500)]
    ),
    "letter-u": _contours(
        [(-850, -1000), (-350, -1000), *_arc((0, 400), 350, 180, 0, 9)]
        + [(350, -1000), (850, -1000), *_arc((0, 300), 850, 0, 180, 15)]
    ),
}

# --- Textures: integers from 0 to 255 that blend two colours. ---

_ANGLES = [math.radians(degree) for degree in range(360)]
_COSINE = [round(math.cos(angle) * 16384) for angle in _ANGLES]
_SINE = [round(math.sin(angle) * 16384) for angle in _ANGLES]


def _grid(height: int, width: int) -> tuple[Integers, Integers]:
    rows, columns = np.ogrid[:height, :width]
    return rows.astype(np.int64), columns.astype(np.int64)


def _turned_grid(random: RandomState, height: int, width: int) -> tuple[Integers, Integers]:
    """Pixel coordinates along two perpendicular directions, turned by a random angle."""
    y, x = _grid(height, width)
    angle = random.randint(360)
    cosine, sine = _COSINE[angle], _SINE[angle]
    return (cosine * y - sine * x) >> 14, (sine * y + cosine * x) >> 14


def _period(random: RandomState, height: int, width: int) -> int:
    """Width of a band: a few of them fit into an object of any size, and a background has no giant ones."""
    side = min(height, width, 160)
    return random.randint(max(3, side // 9), max(5, side // 4))


def _zigzag_wave(position: Integers, period: int) -> Integers:
    """Rises from 0 to 255 and falls back over twice the ``period``."""
    return abs(position % (2 * period) - period) * 255 // period


def _value_noise(random: RandomState, height: int, width: int, cell: int) -> Integers:
    """Random values every ``cell`` pixels, blended linearly between them."""

    def weights(length: int) -> Integers:
        nodes = np.arange(length // cell + 2) * cell
        return np.maximum(0, cell - abs(np.arange(length)[:, None] - nodes))

    rows, columns = weights(height), weights(width)
    values = random.randint(0, 256, (rows.shape[1], columns.shape[1])).astype(np.int64)
    return rows @ values @ columns.T // cell**2


def plain(random: RandomState, height: int, width: int) -> Integers:
    """One colour."""
    return np.zeros((height, width), np.int64)


def stripes(random: RandomState, height: int, width: int) -> Integers:
    """Straight bands."""
    y, _ = _turned_grid(random, height, width)
    return y // _period(random, height, width) % 2 * 255


def checks(random: RandomState, height: int, width: int) -> Integers:
    """A chessboard."""
    y, x = _turned_grid(random, height, width)
    period = _period(random, height, width)
    return (y // period + x // period) % 2 * 255


def clouds(random: RandomState, height: int, width: int) -> Integers:
    """Soft blots of two sizes."""
    coarse = _value_noise(random, height, width, random.randint(24, 64))
    return (2 * coarse + _value_noise(random, height, width, 9)) // 3


def weave(random: RandomState, height: int, width: int) -> Integers:
    """Threads that cross over and under."""
    y, x = _grid(height, width)
    period = random.randint(4, 10)
    return np.where((y // period + x // period) % 2, _zigzag_wave(y * 2, period), _zigzag_wave(x * 2, period))


def grass(random: RandomState, height: int, width: int) -> Integers:
    """Many short strokes."""
    field = np.full((height, width), 128)
    slant, count = random.randint(-12, 13), height * width // 60
    lowest, highest = (-9, 0, -5, 6, 0), (width + 9, height + 20, 6, 20, 256)
    x, root, lean, length, tone = random.randint(lowest, highest, (count, 5)).T[..., None]
    along = np.arange(20)
    row, column = root - along, x + (slant + lean) * along // length
    drawn = (along <= length) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    field[row[drawn], column[drawn]] = np.broadcast_to(tone, drawn.shape)[drawn]
    return field


def gradient(random: RandomState, height: int, width: int) -> Integers:
    """One colour that turns into another."""
    y, _ = _turned_grid(random, height, width)
    return (y - y.min()) * 255 // max(1, int(y.max() - y.min()))


def dots(random: RandomState, height: int, width: int) -> Integers:
    """Discs in rows."""
    y, x = _turned_grid(random, height, width)
    period = _period(random, height, width) * 3 // 2
    across, down = x % period * 2 - period, y % period * 2 - period
    return ((across**2 + down**2) * 10 < period**2 * 4) * 255


def zigzag(random: RandomState, height: int, width: int) -> Integers:
    """Bands that go up and down."""
    y, x = _turned_grid(random, height, width)
    period = _period(random, height, width)
    return (y + abs(x % (2 * period) - period)) // period % 2 * 255


def bricks(random: RandomState, height: int, width: int) -> Integers:
    """A wall: every brick has a tone, the joints are dark."""
    y, x = _grid(height, width)
    tall, wide = random.randint(8, 20), random.randint(20, 48)
    row = y // tall
    along = x + row % 2 * (wide // 2)
    tones = random.randint(120, 256, (height // tall + 1, width // wide + 2))
    return np.where((y % tall < 2) | (along % wide < 2), 0, tones[row, along // wide])


def ripples(random: RandomState, height: int, width: int) -> Integers:
    """Rings around a point."""
    y, x = _grid(height, width)
    down, across = y - random.randint(height), x - random.randint(width)
    return _zigzag_wave(np.sqrt(down**2 + across**2).astype(np.int64), random.randint(5, 14))


def patches(random: RandomState, height: int, width: int) -> Integers:
    """A mosaic of fields, each nearest to its own point."""
    y, x = _grid(height, width)
    points = random.randint(0, (height, width), (random.randint(12, 30), 2))
    distances = np.stack([(y - down) ** 2 + (x - across) ** 2 for down, across in points])
    return random.randint(0, 256, len(points))[distances.argmin(0)]


def speckle(random: RandomState, height: int, width: int) -> Integers:
    """Coarse sand."""
    cell = random.randint(2, 5)
    grains = random.randint(0, 256, (height // cell + 1, width // cell + 1))
    return grains.repeat(cell, 0).repeat(cell, 1)[:height, :width]


# fmt: off
TEXTURES: dict[str, Texture] = {
    field.__name__: field
    for field in (plain, stripes, checks, clouds, weave, grass, gradient, dots, zigzag, bricks, ripples, patches, speckle)
}

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


def draw_scene(settings: ShapesSettings, split: Split, index: int) -> Scene:
    """Draw one picture.

    Args:
      settings: what to draw.
      split: ``train`` or ``val``; their random streams are separate.
      index: which picture of the split.

    Returns:
      The picture with its labels: at least one object, of each at least ``VISIBLE`` percent visible, with sides of 8 to 200 pixels.
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
        kind = random.randint(len(variant.classes))
        coverage = _turned(random, OUTLINES[variant.classes[kind]], size * LARGEST // 256)
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
            classes.append(kind)
            areas.append(area)
            texture = TEXTURES[_choose(random, variant.fills)](random, height, width)
            _paint(image, _surface(random, coverage, texture, ground, tint), coverage, corner)
    boxes = [(kind, *_box(owner == row)) for row, kind in enumerate(classes)]
    scale = np.array([1, size, size, size, size], np.float32)
    return Scene(image, np.array(boxes, np.float32) / scale, owner, background)


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
    cosine, sine = _COSINE[angle], _SINE[angle]
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


def _overlap(picture: NDArray[Any], patch: NDArray[Any], corner: tuple[int, int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The part of ``picture`` under a patch whose top left corner (y, x) may lie outside, and the part of the patch over it."""
    (top, left), (height, width) = corner, patch.shape[:2]
    view = picture[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)]
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
    """Lay an object over the picture."""
    view, over = _overlap(image, surface, corner)
    _, share = _overlap(image, coverage, corner)
    view[:] = _blend(view, over, share)


# --- Files ---


def prepare_shapes(config: DataConfig, cache: Path | None = None) -> Path:
    """The folder of the data set that a YAML of format ``shapes`` describes, drawn now if it is not there yet.

    Raises:
      UserError: unknown options, class names other than the variant's, or a cache folder that cannot be written.
    """
    settings = from_mapping(ShapesSettings, config.options, f"{config.file}: options")
    _check(settings)
    if config.names != VARIANTS[settings.variant].classes:
        classes = ", ".join(VARIANTS[settings.variant].classes)
        raise UserError(f"{config.file}: key 'names': '{settings.variant}' has {classes}, in this order")
    return ensure_shapes(settings, cache)


def ensure_shapes(settings: ShapesSettings, cache: Path | None = None) -> Path:
    """Draw the data set into the cache folder unless it is there.

    Args:
      settings: what to draw.
      cache: where to keep it; ``$YOLOJAX_CACHE`` or ``~/.cache/yolojax`` when None.

    Returns:
      A folder in YOLO layout: ``images/train``, ``images/val`` (PNG), ``labels/train``, ``labels/val`` (``class x y w h`` lines). Its name carries
      a fingerprint of the settings. It appears complete or not at all, also when several processes ask at once.

    Raises:
      UserError: impossible settings, or a folder that cannot be written.
    """
    _check(settings)
    cache = cache or cache_folder()
    fingerprint = hashlib.sha256(repr((VERSION, astuple(settings))).encode()).hexdigest()[:10]
    folder = cache / f"{settings.variant}-{fingerprint}"
    if folder.is_dir():
        return folder
    log.info("drawing %d pictures of %s into %s", settings.train + settings.val, settings.variant, folder)
    try:
        with complete_folder(folder) as unfinished:
            _write_split(unfinished, settings, "train", settings.train)
            _write_split(unfinished, settings, "val", settings.val)
    except OSError as error:
        if not folder.is_dir():  # otherwise another process was faster, and drew the same
            reason = f"'{settings.variant}' cannot be drawn here ({error.strerror})"
            raise UserError(f"{cache}: {reason}; set YOLOJAX_CACHE to a folder with space") from error
    return folder


def _check(settings: ShapesSettings) -> None:
    if settings.variant not in VARIANTS:
        raise UserError(f"shapes: variant '{settings.variant}' is unknown; there are {', '.join(VARIANTS)}")
    if min(settings.train, settings.val) < 1:
        raise UserError(f"shapes: at least one image in each split, not train: {settings.train}, val: {settings.val}")
    if not 64 <= settings.size <= 4096:
        raise UserError(f"shapes: size must be 64 to 4096 pixels, not {settings.size}")
    if not 0 <= settings.seed < 2**32:
        raise UserError(f"shapes: seed must be 0 to 4294967295, not {settings.seed}")


def _write_split(root: Path, settings: ShapesSettings, split: Split, count: int) -> None:
    images, labels = root / "images" / split, root / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for index in range(count):
        scene = draw_scene(settings, split, index)
        name = f"{index:05d}"
        _, png = cv2.imencode(".png", scene.image[..., ::-1])
        (images / f"{name}.png").write_bytes(png.tobytes())
        rows = [f"{int(kind)} " + " ".join(f"{value:.9g}" for value in box) for kind, *box in scene.boxes.tolist()]
        (labels / f"{name}.txt").write_text("\n".join(rows) + "\n", encoding="ascii")
