"""Networks that share a frozen trunk, joined into one: the trunk once, and a branch with its Detect for each.

Layers whose parameters and statistics have the same bits in all networks are the trunk. The layers of the first network keep their numbers, those of the
others follow (``model_25`` …), so that paths and ``--freeze N`` keep their meaning. Every branch gives what its network gave.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from yolojax.config import nearest_key
from yolojax.errors import UserError
from yolojax.model.lines import LayerSpec
from yolojax.model.network import Variables
from yolojax.model.spec import ModelSpec
from yolojax.tree import flatten
from yolojax.weights.store import Weights

LETTERS = string.ascii_uppercase
SameNames = Literal["keep", "fuse"]


@dataclass(frozen=True)
class CommonTrunk:
    """Where networks part.

    Attributes:
      layers: how many layers they share from the first on.
      reason: what the first layer that they do not share differs in; empty where it is Detect, which is never shared.
    """

    layers: int
    reason: str


def join_weights(
    networks: Sequence[Weights],
    *,
    at_least: int = 10,
    same_names: SameNames = "keep",
    keep: Mapping[str, Sequence[str]] | None = None,
    name: str = "joined",
) -> Weights:
    """One network of several that share their first layers.

    Args:
      networks: two or more, called A, B, C … in this order.
      at_least: layers that they must share.
      same_names: what classes with one name become: ``keep`` tells them apart (``person (B)``), ``fuse`` makes one class of them, which several
        branches detect.
      keep: by letter the names or numbers of the classes that a network brings; all where it is not named.
      name: of the new network.

    Returns:
      Weights whose ``spec.branches`` says which classes each Detect knows; where each came from stands in ``source["joined"]``.

    Raises:
      UserError: they share too few layers, differ in strides, or a class does not exist.
    """
    if not 2 <= len(networks) <= len(LETTERS):
        raise UserError(f"join: {len(networks)} network(s); two or more are joined, {len(LETTERS)} at most")
    common = common_layers(networks)
    if common.layers < at_least:
        shared = f"the first {common.layers} layers" if common.layers else "no layer"
        raise UserError(f"join: the networks share {shared}, and {at_least} are asked for: {common.reason}")
    chosen = _chosen_classes(networks, keep or {})
    names, numbers = _number_classes(networks, chosen, same_names)

    layers: list[LayerSpec] = []
    branches: list[tuple[int, ...]] = []
    anchors: list[Any] = []
    variables: Variables = {"params": {}, "batch_stats": {}}
    records: list[dict[str, Any]] = []
    for letter, weights, kept, new_numbers in zip(LETTERS, networks, chosen, numbers, strict=False):
        spec = weights.spec
        first = common.layers if layers else 0
        shift = len(layers) - first
        own = range(first, len(spec.layers))
        layers += [_moved(spec, index, first, shift) for index in own]
        anchors += spec.anchors
        for collection, tree in variables.items():
            for index in own:
                if (layer := f"model_{index}") in weights.variables[collection]:
                    tree[f"model_{index + shift}"] = weights.variables[collection][layer]
        for detect, known, levels in zip(
            spec.detects, spec.branches or (tuple(range(spec.classes)),), spec.split(spec.anchors), strict=True
        ):
            rows = [place for place, label in enumerate(known) if label in kept]
            if not rows:
                raise UserError(f"--keep {letter}: leaves its Detect (layer {detect.index}) no class")
            branches.append(tuple(new_numbers[known[row]] for row in rows))
            place = f"model_{detect.index + shift}"
            variables["params"][place] = _class_rows(variables["params"][place], len(levels[0]), rows)
        records.append(_record(letter, weights, first, shift, kept))
    spec = replace(
        networks[0].spec,
        name=name,
        classes=len(names),
        anchors=tuple(anchors),
        layers=tuple(layers),
        branches=tuple(branches),
        own_anchors=True,
    )
    return Weights(spec=spec, names=names, variables=variables, source=_source(records, networks, common.layers))


def common_layers(networks: Sequence[Weights]) -> CommonTrunk:
    """How many layers all networks share, with the bits of parameters and statistics, and what the next one differs in."""
    first, others = networks[0], networks[1:]
    for letter, other in zip(LETTERS[1:], others, strict=False):
        for key in ("depth_multiple", "width_multiple"):
            if getattr(first.spec, key) != getattr(other.spec, key):
                return CommonTrunk(0, f"{letter} is {other.spec.name} and A is {first.spec.name} ({key})")
        if set(first.spec.strides) != set(other.spec.strides):
            return CommonTrunk(
                0, f"A detects at the strides {_listed(first.spec.strides)}, {letter} at {_listed(other.spec.strides)}"
            )
    index = 0
    for layer in first.spec.resolved:
        index = layer.index
        if any(layer.module == "Detect" or other.spec.resolved[index].module == "Detect" for other in networks):
            return CommonTrunk(index, "")
        for letter, other in zip(LETTERS[1:], others, strict=False):
            if layer != other.spec.resolved[index]:
                return CommonTrunk(index, f"layer {index} is another one in {letter} than in A")
            if reason := _first_difference(first.variables, other.variables, index):
                return CommonTrunk(index, f"layer {index} of {letter} differs from A in {reason}")
    return CommonTrunk(index, "")


def graft(trunk: Weights, head: Weights, layer: int | None = None) -> Weights:
    """A network with the first layers of one and the last of another: what an old head still sees on a trunk that moved.

    Args:
      trunk: gives the layers before ``layer``.
      head: gives the others, the anchors and the classes.
      layer: the first of the head; Detect where it is None.

    Raises:
      UserError: the two are not of one architecture, or there is no such layer.
    """
    layer = head.spec.detects[0].index if layer is None else layer
    if trunk.spec.resolved[:layer] != head.spec.resolved[:layer]:
        raise UserError(
            f"--trunk is {trunk.spec.name} and --head is {head.spec.name}: their first {layer} layers differ"
        )
    if not 0 < layer < len(head.spec.layers):
        raise UserError(f"--split {layer}: the head begins with one of the layers 1 to {len(head.spec.layers) - 1}")

    def of(name: str) -> Weights:
        return trunk if int(name.partition("_")[2]) < layer else head

    variables = {
        collection: {name: of(name).variables[collection][name] for name in modules}
        for collection, modules in head.variables.items()
    }
    source = {**head.source, "trunk": dict(trunk.source), "split": layer}
    return Weights(spec=head.spec, names=head.names, variables=variables, source=source)


def _first_difference(left: Variables, right: Variables, index: int) -> str:
    """What a layer differs in, with the likely cause; empty where all bits are the same."""
    causes = {
        "params": "it was trained, or began from other weights",
        "batch_stats": "its statistics moved: --frozen-bn fixed keeps them",
    }
    for collection, cause in causes.items():
        name = f"model_{index}"
        leaves, others = (flatten(tree[collection].get(name, {})) for tree in (left, right))
        for path in sorted(leaves.keys() | others.keys()):
            if path not in leaves or path not in others or not _same_bits(leaves[path], others[path]):
                return f"{name}/{path} ({cause})"
    return ""


def _same_bits(left: Any, right: Any) -> bool:
    left, right = np.asarray(left), np.asarray(right)
    return left.shape == right.shape and left.dtype == right.dtype and left.tobytes() == right.tobytes()


def _moved(spec: ModelSpec, index: int, first: int, shift: int) -> LayerSpec:
    """A layer with sources for its new place: those before ``first`` are the trunk's."""
    sources = tuple(source if source < first else source + shift for source in spec.resolved[index].sources)
    return replace(spec.layers[index], sources=sources)


