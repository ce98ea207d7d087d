"""PyTorch checkpoints of YOLOv5, v6.0 and newer, as weights.

A checkpoint is a pickled model: its tensors are found by walking its modules, its architecture stands in its ``yaml`` dict. Every tensor must have its place
in the network and every array of the network its tensor, or nothing is converted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.names import to_name, to_variables
from convert.untrusted import Inert, open_untrusted
from yolojax.config import configs_root
from yolojax.errors import UserError
from yolojax.model.network import abstract_variables
from yolojax.model.spec import ModelSpec, load_spec
from yolojax.tree import flatten
from yolojax.weights.store import Weights, differences, float32_arrays

_HARMLESS = {"inplace": (True, False), "activation": ("nn.SiLU()", "torch.nn.SiLU()"), "channel_multiple": (8,)}


def read_checkpoint(path: str | Path) -> Weights:
    """Convert a PyTorch checkpoint, official or of one's own training, without running anything in it.

    Args:
      path: a ``.pt`` as YOLOv5's train.py writes it; of one that is not stripped the averaged weights (EMA) are taken.

    Returns:
      Weights in float32. ``source`` has ``file``, ``sha256``, ``licence``, ``precision`` (of the file), ``taken_from`` (``model`` or ``ema``) and
      ``batches_tracked`` (the counter of every BatchNorm).

    Raises:
      UserError: it is no such checkpoint, is damaged, malicious or of another kind of network, or tensors and network do not fit each other.
    """
    path = Path(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    content = open_untrusted(path)
    part, model = _choose_model(path, content)
    try:
        tensors = dict(_tensors(model, ""))
        architecture, strides = _architecture(model, tensors)
        names = _class_names(model)
        _check_layers(path, model)
        counters = {int(tensor) for name, tensor in tensors.items() if name.endswith(".num_batches_tracked")}
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: its model is not built as YOLOv5 builds it ({error!r})") from error
    spec = _spec(path, architecture, strides)
    names = names or tuple(f"class {index}" for index in range(spec.classes))
    if len(names) != spec.classes:
        raise UserError(f"{path}: {len(names)} class names for {spec.classes} classes")
    state = _fit(path, spec, tensors)
    source = {
        "file": path.name,
        "sha256": digest,
        "licence": str(content.get("license") or content.get("licence") or "unknown"),
        "precision": str(tensors[next(iter(state))].dtype).removeprefix("torch."),
        "taken_from": part,
        "batches_tracked": max(counters, default=0),
    }
    return Weights(spec=spec, names=names, variables=to_variables(state), source=source)


def _choose_model(path: Path, content: Any) -> tuple[str, Any]:
    """The model in the file: the average where there is one."""
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds no checkpoint of YOLOv5's train.py, but {_class_name(content)}")
    part = "ema" if content.get("ema") is not None else "model"
    model = content.get(part)
    if _class_name(model) not in ("models.yolo.Model", "models.yolo.DetectionModel"):
        actual = _class_name(model) if model is not None else "only " + ", ".join(map(str, list(content)[:5]))
        raise UserError(
            f"{path}: holds no YOLOv5 model with its architecture, but {actual}; give the file train.py wrote"
        )
    return part, model


def _class_name(thing: Any) -> str:
    return type(thing).kind if isinstance(thing, Inert) else type(thing).__name__


def _tensors(module: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Parameters and buffers of a module by name, as its state dict would have them."""
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield prefix + name, tensor
    for name, child in module._modules.items():
        if child is not None:
            yield from _tensors(child, f"{prefix}{name}.")


