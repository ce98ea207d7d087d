"""BatchNorm followed by SiLU, as one function with a backward pass of its own.

Left to automatic differentiation, the pair keeps two or three arrays of the size of its input for the backward pass; here it keeps the input alone and
computes the rest again, which is also faster. Statistics and everything between input and output are at least float32.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

EPSILON = 1e-3
KEPT = "kept"  # the name of what a backward pass finds that computes all else again: outputs of convolutions, and statistics of the batch
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


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def batch_norm_silu(
    x: Array, scale: Array, bias: Array, near: Array, axis: str | None = None
) -> tuple[Array, Array, Array]:
    """Normalise with the statistics of the batch, then SiLU.

    Args:
      x: ``(B, H, W, C)``; inside ``shard_map`` a device's share of them.
      scale: ``(C,)``.
      bias: ``(C,)``.
      near: ``(C,)``, numbers near the mean of the batch, such as the running mean. Mean and variance are those of ``x - near``, so that one pass
        over ``x`` gives both, and the difference of the squares keeps its digits. No gradient flows through it.
      axis: of the mesh over which the batch is divided, into equal shares: the statistics are those of all of it, at the price of one reduction
        forward and one backward. Gradients of ``scale`` and ``bias`` are those of the share. None: the statistics are those of ``x``.

    Returns:
      The result in the dtype of ``x``, and the mean and biased variance of the batch, each ``(C,)``, through which no gradient flows.

    Source: Ioffe & Szegedy 2015 (arXiv:1502.03167), §3.
    """
    return _batch_forward(x, scale, bias, near, axis)[0]


def _batch_forward(
    x: Array, scale: Array, bias: Array, near: Array, axis: str | None
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    shifted = _wide(x) - near
    moments = _over_devices(jnp.mean(shifted, _AXES), jnp.mean(jnp.square(shifted), _AXES), axis)
    offset, square = checkpoint_name(moments, KEPT)
    variance = jnp.maximum(square - jnp.square(offset), 0)
    mean = near + offset
    deviation = jax.lax.rsqrt(variance + EPSILON)
    y = jax.nn.silu((_wide(x) - mean) * (deviation * scale) + bias).astype(x.dtype)
    return (y, mean, variance), (x, mean, deviation, scale, bias)


def _batch_backward(
    axis: str | None, residuals: tuple[Array, ...], gradients: tuple[Array, Array, Array]
) -> tuple[Array | None, ...]:
    x, mean, deviation, scale, bias = residuals
    factor = deviation * scale
    inner, centred = _inner_gradient(x, mean, factor, bias, gradients[0])
    bias_gradient = jnp.sum(inner, _AXES)
    scale_gradient = jnp.sum(inner * centred, _AXES) * deviation
    sums = _over_devices(bias_gradient, scale_gradient, axis)

    def from_memory(inner: Array, centred: Array, *_: Array) -> Array:
        return _through_statistics(inner, centred, sums, deviation)

    def again(_: Array, __: Array, x: Array, gradient: Array) -> Array:
        # Behind a barrier on the sums, without which XLA would find the first computation and keep it, in float32.
        behind, x, gradient = jax.lax.optimization_barrier((sums, x, gradient))
        return _through_statistics(*_inner_gradient(x, mean, factor, bias, gradient), behind, deviation)

    # On accelerators, limited by memory, a second computation is cheaper than writing and reading its result; on a CPU it is not.
    through = jax.lax.platform_dependent(inner, centred, x, gradients[0], cpu=from_memory, default=again)
    return (factor * through).astype(x.dtype), scale_gradient, bias_gradient, None


def _over_devices(first: Array, second: Array, axis: str | None) -> tuple[Array, Array]:
    """The means over the devices of two ``(C,)``, in one reduction."""
    if axis is None:
        return first, second
    means = jax.lax.pmean(jnp.stack([first, second]), axis)
    return means[0], means[1]


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
