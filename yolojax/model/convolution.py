"""Convolution, the one place that knows how it is computed.

On GPU and TPU a convolution and its two gradients are plain ``lax`` convolutions. XLA's CPU backend is slow for some of the gradients, so there they take
another form with the same value; which one is chosen when the program is lowered, by its platform.
"""

from __future__ import annotations

from functools import partial

import jax
from jax import Array


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
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
    return _plain(images, kernel, stride, padding)


def _plain(images: Array, kernel: Array, stride: int, padding: int) -> Array:
    return jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _forward(images: Array, kernel: Array, stride: int, padding: int) -> tuple[Array, tuple[Array, Array]]:
    return _plain(images, kernel, stride, padding), (images, kernel)


def _backward(stride: int, padding: int, residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    images, kernel = residuals

    def image_gradient(kernel: Array, gradient: Array) -> Array:
        (result,) = jax.linear_transpose(lambda x: _plain(x, kernel, stride, padding), images)(gradient)
        return result

    def kernel_gradient(images: Array, gradient: Array) -> Array:
        (result,) = jax.linear_transpose(lambda w: _plain(images, w, stride, padding), kernel)(gradient)
        return result

    def kernel_gradient_on_cpu(images: Array, gradient: Array) -> Array:
        if kernel.shape[:2] == (1, 1) and stride == 1 and padding == 0:
            rows = images.reshape(-1, images.shape[-1])
            return (rows.T @ gradient.reshape(-1, gradient.shape[-1])).reshape(kernel.shape)
        return kernel_gradient(images, gradient)

    # Two separate choices, so that whichever gradient nobody asks for is dead code.
    return (
        image_gradient(kernel, gradient),
        jax.lax.platform_dependent(images, gradient, cpu=kernel_gradient_on_cpu, default=kernel_gradient),
    )


convolve.defvjp(_forward, _backward)
