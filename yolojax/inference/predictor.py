"""From images to decoded predictions, as detection and validation need it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from yolojax.evaluation.evaluator import Program
from yolojax.inference.fuse import apply_fused, fuse
from yolojax.model.decode import decode
from yolojax.model.images import normalise
from yolojax.model.network import Network
from yolojax.model.spec import ModelSpec
from yolojax.weights.store import Weights

# Test-time augmentation: the images as they are, then smaller and mirrored, then smaller still.
_AUGMENTATIONS = ((1.0, False), (0.83, True), (0.67, False))
_BORDER = 0.447  # grey of the border of a scaled image: the mean of ImageNet


def make_predict(weights: Sequence[Weights], *, dtype: DTypeLike | None = None, augment: bool = False) -> Program:
    """A function from images to predictions, compiled once per shape of batch.

    BatchNorm is folded into the kernels. The weights are arguments of the compiled program, not part of it: two networks of one architecture share it, and
    the compile cache finds it again.

    Args:
      weights: one network, or several whose predictions are put together (an ensemble).
      dtype: of the computation; float32 if not given. Heads and boxes are float32 in any case.
      augment: predict at three sizes, once mirrored, and put the predictions together (test-time augmentation).

    Returns:
      ``(B, H, W, 3)`` uint8 RGB to predictions ``(B, N, 5 + classes)`` as in ``model.decode``, and the heads of the first network for the images as they are.
    """
    specs = tuple(item.spec for item in weights)
    variables = jax.device_put([fuse(item.variables) for item in weights])
    return partial(_predict, specs, dtype, augment, variables)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _predict(
    specs: tuple[ModelSpec, ...], dtype: DTypeLike | None, augment: bool, variables: Any, images: Array
) -> tuple[Array, tuple[Array, ...]]:
    scaled = normalise(images)
    predictions: list[Array] = []
    first_heads: tuple[Array, ...] = ()
    for spec, own in zip(specs, variables, strict=True):
        run = partial(apply_fused, Network(spec, dtype=dtype), own)
        heads = run(scaled)
        first_heads = first_heads or heads
        predictions.append(_augmented(run, heads, scaled, spec) if augment else decode(heads, spec))
    return jnp.concatenate(predictions, 1), first_heads


def _augmented(
    run: Callable[[Array], tuple[Array, ...]], heads: tuple[Array, ...], images: Array, spec: ModelSpec
) -> Array:
    """Predictions at all sizes. The largest objects of the full size and the smallest of the smallest are left to the other sizes.

    Source: ``docs/yolov5.md`` §1.1, test-time augmentation.
    """
    predictions = []
    for scale, mirrored in _AUGMENTATIONS:
        if scale == 1:
            boxes = decode(heads, spec)[:, : -_count(heads[-1])]
        else:
            view = images[:, :, ::-1] if mirrored else images
            own = run(_shrink(view, scale, max(spec.strides)))
            boxes = decode(own, spec)
            boxes = boxes.at[..., :4].divide(scale)
            if mirrored:
                boxes = boxes.at[..., 0].set(images.shape[2] - boxes[..., 0])
            if scale == _AUGMENTATIONS[-1][0]:
                boxes = boxes[:, _count(own[0]) :]
        predictions.append(boxes)
    return jnp.concatenate(predictions, 1)


def _count(head: Array) -> int:
    """Predictions of one level."""
    return head[0].size // head.shape[-1]


def _shrink(images: Array, scale: float, stride: int) -> Array:
    """Smaller images, with a border on the right and below up to whole strides."""
    batch, height, width, channels = images.shape
    small = (int(height * scale), int(width * scale))
    resized = jax.image.resize(images, (batch, *small, channels), "linear", antialias=False)
    below, right = (math.ceil(side * scale / stride) * stride - int(side * scale) for side in (height, width))
    return jnp.pad(resized, [(0, 0), (0, below), (0, right), (0, 0)], constant_values=_BORDER)
