"""Weights, images, labels and predictions made of nothing but a seed, the same on both sides of a comparison.

The original and this project never exchange weights: each builds them from the path of the array and a seed. NumPy
only, so that it runs beside PyTorch and beside JAX. Only ``Generator.random`` is drawn from, the most stable of its
methods.
"""

import math
import zlib
from collections.abc import Mapping

import numpy as np

# SiLU makes a signal weaker and residual connections add up: with these gains, found by trial, every size in evaluation
# mode has heads of order 1 that depend on the image, as trained networks have.
KERNEL_GAIN = 1.6
RESIDUAL_GAIN = 0.25


def generator(*keys: object) -> np.random.Generator:
    """A generator that belongs to a list of names and numbers."""
    return np.random.default_rng([zlib.crc32(str(key).encode()) for key in keys])


def uniform(rng: np.random.Generator, low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
    """``shape`` float64 numbers in ``[low, high)``."""
    return low + (high - low) * rng.random(shape)


def array(path: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The array that belongs to a parameter path.

    Args:
      path: ``model_0/conv/kernel``; the last word decides the distribution.
      shape: kernels as ``(height, width, input, output)``.
      seed: another seed is another network.

    Returns:
      float64, every number exact in float32, so that both precisions start from the same values.
    """
    rng = generator(path, seed)
    leaf = path.rpartition("/")[2]
    if leaf == "kernel":
        gain = KERNEL_GAIN * (RESIDUAL_GAIN if "/m_" in path and "/cv2/" in path else 1.0)
        bound = gain * math.sqrt(3 / math.prod(shape[:3]))
        values = uniform(rng, -bound, bound, shape)
    else:
        low, high = {"scale": (0.9, 1.1), "bias": (-0.3, 0.3), "mean": (-0.2, 0.2), "var": (0.7, 1.3)}[leaf]
        values = uniform(rng, low, high, shape)
    return values.astype(np.float32).astype(np.float64)


def arrays(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """One ``array`` per path."""
    return {path: array(path, tuple(shape), seed) for path, shape in shapes.items()}


def images(name: str, count: int, size: int) -> np.ndarray:
    """Coloured rectangles on a coarse texture with noise: ``(count, size, size, 3)`` uint8, RGB."""
    rng = generator("images", name, count, size)
    texture = uniform(rng, 30, 220, (count, size // 8, size // 8, 3)).repeat(8, axis=1).repeat(8, axis=2)
    for image in texture:
        for _ in range(6):
            left, top = (int(size * 0.8 * edge) for edge in rng.random(2))
            width, height = (4 + int(size * 0.5 * side) for side in rng.random(2))
            image[top : top + height, left : left + width] = 255 * rng.random(3)
    return np.clip(texture + uniform(rng, -20, 20, texture.shape), 0, 255).astype(np.uint8)


def labels(name: str, count: int, classes: int, most: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Boxes for ``count`` images, hard cases included.

    Args:
      name: of the comparison.
      count: images; the second one stays empty, the first has the hard cases.
      classes: of the network.
      most: places for boxes per image, at least 8.

    Returns:
      ``boxes`` ``(count, most, 5)`` float32, class x y w h, centre based, in parts of the image; ``mask``
      ``(count, most)`` bool. Centres and sizes are multiples of 1/4096 and exact in every precision.
    """
    rng = generator("labels", name, count, classes)
    boxes = np.zeros((count, most, 5), np.float32)
    mask = np.zeros((count, most), bool)
    for index in range(count):
        number = most - 2 if index == 0 else 0 if index == 1 else 1 + int(rng.random() * (most - 1))
        sizes = uniform(rng, 0.06, 0.9, (number, 2)) ** 1.5
        centres = sizes / 2 + rng.random((number, 2)) * (1 - sizes)
        boxes[index, :number, 0] = np.floor(classes * rng.random(number))
        boxes[index, :number, 1:] = np.round(np.hstack([centres, sizes]) * 4096) / 4096
        mask[index, :number] = True
    # Two boxes of one cell (the last one wins its objectness), a centre on a cell border, one in the middle of a cell,
    # one on the border of the image, whose cell is clamped, and a box as large as the image.
    boxes[0, 1, 1:] = boxes[0, 0, 1:]
    boxes[0, 1, 3:] = np.round(boxes[0, 0, 3:] * 0.75 * 4096) / 4096
    boxes[0, 2, 1:] = (0.5, 0.25, 0.25, 0.375)
    boxes[0, 3, 1:] = (0.5625, 0.5625, 0.5, 0.25)
    boxes[0, 4, 1:] = (1.0, 0.875, 0.25, 0.25)
    boxes[0, 5, 1:] = (0.5, 0.5, 1.0, 1.0)
    return boxes, mask


def rows(boxes: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The same labels as the original wants them: ``(n, 6)`` image, class, x, y, w, h, image by image."""
    image, place = np.nonzero(mask)
    return np.hstack([image[:, None], boxes[image, place]]).astype(np.float64)
