"""Textures of the shapes and their backgrounds: integers from 0 to 255 that blend two colours."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Texture = Callable[[RandomState, int, int], Integers]

_ANGLES = [math.radians(degree) for degree in range(360)]
COSINE = [round(math.cos(angle) * 16384) for angle in _ANGLES]
SINE = [round(math.sin(angle) * 16384) for angle in _ANGLES]


def _grid(height: int, width: int) -> tuple[Integers, Integers]:
    rows, columns = np.ogrid[:height, :width]
    return rows.astype(np.int64), columns.astype(np.int64)


def _turned_grid(random: RandomState, height: int, width: int) -> tuple[Integers, Integers]:
    """Pixel coordinates along two perpendicular directions, turned by a random angle."""
    y, x = _grid(height, width)
    angle = random.randint(360)
    cosine, sine = COSINE[angle], SINE[angle]
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


TEXTURES: dict[str, Texture] = {
    field.__name__: field
    for field in (
        plain,
        stripes,
        checks,
        clouds,
        weave,
        grass,
        gradient,
        dots,
        zigzag,
        bricks,
        ripples,
        patches,
        speckle,
    )
}
