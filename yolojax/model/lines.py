"""The lines of a model file: each read and checked by itself, then connected and scaled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard, cast, get_args

from yolojax.errors import UserError

Module = Literal["Conv", "C3", "SPPF", "Upsample", "Concat", "Detect"]

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
      channels: channels of the output; 0 for ``Detect``, whose output no layer reads.
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


def is_integer(value: Any) -> TypeGuard[int]:
    """Whether a value of a YAML file is a whole number, and no ``yes`` or ``no``."""
    return isinstance(value, int) and not isinstance(value, bool)


def read_line(line: Any, where: str) -> LayerSpec:
    """One line ``[sources, repeats, module, arguments]`` of a file.

    Raises:
      UserError: it cannot be understood; ``where`` names file and layer.
    """
    if not isinstance(line, list | tuple) or len(line) != 4:
        raise UserError(f"{where}: expected [sources, repeats, module, arguments], found {line!r}")
    sources, repeats, module, arguments = line
    sources = sources if isinstance(sources, list | tuple) else [sources]
    if not sources or not all(map(is_integer, sources)):
        raise UserError(f"{where}: sources: expected layer numbers, found {line[0]!r}")
    module = str(module).removeprefix("nn.")
    if module not in get_args(Module):
        raise UserError(f"{where}: module {module!r} is unknown; there are {', '.join(get_args(Module))}")
    if not is_integer(repeats) or repeats < 1 or (repeats > 1 and module != "C3"):
        raise UserError(f"{where}: repeats: {repeats!r} (only C3 repeats, at least once)")
    if not isinstance(arguments, list | tuple):
        raise UserError(f"{where}: arguments: expected a list, found {arguments!r}")
    values = _plain_arguments(module, list(arguments))
    least, most = _ARGUMENTS[module]
    good = all(
        is_integer(value) or (module == "C3" and place == 1 and isinstance(value, bool))
        for place, value in enumerate(values)
    )
    # Only a padding, the fourth argument, may be 0.
    small = any(is_integer(value) and value < int(place < 3) for place, value in enumerate(values))
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


def resolve(
    lines: Sequence[LayerSpec], depth_multiple: float, width_multiple: float, branches: int
) -> tuple[Layer, ...]:
    """Scale channels and repeats, and follow channels and strides from layer to layer.

    Args:
      lines: of the file.
      depth_multiple: factor on the repeats of ``C3``.
      width_multiple: factor on the channels.
      branches: how many Detects there must be.

    Raises:
      UserError: layers that cannot be connected.

    Source: ``docs/yolov5.md`` §1.1.
    """
    layers: list[Layer] = []
    detects = [index for index, line in enumerate(lines) if line.module == "Detect"]
    if len(detects) != branches or detects[-1] != len(lines) - 1:
        wanted = "exactly one" if branches == 1 else f"one for each of {branches} branches"
        place = detects[0] if detects else len(lines) - 1
        raise UserError(f"layer {place}: Detect is the last layer, and there is {wanted}")

    def scaled(channels: int) -> int:
        return math.ceil(channels * width_multiple / 8) * 8

    for index, line in enumerate(lines):
        sources = tuple(source if source >= 0 else index + source for source in line.sources)
        if not all(-1 <= source < index for source in sources) or (-1 in sources and index > 0):
            raise UserError(f"layer {index}: sources {list(line.sources)} must name layers before it")
        if any(source in detects for source in sources):
            raise UserError(f"layer {index}: sources {list(line.sources)} name a Detect, whose output no layer reads")
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
                repeats = max(round(line.repeats * depth_multiple), 1) if line.repeats > 1 else 1
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
                channels = 0
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
