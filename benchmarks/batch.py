"""A batch of noise with boxes, for measuring and comparing training steps. It imports nothing but NumPy, for interpreters that have no yolojax."""

import numpy as np


def batch_of(images: int, size: int, classes: int, rows: int = 32, crowded: bool = False) -> dict[str, np.ndarray]:
    """Noise with four to ten boxes per image; the same in every process.

    Args:
      images: how many.
      size: side in pixels.
      classes: number of classes.
      rows: of the box array, labelled or not.
      crowded: all boxes of an image share one of four centres, so that many fall into the same cell.
    """
    rng = np.random.default_rng(0)
    boxes = np.zeros((images, rows, 5), np.float32)
    mask = np.arange(rows) < rng.integers(4, 11, (images, 1))
    boxes[..., 0] = rng.integers(0, classes, (images, rows))
    boxes[..., 1:3] = rng.uniform(0.1, 0.9, (images, rows, 2))
    boxes[..., 3:] = rng.uniform(0.05, 0.5, (images, rows, 2))
    if crowded:
        mask = np.ones((images, rows), bool)
        boxes[..., 1:3] = rng.integers(1, 3, (images, rows, 2)) / 3
    pixels = rng.integers(0, 256, (images, size, size, 3), np.uint8)
    return {"images": pixels, "boxes": boxes, "mask": mask}
