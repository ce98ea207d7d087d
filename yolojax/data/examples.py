"""A few images of the embedded data set, for who has none at hand."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from yolojax.data.sample import Pixels
from yolojax.data.shapes.scene import VARIANTS, ShapesSettings, draw_scene

EXAMPLES = 8


def example_images(names: Sequence[str]) -> list[Pixels]:
    """A few images with these classes, the same ones every time; none if the classes are not those of an embedded data set.

    They are painted as small as those that the embedded weights have seen, and then enlarged, so that there is room for labels.

    Args:
      names: of the classes, in their order.

    Returns:
      uint8 RGB ``(640, 640, 3)``.
    """
    names = tuple(names)
    variant = next((name for name, variant in VARIANTS.items() if variant.classes == names), None)
    if variant is None:
        return []
    settings = ShapesSettings(variant=variant, train=1, val=EXAMPLES, size=160)
    small = (draw_scene(settings, "val", index).image for index in range(EXAMPLES))
    return [np.asarray(cv2.resize(image, (640, 640), interpolation=cv2.INTER_CUBIC), np.uint8) for image in small]
