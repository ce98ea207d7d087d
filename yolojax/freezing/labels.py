"""From a selector to a tree of labels, and what follows from it for gradients and BatchNorm.

Every label but ``frozen`` names a group of parameters that are trained.
"""

from collections.abc import Mapping
from typing import Any

from yolojax.freezing.selectors import Selection, frozen_paths
from yolojax.tree import Tree, flatten, map_with_path

FROZEN = "frozen"
TRAINABLE = "trainable"


def freeze_labels(params: Mapping[str, Any], selector: Selection) -> Tree:
    """Label every parameter ``frozen`` or ``trainable``.

    Args:
      params: nested dict; the leaves are not looked at.
      selector: what to freeze; see ``selectors``.

    Returns:
      A tree of the structure of ``params``.

    Raises:
      UserError: the selector names what does not exist, or leaves nothing to train.

    >>> freeze_labels({"model_0": {"conv": {"kernel": 1}}, "model_1": {"m_0": {"bias": 2}}}, "1")
    {'model_0': {'conv': {'kernel': 'frozen'}}, 'model_1': {'m_0': {'bias': 'trainable'}}}
    """
    frozen = frozen_paths(selector, flatten(params))
    return map_with_path(lambda path, _: FROZEN if path in frozen else TRAINABLE, params)


def trainable_mask(labels: Mapping[str, Any]) -> Tree:
    """True where a label is not ``frozen``; same structure."""
    return map_with_path(lambda _, label: label != FROZEN, labels)


def fixed_bn(labels: Mapping[str, Any]) -> frozenset[str]:
    """Paths of the BatchNorm modules whose scale and bias are both frozen, such as ``model_0/bn``.

    In the mode ``fixed`` these use and keep their running statistics.
    """
    flat = flatten(labels)
    modules = {path.rpartition("/")[0] for path in flat if "/bn/" in path}
    return frozenset(module for module in modules if flat[f"{module}/scale"] == flat[f"{module}/bias"] == FROZEN)
