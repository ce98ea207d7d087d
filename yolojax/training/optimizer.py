"""The optimizer: a label tree decides which leaves it touches, everything it does to a gradient lives inside the trainable labels.

It is built inside the jitted step, around rates that are traced values; the structure of its state does not depend on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from yolojax.freezing.labels import FROZEN, TRAINABLE
from yolojax.hyperparameters import Hyperparameters
from yolojax.training.schedule import NOMINAL_BATCH, Rates
from yolojax.tree import Tree, map_with_path


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """What does not change during a run.

    Attributes:
      name: kind of optimizer.
      weight_decay: per update, on convolution kernels only; already scaled to the batch.
      momentum: β₁ of Adam and AdamW; that of SGD is warmed up and comes with the rates.
      clip: greatest norm of the gradient of all trainable leaves together.
      accumulates: whether an update may sum several batches; if not, no buffer is kept for it.
    """

    name: Literal["SGD", "Adam", "AdamW"] = "SGD"
    weight_decay: float = 0.0005
    momentum: float = 0.937
    clip: float = 10.0
    accumulates: bool = True

    @classmethod
    def from_hyperparameters(
        cls,
        hyp: Hyperparameters,
        *,
        batch_size: int,
        name: Literal["SGD", "Adam", "AdamW"] = "SGD",
    ) -> OptimizerSettings:
        """The optimizer that a hyperparameter file asks for.

        Its weight decay is scaled to the images per update. Source: ``docs/yolov5.md`` §0.5.
        """
        accumulate = max(round(NOMINAL_BATCH / batch_size), 1)
        return cls(
            name=name,
            weight_decay=hyp.weight_decay * batch_size * accumulate / NOMINAL_BATCH,
            momentum=hyp.momentum,
            accumulates=accumulate > 1,
        )


def make_optimizer(
    labels: Tree,
    settings: OptimizerSettings,
    rates: Rates,
    factors: Mapping[str, Any] | None = None,
    ready: Array | bool = True,
    restart: Array | bool = False,
) -> optax.GradientTransformation:
    """The transformation of one iteration, around that iteration's rates.

    (``optax.inject_hyperparams`` would make every rate an array of the state, to be saved with it and set anew before each step.)

    Args:
      labels: tree of ``frozen`` or the name of a trainable group, structure of the parameters.
      settings: fixed for the run.
      rates: scalars, may be traced, in the dtype of the parameters.
      factors: learning-rate factor by label, may be traced; 1 for labels not listed.
      ready: bool scalar: update with the gradients summed so far. Where false they are kept and the updates are zero.
      restart: bool scalar: forget gradients summed before (the first batch of an epoch, ``docs/yolov5.md`` §0.12).

    Returns:
      A transformation whose updates are to be added to the parameters. Gradients of frozen leaves may be anything; their updates are zero and
      its state holds no array for them.

    Source: ``docs/yolov5.md`` §1.5.
    """
    own_factors = map_with_path(lambda _, label: (factors or {}).get(label, 1.0), labels)
    steps = [clip_by_norm(settings.clip), *_direction(settings, rates), _scale_by_rates(rates, own_factors)]
    trainable = optax.chain(*steps)
    if settings.accumulates:
        trainable = sum_gradients(trainable, ready, restart)
    kinds = map_with_path(lambda _, label: FROZEN if label == FROZEN else TRAINABLE, labels)
    return optax.multi_transform({TRAINABLE: trainable, FROZEN: optax.set_to_zero()}, kinds)


def _direction(settings: OptimizerSettings, rates: Rates) -> list[optax.GradientTransformation]:
    decay = optax.add_decayed_weights(settings.weight_decay, mask=_is_decayed)
    adam = leaf_by_leaf(optax.scale_by_adam(b1=settings.momentum, b2=0.999, eps=1e-8))
    match settings.name:
        case "SGD":
            return [decay, optax.trace(decay=rates.momentum, nesterov=True)]
        case "Adam":
            return [decay, adam]
        case "AdamW":
            return [adam, decay]


def _is_decayed(tree: Tree) -> Tree:
    """True for weights other than those of BatchNorm."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in ("bias", "scale"), tree)


def _scale_by_rates(rates: Rates, factors: Tree) -> optax.GradientTransformation:
    """Multiply by minus the learning rate: biases (BatchNorm's too) have one of their own during the warm-up."""

    def leaf(path: Any, update: Array) -> Array:
        factor: Any = factors
        for key in path:
            factor = factor[key.key]
        rate = rates.bias_learning_rate if path[-1].key == "bias" else rates.learning_rate
        return update * (-rate * factor)

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(leaf, updates))


def clip_by_norm(limit: float) -> optax.GradientTransformation:
    """Scale a gradient by ``min(1, limit / (norm + 1e-6))``, as PyTorch clips; optax leaves the 1e-6 out."""

    def update(updates: optax.Updates, _: optax.Updates) -> optax.Updates:
        scale = jnp.minimum(limit / (optax.tree.norm(updates) + 1e-6), 1)
        return jax.tree.map(lambda gradient: gradient * scale, updates)

    return optax.stateless(update)


def leaf_by_leaf(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Give every leaf a state of its own, so that one which starts to train later has Adam's count of its own updates."""

    def update(
        updates: optax.Updates, states: optax.Updates, _: optax.Updates | None = None
    ) -> tuple[optax.Updates, optax.Updates]:
        tree: Any = jax.tree.structure(updates)
        leaves = jax.tree.leaves(updates)
        pairs = [inner.update(leaf, state) for leaf, state in zip(leaves, tree.flatten_up_to(states), strict=True)]
        moves, states = zip(*pairs, strict=True)
        return jax.tree.unflatten(tree, moves), jax.tree.unflatten(tree, states)

    return optax.GradientTransformation(lambda params: jax.tree.map(inner.init, params), update)


class SumState(NamedTuple):
    """State of ``sum_gradients``: the sum so far and the state of what it feeds."""

    total: optax.Updates
    inner: Any


def sum_gradients(
    inner: optax.GradientTransformation, ready: Array | bool, restart: Array | bool
) -> optax.GradientTransformation:
    """Feed ``inner`` with the sum of the gradients since its last update. (``optax.MultiSteps`` averages, and counts by itself.)

    Args:
      inner: what makes the update.
      ready: bool scalar: update now; where false the updates are zero and the state of ``inner`` stays.
      restart: bool scalar: drop what was summed before this gradient.
    """

    def init(params: optax.Updates) -> SumState:
        return SumState(jax.tree.map(jnp.zeros_like, params), inner.init(params))

    def update(
        updates: optax.Updates, state: SumState, params: optax.Updates | None = None
    ) -> tuple[optax.Updates, SumState]:
        total = jax.tree.map(lambda old, new: jnp.where(restart, 0, old) + new, state.total, updates)
        moves, moved = inner.update(total, state.inner, params)
        zeros = jax.tree.map(jnp.zeros_like, total)
        return _select(ready, (moves, SumState(zeros, moved)), (zeros, SumState(total, state.inner)))

    return optax.GradientTransformation(init, update)


def _select(condition: Array | bool, chosen: optax.Updates, other: optax.Updates) -> optax.Updates:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, other)
