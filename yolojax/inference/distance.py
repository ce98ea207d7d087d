"""How far photos move the moments of a network's BatchNorm away from the running ones that it was trained with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from yolojax.data.batches import ValidationBatch
from yolojax.freezing.selectors import layer_of
from yolojax.model.images import normalise
from yolojax.model.layers import Convolution
from yolojax.model.network import Network, Variables
from yolojax.model.normalisation import EPSILON
from yolojax.tree import flatten

# Over all pixels, of what comes in less the running mean, (C,), and of its square, (C,); and how many pixels, ().
Sums: TypeAlias = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def measure_distances(network: Network, variables: Variables, batches: Iterable[ValidationBatch]) -> dict[str, float]:
    """How far the inputs of every BatchNorm are from its running moments, while the network uses these, as a frozen one does.

    Args:
      network: whose weights are meant.
      variables: ``params`` and ``batch_stats``.
      batches: images uint8 ``(B, H, W, 3)`` and ``valid`` bool ``(B,)``; one program is compiled for each shape.

    Returns:
      By module (``model_2/m_0/cv1/bn``) the mean over its channels of the 2-Wasserstein distance between two normal distributions, that of the photos and the
      running one, in standard deviations of the latter: ``sqrt((m - M)² + (s - S)²) / S``. 0 where they are the same. Nothing where there is not one image.
    """
    sums: dict[str, Sums] = {}
    for batch in batches:
        if not batch["valid"].any():
            continue
        here = jax.device_get(_batch_sums(network, variables, batch["images"], batch["valid"]))
        sums = {path: _added(sums.get(path), own) for path, own in here.items()}
    running = flatten(variables["batch_stats"])
    return {path: _distance(own, running[f"{path}/var"]) for path, own in sums.items()}


def layer_distances(distances: Mapping[str, float]) -> dict[int, float]:
    """The mean over the BatchNorms of each layer, by the number of the layer.

    >>> layer_distances({"model_0/bn": 1.0, "model_2/cv1/bn": 0.5, "model_2/cv2/bn": 1.5})
    {0: 1.0, 2: 1.0}
    """
    layers: dict[int, list[float]] = {}
    for path, distance in distances.items():
        layers.setdefault(layer_of(path), []).append(distance)
    return {layer: sum(own) / len(own) for layer, own in layers.items()}


@partial(jax.jit, static_argnums=0)
def _batch_sums(network: Network, variables: Variables, images: Array, valid: Array) -> dict[str, tuple[Array, ...]]:
    """The sums of one batch, by module; less the running mean, so that squares keep their digits."""
    _, state = network.apply(
        variables,
        normalise(images),
        mutable=["intermediates"],
        capture_intermediates=lambda module, _: isinstance(module, Convolution),
    )
    running = flatten(variables["batch_stats"])
    sums: dict[str, tuple[Array, ...]] = {}
    for path, (x,) in flatten(state["intermediates"]).items():
        module = path.removesuffix("conv/__call__") + "bn"
        shifted = jnp.where(valid[:, None, None, None], x - running[f"{module}/mean"], 0)
        pixels = jnp.sum(valid) * (x.shape[1] * x.shape[2])
        sums[module] = jnp.sum(shifted, (0, 1, 2)), jnp.sum(jnp.square(shifted), (0, 1, 2)), pixels
    return sums


def _added(so_far: Sums | None, here: Sums) -> Sums:
    wide = tuple(np.asarray(own, np.float64) for own in here)
    first, second, third = wide if so_far is None else (a + b for a, b in zip(so_far, wide, strict=True))
    return first, second, third


def _distance(sums: Sums, variance: NDArray[Any]) -> float:
    offset, square = sums[0] / sums[2], sums[1] / sums[2]
    deviation, expected = (
        np.sqrt(np.maximum(own, 0) + EPSILON) for own in (square - np.square(offset), np.asarray(variance, np.float64))
    )
    return float(np.mean(np.hypot(offset, deviation - expected) / expected))
