"""The front part of a network: its first layers, as long as nothing of them trains or moves, so that what they give is a constant function of an image."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import jax

from yolojax.errors import UserError
from yolojax.freezing.adapters import is_adapter
from yolojax.freezing.phases import Phase
from yolojax.freezing.selectors import layer_of
from yolojax.model.spec import ModelSpec


def front_end(spec: ModelSpec, phase: Phase, fixed_bn: Collection[str]) -> int:
    """The layer that follows the front part; 0 where there is none.

    Args:
      spec: the network.
      phase: its labels.
      fixed_bn: BatchNorm modules that keep their statistics.

    Layers without parameters behind the last frozen one are left to the rest: what they give is larger than what they read, and costs next to nothing.
    """
    moving = first_that_moves(spec, phase, fixed_bn)
    return max((layer_of(path) + 1 for path in phase.labels if layer_of(path) < moving), default=0)


def first_that_moves(spec: ModelSpec, phase: Phase, fixed_bn: Collection[str]) -> int:
    """The first layer with a parameter that trains or a statistic that moves; the first Detect at most, because its outputs are read by no layer."""
    moves = (
        layer_of(path)
        for path in phase.labels
        if phase.trains(path) or ("/bn/" in path and path.rpartition("/")[0] not in fixed_bn)
    )
    return min([spec.detects[0].index, *moves])


def require_front(spec: ModelSpec, freeze: str, phases: Mapping[Phase, Collection[str]]) -> None:
    """Refuse to keep features of a run that has none.

    Args:
      spec: the network.
      freeze: what stands behind ``--freeze``.
      phases: of the run, with the BatchNorm modules that keep their statistics in each.

    Raises:
      UserError: no phase has a front part, or adapters stand in its place; or several processes share the batches.
    """
    if jax.process_count() > 1:
        raise UserError("--cache features: is for one process; --cache ram can be shared by several")
    for phase, fixed_bn in phases.items():
        moving = first_that_moves(spec, phase, fixed_bn)
        if any(is_adapter(path) and phase.trains(path) and layer_of(path) == moving for path in phase.labels):
            raise UserError(
                f"--cache features: cannot go with --freeze {freeze}: layer {moving} has adapters, so that what it gives changes with every step"
            )
    if not any(front_end(spec, phase, fixed_bn) for phase, fixed_bn in phases.items()):
        raise UserError(
            f"--cache features: cannot go with --freeze {freeze}: layer 0 moves in every phase; freeze the first layers, as --freeze 10 does"
        )


def feature_shapes(spec: ModelSpec, start: int, size: tuple[int, int]) -> tuple[tuple[int, int, int], ...]:
    """(height, width, channels) of what is read behind the front part, for an image of (height, width) ``size``; in the order of ``spec.crossing``."""
    layers = [spec.resolved[index] for index in spec.crossing(start)]
    return tuple((size[0] // layer.reduction, size[1] // layer.reduction, layer.channels) for layer in layers)


def feature_bytes(spec: ModelSpec, start: int, size: tuple[int, int], itemsize: int) -> int:
    """Bytes of the features of one image."""
    return itemsize * sum(map(math.prod, feature_shapes(spec, start, size)))
