"""BatchNorm followed by SiLU, as one function with a backward pass of its own.

Left to automatic differentiation, the pair keeps two or three arrays of the size of its input for the backward pass; here it keeps the input alone and
computes the rest again, which is also faster. Statistics and everything between input and output are at least float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

EPSILON = 1e-3
_AXES = (0, 1, 2)


def fixed_norm_silu(x: Array, scale: Array, bias: Array, mean: Array, variance: Array) -> Array:
    """Normalise with given statistics, then SiLU.

    Args:
      x: ``(B, H, W, C)``.
      scale: ``(C,)``.
      bias: ``(C,)``.
      mean: ``(C,)``, running mean.
      variance: ``(C,)``, running variance.

    Returns:
      ``silu((x - mean) / sqrt(variance + 1e-3) * scale + bias)`` in the dtype of ``x``.
    """
    return _affine_silu(x, mean, scale * jax.lax.rsqrt(variance + EPSILON), bias)


@jax.custom_vjp
def batch_norm_silu(x: Array, scale: Array, bias: Array, near: Array) -> tuple[Array, Array, Array]:
    """Normalise with the statistics of the batch, then SiLU.

    Args:
      x: ``(B, H, W, C)``.
      scale: ``(C,)``.
      bias: ``(C,)``.
      near: ``(C,)``, numbers near the mean of the batch, such as the running mean. Mean and variance are those of ``x - near``, so that one pass
        over ``x`` gives both, and the difference of the squares keeps its digits. No gradient flows through it.

    Returns:
      The result in the dtype of ``x``, and the mean and biased variance of the batch, each ``(C,)``, through which no gradient flows.

    Source: Ioffe & Szegedy 2015 (arXiv:1502.03167), §3.
    """
    return _batch_forward(x, scale, bias, near)[0]


def _batch_forward(
    x: Array, scale: Array, bias: Array, near: Array
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    shifted = _wide(x) - near
    offset = jnp.mean(shifted, _AXES)
    variance = jnp.maximum(jnp.mean(jnp.square(shifted), _AXES) - jnp.square(offset), 0)
    mean = near + offset
    deviation = jax.lax.rsqrt(variance + EPSILON)
    y = jax.nn.silu((_wide(x) - mean) * (deviation * scale) + bias).astype(x.dtype)
    return (y, mean, variance), (x, mean, deviation, scale, bias)


def _batch_backward(residuals: tuple[Array, ...], gradients: tuple[Array, Array, Array]) -> tuple[Array, ...]:
    x, mean, deviation, scale, bias = residuals
    factor = deviation * scale
    inner, centred = _inner_gradient(x, mean, factor, bias, gradients[0])
    bias_gradient = jnp.sum(inner, _AXES)
    scale_gradient = jnp.sum(inner * centred, _AXES) * deviation

    def from_memory(inner: Array, centred: Array, *_: Array) -> Array:
        return _through_statistics(inner, centred, (bias_gradient, scale_gradient), deviation)

    def again(_: Array, __: Array, x: Array, gradient: Array) -> Array:
        # Behind a barrier on the sums, without which XLA would find the first computation and keep it, in float32.
        sums, x, gradient = jax.lax.optimization_barrier(((bias_gradient, scale_gradient), x, gradient))
        return _through_statistics(*_inner_gradient(x, mean, factor, bias, gradient), sums, deviation)

    # On accelerators, limited by memory, a second computation is cheaper than writing and reading its result; on a CPU it is not.
    through = jax.lax.platform_dependent(inner, centred, x, gradients[0], cpu=from_memory, default=again)
    return (factor * through).astype(x.dtype), scale_gradient, bias_gradient, jnp.zeros_like(mean)


def _through_statistics(inner: Array, centred: Array, sums: tuple[Array, Array], deviation: Array) -> Array:
    """Take out of a gradient what it has in common with those of the batch's mean and variance, which depend on the input too."""
    bias_gradient, scale_gradient = sums
    count = inner.size / inner.shape[-1]
    return inner - bias_gradient / count - centred * (deviation * scale_gradient / count)


batch_norm_silu.defvjp(_batch_forward, _batch_backward)


@jax.custom_vjp
def _affine_silu(x: Array, centre: Array, factor: Array, bias: Array) -> Array:
    return jax.nn.silu((_wide(x) - centre) * factor + bias).astype(x.dtype)


def _affine_forward(x: Array, centre: Array, factor: Array, bias: Array) -> tuple[Array, tuple[Array, ...]]:
    return _affine_silu(x, centre, factor, bias), (x, centre, factor, bias)


def _affine_backward(residuals: tuple[Array, ...], gradient: Array) -> tuple[Array, ...]:
    x, centre, factor, bias = residuals
    inner, centred = _inner_gradient(x, centre, factor, bias, gradient)
    bias_gradient = jnp.sum(inner, _AXES)
    return (inner * factor).astype(x.dtype), -factor * bias_gradient, jnp.sum(inner * centred, _AXES), bias_gradient


_affine_silu.defvjp(_affine_forward, _affine_backward)


def _inner_gradient(x: Array, centre: Array, factor: Array, bias: Array, gradient: Array) -> tuple[Array, Array]:
    """The gradient at the input of SiLU, and ``x - centre``."""
    # Without the barrier XLA finds that all of this was computed in the forward pass, and keeps it until now.
    x, centre, factor, bias, gradient = jax.lax.optimization_barrier((x, centre, factor, bias, gradient))
    centred = _wide(x) - centre
    z = centred * factor + bias
    gate = jax.nn.sigmoid(z)
    return _wide(gradient) * (gate + z * gate * (1 - gate)), centred


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
