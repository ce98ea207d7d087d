"""Precision, recall and average precision (AP), as YOLOv5 defines them.

Detections are matched with the boxes of their image at ten IoU thresholds (``match``); the matches of all images together give the curves of each class
(``precision_recall_curves``). AP is the area under the interpolated precision-recall curve at 101 points by the trapezoid rule, which differs from COCO's own
method by some thousandths. Precision and recall are read at the one confidence where the mean F1 score of the classes is highest.

Source: ``docs/yolov5.md`` §1.11.
"""

from dataclasses import dataclass

import numpy as np

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10, dtype=np.float32)
CONFIDENCES = np.linspace(0, 1, 1000)  # where the curves over confidence are sampled
RECALLS = np.linspace(0, 1, 101)  # where the precision-recall curve is integrated


@dataclass(frozen=True)
class Curves:
    """Figures of the classes that have labels, in ascending order of class index; ``n`` of them.

    Attributes:
      classes: ``(n,)`` class indices.
      instances: ``(n,)`` labels of each.
      ap: ``(n, 10)`` average precision by IoU threshold.
      precision: ``(n, 1000)`` at ``CONFIDENCES``, IoU threshold .5; so are ``recall`` and ``f1``.
      interpolated: ``(n, 1000)`` precision at 1000 recalls from 0 to 1, for the plot.
      best: index into ``CONFIDENCES`` where the smoothed mean F1 score is highest.
    """

    classes: np.ndarray
    instances: np.ndarray
    ap: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    interpolated: np.ndarray
    best: int

    @property
    def map50(self) -> float:
        """Mean over classes of AP at IoU .5; 0 without labels."""
        return float(self.ap[:, 0].mean()) if len(self.ap) else 0.0

    @property
    def map50_95(self) -> float:
        """Mean over classes and the ten IoU thresholds; 0 without labels."""
        return float(self.ap.mean()) if len(self.ap) else 0.0

    @property
    def mean_precision(self) -> float:
        """Mean over classes at the best confidence; 0 without labels."""
        return float(self.precision[:, self.best].mean()) if len(self.ap) else 0.0

    @property
    def mean_recall(self) -> float:
        """Mean over classes at the best confidence; 0 without labels."""
        return float(self.recall[:, self.best].mean()) if len(self.ap) else 0.0


def fitness(map50: float, map50_95: float) -> float:
    """The one number by which checkpoints are ranked: a tenth of mAP50, nine tenths of mAP50-95."""
    return 0.1 * map50 + 0.9 * map50_95


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU of every pair of boxes.

    Args:
      first: ``(n, 4)`` ``x1 y1 x2 y2``.
      second: ``(m, 4)``, same unit.

    Returns:
      ``(n, m)`` in 0 to 1.
    """
    return paired_iou(first[:, None], second[None])


def paired_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU of boxes ``(..., 4)`` ``x1 y1 x2 y2`` with those at the same place of ``second``."""
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., 2:], second[..., 2:])
    sides = np.maximum(high - low, 0)
    intersection = sides[..., 0] * sides[..., 1]
    first_side, second_side = first[..., 2:] - first[..., :2], second[..., 2:] - second[..., :2]
    area = first_side[..., 0] * first_side[..., 1] + second_side[..., 0] * second_side[..., 1]
    return intersection / (area - intersection + np.float32(1e-7))


