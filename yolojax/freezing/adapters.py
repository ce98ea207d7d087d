"""Low-rank adapters: a frozen convolution kernel plus a small product that trains.

An adapter is a pair of arrays beside its kernel: ``down`` ``(height * width * inputs, rank)`` and ``up``
``(rank, outputs)``, and a number ``scale`` where it is not 1. While they train, the network computes them as two small convolutions beside the frozen one
(``model.layers``), so that no gradient of the frozen kernel's size is ever made; ``merge_adapters`` gives the plain parameters of the same value, to
validate and to save.

Source: Hu et al. 2021 (arXiv:2106.09685); on convolutions: arXiv:2410.16954.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from yolojax.errors import UserError
from yolojax.tree import Tree, flatten, unflatten


@dataclass(frozen=True)
class Adapter:
    """The form of an adapter: its rank, and what its product is multiplied with (α / rank)."""

    rank: int
    scale: float = 1.0


def adapter_paths(kernel: str) -> tuple[str, str]:
    """Where the adapter of a kernel lies.

    >>> adapter_paths("model_0/conv/kernel")
    ('model_0/conv/adapter/down', 'model_0/conv/adapter/up')
    """
    folder = kernel.rpartition("/")[0]
    return f"{folder}/adapter/down", f"{folder}/adapter/up"


def scale_path(kernel: str) -> str:
    """Where the scale of a kernel's adapter lies, if it is not 1; it does not train."""
    return f"{kernel.rpartition('/')[0]}/adapter/scale"


def is_adapter(path: str) -> bool:
    """Whether a path is part of an adapter."""
    return "/adapter/" in path


def is_kernel(path: str) -> bool:
    """Whether a path is a kernel, which is what can have an adapter."""
    return path.endswith("/kernel")


def add_adapters(params: Mapping[str, Any], adapters: Mapping[str, Adapter], key: jax.Array) -> Tree:
    """Parameters with adapters that change nothing yet: ``up`` is zero.

    Args:
      params: nested dict; its leaves pass by identity.
      adapters: by the path of the kernel to adapt, each ``(height, width, inputs, outputs)``.
      key: a JAX random key for ``down``, uniform in ±1/√(height * width * inputs).

    Raises:
      UserError: the rank is not below the full rank of a kernel.
    """
    leaves = flatten(params)
    kernels = sorted(adapters)
    for kernel, own_key in zip(kernels, jax.random.split(key, len(kernels)), strict=True):
        array = leaves[kernel]
        rows, columns, rank = math.prod(array.shape[:-1]), array.shape[-1], adapters[kernel].rank
        if rank >= min(rows, columns):
            raise UserError(
                f"rank {rank}: {kernel} is a {rows} x {columns} matrix; choose a rank below {min(rows, columns)}"
            )
        down, up = adapter_paths(kernel)
        bound = 1 / math.sqrt(rows)
        leaves[down] = jax.random.uniform(own_key, (rows, rank), array.dtype, -bound, bound)
        leaves[up] = jnp.zeros((rank, columns), array.dtype)
        if adapters[kernel].scale != 1:
            leaves[scale_path(kernel)] = jnp.asarray(adapters[kernel].scale, array.dtype)
    return unflatten(leaves)


def merge_adapters(params: Mapping[str, Any]) -> Tree:
    """The plain parameters that the network is applied to; without adapters, the same leaves.

    Args:
      params: nested dict, with or without adapters.

    Returns:
      Nested dict without adapters, ``kernel + scale * down @ up`` for each that had one.
    """
    leaves = flatten(params)
    plain = {path: leaf for path, leaf in leaves.items() if not is_adapter(path)}
    for path, leaf in plain.items():
        down, up = adapter_paths(path)
        if is_kernel(path) and down in leaves:
            product = jnp.matmul(leaves[down], leaves[up], precision="highest").reshape(leaf.shape)
            plain[path] = leaf + product * leaves.get(scale_path(path), 1)
    return unflatten(plain)


def merge_adapters_on_host(params: Mapping[str, Any]) -> Tree:
    """``merge_adapters`` in double precision, rounded once: the same bits on every machine, for what is saved.

    Args:
      params: nested dict of arrays; without adapters its leaves pass by identity.

    Returns:
      Nested dict without adapters; merged kernels are NumPy arrays of the kernel's dtype.
    """
    leaves = flatten(params)
    plain = {path: leaf for path, leaf in leaves.items() if not is_adapter(path)}
    for path, leaf in plain.items():
        down, up = adapter_paths(path)
        if is_kernel(path) and down in leaves:
            factors = (np.asarray(leaves[place], np.float64) for place in (down, up))
            product = np.einsum("ir,ro->io", *factors).reshape(leaf.shape)
            scale = float(leaves.get(scale_path(path), 1))
            plain[path] = (np.asarray(leaf, np.float64) + scale * product).astype(leaf.dtype)
    return unflatten(plain)
