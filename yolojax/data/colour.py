"""Changing colours and leaving boxes alone, or laying one scene over another."""

from __future__ import annotations

import cv2
import numpy as np

from yolojax.config import Hyperparameters
from yolojax.data.geometry import Scene
from yolojax.data.sample import Pixels

_MIX_CONCENTRATION = 32.0


def random_hsv(image: Pixels, rng: np.random.Generator, settings: Hyperparameters) -> Pixels:
    """Hue, saturation and value, each times ``1 + uniform(-1, 1) * gain``.

    Args:
      image: uint8 RGB ``(height, width, 3)``.
      rng: source of chance.
      settings: gains ``hsv_h``, ``hsv_s``, ``hsv_v``.

    Source: contract §1.9; hue wraps around at 180 (half degrees), the others are clipped at 255.
    """
    gains = (settings.hsv_h, settings.hsv_s, settings.hsv_v)
    if not any(gains):
        return image
    hue, saturation, value = 1 + rng.uniform(-1, 1, 3) * gains
    levels = np.arange(256)
    table = np.stack([levels * hue % 180, (levels * saturation).clip(0, 255), (levels * value).clip(0, 255)], 1)
    changed = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), table.astype(np.uint8)[None])
    return np.asarray(cv2.cvtColor(changed, cv2.COLOR_HSV2RGB), np.uint8)


def mix_up(scene: Scene, other: Scene, rng: np.random.Generator) -> Scene:
    """One scene seen through another of the same size; the boxes of both.

    Source: Zhang et al. 2018 (arXiv:1710.09412); the share is Beta(32, 32) (contract §1.9).
    """
    share = rng.beta(_MIX_CONCENTRATION, _MIX_CONCENTRATION)
    image = (scene.image * np.float32(share) + other.image * np.float32(1 - share)).astype(np.uint8)
    return Scene(image, np.concatenate([scene.boxes, other.boxes]))
