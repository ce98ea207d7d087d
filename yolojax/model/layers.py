"""The building blocks of YOLOv5 in Linen, named so that parameter paths mirror those of PyTorch.

``model.2.m.0.cv1.conv.weight`` there is ``model_2/m_0/cv1/conv/kernel`` here. Blocks take NHWC and compute in the dtype of their input; parameters
keep their own dtype, and BatchNorm statistics are never narrower than float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from yolojax.model.convolution import convolve
from yolojax.model.normalisation import KEPT, batch_norm_silu, fixed_norm_silu

MOMENTUM = 0.03


@dataclass(frozen=True)
class Mode:
    """How BatchNorm behaves.

    Attributes:
      train: use the statistics of the batch and move the running ones.
      fixed_bn: module paths (``model_0/bn``) that use and keep running statistics even in training.
      axis: inside ``shard_map``, the axis of the mesh over all of which the statistics of a batch are taken; None: over what is here.
    """

    train: bool = False
    fixed_bn: frozenset[str] = frozenset()
    axis: str | None = None


def _declared(_: Array, shape: tuple[int, ...]) -> Array:
    """Modules only declare their parameters; ``network.init_variables`` gives all of them their first values at once."""
    return jnp.zeros(shape, jnp.float32)


class Convolution(nn.Module):
    """A kernel without bias."""

    features: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``(B, H, W, C)`` to ``(B, H', W', features)``."""
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", _declared, shape)
        y = checkpoint_name(convolve(x, kernel.astype(x.dtype), self.stride, self.padding), KEPT)
        return _with_adapter(self, x, y, kernel.shape, self.stride, self.padding)


def _with_adapter(
    module: nn.Module, x: Array, y: Array, shape: tuple[int, ...], stride: int = 1, padding: int = 0
) -> Array:
    """Add to a convolution ``y`` of ``x`` what the low-rank adapter beside its kernel gives, where the parameters hold one (``freezing.adapters``)."""
    if not module.has_variable("params", "adapter"):
        return y
    arrays: dict[str, Array] = module.get_variable("params", "adapter")

    # The few channels between the two convolutions are computed again in the backward pass rather than kept.
    @jax.checkpoint
    def adapt(x: Array, down: Array, up: Array) -> Array:
        low = convolve(x, down.reshape(*shape[:3], -1), stride, padding)
        return convolve(low, up[None, None])

    up = arrays["up"] * arrays.get("scale", 1)
    return y + adapt(x, arrays["down"].astype(x.dtype), up.astype(x.dtype))


class BatchNorm(nn.Module):
    """BatchNorm and the SiLU that always follows it, with PyTorch's bookkeeping: the running variance averages the unbiased variance of the batch."""

    @nn.compact
    def __call__(self, x: Array, mode: Mode) -> Array:
        """Normalise ``(B, H, W, C)`` per channel and apply SiLU."""
        channels = x.shape[-1:]
        scale = self.param("scale", _declared, channels)
        bias = self.param("bias", _declared, channels)
        running_mean = self.variable("batch_stats", "mean", _declared, None, channels)
        running_var = self.variable("batch_stats", "var", _declared, None, channels)
        if not mode.train or "/".join(self.path) in mode.fixed_bn:
            return fixed_norm_silu(x, scale, bias, running_mean.value, running_var.value)
        y, mean, variance = batch_norm_silu(x, scale, bias, running_mean.value, mode.axis)
        if not self.is_initializing():
            count = x.size // x.shape[-1] * (jax.lax.axis_size(mode.axis) if mode.axis else 1)
            unbiased = variance * (count / max(count - 1, 1))
            running_mean.value = (1 - MOMENTUM) * running_mean.value + MOMENTUM * mean
            running_var.value = (1 - MOMENTUM) * running_var.value + MOMENTUM * unbiased
        return y


class Conv(nn.Module):
    """Convolution, BatchNorm, SiLU."""

    features: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0

    @nn.compact
    def __call__(self, x: Array, mode: Mode) -> Array:
        """``(B, H, W, C)`` to ``(B, H', W', features)``."""
        x = Convolution(self.features, self.kernel, self.stride, self.padding, name="conv")(x)
        return BatchNorm(name="bn")(x, mode)


