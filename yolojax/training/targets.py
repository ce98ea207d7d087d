"""Which predictions are responsible for which boxes.

A box is assigned to every anchor of similar shape on every level, in the cell of its centre and in the neighbours that its centre is nearest to. The
original collects the assignments in lists; here every possible one has a slot of its own and a mask says which hold, so shapes never depend on the data.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# In the original's order: the centre's own cell, then left, up, right and down of it.
OFFSETS = np.array([(0, 0), (1, 0), (0, 1), (-1, 0), (0, -1)]) * 0.5


class Targets(NamedTuple):
    """The assignments of one level: a slot per image, offset (5), anchor (A) and box (M). The flattened order of the last three is the original's.

    Attributes:
      mask: ``(B, 5, A, M)`` bool, the slots that hold.
      cells: ``(B, 5, M, 2)`` int32, column and row of the responsible cell; inside the grid in every slot.
      boxes: ``(B, 5, M, 4)``, centre relative to the cell, width and height; in cells.
      classes: ``(B, M)`` int32.
    """

    mask: Array
    cells: Array
    boxes: Array
    classes: Array


def build_targets(boxes: Array, mask: Array, anchors: np.ndarray, grid: tuple[int, int], threshold: float) -> Targets:
    """Assign the boxes of a batch to the cells and anchors of one level.

    Args:
      boxes: ``(B, M, 5)`` float: class, then centre, width and height as fractions of the image.
      mask: ``(B, M)`` bool, which rows are boxes.
      anchors: ``(A, 2)`` width and height in cells.
      grid: rows and columns of the level.
      threshold: a box matches an anchor when neither side is ``threshold`` times or more longer or shorter.

    Returns:
      The slots, in the dtype of ``boxes`` with the bits that the original computes.

    Source: ``docs/yolov5.md`` §1.4, §0.7 and §0.8.
    """
    boxes, size = jnp.asarray(boxes), np.array([grid[1], grid[0]])
    centre, side = _rounded(boxes[..., 1:3] * size), _rounded(boxes[..., 3:5] * size)
    # A divisor that depends on data: by a constant the compiler would divide as a product, which rounds differently.
    shapes = jnp.where(mask[:, None, :, None], jnp.asarray(anchors, boxes.dtype)[:, None], 1)
    ratio = _rounded(side[:, None] / shapes)
    matched = (jnp.maximum(ratio, 1 / ratio).max(-1) < threshold) & mask[:, None]

    # Of a centre exactly on a grid line both neighbours are near.
    near = jnp.concatenate([_near(centre), _near(jnp.asarray(size) - centre)], -1).swapaxes(1, 2)
    near = jnp.concatenate([jnp.ones_like(near[:, :1]), near], 1)

    # The original clamps the cell before it subtracts it from the centre, so a centre on the border is regressed from the clamped cell.
    cells = jnp.clip((centre[:, None] - OFFSETS[:, None].astype(boxes.dtype)).astype(jnp.int32), 0, size - 1)
    sides = jnp.broadcast_to(side[:, None], cells.shape)
    return Targets(
        mask=matched[:, None] & near[:, :, None],
        cells=cells,
        boxes=jnp.concatenate([centre[:, None] - cells, sides], -1),
        classes=boxes[..., 0].astype(jnp.int32),
    )


def _near(distance: Array) -> Array:
    """Whether a point is in the first half of its cell and has a neighbour on that side; ``distance`` to the border of the grid, in cells."""
    return (distance - jnp.floor(distance) < 0.5) & (distance > 1)


def _rounded(values: Array) -> Array:
    """The same numbers (0 or more), rounded to their dtype before anything else is done to them.

    Without it compilers fuse a product and the subtraction behind it into one operation with one rounding, and a centre on a grid line falls on
    another side than in the original; or they turn 1 / (a / b) into b / a. They see through barriers and through ``reduce_precision``; the maximum
    of the bits, as integers, stops them.
    """
    bits = jax.lax.bitcast_convert_type(values, jnp.int64 if values.dtype.itemsize == 8 else jnp.int32)
    return jax.lax.bitcast_convert_type(jnp.maximum(bits, 0), values.dtype)
