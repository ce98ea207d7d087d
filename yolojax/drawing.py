"""Labelled boxes on images, legible on any background, and sheets of such images."""

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

# The colours of boxes, bars and lines everywhere. The first ten stand out on white as well; the study's page has a set for dark screens, in this order.
PALETTE: tuple[Colour, ...] = (
    (37, 99, 235), (194, 65, 12), (4, 120, 87), (124, 58, 237), (190, 24, 93), (14, 116, 144), (161, 98, 7), (77, 124, 15), (120, 53, 15), (185, 28, 28),
    (255, 127, 0), (23, 190, 207), (247, 129, 191), (253, 224, 71), (180, 255, 0), (158, 202, 225), (254, 178, 120), (127, 205, 187), (8, 48, 107),
    (103, 0, 13),
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


def pixel_boxes(boxes: NDArray[Any], width: int, height: int, left: int = 0) -> NDArray[Any]:
    """Boxes as labels have them, as ``draw_sheet`` wants them.

    Args:
      boxes: ``(n, 5)`` class, x, y, width, height as fractions of the image, centre based.
      width: of the image in pixels.
      height: of the image in pixels.
      left: pixels by which the image is moved to the right.

    Returns:
      ``(n, 5)`` x1 y1 x2 y2 in pixels, class.
    """
    centre, half = boxes[:, 1:3] * (width, height) + (left, 0), boxes[:, 3:5] * (width, height) / 2
    return np.concatenate([centre - half, centre + half, boxes[:, :1]], 1)


def draw_sheet(
    images: NDArray[np.uint8],
    boxes: Sequence[NDArray[Any]],
    texts: Sequence[Sequence[str]],
    path: Path,
    *,
    captions: Sequence[str] | None = None,
    most: int = 16,
    side: int = 1920,
) -> None:
    """Draw images with labelled boxes into one sheet.

    Args:
      images: ``(B, H, W, 3)`` uint8 RGB.
      boxes: per image ``(n, 5)`` ``x1 y1 x2 y2 class``, in pixels of the image.
      texts: per image what stands at each box.
      path: JPEG file to write.
      captions: per image what stands above it.
      most: images at most.
      side: longer side of the sheet in pixels, about.
    """
    count = min(len(images), most)
    height, width = images.shape[1:3]
    columns = max(range(1, count + 1), key=lambda n: min(side / (n * width), side / (-(-count // n) * height)))
    rows = -(-count // columns)
    scale = min(2.0, side / (columns * width), side / (rows * height))
    cell_height, cell_width = round(height * scale), round(width * scale)
    gap = 4
    strip = 22 if captions else gap
    sheet = np.full((rows * (cell_height + strip) + gap, columns * (cell_width + gap) + gap, 3), 255, np.uint8)
    for index in range(count):
        shrink = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        cell = np.asarray(cv2.resize(images[index], (cell_width, cell_height), interpolation=shrink), np.uint8)
        colours = [class_colour(label) for label in boxes[index][:, 4]]
        draw_boxes(cell, boxes[index][:, :4] * scale, texts[index], colours)
        row, column = divmod(index, columns)
        top, left = row * (cell_height + strip) + strip, column * (cell_width + gap) + gap
        sheet[top : top + cell_height, left : left + cell_width] = cell
        if captions:
            draw_text(sheet, _shortened(captions[index], cell_width), left, top - strip + gap, 13, 40)
    cv2.imwrite(str(path), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))


def _shortened(text: str, width: int) -> str:
    """The end of a text, as much as fits into ``width`` pixels."""
    room = max(width // 8, 4)
    return text if len(text) <= room else "..." + text[3 - room :]


def _place(
    box: tuple[int, ...], ink: tuple[int, ...], image: tuple[int, ...], thickness: int, taken: Sequence[Rectangle]
) -> Rectangle:
    """Where a label goes, ``x1 y1 x2 y2``: above its box, inside or below it, left or right.

    It is the first place that is free, else the first of all.
    """
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
    """How much of each pixel a text of ``size`` pixels covers: ``(height, width)`` uint8.

    The height is that of every text of this size.
    """
    font = _font(size)
    mask = Image.new("L", (max(1, math.ceil(font.getlength(text))), sum(font.getmetrics())))
    ImageDraw.Draw(mask).text((0, 0), text, 255, font)
    return np.asarray(mask)


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's own font: it is there with matplotlib, and knows many scripts (OpenCV's knows only ASCII)."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
