"""One bijection: the name of a tensor in PyTorch and the path of the same array in JAX.

``model.2.m.0.cv1.conv.weight`` is ``params`` / ``model_2/m_0/cv1/conv/kernel``. A number joins the word before it,
``weight`` is ``kernel`` in a convolution and ``scale`` in a BatchNorm, running statistics live in ``batch_stats``, and
kernels change from OIHW to HWIO. NumPy only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from yolojax.tree import Tree, flatten, unflatten

# BatchNorm counts its batches and Detect keeps its anchors as buffers; neither is an array of the network here.
_BUFFERS = frozenset({"num_batches_tracked", "anchors", "anchor_grid", "stride"})
_CONVOLUTION = {"weight": ("params", "kernel"), "bias": ("params", "bias")}
_NORMALISATION = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
_TO_TORCH = {
    False: {place: leaf for leaf, place in _CONVOLUTION.items()},
    True: {place: leaf for leaf, place in _NORMALISATION.items()},
}


def is_buffer(name: str) -> bool:
    """Whether a PyTorch tensor has no array of its own in JAX: batch counters of BatchNorm, anchors of Detect."""
    return name.rpartition(".")[2] in _BUFFERS


def to_path(name: str) -> tuple[str, str]:
    """Where a PyTorch tensor lives in JAX.

    Args:
      name: key of a state dict, ``model.0.bn.running_mean``; not a buffer (``is_buffer``).

    Returns:
      Collection and path.

    Raises:
      ValueError: no tensor of YOLOv5 has such a name.

    >>> to_path("model.2.m.0.cv1.conv.weight")
    ('params', 'model_2/m_0/cv1/conv/kernel')
    """
    module, _, leaf = name.rpartition(".")
    path = re.sub(r"\.(\d+)(?=\.|$)", r"_\1", module)
    leaves = _NORMALISATION if module.endswith(".bn") else _CONVOLUTION
    if leaf not in leaves or not re.fullmatch(r"model_\d+(\.[a-z]\w*)*", path):
        raise ValueError(f"{name}: not the name of a tensor of a YOLOv5 detection model")
    collection, leaf = leaves[leaf]
    return collection, f"{path.replace('.', '/')}/{leaf}"


def to_name(collection: str, path: str) -> str:
    """The PyTorch name of an array; the inverse of ``to_path``.

    Args:
      collection: ``params`` or ``batch_stats``.
      path: ``model_0/bn/mean``.

    Returns:
      Key of a state dict.

    Raises:
      ValueError: no array of YOLOv5 lives there.

    >>> to_name("batch_stats", "model_0/bn/mean")
    'model.0.bn.running_mean'
    """
    module, _, leaf = path.rpartition("/")
    leaves = _TO_TORCH[module.endswith("/bn")]
    if (collection, leaf) not in leaves or not re.fullmatch(r"model_\d+(/[a-z]\w*)*", module):
        raise ValueError(f"{collection}/{path}: not the path of an array of a YOLOv5 detection model")
    module = re.sub(r"_(\d+)(?=/|$)", r".\1", module).replace("/", ".")
    return f"{module}.{leaves[collection, leaf]}"


def to_jax(array: np.ndarray) -> np.ndarray:
    """A PyTorch tensor in the layout of JAX: OIHW kernels become HWIO, vectors stay; same dtype and bits."""
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array)


def to_torch(array: np.ndarray) -> np.ndarray:
    """An array in the layout of PyTorch; the inverse of ``to_jax``."""
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array)


def to_variables(state: Mapping[str, np.ndarray]) -> Tree:
    """A PyTorch state dict as the variables of the network.

    Args:
      state: tensors by PyTorch name, as NumPy arrays; buffers are passed over.

    Returns:
      ``{"params": {"model_0": …}, "batch_stats": …}``, nested plain dicts of arrays in the layout of JAX.

    Raises:
      ValueError: a name that no tensor of YOLOv5 has.
    """
    arrays = {to_path(name): to_jax(np.asarray(array)) for name, array in state.items() if not is_buffer(name)}
    nested = unflatten({f"{collection}/{path}": array for (collection, path), array in arrays.items()})
    return {"params": {}, "batch_stats": {}, **nested}


def to_state(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The variables of the network as a PyTorch state dict without buffers; the inverse of ``to_variables``."""
    return {
        to_name(collection, path): to_torch(np.asarray(array))
        for collection in ("params", "batch_stats")
        for path, array in flatten(variables.get(collection, {})).items()
    }
