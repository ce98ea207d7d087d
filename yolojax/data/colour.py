"""Changing the colours of images; boxes stay where they are."""

from __future__ import annotations

import functools
import os
from typing import Any

import cv2
import numpy as np

from yolojax.data.sample import Pixels
from yolojax.errors import UserError
from yolojax.hyperparameters import Hyperparameters

_EFFECT_SHARE = 0.01  # of the images, for each effect


def random_hsv(image: Pixels, rng: np.random.Generator, settings: Hyperparameters) -> Pixels:
    """Hue, saturation and value, each times ``1 + uniform(-1, 1) * gain``.

    Args:
      image: uint8 RGB ``(height, width, 3)``.
      rng: source of chance.
      settings: gains ``hsv_h``, ``hsv_s``, ``hsv_v``.

    Source: ``docs/yolov5.md`` §1.9; hue wraps around at 180 (half degrees), the others are clipped at 255.
    """
    gains = (settings.hsv_h, settings.hsv_s, settings.hsv_v)
    if not any(gains):
        return image
    hue, saturation, value = 1 + rng.uniform(-1, 1, 3) * gains
    levels = np.arange(256)
    table = np.stack([levels * hue % 180, (levels * saturation).clip(0, 255), (levels * value).clip(0, 255)], 1)
    changed = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), table.astype(np.uint8)[None])
    return np.asarray(cv2.cvtColor(changed, cv2.COLOR_HSV2RGB), np.uint8)


def random_effects(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Blur, median blur, grey and local contrast, each for one image in a hundred.

    Args:
      image: uint8 RGB ``(height, width, 3)``.
      rng: source of chance.

    Raises:
      UserError: Albumentations is not installed.

    Source: ``docs/yolov5.md`` §1.9; YOLOv5 does this wherever Albumentations happens to be installed.
    """
    for effect in load_effects():
        if rng.random() < _EFFECT_SHARE:
            # Several effects in one composition would all draw from the same seed, and so come together.
            effect.set_random_seed(int(rng.integers(2**31)))
            image = effect(image=image)["image"]
    return image


@functools.cache
def load_effects() -> tuple[Any, ...]:
    """The effects of ``random_effects``; call it early to find out whether Albumentations is there.

    Raises:
      UserError: it is not installed.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or its import asks the network for a newer version
    try:
        import albumentations
    except ImportError as error:
        raise UserError("--albumentations needs Albumentations: pip install 'yolojax[albumentations]'") from error
    effects = (albumentations.Blur, albumentations.MedianBlur, albumentations.ToGray, albumentations.CLAHE)
    return tuple(effect(p=1.0) for effect in effects)
