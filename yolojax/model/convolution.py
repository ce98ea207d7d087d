"""Convolution, the one place that knows how it is computed.

On GPU and TPU a convolution and its two gradients are plain ``lax`` convolutions. XLA's CPU backend is slow at some of them, so there they take another
form of the same value. Which one is chosen when the program is lowered, by its platform. A program for no platform in particular takes the plain one.
Whether an accelerator is quicker with a folded stem, as a CPU is, only an accelerator can tell: ``folded_stem`` is for its measurement.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

# Under these names the two gradients of a convolution stand in a compiled program, so that they can be counted.
IMAGES_GRADIENT = "images_gradient"
KERNEL_GRADIENT = "kernel_gradient"

_FOR_ANY_PLATFORM = ContextVar("for_any_platform", default=False)


@contextmanager
def for_any_platform() -> Iterator[None]:
    """Trace plain convolutions meanwhile: for formats that know no platforms, like ONNX."""
    token = _FOR_ANY_PLATFORM.set(True)
    try:
        yield
    finally:
        _FOR_ANY_PLATFORM.reset(token)


_FOLDED_STEM = ContextVar("folded_stem", default=False)


@contextmanager
def folded_stem() -> Iterator[None]:
    """Trace meanwhile, for accelerators too, folded convolutions where a stride lets them fold (in YOLOv5 the first: 6×6×3 becomes 3×3×12)."""
    token = _FOLDED_STEM.set(True)
    try:
        yield
    finally:
        _FOLDED_STEM.reset(token)


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
    default, on_cpu = _forms(stride, padding)
    if _FOR_ANY_PLATFORM.get():
        return _plain(images, kernel, stride, padding)
    return jax.lax.platform_dependent(images, kernel, cpu=on_cpu, default=default)


def _forms(stride: int, padding: int) -> tuple[partial[Array], partial[Array]]:
    """The convolution on an accelerator and on a CPU."""
    default = _folded if _FOLDED_STEM.get() else _plain
    return partial(default, stride=stride, padding=padding), partial(_on_cpu, stride=stride, padding=padding)


def _forward(images: Array, kernel: Array, stride: int, padding: int) -> tuple[Array, tuple[Array, Array]]:
    return convolve(images, kernel, stride, padding), (images, kernel)


def _backward(stride: int, padding: int, residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    images, kernel = residuals
    default, on_cpu = _forms(stride, padding)

    @jax.named_scope(IMAGES_GRADIENT)
    def images_gradient(form: partial[Array], kernel: Array, gradient: Array) -> Array:
        return jax.linear_transpose(lambda x: form(x, kernel), images)(gradient)[0]

    @jax.named_scope(KERNEL_GRADIENT)
    def kernel_gradient(form: partial[Array], images: Array, gradient: Array) -> Array:
        return jax.linear_transpose(lambda w: form(images, w), kernel)(gradient)[0]

    kernel_gradient_on_cpu = partial(kernel_gradient, on_cpu)
    side = kernel.shape[0]
    if side == 1 or (stride > 1 and not _folds(images, kernel, stride, padding)):
        kernel_gradient_on_cpu = partial(_kernel_gradient_by_taps, side=side, stride=stride, padding=padding)
    # Two separate choices, so that a gradient that nobody asks for is dead code.
    choose = jax.lax.platform_dependent
    return (
        choose(kernel, gradient, cpu=partial(images_gradient, on_cpu), default=partial(images_gradient, default)),
        choose(images, gradient, cpu=kernel_gradient_on_cpu, default=partial(kernel_gradient, default)),
    )


convolve.defvjp(_forward, _backward)


def _plain(images: Array, kernel: Array, stride: int, padding: int) -> Array:
    return jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _on_cpu(images: Array, kernel: Array, stride: int, padding: int) -> Array:
    if kernel.shape[:2] == (1, 1) and stride == 1 and padding == 0:
        return jax.lax.dot_general(images, kernel[0, 0], (((3,), (0,)), ((), ())))
    # Few channels and large kernels are slow, so blocks of pixels become channels (6×6 on 3 channels: 3×3 on 12).
    return _folded(images, kernel, stride, padding)


def _folded(images: Array, kernel: Array, stride: int, padding: int) -> Array:
    """Without a stride, over blocks of pixels in the place of pixels; plain where that does not come out even."""
    if _folds(images, kernel, stride, padding):
        kernel = _fold(kernel.transpose(3, 0, 1, 2), stride).transpose(1, 2, 3, 0)
        return _plain(_fold(images, stride), kernel, 1, padding // stride)
    return _plain(images, kernel, stride, padding)


def _folds(images: Array, kernel: Array, stride: int, padding: int) -> bool:
    return stride > 1 and all(size % stride == 0 for size in (*images.shape[1:3], *kernel.shape[:2], padding))


def _fold(images: Array, block: int) -> Array:
    """``(B, H, W, C)`` to ``(B, H / block, W / block, block² C)``."""
    batch, height, width, channels = images.shape
    blocks = images.reshape(batch, height // block, block, width // block, block, channels)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // block, width // block, -1)


@jax.named_scope(KERNEL_GRADIENT)
def _kernel_gradient_by_taps(images: Array, gradient: Array, side: int, stride: int, padding: int) -> Array:
    """One matrix product per kernel position: the pixels that it meets, times the gradient."""
    batch, rows, columns, outputs = gradient.shape
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    products = []
    for y in range(side):
        for x in range(side):
            last = (batch, y + stride * (rows - 1) + 1, x + stride * (columns - 1) + 1, images.shape[3])
            met = jax.lax.slice(padded, (0, y, x, 0), last, (1, stride, stride, 1))
            products.append(met.reshape(-1, images.shape[3]).T @ gradient.reshape(-1, outputs))
    return jnp.stack(products).reshape(side, side, images.shape[3], outputs)
