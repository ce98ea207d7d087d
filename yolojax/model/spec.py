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
from typing import Any, TypeGuard, TypeVar

import numpy as np

from yolojax.config import check_keys, find_config, read_yaml
from yolojax.errors import UserError
from yolojax.model.lines import Layer, LayerSpec, is_integer, read_line, resolve

log = logging.getLogger(__name__)

T = TypeVar("T")
Anchors = tuple[tuple[tuple[float, float], ...], ...]

_KEYS = ("nc", "depth_multiple", "width_multiple", "anchors", "backbone", "head", "name", "ch", "branches")
_LEAST_STRIDE = 32  # of image sizes
_MOST_LEVELS, _MOST_ANCHORS = 5, 100


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """An architecture; hashable, so that it can be a static argument of a jitted function.

    Attributes:
      name: for messages and tables (``yolov5n``).
      classes: number of classes.
      anchors: per level, per anchor, ``(width, height)`` in pixels of the network input; of several Detects one after the other.
      own_anchors: False where the file says only how many anchors a level has: ``anchors`` are those of the nearest shipped model then.
      depth_multiple: factor on the repeats of ``C3``.
      width_multiple: factor on the channels.
      layers: the lines of the file.
      backbone: how many of the layers are the backbone (the first ones).
      branches: of a network with several Detects, the indices of the classes that each of them knows, in the order of its outputs; empty where
        there is one Detect, which knows all.
    """

    name: str
    classes: int
    anchors: Anchors
    depth_multiple: float
    width_multiple: float
    layers: tuple[LayerSpec, ...]
    backbone: int
    own_anchors: bool = True
    branches: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        for labels in self.branches:
            if not labels or len(set(labels)) != len(labels) or not set(labels) <= set(range(self.classes)):
                raise UserError(f"key 'branches': expected different class numbers below {self.classes}")
        if self.branches and set().union(*self.branches) != set(range(self.classes)):
            raise UserError("key 'branches': every class needs a Detect that knows it")
        for detect in self.detects:
            levels = len(detect.sources)
            if levels > _MOST_LEVELS:
                raise UserError(
                    f"layer {detect.index}: Detect has {levels} levels; the loss has weights for {_MOST_LEVELS}"
                )
        levels = len(self.strides)
        if len(self.anchors) != levels:
            raise UserError(f"key 'anchors': {len(self.anchors)} lines, but Detect has {levels} levels")
        if any(len({len(level) for level in anchors}) != 1 for anchors in self.split(self.anchors)):
            raise UserError("key 'anchors': every level needs the same number of anchors")
        if min(side for level in self.anchors for anchor in level for side in anchor) <= 0:
            raise UserError("key 'anchors': widths and heights are positive")
        if len(set(self.split(self.strides))) != 1:
            raise UserError(f"the branches detect at different strides: {self.split(self.strides)}")

    @cached_property
    def resolved(self) -> tuple[Layer, ...]:
        """The layers after scaling, in order."""
        return resolve(self.layers, self.depth_multiple, self.width_multiple, len(self.branches) or 1)

    @cached_property
    def detects(self) -> tuple[Layer, ...]:
        """The Detect of each branch."""
        return tuple(layer for layer in self.resolved if layer.module == "Detect")

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of each level; of several Detects one after the other."""
        return tuple(self.resolved[source].reduction for detect in self.detects for source in detect.sources)

    @cached_property
    def networks(self) -> tuple[ModelSpec, ...]:
        """Each branch as a network of its own, trunk included; of an ordinary network itself."""
        return tuple(_branch(self, number) for number in range(len(self.branches))) or (self,)

    @cached_property
    def prediction_parts(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """The share of each of several branches in the predictions, which stand one after the other, and the classes that it knows."""
        counts = (len(anchors[0]) for anchors in self.split(self.anchors))
        return tuple(zip(counts, self.branches, strict=False))

    def split(self, levels: Sequence[T]) -> tuple[tuple[T, ...], ...]:
        """Divide what there is of each level (heads, anchors, strides) by branch."""
        ends = np.cumsum([len(detect.sources) for detect in self.detects]).tolist()
        return tuple(tuple(levels[start:end]) for start, end in zip([0, *ends], ends, strict=False))

    @cached_property
    def coarsest(self) -> int:
        """The pixels that image sides must be multiples of; every stride inside the network divides it, also where Detect reads none so coarse."""
        return math.lcm(*(layer.reduction for layer in self.resolved))

    @cached_property
    def stride(self) -> int:
        """The pixels that image sides are made multiples of; ``coarsest``, but at least 32, as in YOLOv5."""
        return math.lcm(_LEAST_STRIDE, self.coarsest)

    def crossing(self, start: int) -> tuple[int, ...]:
        """The layers before ``start``, which stands before every Detect or at the first, that are read from there on, ascending; -1 is the image."""
        read = {source for layer in self.resolved[start:] for source in layer.sources}
        return tuple(sorted(source for source in read if source < start))

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
            **({"branches": [list(labels) for labels in self.branches]} if self.branches else {}),
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
        if not is_integer(classes) or classes < 1:
            raise UserError(f"{where}: key 'nc': expected a number of classes, found {classes!r}")
        count = _anchor_count(content.get("anchors"))
        settings: dict[str, Any] = {
            "name": str(content.get("name", Path(str(where)).stem)),
            "classes": classes,
            "anchors": _read_anchors([[1, 1] * count] if count else content.get("anchors"), where),
            "depth_multiple": _positive(content, "depth_multiple", where),
            "width_multiple": _positive(content, "width_multiple", where),
            "layers": tuple(read_line(line, f"{where}: layer {index}") for index, line in enumerate(layers)),
            "branches": _read_branches(content.get("branches", ()), where),
        }
        if count:  # only now is it known for how many levels
            settings["anchors"] *= sum(len(line.sources) for line in settings["layers"] if line.module == "Detect")
        try:
            spec = cls(backbone=backbone, **settings)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if count:
            anchors = _shipped_anchors(spec.strides, count)
            return dataclasses.replace(spec.with_anchors(anchors), own_anchors=False)
        in_order = (
            anchors if _areas_follow(anchors, network.strides) else anchors[::-1]
            for anchors, network in zip(spec.split(spec.anchors), spec.networks, strict=True)
        )
        anchors = sum(in_order, ())
        return spec if anchors == spec.anchors else spec.with_anchors(anchors)

    def with_classes(self, classes: int) -> ModelSpec:
        """The same network for another number of classes.

        Raises:
          UserError: it has several Detects, each for classes of its own.
        """
        if self.branches and classes != self.classes:
            raise UserError(
                f"{self.name} is a joined network of {self.classes} classes, not {classes}: "
                "train a branch for other classes by itself, and join it"
            )
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


def _read_branches(value: Any, where: str | Path) -> tuple[tuple[int, ...], ...]:
    rows = value if isinstance(value, list | tuple) else (None,)
    if not all(isinstance(row, list | tuple) and all(map(is_integer, row)) for row in rows):
        raise UserError(f"{where}: key 'branches': expected a list of class numbers for each Detect, found {value!r}")
    return tuple(tuple(row) for row in rows)


def _branch(spec: ModelSpec, number: int) -> ModelSpec:
    """A branch as a network of its own: the layers that its Detect reads, numbered anew."""
    chosen = branch_layers(spec, number)
    place = {index: new for new, index in enumerate(chosen)}
    layers = tuple(
        dataclasses.replace(spec.layers[index], sources=tuple(place.get(source, -1) for source in layer.sources))
        for index, layer in ((index, spec.resolved[index]) for index in chosen)
    )
    return dataclasses.replace(
        spec,
        classes=len(spec.branches[number]),
        anchors=spec.split(spec.anchors)[number],
        layers=layers,
        backbone=sum(index < spec.backbone for index in chosen),
        branches=(),
    )


def branch_layers(spec: ModelSpec, number: int) -> tuple[int, ...]:
    """Indices of the layers that a Detect reads, directly or through others, and its own, in order.

    Args:
      spec: a network.
      number: of the Detect, from 0.
    """
    chosen: set[int] = set()
    waiting = [spec.detects[number].index]
    while waiting:
        index = waiting.pop()
        if index >= 0 and index not in chosen:
            chosen.add(index)
            waiting += spec.resolved[index].sources
    return tuple(sorted(chosen))


def _anchor_count(value: Any) -> int | None:
    """How many anchors a file asks for that leaves it to others to find them."""
    return value if is_integer(value) and 0 < value <= _MOST_ANCHORS else None


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


def whole_strides(size: int, stride: int) -> int:
    """An image side in pixels, rounded up to a multiple of the stride; a warning says so where that changes it."""
    whole = -(-size // stride) * stride
    if whole != size:
        log.warning("--img %d is not a multiple of the stride %d: %d is used", size, stride, whole)
    return whole
