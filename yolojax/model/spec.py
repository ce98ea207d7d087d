"""What a network is made of: a YAML file becomes a checked list of layers.

The file has the form that YOLOv5 users know (``nc``, ``depth_multiple``, ``width_multiple``, ``anchors``, ``backbone``, ``head``), so a user's own
variant and the dict inside a PyTorch checkpoint are read the same way. Everything is checked here, once: a specification that exists can be built.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeGuard, cast, get_args

import numpy as np

from yolojax.config import check_keys, find_config, read_yaml
from yolojax.errors import UserError

log = logging.getLogger(__name__)

Module = Literal["Conv", "C3", "SPPF", "Upsample", "Concat", "Detect"]
Anchors = tuple[tuple[tuple[float, float], ...], ...]

_KEYS = ("nc", "depth_multiple", "width_multiple", "anchors", "backbone", "head", "name", "ch")
_LEAST_STRIDE = 32  # of image sizes
_MOST_LEVELS, _MOST_ANCHORS = 5, 100
# Least and most arguments of each module.
_ARGUMENTS: Mapping[str, tuple[int, int]] = {
    "Conv": (1, 4),
    "C3": (1, 2),
    "SPPF": (1, 2),
    "Upsample": (1, 1),
    "Concat": (0, 0),
    "Detect": (0, 0),
}


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One line of the file, before scaling.

    Attributes:
      sources: indices of the layers whose outputs enter; negative ones count back from this layer.
      repeats: how many bottlenecks a ``C3`` has before scaling; 1 elsewhere.
      module: kind of layer.
      arguments: channels first where the module has any, then kernel, stride, padding (``Conv``), shortcut (``C3``), kernel (``SPPF``), factor (``Upsample``).
    """

    sources: tuple[int, ...]
    repeats: int
    module: Module
    arguments: tuple[int | bool, ...]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer after scaling: all that is needed to build ``model_{index}``.

    Attributes:
      sources: indices of earlier layers; -1 is the image.
      inputs: channels of each source.
      channels: channels of the output (of one anchor grid for ``Detect``).
      reduction: how many input pixels wide one output cell is.
      kernel: side of the kernel (``Conv``, ``SPPF``).
      stride: step of a ``Conv``, factor of an ``Upsample``.
      padding: zeros on each side of a ``Conv``.
    """

    index: int
    module: Module
    sources: tuple[int, ...]
    inputs: tuple[int, ...]
    channels: int
    reduction: int
    repeats: int = 1
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    shortcut: bool = True


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """An architecture; hashable, so that it can be a static argument of a jitted function.

    Attributes:
      name: for messages and tables (``yolov5n``).
      classes: number of classes.
      anchors: per level, per anchor, ``(width, height)`` in pixels of the network input.
      own_anchors: False where the file says only how many anchors a level has: ``anchors`` are those of the nearest shipped model then.
      depth_multiple: factor on the repeats of ``C3``.
      width_multiple: factor on the channels.
      layers: the lines of the file.
      backbone: how many of the layers are the backbone (the first ones).
    """

    name: str
    classes: int
    anchors: Anchors
    depth_multiple: float
    width_multiple: float
    layers: tuple[LayerSpec, ...]
    backbone: int
    own_anchors: bool = True

    def __post_init__(self) -> None:
        levels = len(self.resolved[-1].sources)
        if levels > _MOST_LEVELS:
            raise UserError(
                f"layer {len(self.layers) - 1}: Detect has {levels} levels; the loss has weights for {_MOST_LEVELS}"
            )
        if len(self.anchors) != levels:
            raise UserError(f"key 'anchors': {len(self.anchors)} lines, but Detect has {levels} levels")
        if len({len(level) for level in self.anchors}) != 1:
            raise UserError("key 'anchors': every level needs the same number of anchors")
        if min(side for level in self.anchors for anchor in level for side in anchor) <= 0:
            raise UserError("key 'anchors': widths and heights are positive")

    @cached_property
    def resolved(self) -> tuple[Layer, ...]:
        """The layers after scaling, in order."""
        return _resolve(self)

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of each level."""
        return tuple(self.resolved[source].reduction for source in self.resolved[-1].sources)

    @cached_property
    def coarsest(self) -> int:
        """The pixels that image sides must be multiples of; every stride inside the network divides it, also where Detect reads none so coarse."""
        return math.lcm(*(layer.reduction for layer in self.resolved))

    @cached_property
    def stride(self) -> int:
        """The pixels that image sides are made multiples of; ``coarsest``, but at least 32, as in YOLOv5."""
        return math.lcm(_LEAST_STRIDE, self.coarsest)

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the form of the YAML file; ``from_dict`` reads it back."""

        def line(layer: LayerSpec) -> list[Any]:
            sources = layer.sources[0] if len(layer.sources) == 1 else list(layer.sources)
            return [sources, layer.repeats, layer.module, list(layer.arguments)]

        return {
            "name": self.name,
            "nc": self.classes,
            "depth_multiple": self.depth_multiple,
            "width_multiple": self.width_multiple,
            "anchors": [[side for anchor in level for side in anchor] for level in self.anchors],
            "backbone": [line(layer) for layer in self.layers[: self.backbone]],
            "head": [line(layer) for layer in self.layers[self.backbone :]],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str | Path = "model") -> ModelSpec:
        """Read the content of a model YAML, or the ``yaml`` dict of a PyTorch checkpoint.

        Args:
          content: the mapping; ``ch`` (input channels), if given, must be 3.
          where: file that errors name.

        Raises:
          UserError: unknown or missing keys, wrong types, or layers that cannot be connected.
        """
        check_keys(where, content, _KEYS)
        if content.get("ch", 3) != 3:
            raise UserError(f"{where}: key 'ch': images have 3 channels, not {content['ch']!r}")
        lines = {part: content.get(part) for part in ("backbone", "head")}
        for part, value in lines.items():
            if not isinstance(value, list | tuple) or not value:
                raise UserError(
                    f"{where}: key '{part}': expected a list of [sources, repeats, module, arguments] lines"
                )
        backbone = len(lines["backbone"] or ())
        layers = [*(lines["backbone"] or ()), *(lines["head"] or ())]
        classes = content.get("nc")
        if not _is_integer(classes) or classes < 1:
            raise UserError(f"{where}: key 'nc': expected a number of classes, found {classes!r}")
        count = _anchor_count(content.get("anchors"))
        settings: dict[str, Any] = {
            "name": str(content.get("name", Path(str(where)).stem)),
            "classes": classes,
            "anchors": _read_anchors([[1, 1] * count] if count else content.get("anchors"), where),
            "depth_multiple": _positive(content, "depth_multiple", where),
            "width_multiple": _positive(content, "width_multiple", where),
            "layers": tuple(_read_layer(line, f"{where}: layer {index}") for index, line in enumerate(layers)),
        }
        if count:  # only now is it known for how many levels
            settings["anchors"] *= len(settings["layers"][-1].sources)
        try:
            spec = cls(backbone=backbone, **settings)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if count:
            anchors = _shipped_anchors(spec.strides, count)
            return dataclasses.replace(spec.with_anchors(anchors), own_anchors=False)
        return spec if _areas_follow(spec.anchors, spec.strides) else spec.with_anchors(spec.anchors[::-1])

    def with_classes(self, classes: int) -> ModelSpec:
        """The same network for another number of classes."""
        return dataclasses.replace(self, classes=classes)

    def with_anchors(self, anchors: Sequence[Sequence[Sequence[float]]]) -> ModelSpec:
        """The same network with other anchors: per level, per anchor, ``(width, height)`` in pixels."""
        pairs = tuple(tuple((float(w), float(h)) for w, h in level) for level in anchors)
        return dataclasses.replace(self, anchors=pairs, own_anchors=True)


def load_spec(name: str | Path, classes: int | None = None) -> ModelSpec:
    """The architecture in a YAML file or of a shipped name.

    Args:
      name: ``yolov5n``, ``yolov5n.yaml`` or a path.
      classes: number of classes, instead of the file's.

    Raises:
      UserError: no such file, or a mistake in it; the message names file, key or layer.

    >>> load_spec("yolov5n", classes=20).strides
    (8, 16, 32)
    """
    path = find_config("models", name)
    spec = ModelSpec.from_dict(read_yaml(path), path)
    return spec if classes is None else spec.with_classes(classes)


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(content: Mapping[str, Any], key: str, where: str | Path) -> float:
    value = content.get(key, 1.0)
    if not _is_number(value) or value <= 0:
        raise UserError(f"{where}: key '{key}': expected a positive number, found {value!r}")
    return float(value)


def _read_anchors(value: Any, where: str | Path) -> Anchors:
    rows = value if isinstance(value, list | tuple) else ()
    pairs = (isinstance(row, list | tuple) and row and len(row) % 2 == 0 and all(map(_is_number, row)) for row in rows)
    if not rows or not all(pairs):
        raise UserError(
            f"{where}: key 'anchors': expected one list 'width, height, width, height, …' per level, "
            f"or how many anchors each level has, found {value!r}"
        )
    return tuple(tuple((float(w), float(h)) for w, h in zip(row[::2], row[1::2], strict=True)) for row in rows)


def _anchor_count(value: Any) -> int | None:
    """How many anchors a file asks for that leaves it to others to find them."""
    return value if _is_integer(value) and 0 < value <= _MOST_ANCHORS else None


def nearest_shipped(strides: Sequence[int]) -> str:
    """The shipped model whose levels are most like these: P6 from stride 64 on."""
    return "yolov5n6" if max(strides) >= 64 else "yolov5n"


def _shipped_anchors(strides: Sequence[int], count: int) -> Anchors:
    """``count`` anchors for each level, like those of the nearest shipped model at the nearest stride."""
    shipped = load_spec(nearest_shipped(strides))
    levels = dict(zip(shipped.strides, shipped.anchors, strict=True))

    def level(stride: int) -> tuple[tuple[float, float], ...]:
        nearest = min(levels, key=lambda shipped_stride: abs(math.log(shipped_stride / stride)))
        sides = np.log(np.asarray(levels[nearest]) * (stride / nearest))
        places = np.linspace(0, len(sides) - 1, count) if count > 1 else np.array([(len(sides) - 1) / 2])
        between = [np.exp(np.interp(places, np.arange(len(sides)), sides[:, axis])) for axis in (0, 1)]
        return tuple((round(float(w), 2), round(float(h), 2)) for w, h in zip(*between, strict=True))

    return tuple(level(stride) for stride in strides)


def _areas_follow(anchors: Anchors, strides: Sequence[int]) -> bool:
    """Whether anchors grow with the stride from the first level to the last, as Detect expects them to."""
    first, last = (sum(w * h for w, h in level) for level in (anchors[0], anchors[-1]))
    return (last - first) * (strides[-1] - strides[0]) >= 0


def _read_layer(line: Any, where: str) -> LayerSpec:
    if not isinstance(line, list | tuple) or len(line) != 4:
        raise UserError(f"{where}: expected [sources, repeats, module, arguments], found {line!r}")
    sources, repeats, module, arguments = line
    sources = sources if isinstance(sources, list | tuple) else [sources]
    if not sources or not all(map(_is_integer, sources)):
        raise UserError(f"{where}: sources: expected layer numbers, found {line[0]!r}")
    module = str(module).removeprefix("nn.")
    if module not in get_args(Module):
        raise UserError(f"{where}: module {module!r} is unknown; there are {', '.join(get_args(Module))}")
    if not _is_integer(repeats) or repeats < 1 or (repeats > 1 and module != "C3"):
        raise UserError(f"{where}: repeats: {repeats!r} (only C3 repeats, at least once)")
    if not isinstance(arguments, list | tuple):
        raise UserError(f"{where}: arguments: expected a list, found {arguments!r}")
    values = _plain_arguments(module, list(arguments))
    least, most = _ARGUMENTS[module]
    good = all(
        _is_integer(value) or (module == "C3" and place == 1 and isinstance(value, bool))
        for place, value in enumerate(values)
    )
    # Only a padding, the fourth argument, may be 0.
    small = any(_is_integer(value) and value < int(place < 3) for place, value in enumerate(values))
    if not least <= len(values) <= most or not good or small:
        raise UserError(f"{where}: {module} cannot be made with arguments {list(arguments)!r}")
    return LayerSpec(sources=tuple(sources), repeats=repeats, module=cast(Module, module), arguments=tuple(values))


def _plain_arguments(module: str, arguments: list[Any]) -> list[Any]:
    """YOLOv5's files write what is fixed here: ``[None, 2, 'nearest']``, ``[1]`` (the axis of channels) and ``[nc, anchors]``."""
    if module == "Upsample" and len(arguments) == 3 and arguments[0] in (None, "None") and arguments[2] == "nearest":
        return arguments[1:2]
    if (module == "Concat" and arguments == [1]) or (module == "Detect" and arguments == ["nc", "anchors"]):
        return []
    return arguments


