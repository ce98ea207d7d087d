"""All that a training step reads and writes."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from yolojax.mesh import replicated
from yolojax.training.optimizer import OptimizerSettings, make_optimizer
from yolojax.training.schedule import Rates

Tree = Any


@flax.struct.dataclass
class TrainState:
    """The state of a run; the step consumes it and returns the next one.

    Attributes:
      step: int32, iterations done.
      params: network parameters.
      batch_stats: BatchNorm statistics.
      ema_params: moving average of ``params``.
      ema_batch_stats: moving average of ``batch_stats``.
      opt_state: no array for frozen leaves.
      ema_updates: int32, optimizer updates done.
      last_update: int32, iteration of the last optimizer update, -1 before the first.
    """

    step: Array
    params: Tree
    batch_stats: Tree
    ema_params: Tree
    ema_batch_stats: Tree
    opt_state: Any
    ema_updates: Array
    last_update: Array


def create_state(
    variables: dict[str, Tree], labels: Tree, settings: OptimizerSettings, mesh: Mesh | None = None
) -> TrainState:
    """The state at the start of a run.

    Args:
      variables: ``{"params": ..., "batch_stats": ...}``; copied, so the caller's arrays outlive the donated state.
      labels: tree of ``frozen`` or the name of a trainable group.
      settings: of the optimizer.
      mesh: devices to replicate the state on; None leaves it on the default one.
    """
    create = jax.jit(_create(labels, settings), out_shardings=None if mesh is None else replicated(mesh))
    return create(variables)


def abstract_state(variables: dict[str, Tree], labels: Tree, settings: OptimizerSettings) -> TrainState:
    """Shapes and dtypes of ``create_state``, without computing anything; ``variables`` may be abstract too."""
    return jax.eval_shape(_create(labels, settings), variables)


def _create(labels: Tree, settings: OptimizerSettings) -> Any:
    def create(variables: dict[str, Tree]) -> TrainState:
        params, batch_stats = variables["params"], variables["batch_stats"]
        still = Rates(*jnp.zeros((4,)))
        return TrainState(
            step=jnp.int32(0),
            params=_copy(params),
            batch_stats=_copy(batch_stats),
            ema_params=_copy(params),
            ema_batch_stats=_copy(batch_stats),
            opt_state=make_optimizer(labels, settings, still).init(params),
            ema_updates=jnp.int32(0),
            last_update=jnp.int32(-1),
        )

    return create


def _copy(tree: Tree) -> Tree:
    return jax.tree.map(jnp.copy, tree)


def decay(updates: Array) -> tuple[Array, Array]:
    """Weights of the old average and of the new value at the ``updates``-th update (counted from 1): d = .9999 (1 − exp(−n / 2000)), and 1 − d.

    Both are computed, because subtracting a float32 ``d`` near 1 from 1 loses most digits. Source: ``docs/yolov5.md`` §1.6.
    """
    age = -updates / 2000
    return -0.9999 * jnp.expm1(age), 0.0001 + 0.9999 * jnp.exp(age)


def update_average(average: Tree, values: Tree, moving: Tree, updates: Array, ready: Array | bool = True) -> Tree:
    """Move an average towards new values.

    Args:
      average: tree of float arrays.
      values: same structure.
      moving: same structure of Python booleans; leaves where it is false pass through untouched (``d·e + (1−d)·p`` changes bits even where e = p).
      updates: int32 scalar, number of this update, from 1.
      ready: bool scalar; nothing moves where it is false.
    """
    keep, take = decay(updates)

    def leaf(moves: bool, old: Array, new: Array) -> Array:
        if not moves:
            return old
        return jnp.where(ready, old * keep.astype(old.dtype) + new * take.astype(old.dtype), old)

    return jax.tree.map(leaf, moving, average, values)
