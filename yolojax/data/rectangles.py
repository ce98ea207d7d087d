"""The shapes of batches of images that are no squares."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from yolojax.data.sample import Sample


def rectangles(
    samples: Sequence[Sample], image_size: int, batch_size: int, stride: int, pad: float
) -> tuple[NDArray[np.int64], tuple[tuple[int, int], ...]]:
    """Samples in order of height to width, and the smallest (height, width) that holds each batch.

    Source: ``docs/yolov5.md`` §1.9, rect.
    """
    aspect = np.array([sample.size[0] / sample.size[1] for sample in samples])
    order = np.argsort(aspect, kind="stable")
    shapes = []
    for start in range(0, len(order), batch_size):
        ratios = aspect[order[start : start + batch_size]]
        height, width = 1.0, 1.0
        if ratios.max() < 1:
            height = float(ratios.max())
        elif ratios.min() > 1:
            width = 1 / float(ratios.min())
        height, width = (math.ceil(side * image_size / stride + pad) * stride for side in (height, width))
        shapes.append((int(height), int(width)))
    return order, tuple(shapes)


def merge_shapes(
    shapes: Sequence[tuple[int, int]], most: int | None = None, worth: float = 0
) -> tuple[tuple[int, int], ...]:
    """Enlarge shapes (height, width) until few different ones are left; each time the two whose merging adds the fewest pixels.

    Args:
      shapes: one for each batch or image.
      most: go on while there are more than so many different ones.
      worth: go on while a merging adds fewer pixels than this, over all of them.

    Returns:
      The enlarged shapes, in the same order.

    >>> merge_shapes([(64, 96), (96, 96), (64, 96), (96, 32)], 2)
    ((96, 96), (96, 96), (96, 96), (96, 32))
    """
    counts = Counter(shapes)
    enlarged = {shape: shape for shape in counts}

    def union(pair: tuple[tuple[int, int], tuple[int, int]]) -> tuple[int, int]:
        return max(pair[0][0], pair[1][0]), max(pair[0][1], pair[1][1])

    def added(pair: tuple[tuple[int, int], tuple[int, int]]) -> int:
        return sum(counts[shape] * (math.prod(union(pair)) - math.prod(shape)) for shape in pair)

    while len(counts) > 1:
        pair = min(combinations(sorted(counts), 2), key=added)
        if (most is None or len(counts) <= most) and added(pair) >= worth:
            break
        both = union(pair)
        enlarged = {shape: both if now in pair else now for shape, now in enlarged.items()}
        counts = Counter(enlarged[shape] for shape in shapes)
    return tuple(enlarged[shape] for shape in shapes)
