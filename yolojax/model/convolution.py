"""Convolution, the one place that knows how it is computed."""

from __future__ import annotations

import jax
from jax import Array


def convolve(images: Array, kernel: Array, stride: int = 1, padding: int = 0) -> Array:
    """Cross-correlate, as deep learning means convolution.

    Args:
      images: ``(batch, height, width, inputs)`` float.
      kernel: ``(side, side, inputs, outputs)`` float, same dtype.
      stride: step, both ways.
      padding: zeros added on each of the four sides.

    Returns:
      ``(batch, height', width', outputs)`` of the same dtype.
    """
    return jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
