"""What training starts from: arrays taken over or initialised, anchors kept or found."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from yolojax.data.anchors import AnchorCheck, check_anchors
from yolojax.data.sample import Sample
from yolojax.errors import UserError
from yolojax.hyperparameters import Hyperparameters
from yolojax.model.network import Variables, init_variables
from yolojax.model.spec import Anchors, ModelSpec, nearest_shipped
from yolojax.tree import flatten
from yolojax.weights.delta import arrays_sha256
from yolojax.weights.head import InitHead, match_classes, start_head
from yolojax.weights.store import Weights, transfer

log = logging.getLogger(__name__)

Check = Callable[[Anchors], AnchorCheck]


@dataclass(frozen=True)
class RandomArrays:
    """Paths of arrays that start from random numbers, and why they do."""

    paths: Sequence[str]
    reason: str


def start_variables(
    weights: Weights | None,
    spec: ModelSpec,
    seed: int,
    names: Sequence[str] = (),
    init_head: InitHead = "fresh",
    same_as: Mapping[str, str] | None = None,
) -> tuple[Variables, dict[str, object], RandomArrays]:
    """The arrays to start from.

    Args:
      weights: to take arrays from, where they fit; without them all are initialised.
      spec: the network that is trained.
      seed: of the initialisation.
      names: of its classes.
      init_head: what Detect begins with: ``fresh`` as YOLOv5 (all of it taken over where it fits, else none); see ``OldHead`` for the others.
      same_as: new class name to old one, for ``init_head="names"``.

    Returns:
      Parameters and statistics (NumPy float32), what to record of where they come from, and which of them are random.

    Raises:
      UserError: no array of the weights fits the network, or its Detect not the one that is to begin with it.
    """
    key = jax.random.key(seed)
    if weights is None:
        if init_head != "fresh":
            raise UserError(f"--init-head {init_head}: there are no weights whose Detect could be taken over")
        log.info("%s with %d classes starts from random weights", spec.name, spec.classes)
        variables = jax.tree.map(np.asarray, init_variables(spec, key))
        fresh = RandomArrays(tuple(flatten(variables["params"])), "there are no weights to start from")
        return variables, {"file": None, "trained_by": "yolojax"}, fresh
    moved = transfer(weights, spec, key)
    total = len(moved.transferred) + len(moved.initialised)
    log.info(
        "%s: %d of %d arrays taken from %s",
        spec.name,
        len(moved.transferred),
        total,
        weights.source.get("file", "the weights"),
    )
    reason = "they are not in the weights"
    if weights.spec.classes != spec.classes:
        reason = f"{weights.spec.classes} classes before, {spec.classes} now"
    source: dict[str, object] = {**weights.source, "trained_by": "yolojax", "trained_from": weights.source.get("file")}
    source.pop("init_head", None)  # of the training that the weights come from
    variables, initialised = moved.variables, moved.initialised
    replaced = {path for path in flatten(variables) if path.partition("/")[2] in initialised}
    if init_head != "fresh":
        old = match_classes(weights, names, init_head, same_as)
        variables = start_head(variables, spec, names, weights, old)
        log.info("%s", old.sentence())
        source["init_head"] = {"mode": old.mode, "classes": dict(old.classes), "left": list(old.left)}
        heads = f"model_{spec.detects[0].index}/"
        initialised = tuple(path for path in initialised if not path.startswith(heads))
        if old.left:
            reason = f"class rows of {', '.join(old.left[:8])}"
            initialised += tuple(path for path in flatten(variables["params"]) if path.startswith(heads))
        replaced = {*replaced, *(f"params/{path}" for path in flatten(variables["params"]) if path.startswith(heads))}
    elif initialised:
        modules = sorted({path.split("/")[0] for path in initialised}, key=lambda name: int(name.split("_")[1]))
        log.info("newly initialised (%s): %s", reason, ", ".join(modules))
    source["base"] = {"arrays_sha256": arrays_sha256(weights.variables), "replaced": sorted(replaced)}
    return variables, source, RandomArrays(initialised, reason)


def with_fitting_anchors(
    spec: ModelSpec,
    weights: Weights | None,
    samples: Sequence[Sample],
    image_size: int,
    hyperparameters: Hyperparameters,
    *,
    keep: bool,
    seed: int,
) -> ModelSpec:
    """The network with anchors that fit the boxes: its own where they do.

    Args:
      spec: the network; it may say only how many anchors each level has.
      weights: that the run starts from, if any: their anchors are taken where none can be found.
      samples: images whose boxes count.
      image_size: pixels of the longer side in training.
      hyperparameters: ``anchor_t``, the largest ratio of sides that fits, and ``anchors``, how many to find.
      keep: leave the anchors as they are (``--noautoanchor``).
      seed: of the search.
    """

    def check(anchors: Anchors) -> AnchorCheck:
        return check_anchors(samples, anchors, image_size, hyperparameters.anchor_t, seed)

    if not spec.own_anchors and not hyperparameters.anchors:
        return _find_anchors(spec, weights, None if keep else check)
    if keep:
        return spec
    anchors = spec.anchors
    if hyperparameters.anchors:
        # As in the original, the key asks for this many anchors of no use, which are then always replaced.
        sides = range(1, 2 * round(hyperparameters.anchors), 2)
        anchors = tuple(tuple((float(side), float(side + 1)) for side in sides) for _ in spec.anchors)
    result = check(anchors)
    if result.anchors is None:
        log.info(result.reason)
        return spec
    shown = _shown(result.anchors)
    log.warning("%s; they replace those of %s (--noautoanchor keeps them): %s", result.reason, spec.name, shown)
    return spec.with_anchors(result.anchors)


def _find_anchors(spec: ModelSpec, weights: Weights | None, check: Check | None) -> ModelSpec:
    """Anchors for a network whose file says only how many each level has: found for the boxes, or taken over where there are too few."""
    count = len(spec.anchors[0])
    asked = f"{spec.name} asks for {count} anchors per level"
    if check:
        # No box is near these, so that any that can be found are better.
        useless = tuple(((stride / 10_000, stride / 10_000),) * count for stride in spec.strides)
        result = check(useless)
        if result.anchors is not None:
            fit = 100 * result.new_recall
            log.info("%s; they were found for the boxes and fit %.2f%%: %s", asked, fit, _shown(result.anchors))
            return spec.with_anchors(result.anchors)
    reason = "too few different boxes to find them for" if check else "--noautoanchor"
    if weights and weights.spec.strides == spec.strides and len(weights.spec.anchors[0]) == count:
        log.warning("%s (%s): those of the weights are taken", asked, reason)
        return spec.with_anchors(weights.spec.anchors)
    log.warning("%s (%s): those of %s are taken", asked, reason, nearest_shipped(spec.strides))
    return spec.with_anchors(spec.anchors)


def _shown(anchors: Anchors) -> str:
    return " | ".join(" ".join(f"{w:g},{h:g}" for w, h in level) for level in anchors)
