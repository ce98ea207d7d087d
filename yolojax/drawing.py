"""Labelled boxes on images, legible on any background."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

PALETTE = (
    (228, 26, 28), (55, 126, 184), (77, 175, 74), (152, 78, 163), (255, 127, 0), (166, 86, 40), (247, 129, 191), (23, 190, 207), (188, 189, 34),
    (127, 127, 127),
)  # fmt: skip


def draw_box(image: NDArray[np.uint8], corners: NDArray[Any], label: str, colour: tuple[int, int, int]) -> None:
    """Draw one labelled box into ``image`` (RGB, changed in place); ``corners`` are x1 y1 x2 y2 in pixels."""
    x1, y1, x2, y2 = (round(float(value)) for value in corners)
    thickness = max(1, round(sum(image.shape[:2]) / 2 * 0.003))
    cv2.rectangle(image, (x1, y1), (x2, y2), colour, thickness, cv2.LINE_AA)
    font, size = cv2.FONT_HERSHEY_SIMPLEX, max(0.35, min(0.6, thickness / 3))
    (text_width, text_height), base = cv2.getTextSize(label, font, size, 1)
    left = min(max(x1, 0), max(0, image.shape[1] - text_width - 4))
    top = (
        y1 - text_height - base - 2
        if y1 - text_height - base - 2 >= 0
        else min(y1, image.shape[0] - text_height - base - 2)
    )
    cv2.rectangle(image, (left, top), (left + text_width + 4, top + text_height + base + 2), colour, -1)
    ink = (255, 255, 255) if np.dot(colour, (0.299, 0.587, 0.114)) < 150 else (0, 0, 0)
    cv2.putText(image, label, (left + 2, top + text_height + 1), font, size, ink, 1, cv2.LINE_AA)
