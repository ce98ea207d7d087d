"""BatchNorm folded into the kernels before it: fewer arrays and less arithmetic when a network only predicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax import Array

from yolojax.model.convolution import convolve
from yolojax.model.layers import Conv
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


def apply_fused(network: Network, variables: Variables, images: Array) -> tuple[Array, ...]:
    """``network.apply`` for the result of ``fuse``: every ``Conv`` is a convolution with bias, then SiLU."""

    def without_norm(
        call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext
    ) -> Any:
        module = context.module
        if not isinstance(module, Conv) or context.method_name != "__call__":
            return call(*args, **kwargs)
        folded = jax.tree.map(lambda leaf: leaf.astype(args[0].dtype), module.variables["params"]["conv"])
        return nn.silu(convolve(args[0], folded["kernel"], module.stride, module.padding) + folded["bias"])

    with nn.intercept_methods(without_norm):
        heads: Any = network.apply(variables, images)
    return heads
