"""The few shapes in which images of all shapes are computed, so that few programs are compiled."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from yolojax.data.rectangles import merge_shapes

Shape = tuple[int, int]  # height, width in pixels, whole strides

# Of a side of the whole: images of 16:9, 4:3 and 1:1 fill theirs (but for rounding up to whole strides).
_SHARES = (0.5625, 0.75, 1.0)
_WORTH = 16  # images of the largest shape: to compute them takes less than to compile another program


def smallest_bucket(shape: Shape, whole: Shape, stride: int, among: Collection[Shape] = ()) -> Shape:
    """The shape in which to compute an image that is scaled and padded to ``shape``.

    Args:
      shape: of the image, in whole strides, within ``whole``.
      whole: the largest shape.
      stride: of the coarsest level.
      among: take the smallest of these that holds it; where none does, or none is given, of the shapes that there are for all images.

    >>> smallest_bucket((448, 640), (640, 640), 32), smallest_bucket((640, 224), (640, 640), 32)
    ((480, 640), (640, 384))
    """
    sides = [sorted({math.ceil(share * side / stride) * stride for share in _SHARES}) for side in whole]
    usual = [(height, width) for height in sides[0] for width in sides[1]]
    holding = [bucket for bucket in among if _holds(bucket, shape)] or [
        bucket for bucket in usual if _holds(bucket, shape)
    ]
    return min(holding, key=math.prod)


def choose_buckets(shapes: Iterable[Shape], whole: Shape, stride: int) -> tuple[Shape, ...]:
    """The shapes in which to compute images of these shapes, in the order in which they come; where it costs little, several share a larger one.

    >>> choose_buckets([(480, 640)] * 99 + [(640, 480)] * 9 + [(224, 640)], (640, 640), 32)
    ((480, 640), (640, 480))
    """
    buckets = [smallest_bucket(shape, whole, stride) for shape in shapes]
    return tuple(dict.fromkeys(merge_shapes(buckets, worth=_WORTH * math.prod(whole))))


def _holds(bucket: Shape, shape: Shape) -> bool:
    return all(room >= side for room, side in zip(bucket, shape, strict=True))
