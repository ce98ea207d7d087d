"""Whether frozen means frozen: two sets of variables compared bit by bit."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolojax.errors import UserError
from yolojax.freezing.labels import FROZEN, TRAINABLE, fixed_bn
from yolojax.freezing.load import Strategy, rehearse
from yolojax.freezing.phases import never_trained
from yolojax.freezing.selectors import layer_of
from yolojax.tree import flatten, unflatten


@dataclass(frozen=True)
class Difference:
    """How a set of arrays differs from another.

    Attributes:
      identical: every array is there in both, with the same shape, dtype and bits: 0.0 is not -0.0.
      max_abs: largest absolute change; nan where shapes differ or a value is no number.
      relative: norm of the change divided by the norm before it; nan as ``max_abs``, inf where all was zero.
    """

    identical: bool
    max_abs: float
    relative: float


@dataclass(frozen=True)
class LayerAudit:
    """One ``model_k``; ``statistics`` (of BatchNorm) is ``None`` where it has none."""

    layer: int
    parameters: Difference
    statistics: Difference | None

    @property
    def identical(self) -> bool:
        """Nothing in this layer moved."""
        return self.parameters.identical and (self.statistics is None or self.statistics.identical)


@dataclass(frozen=True)
class Audit:
    """What changed between two sets of variables: rows by layer, and the paths (``params/…``) that are not identical."""

    layers: tuple[LayerAudit, ...]
    changed: tuple[str, ...]

    @property
    def identical(self) -> bool:
        """Nothing moved."""
        return not self.changed


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> Audit:
    """Compare two sets of variables.

    Args:
      before: ``{"params": {...}, "batch_stats": {...}}`` of NumPy arrays.
      after: the same; what is only in one of them counts as changed.
    """
    old, new = flatten(before), flatten(after)
    paths = [*old, *(path for path in new if path not in old)]
    changed = {path: None for path in paths if not _same_bits(old.get(path), new.get(path))}

    def difference(collection: str, layer: int) -> Difference | None:
        chosen = [path for path in paths if path.startswith(f"{collection}/") and layer_of(_inside(path)) == layer]
        return _difference(chosen, old, new, changed) if chosen else None

    rows = []
    for layer in sorted({layer_of(_inside(path)) for path in paths}):
        parameters = difference("params", layer) or Difference(True, 0.0, 0.0)
        rows.append(LayerAudit(layer, parameters, difference("batch_stats", layer)))
    return Audit(tuple(rows), tuple(changed))


def kept_paths(strategy: Strategy, paths: Sequence[str], network: str = "") -> frozenset[str]:
    """The parameters that a strategy leaves as they are, whatever the training does.

    Args:
      strategy: what follows ``--frozen``.
      paths: every parameter path.
      network: its name, for errors.

    Raises:
      UserError: they depend on the training, or there are none.
    """
    if strategy.needs:
        raise UserError(f"--frozen {strategy.name}: what it freezes depends on the training; name the layers instead")
    phases = [phase for _, phase in rehearse(strategy, paths, 100, network)]
    kept = never_trained(phases) - {kernel for phase in phases for kernel in phase.adapted}
    if not kept:
        raise UserError(f"--frozen {strategy.name}: nothing is frozen all the time")
    return kept


def moved_paths(
    audit: Audit, frozen: frozenset[str], paths: Sequence[str], frozen_bn: str = "fixed"
) -> tuple[str, ...]:
    """What changed although it was frozen.

    Args:
      audit: of the weights before and after training.
      frozen: the parameter paths that were frozen all the time.
      paths: every parameter path.
      frozen_bn: ``fixed`` holds the statistics of frozen BatchNorm modules to it as well; with ``track`` they may move.

    Returns:
      Paths with their collection, ``params/model_0/conv/kernel``.
    """
    held = {f"params/{path}" for path in frozen}
    if frozen_bn == "fixed":
        labels = unflatten({path: FROZEN if path in frozen else TRAINABLE for path in paths})
        held |= {f"batch_stats/{module}/{leaf}" for module in fixed_bn(labels) for leaf in ("mean", "var")}
    return tuple(path for path in audit.changed if path in held)


def _inside(path: str) -> str:
    return path.partition("/")[2]


def _same_bits(before: Any, after: Any) -> bool:
    if before is None or after is None:
        return False
    before, after = np.asarray(before), np.asarray(after)
    return before.shape == after.shape and before.dtype == after.dtype and before.tobytes() == after.tobytes()


def _difference(
    paths: Sequence[str], old: Mapping[str, Any], new: Mapping[str, Any], changed: Container[str]
) -> Difference:
    largest, change, size = 0.0, 0.0, 0.0
    for path in paths:
        if path not in old or path not in new or np.shape(old[path]) != np.shape(new[path]):
            return Difference(False, math.nan, math.nan)
        start, end = np.asarray(old[path], np.float64), np.asarray(new[path], np.float64)
        size += float(np.sum(start**2))
        if path in changed:
            with np.errstate(invalid="ignore"):
                distance = np.abs(end - start)
            largest = float(np.max(distance, initial=largest))  # nan stays nan
            change += float(np.sum(distance**2))
    identical = not any(path in changed for path in paths)
    if change == 0:
        return Difference(identical, largest, 0.0)
    return Difference(identical, largest, math.sqrt(change / size) if size else math.inf)
