"""Norms per parameter, as strategies that watch the training need them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from yolojax.tree import flatten


def norms(tree: Mapping[str, Any]) -> dict[str, float]:
    """The Euclidean norm of every leaf that is not ``None``, by path; one transfer from the device for all."""
    leaves = {path: leaf for path, leaf in flatten(tree).items() if leaf is not None}
    return {path: float(norm) for path, norm in jax.device_get(_norms(leaves)).items()}


def movement(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    """The norm of ``after - before`` for every leaf that is not ``None``, by path."""
    start = {path: leaf for path, leaf in flatten(before).items() if leaf is not None}
    end = {path: leaf for path, leaf in flatten(after).items() if leaf is not None}
    return {path: float(norm) for path, norm in jax.device_get(_distances(start, end)).items()}


@jax.jit
def _norms(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {path: jnp.linalg.norm(leaf.ravel()) for path, leaf in leaves.items()}


@jax.jit
def _distances(start: dict[str, jax.Array], end: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {path: jnp.linalg.norm((end[path] - start[path]).ravel()) for path in start}


def total(values: Mapping[str, float], paths: Iterable[str]) -> float:
    """The norm of some leaves together.

    >>> total({"a": 3.0, "b": 4.0, "c": 1.0}, ["a", "b"])
    5.0
    """
    return math.sqrt(sum(values[path] ** 2 for path in paths))