def _chosen_classes(networks: Sequence[Weights], keep: Mapping[str, Sequence[str]]) -> list[list[int]]:
    """Per network the numbers of the classes that it brings, ascending."""
    letters = LETTERS[: len(networks)]
    for letter in keep:
        if letter not in letters:
            raise UserError(f"--keep {letter}: the networks are {', '.join(letters)}, in the order of the command")
    chosen = []
    for letter, weights in zip(letters, networks, strict=True):
        numbers = {name: number for number, name in enumerate(weights.names)}
        numbers |= {str(number): number for number in range(len(weights.names)) if str(number) not in numbers}
        for text in keep.get(letter, ()):
            if text not in numbers:
                nearest = nearest_key(text, weights.names)
                hint = f"did you mean {nearest!r}?" if nearest else f"it has {', '.join(weights.names[:8])} …"
                raise UserError(f"--keep {letter}: there is no class {text!r}; {hint}")
        chosen.append(
            sorted(numbers[text] for text in keep[letter]) if letter in keep else list(range(len(weights.names)))
        )
    return chosen


def _number_classes(
    networks: Sequence[Weights], chosen: Sequence[Sequence[int]], same_names: SameNames
) -> tuple[tuple[str, ...], list[dict[int, int]]]:
    """The new class names, and per network the new number of each of its classes."""
    names: list[str] = []
    numbers: list[dict[int, int]] = []
    for letter, weights, kept in zip(LETTERS, networks, chosen, strict=False):
        own = {}
        for label in kept:
            name = weights.names[label]
            if name in names and same_names == "fuse":
                own[label] = names.index(name)
                continue
            own[label] = len(names)
            names.append(f"{name} ({letter})" if name in names else name)
        numbers.append(own)
    return tuple(names), numbers


def _class_rows(detect: Mapping[str, Any], anchors: int, rows: Sequence[int]) -> dict[str, Any]:
    """The arrays of a Detect for some of its classes."""

    def take(array: Any) -> Any:
        array = np.asarray(array)
        values = array.reshape(*array.shape[:-1], anchors, -1)
        wanted = [*range(5), *(5 + row for row in rows)]
        return values if values.shape[-1] == len(wanted) else values[..., wanted]

    return {
        level: {name: take(array).reshape(*np.shape(array)[:-1], -1) for name, array in arrays.items()}
        for level, arrays in detect.items()
    }


def _record(letter: str, weights: Weights, first: int, shift: int, kept: Sequence[int]) -> dict[str, Any]:
    last = len(weights.spec.layers) - 1
    return {
        "letter": letter,
        "network": weights.spec.name,
        "layers": [first + shift, last + shift],
        "classes": [weights.names[label] for label in kept],
        "source": dict(weights.source),
    }


def _source(records: Sequence[dict[str, Any]], networks: Sequence[Weights], trunk: int) -> dict[str, Any]:
    licences = dict.fromkeys(str(item.source.get("licence", "unknown")) for item in networks)
    files = " + ".join(str(item.source.get("file") or item.spec.name) for item in networks)
    source: dict[str, Any] = {
        "file": files,
        "licence": " and ".join(licences),
        "trunk_layers": trunk,
        "joined": list(records),
    }
    sizes = {item.source.get("image_size") for item in networks} - {None}
    if len(sizes) == 1:
        source["image_size"] = sizes.pop()
    return source


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