def _architecture(model: Any, tensors: Mapping[str, Any]) -> tuple[dict[str, Any], list[float]]:
    """What ``ModelSpec.from_dict`` reads, and the strides in the file.

    Anchors come from Detect's buffer, since automatic anchors differ from those of the ``yaml``.
    """
    content = {key: value for key, value in model.yaml.items() if value not in _HARMLESS.get(key, ())}
    detect = len(content["backbone"]) + len(content["head"]) - 1
    cells = tensors[f"model.{detect}.anchors"].double().numpy()  # levels, anchors, width and height
    strides = model._modules["model"]._modules[str(detect)].stride.double().numpy()
    content["anchors"] = [row.ravel().tolist() for row in cells * strides[:, None, None]]
    return content, strides.tolist()


def _spec(path: Path, content: Mapping[str, Any], strides: list[float]) -> ModelSpec:
    """The architecture, which has to make the strides in the file."""
    spec = ModelSpec.from_dict({**content, "name": path.stem}, path)
    pixels = [list(zip(row[::2], row[1::2], strict=True)) for row in content["anchors"]]
    if list(spec.strides) != strides or spec.with_anchors(pixels) != spec:
        raise UserError(f"{path}: strides {strides} in the file, but its layers make {list(spec.strides)}")
    return dataclasses.replace(spec, name=_shipped_name(spec) or path.stem)


def _shipped_name(spec: ModelSpec) -> str | None:
    """The size that the architecture is (``yolov5m``), whatever the file is called."""
    for file in sorted((configs_root() / "models").glob("*.yaml")):
        shipped = load_spec(file, spec.classes)
        if shipped.resolved == spec.resolved and len(shipped.anchors) == len(spec.anchors):
            return shipped.name
    return None


def _class_names(model: Any) -> tuple[str, ...]:
    """The names of the classes; empty where the file has none."""
    names = getattr(model, "names", None) or ()
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names, key=int)]
    return tuple(map(str, names))


def _check_layers(path: Path, model: Any) -> None:
    """What shapes cannot show."""
    for name, module in _modules(model, ""):
        if _class_name(module) == "torch.nn.modules.batchnorm.BatchNorm2d" and not math.isclose(module.eps, 1e-3):
            raise UserError(f"{path}: {name} has epsilon {module.eps}, YOLOv5 has 0.001")
        if _class_name(module) == "torch.nn.modules.conv.Conv2d" and (tuple(module.dilation), module.groups) != (
            (1, 1),
            1,
        ):
            raise UserError(f"{path}: {name} is a dilated or grouped convolution, which YOLOv5's own layers are not")


def _modules(module: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, child in module._modules.items():
        yield prefix + name, child
        yield from _modules(child, f"{prefix}{name}.")


def _fit(path: Path, spec: ModelSpec, tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors that fill the network, in float32; the gate for what has no place and for what stays empty."""
    expected = expected_state(spec)
    counters = {f"{name.removesuffix('running_var')}num_batches_tracked" for name in expected if "running_var" in name}
    buffers = counters | {f"model.{len(spec.layers) - 1}.{name}" for name in ("anchors", "anchor_grid")}
    state = {name: tensor for name, tensor in tensors.items() if name not in buffers}
    problems = differences(expected, {name: tuple(tensor.shape) for name, tensor in state.items()})
    if problems:
        fused = "; it was fused for inference, give the file train.py wrote" if "model.0.conv.bias" in state else ""
        raise UserError(f"{path}: tensors and architecture do not fit{fused}; " + "; ".join(problems))
    plain = {name: tensor.detach() for name, tensor in state.items()}
    arrays = {  # NumPy alone has no bfloat16
        name: (tensor.float() if tensor.is_floating_point() else tensor).numpy() for name, tensor in plain.items()
    }
    return float32_arrays(arrays, path)


def expected_state(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, buffers aside, that PyTorch has for a network."""
    shapes = {}
    for where, leaf in flatten(abstract_variables(spec)).items():
        collection, _, path = where.partition("/")
        kernel = len(leaf.shape) == 4
        shapes[to_name(collection, path)] = tuple(leaf.shape[axis] for axis in (3, 2, 0, 1)) if kernel else leaf.shape
    return shapes
