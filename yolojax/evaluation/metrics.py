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
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    intersection = np.maximum(high - low, 0).prod(2)
    area = (first[:, 2:] - first[:, :2]).prod(1)[:, None] + (second[:, 2:] - second[:, :2]).prod(1)
    return intersection / (area - intersection + np.float32(1e-7))


def match(detections: np.ndarray, labels: np.ndarray, thresholds: np.ndarray = IOU_THRESHOLDS) -> np.ndarray:
    """Which detections of one image are right, for each IoU threshold.

    A detection chooses the label of its class that it overlaps most; of several that choose the same label the first, so the most confident, is right.

    Args:
      detections: ``(n, 6)`` ``x1 y1 x2 y2 score class``, best first.
      labels: ``(m, 5)`` ``class x1 y1 x2 y2``, same unit.
      thresholds: ``(t,)``; the IoU must reach it.

    Returns:
      ``(n, t)`` bool.

    Source: ``docs/yolov5.md`` §1.11.
    """
    correct = np.zeros((len(detections), len(thresholds)), bool)
    if not len(detections) or not len(labels):
        return correct
    iou = box_iou(labels[:, 1:], detections[:, :4])
    iou[labels[:, 0, None] != detections[:, 5]] = -1
    choice = len(labels) - 1 - iou[::-1].argmax(0)  # of equal overlaps the last label, as in the original
    overlap = iou[choice, np.arange(len(detections))]
    for column, threshold in enumerate(thresholds):
        candidates = np.flatnonzero(overlap >= threshold)
        _, first = np.unique(choice[candidates], return_index=True)
        correct[candidates[first], column] = True
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
    # Equal scores: wrong detections first, so that no order of images flatters the result.
    pattern = correct @ (1 << np.arange(correct.shape[1]))
    order = np.lexsort([pattern, -scores])
    correct, scores, classes = correct[order], scores[order], classes[order]
    present, instances = np.unique(labels.astype(int), return_counts=True)

    ap = np.zeros((len(present), correct.shape[1]))
    precision_at, recall_at, interpolated = np.zeros((3, len(present), len(CONFIDENCES)))
    for row, (label, count) in enumerate(zip(present, instances, strict=True)):
        chosen = classes == label
        if not chosen.any():
            continue
        right = correct[chosen].cumsum(0)
        wrong = (~correct[chosen]).cumsum(0)
        recall = right / (count + 1e-16)
        precision = right / (right + wrong)
        recall_at[row] = np.interp(-CONFIDENCES, -scores[chosen], recall[:, 0], left=0)
        precision_at[row] = np.interp(-CONFIDENCES, -scores[chosen], precision[:, 0], left=1)
        for column in range(correct.shape[1]):
            ap[row, column], at_recall, envelope = _area(recall[:, column], precision[:, column])
            if column == 0:
                interpolated[row] = np.interp(np.linspace(0, 1, interpolated.shape[1]), at_recall, envelope)
    f1 = 2 * precision_at * recall_at / (precision_at + recall_at + 1e-16)
    best = int(_smooth(f1.mean(0)).argmax()) if len(present) else 0
    return Curves(present, instances, ap, precision_at, recall_at, f1, interpolated, best)


def _area(recall: np.ndarray, precision: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Area under the curve, and the curve itself: recalls from 0 to 1 and the precision that is reached at that recall or a higher one."""
    at_recall = np.concatenate([[0.0], recall, [1.0]])
    envelope = np.maximum.accumulate(np.concatenate([[1.0], precision, [0.0]])[::-1])[::-1]
    return float(np.trapezoid(np.interp(RECALLS, at_recall, envelope), RECALLS)), at_recall, envelope


def _smooth(values: np.ndarray, fraction: float = 0.1) -> np.ndarray:
    """Running mean over an odd window of about twice ``fraction``'s half; the ends are continued with their values."""
    window = round(len(values) * fraction * 2) // 2 + 1
    half = window // 2
    padded = np.concatenate([np.full(half, values[0]), values, np.full(half, values[-1])])
    return np.convolve(padded, np.full(window, 1 / window), mode="valid")
