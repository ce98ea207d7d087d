"""From raw logits to boxes."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from yolojax.model.spec import ModelSpec


def decode(heads: Sequence[Array], spec: ModelSpec) -> Array:
    """Boxes, objectness and class probabilities of every cell and anchor.

    Args:
      heads: per level raw logits ``(B, ny, nx, anchors, 5 + classes)``.
      spec: anchors and strides.

    Returns:
      ``(B, N, 5 + classes)``: centre x, y, width, height in pixels of the network input, then probabilities of object and classes. N runs over level,
      anchor, row, column, in this order.

    Source: ``docs/yolov5.md`` §1.1.
    """
    return jnp.concatenate(
        [_decode_level(*level) for level in zip(heads, spec.anchors, spec.strides, strict=True)], axis=1
    )


def _decode_level(head: Array, anchors: Sequence[tuple[float, float]], stride: int) -> Array:
    batch, rows, columns, _, values = head.shape
    y, x = jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij")
    grid = jnp.stack([x, y], -1)[:, :, None].astype(head.dtype)
    probability = jax.nn.sigmoid(head)
    centre = (probability[..., :2] * 2 + grid - 0.5) * stride
    size = (probability[..., 2:4] * 2) ** 2 * jnp.asarray(anchors, head.dtype)
    boxes = jnp.concatenate([centre, size, probability[..., 4:]], -1)
    return boxes.transpose(0, 3, 1, 2, 4).reshape(batch, -1, values)
