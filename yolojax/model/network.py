"""The network: the layers of a specification, connected."""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from yolojax.model.layers import C3, SPPF, Conv, Detect, Mode, upsample
from yolojax.model.normalisation import KEPT
from yolojax.model.spec import Layer, ModelSpec
from yolojax.tree import flatten, unflatten

Variables = dict[str, dict[str, Any]]


class Network(nn.Module):
    """YOLOv5, built from any specification as ``model_0`` … ``model_N``.

    Attributes:
      spec: what to build.
      dtype: in what to compute; None means the dtype of the images. Parameters, BatchNorm statistics and heads are never narrower than float32.
      fixed_bn: paths of BatchNorm modules (``model_0/bn``) that use and keep their running statistics even with ``train=True``.
      axis: inside ``shard_map``, the axis of the mesh over all of which BatchNorm takes the statistics of a batch; None: over what is here.
      start: the first layer that runs. Beyond 0, what those of ``spec.crossing(start)`` gave is taken in place of images.
      end: the layer before which to stop, where what those of ``spec.crossing(end)`` gave is returned in place of logits; None runs to the last one.
        A part of a network takes the variables of the whole.
      remat: for a backward pass, keep of every block its input, the outputs of its convolutions and the statistics of the batch, and compute all else again.
    """

    spec: ModelSpec
    dtype: DTypeLike | None = None
    fixed_bn: frozenset[str] = frozenset()
    axis: str | None = None
    start: int = 0
    end: int | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, inputs: Array | tuple[Array, ...], *, train: bool = False) -> tuple[Array, ...]:
        """Run the network.

        Args:
          inputs: images ``(B, H, W, 3)`` RGB, float, 0 to 1; H and W are multiples of ``spec.coarsest``. With ``start`` features, each
            ``(B, H / reduction, W / reduction, channels)``.
          train: use the statistics of the batch and move the running ones; needs ``mutable=["batch_stats"]``.

        Returns:
          Per level raw logits ``(B, ny, nx, anchors, 5 + classes)``; of several Detects one after the other, each with its own classes. With ``end``
          features.
        """
        outputs = self._entering(inputs if isinstance(inputs, tuple) else (inputs,))
        mode = Mode(train, self.fixed_bn, self.axis)
        heads: list[Array] = []
        networks = iter(self.spec.networks)
        for layer in self.spec.resolved[self.start : self.end]:
            sources = [outputs[source] for source in layer.sources]
            if layer.module == "Detect":
                own = next(networks)
                heads += Detect(len(own.anchors[0]), own.classes, name=f"model_{layer.index}")(sources)
            else:
                outputs[layer.index] = _apply(layer, sources, mode, self.remat)
        return tuple(heads) if self.end is None else tuple(outputs[index] for index in self.spec.crossing(self.end))

    def _entering(self, inputs: tuple[Array, ...]) -> dict[int, Array]:
        """What the first layers read, by the layer that gave it; -1 is the image."""
        outputs = dict(zip(self.spec.crossing(self.start), inputs, strict=True))
        for index, x in outputs.items():
            if not jnp.issubdtype(x.dtype, jnp.floating):
                name = "images must be float in 0 to 1" if index < 0 else "features must be float"
                raise TypeError(f"{name}, not {x.dtype}")
            if index < 0 and any(side % self.spec.coarsest for side in x.shape[1:3]):
                raise ValueError(f"image sides {x.shape[1:3]} must be multiples of {self.spec.coarsest}")
        return outputs if self.dtype is None else {index: x.astype(self.dtype) for index, x in outputs.items()}


def _apply(layer: Layer, sources: list[Array], mode: Mode, remat: bool) -> Array:
    """Make a layer other than Detect, as the child of the network that is running, and call it."""
    name = f"model_{layer.index}"
    x = sources[0]
    c3, sppf = (_computed_again(C3), _computed_again(SPPF)) if remat else (C3, SPPF)
    match layer.module:
        case "Conv":
            return Conv(layer.channels, layer.kernel, layer.stride, layer.padding, name=name)(x, mode)
        case "C3":
            return c3(layer.channels, layer.repeats, layer.shortcut, name=name)(x, mode)
        case "SPPF":
            return sppf(layer.channels, layer.kernel, name=name)(x, mode)
        case "Upsample":
            return upsample(x, layer.stride)
        case _:
            return jnp.concatenate(sources, -1)


