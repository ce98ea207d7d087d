"""From raw logits to boxes."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from yolojax.model.spec import ModelSpec


def decode(heads: Sequence[Array], spec: ModelSpec) -> Array:
    """Boxes, objectness and class probabilities of every cell and anchor.

    Args:
      heads: per level raw logits ``(B, ny, nx, anchors, 5 + classes)``.
      spec: anchors and strides.

    Returns:
      ``(B, N, 5 + classes)``: centre x, y, width, height in pixels of the network input, then probabilities of object and classes. N runs over branch,
      level, anchor, row, column, in this order; a class that a branch does not know has the probability 0.

    Source: ``docs/yolov5.md`` §1.1.
    """
    return concatenate_branches(
        [decode_branch(*branch) for branch in zip(spec.split(heads), spec.networks, strict=True)], spec
    )


def decode_branch(heads: Sequence[Array], network: ModelSpec) -> Array:
    """``decode`` of one branch, ``(B, N, 5 + its classes)``; ``network`` is one of ``spec.networks``."""
    levels = zip(heads, network.anchors, network.strides, strict=True)
    return jnp.concatenate([_decode_level(*level) for level in levels], 1)


def concatenate_branches(predictions: Sequence[Array], spec: ModelSpec) -> Array:
    """Predictions of all branches in one tensor.

    Args:
      predictions: of each branch, ``(B, N, 5 + its classes)``.
      spec: of the whole network.

    Returns:
      ``(B, sum of N, 5 + classes)``, 0 for the classes that a branch does not know.
    """
    if not spec.branches:
        return predictions[0]
    whole = []
    for boxes, known in zip(predictions, spec.branches, strict=True):
        column = np.full(spec.classes, boxes.shape[-1])  # of the zeros behind the last
        column[list(known)] = 5 + np.arange(len(known))
        padded = jnp.pad(boxes, [(0, 0), (0, 0), (0, 1)])
        whole.append(jnp.concatenate([boxes[..., :5], padded[..., column]], -1))
    return jnp.concatenate(whole, 1)


def _decode_level(head: Array, anchors: Sequence[tuple[float, float]], stride: int) -> Array:
    batch, rows, columns, _, values = head.shape
    y, x = jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij")
    grid = jnp.stack([x, y], -1)[:, :, None].astype(head.dtype)
    probability = jax.nn.sigmoid(head)
    centre = (probability[..., :2] * 2 + grid - 0.5) * stride
    size = (probability[..., 2:4] * 2) ** 2 * jnp.asarray(anchors, head.dtype)
    boxes = jnp.concatenate([centre, size, probability[..., 4:]], -1)
    return boxes.transpose(0, 3, 1, 2, 4).reshape(batch, -1, values)
