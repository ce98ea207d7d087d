"""Labelled boxes on images, legible on any background."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]

PALETTE: tuple[Colour, ...] = (
    (228, 26, 28), (55, 126, 184), (77, 175, 74), (152, 78, 163), (255, 127, 0), (166, 86, 40), (247, 129, 191), (23, 190, 207), (188, 189, 34),
    (0, 90, 50), (8, 48, 107), (253, 224, 71), (122, 1, 119), (127, 205, 187), (103, 0, 13), (158, 202, 225), (65, 182, 100), (254, 178, 120),
    (84, 39, 143), (180, 255, 0),
)  # fmt: skip

_GAP = 2  # pixels between a label's text and its edge


def class_colour(label: float) -> Colour:
    """The colour of a class, by its index."""
    return PALETTE[int(label) % len(PALETTE)]


def draw_boxes(
    image: NDArray[np.uint8],
    corners: NDArray[Any] | Sequence[Any],
    texts: Sequence[str],
    colours: Sequence[Colour],
    thickness: int | None = None,
) -> None:
    """Draw labelled boxes into an image.

    All frames come before all labels, and a label moves to another side of its box rather than over a label before it.

    Args:
      image: ``(H, W, 3)`` uint8 RGB, changed in place.
      corners: ``(n, 4)`` x1 y1 x2 y2 in pixels, the most important box first.
      texts: of the labels; an empty one draws none.
      colours: of the boxes.
      thickness: of the lines in pixels; by default what suits the size of the image. Labels grow with it.
    """
    boxes = [tuple(round(float(value)) for value in box) for box in corners]
    thickness = thickness or max(1, round(sum(image.shape[:2]) / 2 * 0.003))
    for (x1, y1, x2, y2), colour in zip(reversed(boxes), reversed(colours), strict=True):
        cv2.rectangle(image, (x1, y1), (x2, y2), colour, thickness)
    taken: list[Rectangle] = []
    for box, text, colour in zip(boxes, texts, colours, strict=True):
        if text:
            ink = _ink(text, max(10, 2 + 6 * thickness))
            place = _place(box, ink.shape, image.shape, thickness, taken)
            taken.append(place)
            _draw_label(image, ink, place, colour)


def draw_text(image: NDArray[np.uint8], text: str, left: int, top: int, size: int, tone: int = 0) -> None:
    """Write a line of text into an image; what does not fit is cut off.

    Args:
      image: ``(H, W, 3)`` uint8 RGB, changed in place.
      text: in the scripts of DejaVu Sans (Latin, Greek, Cyrillic, …).
      left: of its first letter, in pixels.
      top: of the line, in pixels.
      size: of the letters, in pixels.
      tone: of the ink, 0 (black) to 255 (white).
    """
    _print(image[top:, left:], _ink(text, size), tone)


def _place(
    box: tuple[int, ...], ink: tuple[int, ...], image: tuple[int, ...], thickness: int, taken: Sequence[Rectangle]
) -> Rectangle:
    """Where a label goes, ``x1 y1 x2 y2``: above its box, inside or below it, left or right; the first place that is free, else the first of all."""
    height, width = ink[0] + 2 * _GAP, ink[1] + 2 * _GAP
    x1, y1, x2, y2 = box
    edge = thickness // 2
    places = []
    for top in (y1 - edge - height, y1 - edge, y2 + edge, y2 - height):
        for left in (x1 - edge, x2 + edge - width):
            left = min(max(left, 0), max(image[1] - width, 0))
            if 0 <= top <= image[0] - height:
                places.append((left, top, left + width, top + height))
    if not places:
        left, top = min(max(x1, 0), max(image[1] - width, 0)), min(max(y1, 0), max(image[0] - height, 0))
        places.append((left, top, left + width, top + height))
    return next((place for place in places if not any(_meet(place, other) for other in taken)), places[0])


def _meet(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _draw_label(image: NDArray[np.uint8], ink: NDArray[np.uint8], place: Rectangle, colour: Colour) -> None:
    left, top, right, bottom = place
    image[top:bottom, left:right] = colour
    tone = 255 if np.dot(colour, (0.299, 0.587, 0.114)) < 130 else 0
    _print(image[top + _GAP : bottom - _GAP, left + _GAP : right - _GAP], ink, tone)


def _print(view: NDArray[np.uint8], ink: NDArray[np.uint8], tone: int) -> None:
    view = view[: ink.shape[0], : ink.shape[1]]
    share = ink[: view.shape[0], : view.shape[1], None] / 255
    view[:] = (view * (1 - share) + tone * share).astype(np.uint8)


@lru_cache(maxsize=1024)
def _ink(text: str, size: int) -> NDArray[np.uint8]:
    """How much of each pixel a text of ``size`` pixels covers: ``(height, width)`` uint8; the height is that of every text of this size."""
    font = _font(size)
    mask = Image.new("L", (max(1, math.ceil(font.getlength(text))), sum(font.getmetrics())))
    ImageDraw.Draw(mask).text((0, 0), text, 255, font)
    return np.asarray(mask)


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's own font: it is there with matplotlib, and knows many scripts (OpenCV's knows only ASCII)."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
