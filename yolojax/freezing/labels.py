"""The labels of parameters, and what follows from them for gradients and BatchNorm.

Every label but ``frozen`` names a group of parameters that are trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yolojax.tree import Tree, flatten, map_with_path

FROZEN = "frozen"
TRAINABLE = "trainable"


def trainable_mask(labels: Mapping[str, Any]) -> Tree:
    """True where a label is not ``frozen``; same structure.

    >>> trainable_mask({"model_0": {"bias": "frozen"}, "model_1": {"bias": "[1]"}})
    {'model_0': {'bias': False}, 'model_1': {'bias': True}}
    """
    return map_with_path(lambda _, label: label != FROZEN, labels)


def fixed_bn(labels: Mapping[str, Any]) -> frozenset[str]:
    """Paths of the BatchNorm modules whose scale and bias are both frozen, such as ``model_0/bn``.

    In the mode ``fixed`` these use and keep their running statistics.
    """
    flat = flatten(labels)
    modules = {path.rpartition("/")[0] for path in flat if "/bn/" in path}
    return frozenset(module for module in modules if flat[f"{module}/scale"] == flat[f"{module}/bias"] == FROZEN)
