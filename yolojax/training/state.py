"""What a training step reads and writes, and how it passes from one freezing phase to the next.

Parameters that train, statistics that move and their averages are consumed and returned by every step. What rests meanwhile (frozen parameters, fixed
statistics, their averages) is only read: it is given to a step and not returned, so that it costs no copy, no second buffer and no time of Python.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.training.dynamic_scale import DynamicScale
from jax import Array
from jax.sharding import Mesh

from yolojax.freezing.adapters import add_adapters, is_adapter, merge_adapters
from yolojax.freezing.labels import trainable_mask
from yolojax.freezing.phases import Phase
from yolojax.mesh import place_everywhere, replicated
from yolojax.model.network import Variables
from yolojax.training.optimizer import OptimizerSettings, make_optimizer
from yolojax.training.schedule import Rates
from yolojax.tree import Tree, flatten, map_with_path, merge, partition

FIRST_SCALE = 65536.0  # as PyTorch starts


class WholeState(NamedTuple):
    """The state of a run as checkpoints keep it: nothing tells what trains from what rests.

    Attributes:
      step: int32, iterations done.
      params: network parameters.
      batch_stats: BatchNorm statistics.
      ema_params: moving average of ``params``.
      ema_batch_stats: moving average of ``batch_stats``.
      opt_state: no array for frozen leaves.
      ema_updates: int32, optimizer updates done.
      last_update: int32, iteration of the last optimizer update, -1 before the first.
      loss_scale: by which the loss is multiplied where the computation is in float16; None elsewhere.
    """

    step: Array
    params: Tree
    batch_stats: Tree
    ema_params: Tree
    ema_batch_stats: Tree
    opt_state: Any
    ema_updates: Array
    last_update: Array
    loss_scale: DynamicScale | None = None


class Resting(NamedTuple):
    """The leaves that a phase leaves alone, ``None`` where one moves; names as in ``WholeState``.

    ``teacher`` is no part of that: the variables of another network, which the loss of a step reads; see ``loss.LossSettings``.
    """

    params: Tree
    batch_stats: Tree
    ema_params: Tree
    ema_batch_stats: Tree
    teacher: Variables | None = None


@flax.struct.dataclass
class TrainState:
    """The state of a run during a phase.

    Attributes:
      moving: what a step consumes and returns; ``None`` where a leaf rests.
      resting: what a step only reads.
    """

    moving: WholeState
    resting: Resting

    @property
    def whole(self) -> WholeState:
        """All leaves of all trees."""
        joined: dict[str, Any] = {
            name: merge(getattr(self.moving, name), tree)
            for name, tree in self.resting._asdict().items()
            if name != "teacher"
        }
        return self.moving._replace(**joined)

    @property
    def averages(self) -> Variables:
        """The averaged parameters and statistics, adapters beside their kernels."""
        whole = self.whole
        return {"params": whole.ema_params, "batch_stats": whole.ema_batch_stats}

    @property
    def resting_paths(self) -> frozenset[str]:
        """What rests, with its collection: ``params/model_0/conv/kernel``."""
        trees = {"params": self.resting.params, "batch_stats": self.resting.batch_stats}
        return frozenset(path for path, leaf in flatten(trees).items() if leaf is not None)

    @property
    def params(self) -> Tree:
        """All parameters."""
        return merge(self.moving.params, self.resting.params)


def moving_statistics(batch_stats: Tree, fixed_bn: Collection[str]) -> Tree:
    """A mask of the statistics that move: all but those of the modules in ``fixed_bn``."""
    return map_with_path(lambda path, _: path.rpartition("/")[0] not in fixed_bn, batch_stats)


def divide(whole: WholeState, labels: Tree, fixed_bn: Collection[str] = ()) -> TrainState:
    """Tell what moves in a phase from what rests.

    Args:
      whole: arrays or their shapes.
      labels: tree of ``frozen`` or the name of a trainable group, structure of the parameters.
      fixed_bn: BatchNorm modules that keep their statistics.
    """
    trains, moves = trainable_mask(labels), moving_statistics(whole.batch_stats, fixed_bn)
    masks = {"params": trains, "batch_stats": moves, "ema_params": trains, "ema_batch_stats": moves}
    parts = {name: partition(getattr(whole, name), mask) for name, mask in masks.items()}
    moving: dict[str, Any] = {name: part for name, (part, _) in parts.items()}
    return TrainState(whole._replace(**moving), Resting(**{name: part for name, (_, part) in parts.items()}))


def share_averages(state: TrainState) -> TrainState:
    """Let a resting average with the bits of its value be the same array: a layer that never trained is in memory once."""

    def leaf(value: Array, average: Array) -> Array:
        return value if np.asarray(value).tobytes() == np.asarray(average).tobytes() else average

    resting = state.resting
    shared = resting._replace(
        ema_params=jax.tree.map(leaf, resting.params, resting.ema_params),
        ema_batch_stats=jax.tree.map(leaf, resting.batch_stats, resting.ema_batch_stats),
    )
    return TrainState(state.moving, shared)


def create_state(
    variables: Variables,
    labels: Tree,
    settings: OptimizerSettings,
    mesh: Mesh | None = None,
    fixed_bn: Collection[str] = (),
    scaled: bool = False,
) -> TrainState:
    """The state at the start of a run.

    Args:
      variables: ``{"params": ..., "batch_stats": ...}``; the caller's arrays outlive the state.
      labels: tree of ``frozen`` or the name of a trainable group.
      settings: of the optimizer.
      mesh: devices to replicate the state on; None leaves it on the default one.
      fixed_bn: BatchNorm modules that keep their statistics.
      scaled: whether the loss is scaled, for a computation in float16.
    """
    placed = jax.device_put(variables) if mesh is None else place_everywhere(variables, mesh)
    return separate(divide(_start(placed, labels, settings, scaled), labels, fixed_bn), mesh)


def separate(state: TrainState, mesh: Mesh | None) -> TrainState:
    """Give what moves arrays of its own, because a step consumes them."""
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=None if mesh is None else replicated(mesh))
    return TrainState(copy(state.moving), state.resting)


def abstract_state(
    variables: Variables,
    labels: Tree,
    settings: OptimizerSettings,
    fixed_bn: Collection[str] = (),
    scaled: bool = False,
) -> TrainState:
    """Shapes and dtypes of ``create_state``, without computing anything; ``variables`` may be abstract too."""
    whole = jax.eval_shape(lambda arrays: _start(arrays, labels, settings, scaled), variables)
    return divide(whole, labels, fixed_bn)


def _start(variables: Variables, labels: Tree, settings: OptimizerSettings, scaled: bool) -> WholeState:
    params, batch_stats = variables["params"], variables["batch_stats"]
    still = Rates(*jnp.zeros((4,)))
    initialise = jax.jit(make_optimizer(labels, settings, still).init)  # one program, and not one for every shape
    return WholeState(
        step=jnp.int32(0),
        params=params,
        batch_stats=batch_stats,
        ema_params=params,
        ema_batch_stats=batch_stats,
        opt_state=initialise(params),
        ema_updates=jnp.int32(0),
        last_update=jnp.int32(-1),
        loss_scale=DynamicScale(fin_steps=jnp.int32(0), scale=jnp.float32(FIRST_SCALE)) if scaled else None,
    )


def enter_phase(variables: Variables, phase: Phase, key: Array) -> Variables:
    """The variables that a phase trains: plain ones, with adapters where it has them."""
    params = merge_adapters(variables["params"])
    if phase.adapters:
        params = add_adapters(params, phase.adapters, key)
    return {**variables, "params": params}


def change_phase(
    state: TrainState,
    phase: Phase,
    settings: OptimizerSettings,
    key: Array,
    mesh: Mesh | None,
    fixed_bn: Collection[str] = (),
) -> TrainState:
    """The state at the start of another phase.

    Moments of parameters that train before and after carry over bit for bit; those that thaw start fresh. Averages, statistics and counters
    carry over. Adapters of the old phase are merged into their kernels, those of the new one start at no effect. ``fixed_bn`` are the BatchNorm
    modules that keep their statistics in the new phase.
    """
    whole = state.whole
    params, averages = whole.params, whole.ema_params
    if phase.adapters or any(is_adapter(path) for path in flatten(params)):
        params, averages = (enter_phase({"params": tree}, phase, key)["params"] for tree in (params, averages))
    fresh = create_state({"params": params, "batch_stats": whole.batch_stats}, phase.tree(), settings, mesh).moving
    kept = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(whole.opt_state)[0]}
    opt_state = jax.tree_util.tree_map_with_path(
        lambda path, leaf: kept.get(jax.tree_util.keystr(path), leaf), fresh.opt_state
    )
    changed = whole._replace(params=params, ema_params=averages, opt_state=opt_state)
    return separate(divide(changed, phase.tree(), fixed_bn), mesh)


def decay(updates: Array) -> tuple[Array, Array]:
    """Weights of the old average and of the new value at the ``updates``-th update (counted from 1): d = .9999 (1 − exp(−n / 2000)), and 1 − d.

    Both are computed, because subtracting a float32 ``d`` near 1 from 1 loses most digits. Source: ``docs/yolov5.md`` §1.6.
    """
    age = -updates / 2000
    return -0.9999 * jnp.expm1(age), 0.0001 + 0.9999 * jnp.exp(age)


def update_average(average: Tree, values: Tree, updates: Array, ready: Array | bool = True) -> Tree:
    """Move an average towards new values. (Not for what rests: ``d·e + (1−d)·p`` changes bits even where e = p.)

    Args:
      average: tree of float arrays.
      values: same structure.
      updates: int32 scalar, number of this update, from 1.
      ready: bool scalar; nothing moves where it is false.
    """
    keep, take = decay(updates)

    def leaf(old: Array, new: Array) -> Array:
        return jnp.where(ready, old * keep.astype(old.dtype) + new * take.astype(old.dtype), old)

    return jax.tree.map(leaf, average, values)
