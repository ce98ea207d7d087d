"""Which predicted boxes are kept: non-maximum suppression (NMS), once for the host and once for the device.

Both forms follow the same rules, those of ``docs/yolov5.md`` §1.11, and give the same boxes in the same order:

1. a box is a candidate if its objectness exceeds the confidence threshold;
2. its score for a class is objectness times class probability. With several classes every class whose score exceeds the threshold makes a detection of
   its own (multi-label); with one class, or where asked, only the best class does;
3. the 30,000 best scores are considered, in descending order; equal scores keep the order of the predictions (box, then class);
4. a detection is dropped if its IoU with a kept, better one of its class exceeds the threshold. Boxes are moved by 7680 pixels per class so that classes
   never meet. All of it in the precision of the predictions: the rounding of the moved boxes is part of the rule;
5. the first 300 that remain are the answer. There is no time limit.

``suppress`` is NumPy for one image and the faster one on a CPU; ``suppress_batch`` is JAX for a batch, with static shapes, and keeps predictions on the
device. Their outputs are equal bit by bit on a CPU; an accelerator may round an IoU differently where it is within one unit of the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Predictions = TypeVar("Predictions", np.ndarray, Array)

CLASS_OFFSET = 7680.0  # pixels; wider than any image
# Candidates that are compared at once, on the device and on the host, and those that the host sorts first; measured, any number gives the same result.
BLOCK, HOST_BLOCK, FIRST = 256, 128, 2048
_BOXES = (
    4096  # with a score above the threshold; where no image of a batch has more, only theirs are sorted on the device
)
_TRIES = 8  # of a block between two looks at whether it is settled, which on a GPU the host waits for; more chains than this are rare


@dataclass(frozen=True, kw_only=True)
class NmsSettings:
    """Thresholds and limits; the defaults are those of validation.

    Attributes:
      confidence: a score must exceed it.
      iou: a detection is dropped if its IoU with a better one exceeds this.
      max_detections: most detections of one image.
      max_candidates: most scores of one image that are considered.
      multi_label: one box may be detected as several classes (has no effect with one class).
      agnostic: boxes of different classes suppress each other.
      classes: only these class indices are detected; ``None`` is all.
      parts: where the predictions are those of several branches, one after the other: in which proportion, and the classes that each knows. Every
        branch is suppressed by itself, with these limits, as if its classes were all; the detections are merged by score.
    """

    confidence: float = 0.001
    iou: float = 0.6
    max_detections: int = 300
    max_candidates: int = 30_000
    multi_label: bool = True
    agnostic: bool = False
    classes: tuple[int, ...] | None = None
    parts: tuple[tuple[int, tuple[int, ...]], ...] = ()


def suppress(predictions: np.ndarray, settings: NmsSettings) -> np.ndarray:
    """NMS of one image on the host.

    Args:
      predictions: ``(N, 5 + nc)`` float: ``x y w h`` in pixels (centre), objectness, class probabilities.
      settings: thresholds and limits.

    Returns:
      ``(n, 6)`` of the same dtype, ``n <= max_detections``, best first: ``x1 y1 x2 y2`` in pixels, score, class index.

    Source: ``docs/yolov5.md`` §1.11.
    """
    if settings.parts:
        merged = np.concatenate(
            [
                _renamed(suppress(own, alone), np.asarray(labels), np)
                for own, labels, alone in _branches(predictions, settings)
            ]
        )
        return merged[np.argsort(-merged[:, 4], kind="stable")]
    dtype = predictions.dtype
    threshold = _round_down(settings.iou, dtype)
    offset = dtype.type(0.0 if settings.agnostic else CLASS_OFFSET)
    kept = np.empty((settings.max_detections + HOST_BLOCK, 6), dtype)
    boxes = np.empty((5, len(kept)), dtype)  # of ``kept``, as ``_moved`` gives them
    earlier = np.triu(np.ones((HOST_BLOCK, HOST_BLOCK), bool), 1)
    number = 0
    for block in _blocks(_candidates(predictions, settings)):
        own = _moved(block, offset)
        free = ~_exceeds_on_host(boxes[:, :number], own, threshold).any(0)
        block, own = block[free], own[:, free]
        # A survivor is kept unless a kept one before it in the block beats it. Starting from "all kept", each round settles at least one more of them
        # from the front, and most chains are short.
        beats = _exceeds_on_host(own, own, threshold) & earlier[: len(block), : len(block)]
        keep: np.ndarray = np.ones(len(block), bool)
        while not np.array_equal(keep, settled := ~(beats & keep[:, None]).any(0)):
            keep = settled
        end = number + int(keep.sum())
        kept[number:end], boxes[:, number:end], number = block[keep], own[:, keep], end
        if number >= settings.max_detections:
            break
    return kept[: min(number, settings.max_detections)]


def _blocks(candidates: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    for rows in candidates:
        for start in range(0, len(rows), HOST_BLOCK):
            yield rows[start : start + HOST_BLOCK]


def _moved(detections: np.ndarray, offset: np.floating) -> np.ndarray:
    """``x1 y1 x2 y2`` moved by class, and areas, ``(5, n)``: a row for each, which is faster."""
    corners = (detections[:, :4] + detections[:, 5:] * offset).T
    return np.stack([*corners, (corners[2] - corners[0]) * (corners[3] - corners[1])])


def _branches(
    predictions: Predictions, settings: NmsSettings
) -> Iterator[tuple[Predictions, tuple[int, ...], NmsSettings]]:
    """Of each branch its predictions ``(…, N, 5 + its classes)``, the classes that it knows, and the settings for it alone."""
    end, rows = 0, predictions.shape[-2]
    labels: tuple[int, ...]
    for share, labels in settings.parts:
        start, end = end, end + rows * share // sum(part[0] for part in settings.parts)
        if not labels:
            continue
        wanted = None if settings.classes is None else tuple(labels.index(c) for c in settings.classes if c in labels)
        columns = np.array([*range(5), *(5 + label for label in labels)])
        yield predictions[..., start:end, columns], labels, replace(settings, parts=(), classes=wanted)


def _renamed(detections: Any, labels: Any, xp: ModuleType) -> Any:
    """Detections whose class is a place in ``labels``, with the class itself."""
    return xp.concatenate(
        [detections[..., :5], labels[detections[..., 5:].astype("int32")].astype(detections.dtype)], -1
    )


def _candidates(predictions: np.ndarray, settings: NmsSettings) -> Iterator[np.ndarray]:
    """Rows ``x1 y1 x2 y2 score class`` that pass the threshold, best first: some of the best, which mostly are enough, then all others."""
    threshold = settings.confidence
    rows = predictions[predictions[:, 4] > threshold]
    scores = rows[:, 5:] * rows[:, 4:5]
    if settings.multi_label and scores.shape[1] > 1:
        row, label = np.divmod(np.flatnonzero(scores > threshold), scores.shape[1])
    else:
        label = scores.argmax(1)
        row = np.flatnonzero(scores[np.arange(len(scores)), label] > threshold)
        label = label[row]
    if settings.classes is not None:
        wanted = np.isin(label, settings.classes)
        row, label = row[wanted], label[wanted]
    score = scores[row, label]

    def sorted_rows(places: np.ndarray, most: int) -> np.ndarray:
        order = places[np.argsort(-score[places], kind="stable")[:most]]
        own, classes, values = rows[row[order]], label[order], score[order]
        centre, half = own[:, :2], own[:, 2:4] / 2
        return np.concatenate([centre - half, centre + half, values[:, None], classes[:, None].astype(score.dtype)], 1)

    left = min(settings.max_candidates, len(score))
    least = np.partition(score, -FIRST)[-FIRST] if len(score) > FIRST else -np.inf
    first = sorted_rows(np.flatnonzero(score >= least), left)
    yield first
    if len(first) < left:
        yield sorted_rows(np.flatnonzero(score < least), left - len(first))


def _exceeds_on_host(left: np.ndarray, right: np.ndarray, threshold: np.floating) -> np.ndarray:
    """Whether the IoU of every pair exceeds the threshold: of ``(5, n)`` and ``(5, m)``, as ``_moved`` gives them, ``(n, m)``."""
    x1, y1, x2, y2, area = left[:, :, None]
    width = np.minimum(x2, right[2])
    width -= np.maximum(x1, right[0])
    height = np.minimum(y2, right[3])
    height -= np.maximum(y1, right[1])
    intersection = np.maximum(width, 0, out=width)
    intersection *= np.maximum(height, 0, out=height)
    union = area + right[4]
    union -= intersection
    with np.errstate(divide="ignore", invalid="ignore"):  # two boxes of zero area: 0 / 0 exceeds nothing
        return np.divide(intersection, union, out=union) > threshold


def _round_down(threshold: float, dtype: np.dtype) -> np.floating:
    """The largest number of ``dtype`` that is not above ``threshold``.

    ``iou > threshold`` is then what a comparison in double precision would give: the original compares a float32 IoU with a double, and float32 rounds
    .6 upwards.
    """
    rounded = dtype.type(threshold)
    return np.nextafter(rounded, dtype.type(-np.inf)) if float(rounded) > threshold else rounded


def suppress_batch(predictions: Array, settings: NmsSettings) -> tuple[Array, Array]:
    """NMS of a batch on the device; jit it with ``settings`` static.

    Candidates are taken in blocks, best first: those that a kept one beats fall away, and the rest settle among themselves. All candidates that the rules
    admit take part: the static size is ``max_candidates``, or every score where there are fewer.

    Args:
      predictions: ``(B, N, 5 + nc)`` float: ``x y w h`` in pixels (centre), objectness, class probabilities.
      settings: thresholds and limits.

    Returns:
      ``(B, max_detections, 6)`` (so many for each branch) of the same dtype, best first, unused rows zero: ``x1 y1 x2 y2`` in pixels, score, class
      index; and the number of detections of each image, ``(B,)`` int32.

    Source: ``docs/yolov5.md`` §1.11.
    """
    if settings.parts:
        rows, counts = [], jnp.zeros(len(predictions), jnp.int32)
        for own, labels, alone in _branches(predictions, settings):
            detections, count = suppress_batch(own, alone)
            rows.append(_renamed(detections, jnp.asarray(labels), jnp))
            counts += count
        merged = jnp.concatenate(rows, 1)
        order = jnp.argsort(-merged[:, :, 4], axis=1, stable=True)  # unused rows have the score 0
        used = jnp.arange(merged.shape[1]) < counts[:, None]
        return jnp.where(used[:, :, None], jnp.take_along_axis(merged, order[:, :, None], 1), 0), counts
    detections, scores = _candidates_on_device(predictions, settings)
    return jax.vmap(partial(_suppress_sorted, settings=settings))(detections, scores)


class _Boxes(NamedTuple):
    """Boxes moved by class, each ``(n,)``; their areas are no part of what is fused below, so that they are rounded as on the host."""

    x1: Array
    y1: Array
    x2: Array
    y2: Array
    area: Array

    def at(self, rows: Array) -> _Boxes:
        return _Boxes(*(column[rows] for column in self))


class _Progress(NamedTuple):
    """Of one image: where the block starts, which of it may be kept, places of those that are kept ``(max_detections,)`` and their number."""

    start: Array
    keep: Array
    kept: Array
    number: Array


def _suppress_sorted(detections: Array, score: Array, settings: NmsSettings) -> tuple[Array, Array]:
    """NMS of the candidates of one image, as ``_sorted_candidates`` gives them."""
    block = min(BLOCK, len(score))
    corners, label = detections[:, :4], detections[:, 5:]
    x1, y1, x2, y2 = (corners + label * (0.0 if settings.agnostic else CLASS_OFFSET)).T
    boxes = _Boxes(x1, y1, x2, y2, (x2 - x1) * (y2 - y1))
    candidates = (score > -jnp.inf).sum(dtype=jnp.int32)
    threshold = _round_down(settings.iou, np.dtype(score.dtype))

    def unfinished(state: _Progress) -> Array:
        return (state.start < candidates) & (state.number < settings.max_detections)

    def settle(state: _Progress) -> _Progress:
        rows = state.start + jnp.arange(
            block, dtype=jnp.int32
        )  # behind the last one, it is read again and no candidate
        own, used = boxes.at(rows), jnp.arange(settings.max_detections) < state.number
        beaten = (_exceeds(boxes.at(state.kept), own, threshold) & used[:, None]).any(0)
        possible = (rows < candidates) & ~beaten
        beats = _exceeds(own, own, threshold) & (jnp.arange(block)[:, None] < jnp.arange(block))
        # As on the host: each try settles at least one more from the front, and what a try does not change is the answer.
        before, keep = state.keep, state.keep & possible
        for _ in range(_TRIES):
            before, keep = keep, possible & ~(beats & keep[:, None]).any(0)
        settled = (before == keep).all()
        places = jnp.where(keep & settled, state.number + keep.cumsum(dtype=jnp.int32) - 1, settings.max_detections)
        return _Progress(
            start=state.start + settled * jnp.int32(block),
            keep=keep | settled,
            kept=state.kept.at[places].set(rows, mode="drop"),
            number=jnp.minimum(state.number + settled * keep.sum(dtype=jnp.int32), settings.max_detections),
        )

    nothing = jnp.zeros(settings.max_detections, jnp.int32)
    first = _Progress(jnp.int32(0), jnp.ones(block, bool), nothing, jnp.int32(0))
    end = lax.while_loop(unfinished, settle, first)
    used = jnp.arange(settings.max_detections) < end.number
    return jnp.where(used[:, None], detections[end.kept], 0), end.number


def _candidates_on_device(predictions: Array, settings: NmsSettings) -> tuple[Array, Array]:
    """``_sorted_candidates`` of every image of a batch; a sort of all scores is what costs most, and is rarely needed."""
    boxes, size = predictions.shape[1], min(settings.max_candidates, predictions[0, :, 5:].size)

    def sort(image: Array) -> tuple[Array, Array]:
        return _sorted_candidates(image, settings, size)

    if boxes <= _BOXES:
        return jax.vmap(sort)(predictions)
    objectness = predictions[..., 4]
    best = (predictions[..., 5:] * objectness[..., None]).max(-1)
    passes = (objectness > settings.confidence) & (best > settings.confidence)
    places = jnp.sort(jnp.where(passes, jnp.arange(boxes), boxes), 1)[:, :_BOXES]

    def of_few() -> tuple[Array, Array]:
        # Behind the last box there are only numbers that are none, which pass no threshold.
        return jax.vmap(lambda image, rows: sort(jnp.take(image, rows, 0, mode="fill")))(predictions, places)

    return lax.cond((passes.sum(1) <= _BOXES).all(), of_few, lambda: lax.map(sort, predictions))


def _sorted_candidates(predictions: Array, settings: NmsSettings, size: int) -> tuple[Array, Array]:
    """``size`` rows ``x1 y1 x2 y2 score class`` of an image, best first, and their scores again; -inf where the row is no candidate."""
    classes = predictions.shape[1] - 5
    objectness = predictions[:, 4]
    scores = predictions[:, 5:] * objectness[:, None]
    labels = jnp.broadcast_to(jnp.arange(classes), scores.shape)
    if not settings.multi_label or classes == 1:
        labels = scores.argmax(1)[:, None]
        scores = jnp.take_along_axis(scores, labels, 1)
    passes = (objectness[:, None] > settings.confidence) & (scores > settings.confidence)
    if settings.classes is not None:
        passes &= jnp.isin(labels, jnp.asarray(settings.classes, labels.dtype))
    scores = jnp.where(passes, scores, -jnp.inf)
    # top_k puts the lower index first among equals: the order of the predictions.
    score, index = lax.top_k(scores.ravel(), min(size, scores.size))
    label = labels.ravel()[index].astype(predictions.dtype)
    row = index // scores.shape[1]
    centre, half = predictions[row, :2], predictions[row, 2:4] / 2
    rows = jnp.concatenate([centre - half, centre + half, score[:, None], label[:, None]], 1)
    missing = size - len(score)
    return jnp.pad(rows, ((0, missing), (0, 0))), jnp.pad(score, (0, missing), constant_values=-jnp.inf)


def _exceeds(left: _Boxes, right: _Boxes, threshold: np.floating) -> Array:
    """Whether the IoU of every pair exceeds the threshold, ``(n, m)``."""
    left = _Boxes(*(column[:, None] for column in left))
    width = jnp.minimum(left.x2, right.x2) - jnp.maximum(left.x1, right.x1)
    height = jnp.minimum(left.y2, right.y2) - jnp.maximum(left.y1, right.y1)
    # "where", not "maximum": a select between product and difference keeps the compiler from fusing them, which would round differently.
    intersection = jnp.where((width > 0) & (height > 0), width * height, 0)
    return intersection / (left.area + right.area - intersection) > threshold
