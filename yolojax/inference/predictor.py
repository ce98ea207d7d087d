"""From images to decoded predictions, as detection and validation need it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike

from yolojax.errors import UserError
from yolojax.evaluation.evaluator import Program
from yolojax.inference.fuse import apply_fused, fuse
from yolojax.mesh import place_everywhere, split
from yolojax.model.decode import concatenate_branches, decode, decode_branch
from yolojax.model.images import normalise
from yolojax.model.network import Network
from yolojax.model.spec import ModelSpec
from yolojax.weights.store import Weights

# Test-time augmentation: the images as they are, then smaller and mirrored, then smaller still.
_AUGMENTATIONS = ((1.0, False), (0.83, True), (0.67, False))
_BORDER = 0.447  # grey of the border of a scaled image: the mean of ImageNet


def make_predict(
    weights: Sequence[Weights],
    *,
    dtype: DTypeLike | None = None,
    augment: bool = False,
    classes: tuple[int, ...] | None = None,
    mesh: Mesh | None = None,
) -> Program:
    """A function from images to predictions, compiled once per shape of batch.

    BatchNorm is folded into the kernels. The weights are arguments of the compiled program, not part of it: two networks of one architecture share it, and
    the compile cache finds it again.

    Args:
      weights: one network, or several whose predictions are put together (an ensemble).
      dtype: of the computation; float32 if not given. Heads and boxes are float32 in any case.
      augment: predict at three sizes, once mirrored, and put the predictions together (test-time augmentation).
      classes: the classes to give, in this order; all where it is None.
      mesh: devices of several processes, whose images come divided among them and whose predictions stay so; None where this process is alone.

    Returns:
      ``(B, H, W, 3)`` uint8 RGB to predictions ``(B, N, 5 + classes)`` as in ``model.decode``, and the heads of the first network for the images as they are.
    """
    specs = tuple(item.spec for item in weights)
    fused = [fuse(item.variables) for item in weights]
    variables = jax.device_put(fused) if mesh is None else place_everywhere(fused, mesh)
    return partial(_predict, specs, dtype, augment, classes, mesh, variables)


def suppressed_parts(
    weights: Sequence[Weights], agnostic: bool, classes: Sequence[int] | None = None
) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """``NmsSettings.parts`` for what ``make_predict`` gives: the branches of a joined network, unless classes are to suppress each other.

    Raises:
      UserError: several networks, one of them joined.
    """
    if len(weights) > 1 and any(item.spec.branches for item in weights):
        raise UserError("--weights: a joined network cannot be part of an ensemble; give it alone")
    if agnostic:
        return ()
    given = range(weights[0].spec.classes) if classes is None else classes
    return tuple(
        (share, tuple(place for place, label in enumerate(given) if label in known))
        for share, known in weights[0].spec.prediction_parts
    )


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _predict(
    specs: tuple[ModelSpec, ...],
    dtype: DTypeLike | None,
    augment: bool,
    classes: tuple[int, ...] | None,
    mesh: Mesh | None,
    variables: Any,
    images: Array,
) -> tuple[Array, tuple[Array, ...]]:
    scaled = normalise(images)
    predictions: list[Array] = []
    first_heads: tuple[Array, ...] = ()
    for spec, own in zip(specs, variables, strict=True):
        run = partial(apply_fused, Network(spec, dtype=dtype), own)
        heads = run(scaled)
        first_heads = first_heads or heads
        predictions.append(_augmented(run, heads, scaled, spec) if augment else decode(heads, spec))
    whole = choose_classes(jnp.concatenate(predictions, 1), classes)
    if mesh is not None:
        whole = jax.lax.with_sharding_constraint(whole, split(mesh))
    return whole, first_heads


def choose_classes(predictions: Any, classes: Sequence[int] | None) -> Any:
    """Predictions ``(B, N, 5 + nc)``, of NumPy or JAX, of these classes alone, in this order; as they are where it is None."""
    if classes is None:
        return predictions
    return predictions[..., np.array([*range(5), *(5 + label for label in classes)])]


def _augmented(
    run: Callable[[Array], tuple[Array, ...]], heads: tuple[Array, ...], images: Array, spec: ModelSpec
) -> Array:
    """Predictions at all sizes. The largest objects of the full size and the smallest of the smallest are left to the other sizes.

    Source: ``docs/yolov5.md`` §1.1, test-time augmentation.
    """
    branches: list[list[Array]] = [[] for _ in spec.networks]
    for scale, mirrored in _AUGMENTATIONS:
        if scale != 1:
            heads = run(_shrink(images[:, :, ::-1] if mirrored else images, scale, spec.stride))
        for predictions, own, network in zip(branches, spec.split(heads), spec.networks, strict=True):
            boxes = decode_branch(own, network)
            boxes = boxes[:, : -_count(own[-1])] if scale == 1 else boxes.at[..., :4].divide(scale)
            if mirrored:
                boxes = boxes.at[..., 0].set(images.shape[2] - boxes[..., 0])
            if scale == _AUGMENTATIONS[-1][0]:
                boxes = boxes[:, _count(own[0]) :]
            predictions.append(boxes)
    return concatenate_branches([jnp.concatenate(predictions, 1) for predictions in branches], spec)


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
