"""What devices tell each other that share a batch: how a function runs on the share of each, and how their results become one.

They run under ``shard_map``, so that every reduction is written by us and not found by the compiler: here, in ``model/normalisation.py`` (two small ones for
each BatchNorm whose statistics are those of the whole batch) and in ``training/loss.py`` (the number of boxes).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike

from yolojax.mesh import AXIS
from yolojax.tree import Tree


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What devices that share a batch tell each other in a step.

    Attributes:
      sync_bn: BatchNorm's statistics and the means of the loss are those of the whole batch. Else each device takes those of its own share, as YOLOv5
        does under DDP, and only gradients, metrics and running statistics are reduced, at the end of the step; the running statistics become the
        means of what each device has.
      gradient_sum: dtype in which the gradients of kernels are added up; those of vectors (BatchNorm, biases) are added up in their own.
    """

    sync_bn: bool = True
    gradient_sum: str = "float32"

    @classmethod
    def of_flags(cls, sync_bn: str, gradient_sum: str, dtype: DTypeLike | None) -> Exchange:
        """What ``--sync-bn`` and ``--gradient-sum`` mean for a computation in ``dtype``; None is float32."""
        if gradient_sum == "auto":
            narrow = dtype is not None and jnp.dtype(dtype) == jnp.bfloat16
            gradient_sum = "bfloat16" if narrow else "float32"
        return cls(sync_bn=sync_bn == "on", gradient_sum=gradient_sum)


WHOLE_BATCH = Exchange()


def on_shares(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """A function that runs on each device of a mesh: its last argument is divided among them along the first axis, all others are the same everywhere.

    What it returns must be the same everywhere, which is checked when it is traced.
    """

    def whole(*arguments: Any) -> Any:
        specs = (*[PartitionSpec()] * (len(arguments) - 1), PartitionSpec(AXIS))
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())(*arguments)

    return whole


def varying(tree: Any) -> Any:
    """A tree with the same values, as some that may differ between the devices of ``on_shares``."""
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, AXIS, to="varying"), tree)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def give(dtype: DTypeLike, params: Tree) -> Tree:
    """Give every device of ``on_shares`` the parameters; the gradient of that is the sum of what they send back, kernels in ``dtype``."""
    return varying(params)


def _give_forward(dtype: DTypeLike, params: Tree) -> tuple[Tree, None]:
    return give(dtype, params), None


def _give_backward(dtype: DTypeLike, _: None, gradients: Tree) -> tuple[Tree]:
    def sent(gradient: Array) -> Array:
        return gradient.astype(dtype) if gradient.ndim > 1 else gradient

    summed = jax.lax.psum(jax.tree.map(sent, gradients), AXIS)
    return (jax.tree.map(lambda total, gradient: total.astype(gradient.dtype), summed, gradients),)


give.defvjp(_give_forward, _give_backward)
