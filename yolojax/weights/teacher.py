"""A frozen network that teaches another one its own classes while that is trained on others: distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yolojax.errors import UserError
from yolojax.model.network import Variables
from yolojax.model.spec import ModelSpec
from yolojax.text import numbers_by_name, plain_name
from yolojax.weights.delta import arrays_sha256
from yolojax.weights.store import Weights


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What a step has to know of a teacher besides its arrays.

    Attributes:
      spec: the network of the teacher.
      classes: pairs of numbers of one class, that of the pupil and that of the teacher.
      gain: of its part of the loss.
    """

    spec: ModelSpec
    classes: tuple[tuple[int, int], ...]
    gain: float = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """A teacher of a run.

    Attributes:
      distillation: what a step has to know.
      variables: its parameters and statistics, NumPy float32.
      arrays_sha256: of all its arrays, so that a run goes on with the same one.
      names: the classes that it teaches, as the pupil calls them.
    """

    distillation: Distillation
    variables: Variables
    arrays_sha256: str
    names: tuple[str, ...]


def make_teacher(weights: Weights, spec: ModelSpec, names: Sequence[str], gain: float, flag: str) -> Teacher:
    """A teacher for a network; classes are matched by name, without case and blanks.

    Args:
      weights: of the teacher.
      spec: the network that is taught.
      names: of its classes.
      gain: of the teacher's part of the loss.
      flag: what to call it in messages, ``--distil yolov5n.pt``.

    Raises:
      UserError: no class is common, cells or anchors are others, or one of the two has several Detects.
    """
    own = weights.spec
    if spec.branches or own.branches:
        whose = "the network that is trained" if spec.branches else "it"
        raise UserError(f"{flag}: {whose} has several Detects, and a teacher and who is taught have one each")
    if own.strides != spec.strides:
        raise UserError(f"{flag}: {own.name} detects at strides {own.strides}, {spec.name} at {spec.strides}")
    if not _same_anchors(own, spec):
        raise UserError(
            f"{flag}: its anchors are not those of {spec.name}; --noautoanchor keeps those of the weights that the run starts from"
        )
    numbers = numbers_by_name(weights.names)
    classes = tuple(
        (number, numbers[plain_name(name)]) for number, name in enumerate(names) if plain_name(name) in numbers
    )
    if not classes:
        raise UserError(
            f"{flag}: none of its classes ({', '.join(weights.names[:8])}) is one of the run ({', '.join(names[:8])})"
        )
    return Teacher(
        distillation=Distillation(spec=own, classes=classes, gain=gain),
        variables=weights.variables,
        arrays_sha256=arrays_sha256(weights.variables),
        names=tuple(names[number] for number, _ in classes),
    )


def _same_anchors(first: ModelSpec, second: ModelSpec) -> bool:
    """Whether anchors are the same but for the rounding of files: a ``.pt`` has them in float16."""
    shapes = [[len(level) for level in spec.anchors] for spec in (first, second)]
    return shapes[0] == shapes[1] and np.allclose(
        np.concatenate(first.anchors), np.concatenate(second.anchors), rtol=1e-3
    )
