"""All that a training step reads and writes, and how it passes from one freezing phase to the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from yolojax.freezing.adapters import add_adapters, is_adapter, merge_adapters
from yolojax.freezing.phases import Phase
from yolojax.mesh import replicated
from yolojax.model.network import Variables
from yolojax.training.optimizer import OptimizerSettings, make_optimizer
from yolojax.training.schedule import Rates
from yolojax.tree import Tree, flatten


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
    variables: Variables, labels: Tree, settings: OptimizerSettings, mesh: Mesh | None = None
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


def abstract_state(variables: Variables, labels: Tree, settings: OptimizerSettings) -> TrainState:
    """Shapes and dtypes of ``create_state``, without computing anything; ``variables`` may be abstract too."""
    return jax.eval_shape(_create(labels, settings), variables)


def _create(labels: Tree, settings: OptimizerSettings) -> Callable[[Variables], TrainState]:
    def create(variables: Variables) -> TrainState:
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


def enter_phase(variables: Variables, phase: Phase, key: Array) -> Variables:
    """The variables that a phase trains: plain ones, with adapters where it has them."""
    kernels = [
        path.removesuffix("adapter/down") + "kernel" for path, _ in phase.labels if path.endswith("adapter/down")
    ]
    params = merge_adapters(variables["params"])
    return {**variables, "params": add_adapters(params, kernels, phase.adapter_rank, key) if kernels else params}


def change_phase(
    state: TrainState, phase: Phase, settings: OptimizerSettings, key: Array, mesh: Mesh | None
) -> TrainState:
    """The state at the start of another phase.

    Moments of parameters that train before and after carry over bit for bit; those that thaw start fresh. Averages, statistics and counters
    carry over. Adapters of the old phase are merged into their kernels, those of the new one start at no effect.
    """
    if phase.adapter_rank or any(is_adapter(path) for path in flatten(state.params)):
        variables = enter_phase({"params": state.params, "batch_stats": state.batch_stats}, phase, key)
        averages = enter_phase({"params": state.ema_params, "batch_stats": state.ema_batch_stats}, phase, key)
    else:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        averages = {"params": state.ema_params}
    fresh = create_state(variables, phase.tree(), settings, mesh)
    kept = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state.opt_state)[0]}
    opt_state = jax.tree_util.tree_map_with_path(
        lambda path, leaf: kept.get(jax.tree_util.keystr(path), leaf), fresh.opt_state
    )
    return dataclasses.replace(state, params=fresh.params, ema_params=averages["params"], opt_state=opt_state)


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
