"""The network: the layers of a specification, connected."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from yolojax.model.layers import C3, SPPF, Conv, Detect, Mode
from yolojax.model.spec import Layer, ModelSpec

Variables = dict[str, dict[str, Any]]


class Network(nn.Module):
    """YOLOv5, built from any specification as ``model_0`` … ``model_N``.

    Attributes:
      spec: what to build.
      dtype: in what to compute; None means the dtype of the images. Parameters, BatchNorm statistics and heads are never narrower than float32.
      fixed_bn: paths of BatchNorm modules (``model_0/bn``) that use and keep their running statistics even with ``train=True``.
    """

    spec: ModelSpec
    dtype: DTypeLike | None = None
    fixed_bn: frozenset[str] = frozenset()

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[Array, ...]:
        """Run the network.

        Args:
          images: ``(B, H, W, 3)`` RGB, float, 0 to 1; H and W are multiples of the greatest stride.
          train: use the statistics of the batch and move the running ones; needs ``mutable=["batch_stats"]``.

        Returns:
          Per level raw logits ``(B, ny, nx, anchors, 5 + classes)``.
        """
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise TypeError(f"images must be float in 0 to 1, not {images.dtype}")
        if any(side % max(self.spec.strides) for side in images.shape[1:3]):
            raise ValueError(f"image sides {images.shape[1:3]} must be multiples of {max(self.spec.strides)}")
        mode = Mode(train, self.fixed_bn)
        images = images if self.dtype is None else images.astype(self.dtype)
        outputs: list[Array] = []
        for layer in self.spec.resolved[:-1]:
            sources = [outputs[source] if source >= 0 else images for source in layer.sources]
            outputs.append(_apply(layer, sources, mode))
        detect = self.spec.resolved[-1]
        head = Detect(len(self.spec.anchors[0]), self.spec.classes, self.spec.strides, name=f"model_{detect.index}")
        return head([outputs[source] for source in detect.sources])


def _apply(layer: Layer, sources: list[Array], mode: Mode) -> Array:
    """Make a layer other than Detect, as the child of the network that is running, and call it."""
    name = f"model_{layer.index}"
    x = sources[0]
    match layer.module:
        case "Conv":
            return Conv(layer.channels, layer.kernel, layer.stride, layer.padding, name=name)(x, mode)
        case "C3":
            return C3(layer.channels, layer.repeats, layer.shortcut, name=name)(x, mode)
        case "SPPF":
            return SPPF(layer.channels, layer.kernel, name=name)(x, mode)
        case "Upsample":
            return jnp.repeat(jnp.repeat(x, layer.stride, 1), layer.stride, 2)
        case _:
            return jnp.concatenate(sources, -1)


def init_variables(spec: ModelSpec, key: Array) -> Variables:
    """Fresh parameters and statistics, distributed as PyTorch and YOLOv5 initialise them.

    Args:
      spec: the architecture.
      key: a JAX random key.

    Returns:
      ``{"params": {...}, "batch_stats": {...}}``, float32.
    """
    return _initialiser(spec)(key)


def abstract_variables(spec: ModelSpec) -> Variables:
    """Shapes and dtypes of ``init_variables``, without computing anything."""
    return jax.eval_shape(_initialiser(spec), jax.random.key(0))


def _initialiser(spec: ModelSpec) -> Any:
    side = max(spec.strides)
    return jax.jit(partial(Network(spec).init, images=jnp.zeros((1, side, side, 3))))
