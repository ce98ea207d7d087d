"""A Detect for new classes that begins with what the old one knows.

Where a box is, and whether there is one, are rows of Detect that do not depend on the number of classes; the rows of a class fit every class like it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from yolojax.errors import UserError
from yolojax.model.network import Variables, prior_logits
from yolojax.model.spec import ModelSpec
from yolojax.text import plain_name
from yolojax.weights.store import Weights

InitHead = Literal["fresh", "boxes", "names"]
_BEFORE_CLASSES = 5  # x, y, width, height, objectness


@dataclass(frozen=True)
class OldHead:
    """Which rows of an old Detect a new one begins with.

    Attributes:
      mode: ``boxes`` takes the rows of boxes and objectness, ``names`` those of classes of the same name too.
      classes: new name to old name, of the class rows that are taken.
      left: names of the new classes that begin at their prior.
    """

    mode: InitHead
    classes: Mapping[str, str]
    left: tuple[str, ...]

    def sentence(self) -> str:
        """What was taken, for the log."""
        taken = ", ".join(new if new == old else f"{new} from {old}" for new, old in self.classes.items()) or "none"
        left = ", ".join(self.left) or "none"
        return f"Detect: rows of boxes and objectness taken over; of classes: {taken}; at their prior: {left}"


def match_classes(
    weights: Weights, names: Sequence[str], mode: InitHead, same_as: Mapping[str, str] | None = None
) -> OldHead:
    """Which class rows a Detect for ``names`` takes from that of ``weights``.

    Args:
      weights: with the old Detect.
      names: of the new classes.
      mode: see ``OldHead``.
      same_as: new name to old name, for classes that are named otherwise.

    Raises:
      UserError: a name of ``same_as`` does not exist.
    """
    old_names = {plain_name(name): name for name in reversed(weights.names)}
    new_names = {plain_name(name): name for name in names}
    wanted: dict[str, str] = {}
    for new, old in (same_as or {}).items():
        for name, known, whose in ((new, names, "the data set"), (old, weights.names, "the weights")):
            if plain_name(name) not in map(plain_name, known):
                listed = ", ".join(known[:8])
                raise UserError(f"--same-as {new}={old}: {name!r} is no class of {whose} ({listed})")
        wanted[new_names[plain_name(new)]] = old_names[plain_name(old)]
    classes: dict[str, str] = {}
    for name in names if mode == "names" else ():
        if old_name := wanted.get(name, old_names.get(plain_name(name))):
            classes[name] = old_name
    return OldHead(mode, classes, tuple(name for name in names if name not in classes))


def start_head(
    variables: Variables, spec: ModelSpec, names: Sequence[str], weights: Weights, rows: OldHead
) -> Variables:
    """Variables whose Detect begins with rows of an old one; class rows without a match begin at their prior, with a kernel of zeros.

    Args:
      variables: of the new network; what is not Detect passes by identity.
      spec: the new network.
      names: of its classes.
      weights: with the old Detect.
      rows: of ``match_classes``.

    Raises:
      UserError: the two Detects have other levels, anchors per level or inputs, or one of the networks has several.
    """
    old = weights.spec
    if spec.branches or old.branches:
        raise UserError(
            f"--init-head {rows.mode}: a joined network has several Detects; start from one of its networks"
        )
    new_place, old_place = (f"model_{item.detects[0].index}" for item in (spec, old))
    counts = len(spec.anchors[0]), len(old.anchors[0])
    inputs = spec.detects[0].inputs, old.detects[0].inputs
    if counts[0] != counts[1] or inputs[0] != inputs[1] or spec.strides != old.strides:
        raise UserError(
            f"--init-head {rows.mode}: Detect of {old.name} (strides {old.strides}, {counts[1]} anchors, inputs {inputs[1]}) has no rows for "
            f"{spec.name} (strides {spec.strides}, {counts[0]} anchors, inputs {inputs[0]})"
        )
    numbers = {name: number for number, name in enumerate(weights.names)}
    places = {new: numbers[rows.classes[name]] for new, name in enumerate(names) if name in rows.classes}
    detect = {}
    for level, stride in enumerate(spec.strides):
        module = weights.variables["params"][old_place][f"m_{level}"]
        prior = np.asarray(prior_logits(spec, stride), np.float32)
        starts = {"kernel": np.zeros((*np.shape(module["kernel"])[:-1], len(prior)), np.float32), "bias": prior}
        detect[f"m_{level}"] = {
            name: _with_rows(start, np.asarray(module[name], np.float32), counts[0], places)
            for name, start in starts.items()
        }
    return {**variables, "params": {**variables["params"], new_place: detect}}


def _with_rows(start: Any, old: Any, anchors: int, places: Mapping[int, int]) -> Any:
    """An array ``(…, anchors * values)`` with the values before the classes, and those of the classes in ``places`` (new: old), of another."""
    new_values, old_values = (array.reshape(*array.shape[:-1], anchors, -1) for array in (start.copy(), old))
    new_values[..., :_BEFORE_CLASSES] = old_values[..., :_BEFORE_CLASSES]
    for new, before in places.items():
        new_values[..., _BEFORE_CLASSES + new] = old_values[..., _BEFORE_CLASSES + before]
    return new_values.reshape(start.shape)
