"""From images to decoded predictions, as detection and validation need it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, Sharding
from jax.typing import DTypeLike
from numpy.typing import NDArray

from yolojax.errors import UserError
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
) -> Predictor:
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
      The function.
    """
    specs = tuple(item.spec for item in weights)
    fused = [fuse(item.variables) for item in weights]
    variables = jax.device_put(fused) if mesh is None else place_everywhere(fused, mesh)
    return Predictor(specs, dtype, augment, classes, mesh, variables)


class Predictor:
    """What ``make_predict`` gives; a ``Program``."""

    def __init__(self, *own: Any) -> None:
        """Take the arguments of the compiled program that come before the images."""
        self._own = own
        platforms = {device.platform for leaf in jax.tree.leaves(own[-1]) for device in leaf.devices()}
        self._program = _compiled_soon if platforms == {"cpu"} else _compiled_well
        self._compiling: dict[tuple[int, ...], Future[None]] = {}

    def __call__(
        self, images: Array | NDArray[np.uint8], sizes: Array | None = None
    ) -> tuple[Array, tuple[Array, ...]]:
        """Predict; for a shape that is being compiled ahead wait, and for any other compile.

        Args:
          images: ``(B, H, W, 3)`` uint8 RGB.
          sizes: ``(B, 2)`` int32, height and width of the part of each that counts, as for ``apply_fused``; not with test-time augmentation.

        Returns:
          Predictions ``(B, N, 5 + classes)`` as in ``model.decode``, with objectness 0 beside the parts that count; and the heads of the first network for the
          images as they are.
        """
        if (compiling := self._compiling.get(images.shape)) is not None:
            compiling.result()
        return self._program(*self._own, images, sizes)

    @contextmanager
    def compiled_ahead(
        self, shapes: Iterable[tuple[int, ...]], placed: Sharding, *, sized: bool = False
    ) -> Iterator[None]:
        """Let a thread compile for shapes of images that will come, while others are computed.

        Args:
          shapes: ``(B, H, W, 3)``, in the order in which they are needed.
          placed: where they will be.
          sized: whether the size of each image will be given too.
        """
        pool = ThreadPoolExecutor(1, "yolojax-compile")
        for shape in shapes:
            images = jax.ShapeDtypeStruct(shape, np.uint8, sharding=placed)
            sizes = jax.ShapeDtypeStruct((shape[0], 2), np.int32, sharding=placed)
            self._compiling[shape] = pool.submit(self._compile, images, sizes if sized else None)
        try:
            yield
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            self._compiling.clear()

    def _compile(self, images: jax.ShapeDtypeStruct, sizes: jax.ShapeDtypeStruct | None) -> None:
        self._program.lower(*self._own, images, sizes).compile()  # a call with such arguments takes what this made


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


def _predict(
    specs: tuple[ModelSpec, ...],
    dtype: DTypeLike | None,
    augment: bool,
    classes: tuple[int, ...] | None,
    mesh: Mesh | None,
    variables: Any,
    images: Array,
    sizes: Array | None = None,
) -> tuple[Array, tuple[Array, ...]]:
    scaled = normalise(images)
    predictions: list[Array] = []
    first_heads: tuple[Array, ...] = ()
    for spec, own in zip(specs, variables, strict=True):
        run = partial(apply_fused, Network(spec, dtype=dtype), own)
        heads = run(scaled) if sizes is None else run(scaled, sizes)
        first_heads = first_heads or heads
        predictions.append(_augmented(run, heads, scaled, spec) if augment else decode(heads, spec))
    whole = choose_classes(jnp.concatenate(predictions, 1), classes)
    if mesh is not None:
        whole = jax.lax.with_sharding_constraint(whole, split(mesh))
    return whole, first_heads


_jit = partial(jax.jit, _predict, static_argnums=(0, 1, 2, 3, 4))
_compiled_well = _jit()
# On a CPU a program is as fast with level 2 of 3, and is compiled in two thirds of the time.
_compiled_soon = _jit(compiler_options={"xla_backend_optimization_level": 2})


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
