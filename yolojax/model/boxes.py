"""Boxes of raw logits, relative to their cells, and how well boxes agree."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def boxes_in_cells(logits: Array, shapes: np.ndarray) -> Array:
    """Boxes of cells.

    Args:
      logits: ``(..., 5 + classes)``.
      shapes: ``(..., 2)`` width and height of the anchors in cells.

    Returns:
      ``(..., 4)``: centre relative to the cell, width and height; in cells.

    Source: ``docs/yolov5.md`` §1.1.
    """
    centre = jax.nn.sigmoid(logits[..., :2]) * 2 - 0.5
    side = (jax.nn.sigmoid(logits[..., 2:4]) * 2) ** 2 * shapes.astype(logits.dtype)
    return jnp.concatenate([centre, side], -1)


def complete_iou(boxes: Array, targets: Array) -> Array:
    """Complete IoU of paired boxes.

    Args:
      boxes: ``(..., 4)`` float, ``x y w h``, centre based, in any one unit.
      targets: ``(..., 4)``, same unit.

    Returns:
      ``(...)`` at most 1; no gradient flows through the weight of the aspect-ratio term.

    Source: Zheng et al. 2020 (arXiv:1911.08287), eq. 10; epsilon as in ``docs/yolov5.md`` §1.4.
    """
    epsilon = 1e-7
    centre, side = boxes[..., :2], boxes[..., 2:]
    target_centre, target_side = targets[..., :2], targets[..., 2:]
    low, high = centre - side / 2, centre + side / 2
    target_low, target_high = target_centre - target_side / 2, target_centre + target_side / 2

    inner = jnp.maximum(jnp.minimum(high, target_high) - jnp.maximum(low, target_low), 0)
    intersection = inner[..., 0] * inner[..., 1]
    union = side[..., 0] * side[..., 1] + target_side[..., 0] * target_side[..., 1] - intersection + epsilon
    iou = intersection / union

    outer = jnp.maximum(high, target_high) - jnp.minimum(low, target_low)
    diagonal = (outer**2).sum(-1) + epsilon
    distance = ((target_low + target_high - low - high) ** 2).sum(-1) / 4
    angle = jnp.arctan(target_side[..., 0] / target_side[..., 1]) - jnp.arctan(side[..., 0] / side[..., 1])
    aspect = 4 / math.pi**2 * angle**2
    weight = jax.lax.stop_gradient(aspect / (aspect - iou + (1 + epsilon)))
    return iou - (distance / diagonal + aspect * weight)
