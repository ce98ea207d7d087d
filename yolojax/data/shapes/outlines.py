"""Outlines of the shapes: contours on a grid of about -1000 to 1000; where contours overlap there is a hole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Contours = tuple[Integers, ...]


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