def _resolve(spec: ModelSpec) -> tuple[Layer, ...]:
    """Scale channels and repeats, and follow channels and strides from layer to layer (``docs/yolov5.md`` §1.1)."""
    layers: list[Layer] = []

    def scaled(channels: int) -> int:
        return math.ceil(channels * spec.width_multiple / 8) * 8

    for index, line in enumerate(spec.layers):
        sources = tuple(source if source >= 0 else index + source for source in line.sources)
        if not all(-1 <= source < index for source in sources) or (-1 in sources and index > 0):
            raise UserError(f"layer {index}: sources {list(line.sources)} must name layers before it")
        if (line.module == "Detect") != (index == len(spec.layers) - 1):
            raise UserError(f"layer {index}: Detect is the last layer, and there is exactly one")
        if len(sources) > 1 and line.module not in ("Concat", "Detect"):
            raise UserError(f"layer {index}: {line.module} has one source, not {len(sources)}")
        inputs = tuple(layers[source].channels if source >= 0 else 3 for source in sources)
        reductions = [layers[source].reduction if source >= 0 else 1 for source in sources]
        values = line.arguments
        repeats, kernel, stride, padding, shortcut = 1, 1, 1, 0, True
        channels, reduction = sum(inputs), reductions[0]
        match line.module:
            case "Conv":
                channels = scaled(values[0])
                kernel = values[1] if len(values) > 1 else 1
                stride = values[2] if len(values) > 2 else 1
                padding = values[3] if len(values) > 3 else kernel // 2
                if not 1 <= kernel - 2 * padding <= stride:
                    raise UserError(
                        f"layer {index}: Conv with kernel {kernel}, stride {stride}, padding {padding} does not divide sizes by its stride"
                    )
                reduction *= stride
            case "C3":
                channels = scaled(values[0])
                # Python rounds halves to even, as the original does.
                repeats = max(round(line.repeats * spec.depth_multiple), 1) if line.repeats > 1 else 1
                shortcut = bool(values[1]) if len(values) > 1 else True
            case "SPPF":
                channels = scaled(values[0])
                kernel = values[1] if len(values) > 1 else 5
                if kernel % 2 == 0:
                    raise UserError(f"layer {index}: SPPF needs an odd kernel, not {kernel}")
            case "Upsample":
                stride = values[0]
                if reduction % stride:
                    raise UserError(f"layer {index}: Upsample by {stride} of a layer with stride {reduction}")
                reduction //= stride
            case "Concat":
                if len(set(reductions)) != 1:
                    raise UserError(f"layer {index}: Concat of layers with different strides {reductions}")
            case "Detect":
                channels = len(spec.anchors[0]) * (5 + spec.classes)
        layers.append(
            Layer(
                index=index,
                module=line.module,
                sources=sources,
                inputs=inputs,
                channels=channels,
                reduction=reduction,
                repeats=repeats,
                kernel=kernel,
                stride=stride,
                padding=padding,
                shortcut=shortcut,
            )
        )
    return tuple(layers)


def whole_strides(size: int, stride: int) -> int:
    """An image side in pixels, rounded up to a multiple of the stride; a warning says so where that changes it."""
    whole = -(-size // stride) * stride
    if whole != size:
        log.warning("--img %d is not a multiple of the stride %d: %d is used", size, stride, whole)
    return whole
