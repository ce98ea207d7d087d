"""What a phase freezes, layer by layer: the content of ``yolojax freeze`` and of a run's ``freeze.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from yolojax.freezing.labels import fixed_bn
from yolojax.freezing.phases import Phase
from yolojax.freezing.selectors import layer_of
from yolojax.tree import flatten

BN_MODES = {
    "fixed": "BatchNorm of frozen layers uses and keeps its running statistics (--frozen-bn track does as YOLOv5 does)",
    "track": "BatchNorm of frozen layers uses the statistics of the batch and moves its running ones, as YOLOv5 does",
}


def summarise(
    params: Mapping[str, Any], phase: Phase, modules: Sequence[str], frozen_bn: str = "fixed"
) -> dict[str, Any]:
    """Count what trains.

    Args:
      params: nested dict of arrays, or of their shapes (``jax.eval_shape``), with the adapters of the phase.
      phase: labels of every leaf of ``params``.
      modules: the kind of every layer, for instance ``("Conv", "C3")``.
      frozen_bn: ``fixed`` or ``track``: what BatchNorm does whose scale and bias are frozen.

    Returns:
      JSON values: ``layers`` (a row per ``model_k``: ``layer module parameters trainable bn_mode``), ``parameters``,
      ``trainable``, ``frozen_paths``. ``bn_mode`` is ``train``, the mode of frozen BatchNorm, ``mixed``, or ``None``
      where a layer has none.
    """
    sizes = {path: math.prod(leaf.shape) for path, leaf in flatten(params).items()}
    fixed = fixed_bn(phase.tree())
    rows: list[dict[str, Any]] = [
        {"layer": layer, "module": module, "parameters": 0, "trainable": 0, "bn_mode": None}
        for layer, module in enumerate(modules)
    ]
    for path, size in sizes.items():
        row = rows[layer_of(path)]
        row["parameters"] += size
        row["trainable"] += size if phase.trains(path) else 0
        if path.endswith("/bn/scale"):
            mode = frozen_bn if path.removesuffix("/scale") in fixed else "train"
            row["bn_mode"] = mode if row["bn_mode"] in (None, mode) else "mixed"
    return {
        "layers": rows,
        "parameters": sum(sizes.values()),
        "trainable": sum(row["trainable"] for row in rows),
        "frozen_paths": [path for path in sorted(sizes, key=layer_of) if not phase.trains(path)],
    }
