"""The way back: weights as a ``.pt`` that YOLOv5's own val.py, detect.py, export.py and train.py load.

Such a file is a pickle of ``models.yolo.DetectionModel``. It is written through classes that have the names of the original's and nothing else; the original
puts its own classes in their place when it reads the file.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from convert.names import to_state
from convert.untrusted import import_torch
from yolojax.errors import UserError
from yolojax.model.spec import Layer, ModelSpec
from yolojax.weights.store import Weights

_CLASSES = {
    "models.common": ("Conv", "Bottleneck", "C3", "SPPF", "Concat"),
    "models.yolo": ("Detect", "DetectionModel"),
}


def write_checkpoint(path: str | Path, weights: Weights) -> None:
    """Write a checkpoint for the original, whole or not at all.

    Tensors are float16, the original's own form, where that changes no bit of any of them, and float32 otherwise.

    Args:
      path: file to write; an existing ``.pt`` is replaced.
      weights: what to write.

    Raises:
      UserError: torch is missing, the place cannot be written, or the network has several Detects.
    """
    if weights.spec.branches:
        raise UserError(
            f"{path}: a .pt of YOLOv5 holds one Detect, and {weights.spec.name} has {len(weights.spec.branches)}; "
            "export it as StableHLO, ONNX or safetensors, or the networks that it was joined of"
        )
    torch = import_torch()
    path = Path(path).absolute()
    with _original_names(torch) as classes:
        model = _model(torch, classes, weights)
        checkpoint = {
            "epoch": -1,
            "best_fitness": None,
            "model": model,
            "ema": None,
            "updates": None,
            "optimizer": None,
            "date": datetime.datetime.now().isoformat(timespec="seconds"),
            "license": weights.source.get("licence", "unknown"),
        }
        writing = path.with_name(f".{path.name}.writing")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(checkpoint, writing)
            os.replace(writing, path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            writing.unlink(missing_ok=True)
            raise UserError(f"{path}: cannot be written ({error}); what was there before is untouched") from error


@contextlib.contextmanager
def _original_names(torch: Any) -> Iterator[SimpleNamespace]:
    """Classes under the original's names; pickle looks them up among the imported modules, where they stand meanwhile."""
    modules = {name: ModuleType(name) for name in ("models", *_CLASSES)}
    for module, names in _CLASSES.items():
        for name in names:
            setattr(modules[module], name, type(name, (torch.nn.Module,), {"__module__": module}))
    hidden = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield SimpleNamespace(
            **{name: getattr(modules[module], name) for module, names in _CLASSES.items() for name in names}
        )
    finally:
        for name in modules:
            del sys.modules[name]
        sys.modules.update(hidden)


def _model(torch: Any, classes: SimpleNamespace, weights: Weights) -> Any:
    """The network as a tree of PyTorch modules with the attributes that the original reads."""
    spec = weights.spec
    layers = []
    for line, layer in zip(spec.layers, spec.resolved, strict=True):
        module = _layer(torch, classes, spec, layer)
        module.i, module.f = layer.index, line.sources[0] if len(line.sources) == 1 else list(line.sources)
        module.type = f"{type(module).__module__}.{type(module).__name__}"
        module.np = sum(parameter.numel() for parameter in module.parameters())
        layers.append(module)
    model = classes.DetectionModel()
    model.model = torch.nn.Sequential(*layers)
    model.yaml = _yaml(spec)
    model.save = sorted(
        {
            source % layer.index
            for line, layer in zip(spec.layers, spec.resolved, strict=True)
            for source in line.sources
            if source != -1
        }
    )
    model.names = dict(enumerate(weights.names))
    model.nc, model.hyp, model.inplace = spec.classes, {}, True
    model.stride = torch.tensor(spec.strides, dtype=torch.float32)
    _fill(torch, model, weights)
    return model.eval().requires_grad_(False)


def _layer(torch: Any, classes: SimpleNamespace, spec: ModelSpec, layer: Layer) -> Any:
    def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, padding: int | None = None) -> Any:
        module = classes.Conv()
        padding = kernel // 2 if padding is None else padding
        module.conv = torch.nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        module.bn = torch.nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)
        module.act = torch.nn.SiLU(inplace=True)
        return module

    def bottleneck(channels: int) -> Any:
        module = classes.Bottleneck()
        module.cv1, module.cv2, module.add = conv(channels, channels), conv(channels, channels, 3), layer.shortcut
        return module

    inputs = sum(layer.inputs)
    match layer.module:
        case "Conv":
            return conv(inputs, layer.channels, layer.kernel, layer.stride, layer.padding)
        case "C3":
            module, hidden = classes.C3(), layer.channels // 2
            module.cv1, module.cv2, module.cv3 = (
                conv(inputs, hidden),
                conv(inputs, hidden),
                conv(2 * hidden, layer.channels),
            )
            module.m = torch.nn.Sequential(*(bottleneck(hidden) for _ in range(layer.repeats)))
        case "SPPF":
            module, hidden = classes.SPPF(), inputs // 2
            module.cv1, module.cv2 = conv(inputs, hidden), conv(4 * hidden, layer.channels)
            module.m = torch.nn.MaxPool2d(layer.kernel, 1, layer.kernel // 2)
        case "Upsample":
            module = torch.nn.Upsample(scale_factor=layer.stride, mode="nearest")
        case "Concat":
            module = classes.Concat()
            module.d = 1
        case "Detect":
            module, levels = classes.Detect(), len(spec.anchors)
            module.nc, module.no, module.nl, module.na = spec.classes, 5 + spec.classes, levels, len(spec.anchors[0])
            module.grid, module.anchor_grid = ([torch.zeros(1)] * levels for _ in range(2))
            module.inplace, module.stride = True, torch.tensor(spec.strides, dtype=torch.float32)
            cells = np.asarray(spec.anchors) / np.asarray(spec.strides)[:, None, None]
            module.register_buffer("anchors", torch.tensor(cells, dtype=torch.float32))
            module.m = torch.nn.ModuleList(
                torch.nn.Conv2d(channels, module.na * module.no, 1) for channels in layer.inputs
            )
    return module


def _yaml(spec: ModelSpec) -> dict[str, Any]:
    """The architecture as the original's files write it, with the arguments that our own form leaves out."""
    content = spec.to_dict()
    written = {"Upsample": lambda a: ["nn.Upsample", [None, *a, "nearest"]], "Concat": lambda _: ["Concat", [1]]}
    for part in ("backbone", "head"):
        content[part] = [
            [sources, repeats, *(written[module](arguments) if module in written else [module, arguments])]
            for sources, repeats, module, arguments in content[part]
        ]
    content["head"][-1][3] = ["nc", "anchors"]
    return {**{key: value for key, value in content.items() if key != "name"}, "ch": 3}


def _fill(torch: Any, model: Any, weights: Weights) -> None:
    """Put the arrays into the modules; float16 for all of them, anchors included, where no bit is lost."""
    state = {name: torch.from_numpy(np.array(array)) for name, array in to_state(weights.variables).items()}
    for name, buffer in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(int(weights.source.get("batches_tracked", 0)))
        elif name.endswith("anchors"):
            state[name] = buffer
    model.load_state_dict(state)
    if all(
        torch.equal(tensor.half().to(tensor.dtype), tensor) for tensor in state.values() if tensor.is_floating_point()
    ):
        model.half()
