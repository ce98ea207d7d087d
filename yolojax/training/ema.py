"""The moving average of the weights, which is what gets validated and saved."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Tree = Any


def decay(updates: Array) -> tuple[Array, Array]:
    """Weights of the old average and of the new value at the ``updates``-th update (counted from 1): d = .9999 (1 − exp(−n / 2000)), and 1 − d.

    Both are computed, because subtracting a float32 ``d`` near 1 from 1 loses most digits. Source: contract §1.6.
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