def pairs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of members of the same group, over many groups at once.

    Args:
      first: ``(n,)`` int, at least 0: the group of each member.
      second: ``(m,)`` likewise.

    Returns:
      ``(k,)`` and ``(k,)``: positions in ``first``, ascending, and in ``second``, ascending for each of ``first``.

    >>> pairs(np.array([1, 0, 1]), np.array([1, 2, 1]))
    (array([0, 0, 2, 2]), array([0, 2, 0, 2]))
    """
    order = np.argsort(second, kind="stable")
    counts = np.bincount(second, minlength=int(first.max(initial=-1)) + 1)
    number = counts[first]
    row = np.repeat(np.arange(len(first)), number)
    # Where the partners of each member begin, less the pairs before its own.
    shift = (counts.cumsum() - counts)[first] - (number.cumsum() - number)
    return row, order[np.arange(len(row)) + shift[row]]


def match(
    detections: np.ndarray, labels: np.ndarray, images: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """Which detections are right, for each of ``IOU_THRESHOLDS``.

    A detection chooses the label of its image and class that it overlaps most; of several that choose the same label the first, so the most confident, is
    right.

    Args:
      detections: ``(n, 6)`` ``x1 y1 x2 y2 score class``, those of an image best first.
      labels: ``(m, 5)`` ``class x1 y1 x2 y2``, same unit.
      images: ``(n,)`` and ``(m,)`` int, at least 0: the image of each detection and of each label; all of one by default.

    Returns:
      ``(n, 10)`` bool.

    Source: ``docs/yolov5.md`` §1.11.
    """
    correct = np.zeros((len(detections), len(IOU_THRESHOLDS)), bool)
    groups = [detections[:, 5].astype(int), labels[:, 0].astype(int)]
    if images is not None:
        classes = 1 + max(int(group.max(initial=0)) for group in groups)
        groups = [image * classes + group for image, group in zip(images, groups, strict=True)]
    detected, true = pairs(*groups)
    if not len(detected):
        return correct
    iou = paired_iou(detections[detected, :4], labels[true, 1:])
    starts = np.flatnonzero(np.diff(detected, prepend=-1))
    overlap = np.maximum.reduceat(iou, starts)
    is_best = iou == np.repeat(overlap, np.diff(starts, append=len(detected)))
    choice = np.maximum.reduceat(
        np.where(is_best, true, -1), starts
    )  # of equal overlaps the last label, as in the original
    # How many thresholds each detection reaches, and how many the best of those before it with the same label: it is right in between.
    level = np.searchsorted(IOU_THRESHOLDS, overlap, side="right")
    order = np.argsort(choice, kind="stable")
    order = order[level[order] > 0]
    choice, level, count = choice[order], level[order], len(IOU_THRESHOLDS) + 1
    highest = np.maximum.accumulate(choice * count + level)[:-1]
    before = np.concatenate([[0], np.where(choice[1:] == choice[:-1], highest % count, 0)])[: len(order)]
    thresholds = np.arange(len(IOU_THRESHOLDS))
    correct[detected[starts][order]] = (thresholds >= before[:, None]) & (thresholds < level[:, None])
    return correct


def precision_recall_curves(correct: np.ndarray, scores: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> Curves:
    """Precision, recall and AP of every class from the matches of all images.

    Args:
      correct: ``(n, t)`` bool, from ``match``; ``n`` detections of all images in any order.
      scores: ``(n,)`` confidence.
      classes: ``(n,)`` predicted class.
      labels: ``(m,)`` true class of every label.

    Returns:
      The curves. A class without labels does not appear; one with labels but without detections has AP, precision and recall 0.

    Source: ``docs/yolov5.md`` §1.11.
    """
    present, instances = np.unique(labels.astype(int), return_counts=True)
    ap = np.zeros((len(present), correct.shape[1]))
    precision_at, recall_at, interpolated = np.zeros((3, len(present), len(CONFIDENCES)))
    # Few detections are right for any threshold: these alone are put in order, and counted among all by their scores.
    right = np.unique(np.flatnonzero(correct) // correct.shape[1])
    right_classes, pattern = classes[right], correct[right] @ (1 << np.arange(correct.shape[1]))
    for row, (label, count, chosen) in enumerate(zip(present, instances, _by_class(classes, present), strict=True)):
        if not len(chosen):
            continue
        falling = np.sort(-scores[chosen])
        own = np.flatnonzero(right_classes == label)
        # Equal scores: wrong detections first, so that no order of images flatters the result.
        own = own[np.lexsort([pattern[own], -scores[right[own]]])]
        score = -scores[right[own]]
        wrong_before = np.searchsorted(falling, score, side="right") - np.searchsorted(score, score, side="right")
        place, hits = wrong_before + np.arange(len(own)), correct[right[own]]
        true_positives = np.zeros(len(chosen), int)
        true_positives[place[hits[:, 0]]] = 1
        true_positives = true_positives.cumsum()
        recall, precision = true_positives / (count + 1e-16), true_positives / np.arange(1, len(true_positives) + 1)
        recall_at[row] = np.interp(-CONFIDENCES, falling, recall, left=0)
        precision_at[row] = np.interp(-CONFIDENCES, falling, precision, left=1)
        for column in range(correct.shape[1]):
            ap[row, column], at_recall, envelope = _area(place[hits[:, column]], len(chosen), int(count))
            if column == 0:
                interpolated[row] = np.interp(np.linspace(0, 1, interpolated.shape[1]), at_recall, envelope)
    f1 = 2 * precision_at * recall_at / (precision_at + recall_at + 1e-16)
    best = int(_smooth(f1.mean(0)).argmax()) if len(present) else 0
    return Curves(present, instances, ap, precision_at, recall_at, f1, interpolated, best)


def _by_class(classes: np.ndarray, present: np.ndarray) -> list[np.ndarray]:
    """The positions of each of the classes ``present``, which ascend."""
    narrow = np.min_scalar_type(
        int(max(classes.max(initial=0), present.max(initial=0)))
    )  # sorted much faster than wide ones
    labels = classes.astype(narrow)
    order = np.argsort(labels, kind="stable")
    ends = np.bincount(labels, minlength=int(present.max(initial=0)) + 1).cumsum()
    return [order[(ends[label - 1] if label else 0) : ends[label]] for label in present.tolist()]


def _area(places: np.ndarray, detections: int, labels: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Area under the curve of a class, and the curve: recalls from 0 to 1 and the precision that is reached at that recall or a higher one.

    Recall rises, and the curve turns, only where a detection is right: those points, the ones before them and the last say all.

    Args:
      places: of the right detections in the order of all of the class, ascending.
      detections: how many there are.
      labels: how many there are.
    """
    at = np.unique(np.concatenate([places, places - 1, [detections - 1]]))
    at = at[at >= 0]
    right = np.searchsorted(places, at, side="right")
    at_recall = np.concatenate([[0.0], right / (labels + 1e-16), [1.0]])
    envelope = np.maximum.accumulate(np.concatenate([[1.0], right / (at + 1), [0.0]])[::-1])[::-1]
    return float(np.trapezoid(np.interp(RECALLS, at_recall, envelope), RECALLS)), at_recall, envelope


def _smooth(values: np.ndarray, fraction: float = 0.1) -> np.ndarray:
    """Running mean over an odd window of about twice ``fraction``'s half; the ends are continued with their values."""
    window = round(len(values) * fraction * 2) // 2 + 1
    half = window // 2
    padded = np.concatenate([np.full(half, values[0]), values, np.full(half, values[-1])])
    return np.convolve(padded, np.full(window, 1 / window), mode="valid")