class Bottleneck(nn.Module):
    """1×1 then 3×3, with a residual connection where ``shortcut``."""

    features: int
    shortcut: bool = True

    @nn.compact
    def __call__(self, x: Array, mode: Mode) -> Array:
        """``(B, H, W, C)`` to ``(B, H, W, features)``."""
        y = Conv(self.features, name="cv1")(x, mode)
        y = Conv(self.features, 3, padding=1, name="cv2")(y, mode)
        return x + y if self.shortcut and x.shape == y.shape else y


class C3(nn.Module):
    """Two halves, one of them through ``repeats`` bottlenecks, joined by a 1×1."""

    features: int
    repeats: int = 1
    shortcut: bool = True

    @nn.compact
    def __call__(self, x: Array, mode: Mode) -> Array:
        """``(B, H, W, C)`` to ``(B, H, W, features)``."""
        hidden = self.features // 2
        y = Conv(hidden, name="cv1")(x, mode)
        for index in range(self.repeats):
            y = Bottleneck(hidden, self.shortcut, name=f"m_{index}")(y, mode)
        return Conv(self.features, name="cv3")(jnp.concatenate([y, Conv(hidden, name="cv2")(x, mode)], -1), mode)


def shifted_maxima(x: Array, window: int) -> Array:
    """Max pooling with stride 1 and "same" padding, as maxima of shifted copies along one axis and then the other.

    Equal to ``reduce_window`` to the bit. Its gradient is a few selects where that of ``reduce_window`` is a ``select_and_scatter``, slow on CPU and
    without a deterministic form on GPU. Where several cells share the maximum, they share the gradient.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        padding = [(window // 2, window // 2) if place == axis else (0, 0) for place in range(x.ndim)]
        padded = jnp.pad(x, padding, constant_values=-jnp.inf)
        x = jax.lax.slice_in_dim(padded, 0, size, axis=axis)
        for shift in range(1, window):
            x = jnp.maximum(x, jax.lax.slice_in_dim(padded, shift, shift + size, axis=axis))
    return x


class SPPF(nn.Module):
    """Spatial pyramid pooling: three chained max poolings, all of them joined by a 1×1."""

    features: int
    kernel: int = 5

    @nn.compact
    def __call__(self, x: Array, mode: Mode) -> Array:
        """``(B, H, W, C)`` to ``(B, H, W, features)``."""
        pyramid = [Conv(x.shape[-1] // 2, name="cv1")(x, mode)]
        for _ in range(3):
            pyramid.append(shifted_maxima(pyramid[-1], self.kernel))
        return Conv(self.features, name="cv2")(jnp.concatenate(pyramid, -1), mode)


def upsample(x: Array, factor: int) -> Array:
    """Repeat every row and column of ``(B, H, W, C)`` ``factor`` times."""
    batch, height, width, channels = x.shape
    repeated = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, factor, width, factor, channels))
    return repeated.reshape(batch, height * factor, width * factor, channels)


class Head(nn.Module):
    """The 1×1 convolution of one level."""

    anchors: int
    classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``(B, H, W, C)`` to raw logits ``(B, H, W, anchors, 5 + classes)``, at least float32."""
        values = 5 + self.classes
        kernel = self.param("kernel", _declared, (1, 1, x.shape[-1], self.anchors * values))
        bias = self.param("bias", _declared, (self.anchors * values,))
        logits = _with_adapter(self, x, convolve(x, kernel.astype(x.dtype)), kernel.shape)
        logits = logits.astype(jnp.promote_types(x.dtype, jnp.float32)) + bias
        return logits.reshape(*x.shape[:3], self.anchors, values)


class Detect(nn.Module):
    """The output layer: one ``Head`` per level."""

    anchors: int
    classes: int

    @nn.compact
    def __call__(self, features: list[Array]) -> tuple[Array, ...]:
        """Raw logits per level, ``(B, ny, nx, anchors, 5 + classes)``."""
        return tuple(Head(self.anchors, self.classes, name=f"m_{level}")(x) for level, x in enumerate(features))
