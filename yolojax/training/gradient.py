"""Loss and gradient of a batch: of one device, or of several that compute a share each.

Devices that share a batch run under ``shard_map``, so that what they tell each other is written here and in ``model/normalisation.py``, and not found by the
compiler: two small reductions for every BatchNorm whose statistics are those of the whole batch, the boxes of the batch, and at the end the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.training.dynamic_scale import DynamicScale
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike

from yolojax.mesh import AXIS
from yolojax.model.images import normalise
from yolojax.model.network import Network
from yolojax.training.loss import LossSettings, compute_loss
from yolojax.training.state import Resting, WholeState, moving_statistics
from yolojax.tree import Tree, merge, partition


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


class Gradient(NamedTuple):
    """What a batch says.

    Attributes:
      loss: times the batch size.
      parts: of the loss, by name.
      batch_stats: statistics that move, after the batch.
      gradients: of what trains.
      loss_scale: for the next batch; None where the loss is not scaled.
      counts: whether no gradient left float16.
    """

    loss: Array
    parts: dict[str, Array]
    batch_stats: Tree
    gradients: Tree
    loss_scale: DynamicScale | None
    counts: Array | bool


def make_gradient(
    network: Network, loss: LossSettings, mesh: Mesh | None, exchange: Exchange
) -> Callable[[WholeState, Resting, Mapping[str, Any], tuple[int, int] | None], Gradient]:
    """The function ``(moving, resting, batch, size) -> Gradient`` of a step; arguments as of ``step.make_train_step``."""
    shared = mesh is not None and mesh.size > 1
    axis = AXIS if shared and exchange.sync_bn else None
    network = network.clone(axis=axis)
    give = partial(_give, jnp.dtype(exchange.gradient_sum)) if shared else _keep

    def share(
        params: Tree, statistics: Tree, scale: DynamicScale | None, resting: Resting, batch: Any, size: Any
    ) -> Gradient:
        images = _network_images(batch["images"], jnp.result_type(*jax.tree.leaves(params)), size)
        resting = jax.tree.map(_varying, resting) if shared else resting
        before = merge(statistics, resting.batch_stats)

        def forward(learned: Tree) -> tuple[Array, tuple[dict[str, Array], Tree]]:
            variables = {"params": merge(give(learned), resting.params), "batch_stats": before}
            heads, mutated = network.apply(variables, images, train=True, mutable=["batch_stats"])
            total, parts = compute_loss(heads, batch["boxes"], batch["mask"], network.spec, loss, axis=axis)
            return total, (parts, mutated["batch_stats"])

        counts: Array | bool = True
        if scale is None:
            (total, (parts, after)), gradients = jax.value_and_grad(forward, has_aux=True)(params)
        else:
            scale, counts, (total, (parts, after)), gradients = scale.value_and_grad(forward, has_aux=True)(params)
        after, _ = partition(after, moving_statistics(after, network.fixed_bn))
        if shared:
            total = jax.lax.psum(total, AXIS)
            parts = jax.lax.psum(parts, AXIS) if axis else jax.lax.pmean(parts, AXIS)
            after = after if axis else jax.lax.pmean(after, AXIS)
        return Gradient(total, parts, after, gradients, scale, counts)

    def whole(moving: WholeState, resting: Resting, batch: Mapping[str, Any], size: tuple[int, int] | None) -> Gradient:
        function = partial(share, size=size)
        if shared:
            same, divided = PartitionSpec(), PartitionSpec(AXIS)
            function = jax.shard_map(function, mesh=mesh, in_specs=(same, same, same, same, divided), out_specs=same)
        return function(moving.params, moving.batch_stats, moving.loss_scale, resting, dict(batch))

    return whole


def _keep(params: Tree) -> Tree:
    return params


def _varying(leaf: Array) -> Array:
    return jax.lax.pcast(leaf, AXIS, to="varying")


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _give(dtype: DTypeLike, params: Tree) -> Tree:
    """Give every device the parameters; the gradient of that is the sum of what they send back."""
    return jax.tree.map(_varying, params)


def _give_forward(dtype: DTypeLike, params: Tree) -> tuple[Tree, None]:
    return _give(dtype, params), None


def _give_backward(dtype: DTypeLike, _: None, gradients: Tree) -> tuple[Tree]:
    def sent(gradient: Array) -> Array:
        return gradient.astype(dtype) if gradient.ndim > 1 else gradient

    summed = jax.lax.psum(jax.tree.map(sent, gradients), AXIS)
    return (jax.tree.map(lambda total, gradient: total.astype(gradient.dtype), summed, gradients),)


_give.defvjp(_give_forward, _give_backward)


def _network_images(images: Array, dtype: Any, size: tuple[int, int] | None) -> Array:
    """Bytes to 0…1, resized bilinearly if a size is given."""
    scaled = normalise(images, dtype)
    if size is None or size == images.shape[1:3]:
        return scaled
    return jax.image.resize(scaled, (len(images), *size, 3), "linear", antialias=False)