def _computed_again(block: type[nn.Module]) -> Any:
    """A block of which the backward pass finds no more than the input and what is named so."""
    return nn.remat(block, policy=jax.checkpoint_policies.save_only_these_names(KEPT), static_argnums=2)  # the mode


def init_variables(spec: ModelSpec, key: Array) -> Variables:
    """Fresh parameters and statistics, distributed as PyTorch and YOLOv5 initialise them.

    Args:
      spec: the architecture.
      key: a JAX random key. Layers other than Detect do not depend on the number of classes.

    Returns:
      ``{"params": {...}, "batch_stats": {...}}``, float32.

    Source: ``docs/yolov5.md`` §0.9, §1.1.
    """
    return _initial_variables(spec, key)


def init_heads(spec: ModelSpec, key: Array) -> Variables:
    """The parameters of every Detect in ``init_variables`` of the same key, without computing the others."""
    return _initial_heads(spec, key)


def abstract_variables(spec: ModelSpec) -> Variables:
    """Shapes and dtypes of ``init_variables``, without computing anything."""
    return unflatten(dict(_abstract_leaves(spec)))


@lru_cache(maxsize=8)
def _abstract_leaves(spec: ModelSpec) -> tuple[tuple[str, jax.ShapeDtypeStruct], ...]:
    side = spec.coarsest
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return tuple(flatten(jax.eval_shape(Network(spec).init, jax.random.key(0), images)).items())


def parameter_sizes(spec: ModelSpec) -> dict[str, int]:
    """How many values every parameter holds, by path."""
    return {path: leaf.size for path, leaf in flatten(abstract_variables(spec)["params"]).items()}


@partial(jax.jit, static_argnums=0)
def _initial_variables(spec: ModelSpec, key: Array) -> Variables:
    variables = abstract_variables(spec)
    heads = _initial_heads(spec, key)["params"]
    body = {name: shapes for name, shapes in variables["params"].items() if name not in heads}
    return {
        "params": _uniform_fan_in(jax.random.split(key)[0], body) | heads,
        "batch_stats": jax.tree_util.tree_map_with_path(_initial_statistic, variables["batch_stats"]),
    }


@partial(jax.jit, static_argnums=0)
def _initial_heads(spec: ModelSpec, key: Array) -> Variables:
    shapes = abstract_variables(spec)["params"]
    names = [f"model_{layer.index}" for layer in spec.detects]
    heads = _uniform_fan_in(jax.random.split(key)[1], {name: shapes[name] for name in names})
    for name, network in zip(names, spec.networks, strict=True):
        for level, stride in enumerate(network.strides):
            heads[name][f"m_{level}"]["bias"] += prior_logits(network, stride)
    return {"params": heads}


def _uniform_fan_in(key: Array, shapes: dict[str, Any]) -> dict[str, Any]:
    """PyTorch's defaults: kernels and the biases beside them uniform within ``1 / sqrt(fan in)``; BatchNorm 1 and 0."""
    # One array of random numbers for all: sixty small ones take half a minute to compile.
    numbers = jax.random.uniform(key, (sum(leaf.size for leaf in jax.tree.leaves(shapes)),), jnp.float32, -1)
    used = 0

    def fill(module: dict[str, Any]) -> dict[str, Any]:
        nonlocal used
        filled: dict[str, Any] = {}
        for name, leaf in sorted(module.items()):
            if isinstance(leaf, dict):
                filled[name] = fill(leaf)
            elif "kernel" in module:
                bound = math.prod(module["kernel"].shape[:-1]) ** -0.5
                filled[name] = bound * numbers[used : used + leaf.size].reshape(leaf.shape)
                used += leaf.size
            else:
                filled[name] = jnp.full(leaf.shape, float(name == "scale"), leaf.dtype)
        return filled

    return fill(shapes)


def prior_logits(spec: ModelSpec, stride: int) -> Array:
    """What a level's bias starts from, ``(anchors * (5 + classes),)``: 8 objects in an image of 640 px, spread over all cells, and classes alike."""
    prior = [0.0] * 4 + [math.log(8 / (640 / stride) ** 2)] + [math.log(0.6 / (spec.classes - 0.99999))] * spec.classes
    return jnp.tile(jnp.asarray(prior, jnp.float32), len(spec.anchors[0]))


def _initial_statistic(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.ShapeDtypeStruct) -> Array:
    # The original measures its strides with a forward pass on zeros before it sets the momentum of .03; .9 is what that leaves of the variance.
    return jnp.full(leaf.shape, 0.9 if path[-1].key == "var" else 0.0, leaf.dtype)
