"""Do the anchors fit the boxes of a data set, and which would.

A box can be learned if one anchor is at most ``threshold`` times larger or smaller in both sides (YOLOv5's ``anchor_t``); the share of such boxes is
the best possible recall. Anchors that leave too little of it are replaced by ones from k-means, refined by mutation
(``docs/yolov5.md`` §1.10).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolojax.data.sample import Sample

Levels = tuple[tuple[tuple[float, float], ...], ...]
Sides = NDArray[np.float64]

ENOUGH_RECALL = 0.98
_SMALLEST_SIDE = 2.0  # pixels
_MOST_BOXES = 20_000  # that anchors are fitted to; more do not move them
_RUNS, _STEPS = 30, 100  # of k-means
_GENERATIONS = 1000
_MUTATION_SHARE, _MUTATION_SIZE, _MUTATION_RANGE = 0.9, 0.1, (0.3, 3.0)


@dataclass(frozen=True)
class AnchorCheck:
    """What came of looking at a data set's boxes.

    Attributes:
      recall: best possible recall with the anchors that were there, 0 to 1.
      anchors: the better ones, (width, height) in pixels by level, small to large; None where those that were there are kept.
      new_recall: best possible recall with ``anchors``, or ``recall`` again.
      reason: a sentence for the log.
    """

    recall: float
    anchors: Levels | None
    new_recall: float
    reason: str


def check_anchors(
    samples: Sequence[Sample], anchors: Levels, image_size: int, threshold: float, seed: int = 0
) -> AnchorCheck:
    """Whether to keep the anchors of a network, and which to take instead.

    Args:
      samples: of the training split.
      anchors: (width, height) in pixels of the network input, by level.
      image_size: pixels of the network input.
      threshold: YOLOv5's ``anchor_t``.
      seed: of the search.

    Returns:
      The old recall and, where it is not enough and better ones were found, new anchors: as many per level, levels in the same order of size.
    """
    rng = np.random.default_rng(seed)
    sides = box_sides(samples, image_size)
    flat = np.array(anchors, np.float64).reshape(-1, 2)
    recall = best_possible_recall(flat, sides * rng.uniform(0.9, 1.1, (len(sides), 1)), threshold)
    fit = f"anchors fit {recall:.2%} of the boxes at {image_size} px"
    if recall > ENOUGH_RECALL or not len(sides):
        return AnchorCheck(recall, None, recall, f"{fit}: kept")
    fitted = fit_anchors(sides, len(flat), threshold, rng)
    if fitted is None:
        return AnchorCheck(recall, None, recall, f"{fit}; kept, as there are too few different boxes to fit others to")
    new_recall = best_possible_recall(fitted, sides, threshold)
    if new_recall <= recall:
        return AnchorCheck(recall, None, recall, f"{fit}; kept, as the best others fit only {new_recall:.2%}")
    areas = flat.prod(1).reshape(len(anchors), -1).mean(1)
    if areas[-1] < areas[0]:
        fitted = fitted[::-1]
    levels = tuple(
        tuple((float(w), float(h)) for w, h in level) for level in fitted.reshape(len(anchors), -1, 2).round(2)
    )
    return AnchorCheck(recall, levels, new_recall, f"{fit}; new ones fit {new_recall:.2%}")


def box_sides(samples: Sequence[Sample], image_size: int) -> Sides:
    """Width and height ``(n, 2)`` of every box in pixels, once the longer side of its image is ``image_size``."""
    sides = [
        sample.boxes[:, 3:].astype(np.float64) * (np.array(sample.size[::-1]) * (image_size / max(sample.size)))
        for sample in samples
    ]
    return np.concatenate([np.zeros((0, 2)), *sides])


def best_possible_recall(anchors: Sides, sides: Sides, threshold: float) -> float:
    """Share of the boxes ``(n, 2)`` that some anchor ``(k, 2)`` comes near enough to; 1 where there is no box."""
    return float((_nearness(anchors, sides) > 1 / threshold).mean()) if len(sides) else 1.0


def _nearness(anchors: Sides, sides: Sides) -> NDArray[np.float64]:
    """For each box, the worse of its two side ratios (at most 1) to the anchor where that is best."""
    ratio = sides[:, None] / anchors
    return np.minimum(ratio, 1 / ratio).min(2).max(1)


def fit_anchors(
    sides: Sides, count: int, threshold: float, rng: np.random.Generator, generations: int = _GENERATIONS
) -> Sides | None:
    """Anchors ``(count, 2)`` in pixels for boxes ``(n, 2)``, by area; None where there are fewer different boxes than that."""
    sides = sides[(sides >= _SMALLEST_SIDE).any(1)]
    if len(sides) > _MOST_BOXES:
        sides = rng.choice(sides, _MOST_BOXES, replace=False)
    if len(np.unique(sides, axis=0)) < count:
        return None
    spread = sides.std(0)
    spread[spread == 0] = 1
    anchors = _k_means(sides / spread, count, rng) * spread
    fitness = _fitness(anchors, sides, threshold)
    for _ in range(generations):
        size = rng.random() * _MUTATION_SIZE
        change = np.where(rng.random(anchors.shape) < _MUTATION_SHARE, rng.normal(1, size, anchors.shape), 1)
        candidate = np.maximum(anchors * change.clip(*_MUTATION_RANGE), _SMALLEST_SIDE)
        better = _fitness(candidate, sides, threshold)
        if better > fitness:
            anchors, fitness = candidate, better
    return anchors[np.argsort(anchors.prod(1))]


def _fitness(anchors: Sides, sides: Sides, threshold: float) -> float:
    """Mean nearness of the boxes that can be learned, the others counting nothing."""
    near = _nearness(anchors, sides)
    return float((near * (near > 1 / threshold)).mean())


def _k_means(points: Sides, count: int, rng: np.random.Generator) -> Sides:
    """Centres ``(count, 2)`` with the least mean distance to the points, of several runs."""
    distinct = np.unique(points, axis=0)
    best, least = distinct[:count], np.inf
    for _ in range(_RUNS):
        centres, before = rng.choice(distinct, count, replace=False), np.inf
        for _ in range(_STEPS):
            distance = np.linalg.norm(points[:, None] - centres, axis=2)
            nearest, mean = distance.argmin(1), float(distance.min(1).mean())
            if before - mean <= 1e-5:
                break
            before = mean
            members = np.bincount(nearest, minlength=count)
            sums = np.stack([np.bincount(nearest, points[:, axis], count) for axis in (0, 1)], 1)
            centres = np.where(members[:, None] > 0, sums / np.maximum(members, 1)[:, None], centres)
        if mean < least:
            best, least = centres, mean
    return best
