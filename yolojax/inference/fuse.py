"""BatchNorm folded into the kernels before it: fewer arrays and less arithmetic when a network only predicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from yolojax.model.convolution import convolve
from yolojax.model.layers import SPPF, Conv
from yolojax.model.network import Network, Variables
from yolojax.model.normalisation import EPSILON


def fuse(variables: Variables) -> Variables:
    """Fold every BatchNorm into the convolution before it.

    ``scale * (kernel @ x - mean) / sqrt(var + epsilon) + bias`` is ``kernel' @ x + bias'``. Computed in float64, so that the folding itself is exact to the
    precision of the result.

    Args:
      variables: ``params`` and ``batch_stats`` of a network.

    Returns:
      ``{"params": ...}`` of the same dtypes, with ``conv/bias`` instead of ``bn``, without ``batch_stats``; for ``apply_fused``.

    Source: ``docs/yolov5.md`` §1.1, fusion for inference.
    """
    return {"params": _fold(variables["params"], variables.get("batch_stats", {}))}


def _fold(params: Mapping[str, Any], statistics: Mapping[str, Any]) -> dict[str, Any]:
    if "bn" not in params:
        return {
            name: _fold(part, statistics.get(name, {})) if isinstance(part, Mapping) else part
            for name, part in params.items()
        }
    kernel = np.asarray(params["conv"]["kernel"])
    scale, bias, mean, var = (
        np.asarray(array, np.float64)
        for array in (params["bn"]["scale"], params["bn"]["bias"], statistics["bn"]["mean"], statistics["bn"]["var"])
    )
    factor = scale / np.sqrt(var + EPSILON)
    return {
        "conv": {"kernel": (kernel * factor).astype(kernel.dtype), "bias": (bias - mean * factor).astype(kernel.dtype)}
    }


def apply_fused(network: Network, variables: Variables, images: Array, sizes: Array | None = None) -> tuple[Array, ...]:
    """``network.apply`` for the result of ``fuse``: every ``Conv`` is a convolution with bias, then SiLU.

    Args:
      network: the network.
      variables: of ``fuse``.
      images: ``(B, H, W, 3)`` float.
      sizes: ``(B, 2)`` int, height and width in whole strides of the upper left part of each image that counts; None: all of it. What lies beside that part is
        to every layer what lies beside an image, so that the part gets the logits that it would get alone.

    Returns:
      Heads as of the network; beside the parts that count with -infinity for an object, else anything.
    """

    def inside(x: Array) -> Array:
        """Whether a place of ``(B, H, W, …)`` is within the part that counts, ``(B, H, W, 1)``."""
        assert sizes is not None
        stride = images.shape[1] // x.shape[1]
        rows, columns = (jnp.arange(x.shape[axis]) < sizes[:, axis - 1, None] // stride for axis in (1, 2))
        return (rows[:, :, None] & columns[:, None, :])[..., None]

    def among_zeros(x: Array) -> Array:
        # One factor for all layers of a stride: on a CPU it costs nothing, where a choice in each of them takes a tenth of the time.
        return x if sizes is None else x * jax.lax.optimization_barrier(inside(x).astype(x.dtype))

    def among(x: Array, beside: float) -> Array:
        return x if sizes is None else jnp.where(inside(x), x, beside)

    def without_norm(
        call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext
    ) -> Any:
        module = context.module
        if not isinstance(module, Conv) or context.method_name != "__call__":
            return call(*args, **kwargs)
        folded = jax.tree.map(lambda leaf: leaf.astype(args[0].dtype), module.variables["params"]["conv"])
        x = among_zeros(args[0]) if module.kernel > 1 else args[0]  # a 1×1 reads nothing beside a place
        y = nn.silu(convolve(x, folded["kernel"], module.stride, module.padding) + folded["bias"])
        if isinstance(module.parent, SPPF):  # beside what is pooled lies the least of all numbers
            return among(y, -jnp.inf if module.name == "cv1" else 0)
        return y

    with nn.intercept_methods(without_norm):
        heads: Any = network.apply(variables, images)
    return tuple(head.at[..., 4].set(among(head[..., 4], -jnp.inf)) for head in heads)
