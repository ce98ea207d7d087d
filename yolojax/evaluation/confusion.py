"""The confusion matrix: which class was taken for which."""

import numpy as np

from yolojax.evaluation.metrics import paired_iou, pairs

CONFIDENCE = 0.25  # detections below it are not counted: the matrix shows what a person would be shown
IOU = 0.45


def confusion(
    detections: np.ndarray, labels: np.ndarray, classes: int, images: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """Count the pairs of predicted and true class; matrices of several images are added.

    Whatever its class, a detection chooses the label of its image that it overlaps most, and a label takes the best of those that chose it. Every unpaired
    detection counts as one of nothing, also in images where nothing was paired and in images without labels; the original leaves those two out.

    Args:
      detections: ``(n, 6)`` ``x1 y1 x2 y2 score class``.
      labels: ``(m, 5)`` ``class x1 y1 x2 y2``, same unit.
      classes: number of classes.
      images: ``(n,)`` and ``(m,)`` int, at least 0: the image of each detection and of each label; all of one by default.

    Returns:
      ``(classes + 1, classes + 1)`` int64: row = predicted, column = true. The last row counts labels that were missed, the last column detections of
      nothing.

    Source: ``docs/yolov5.md`` §1.11.
    """
    sure = detections[:, 4] > CONFIDENCE
    found_images, true_images = images or (np.zeros(len(detections), int), np.zeros(len(labels), int))
    detections, found_images = detections[sure], found_images[sure]
    predicted, true = detections[:, 5].astype(int), labels[:, 0].astype(int)
    detected, candidate = pairs(found_images, true_images)
    iou = paired_iou(detections[detected, :4], labels[candidate, 1:])
    # Of each detection the label that it overlaps most, of equal ones the first; then of each label the best of its detections, likewise.
    order = np.lexsort([-iou, detected])
    order = order[np.unique(detected[order], return_index=True)[1]]
    order = order[iou[order] > IOU]
    order = order[np.lexsort([-iou[order], candidate[order]])]
    paired_labels, first = np.unique(candidate[order], return_index=True)
    paired_detections = detected[order[first]]
    missed, nothing = np.delete(true, paired_labels), np.delete(predicted, paired_detections)
    rows = np.concatenate([predicted[paired_detections], np.full_like(missed, classes), nothing])
    columns = np.concatenate([true[paired_labels], missed, np.full_like(nothing, classes)])
    cells = np.bincount(rows * (classes + 1) + columns, minlength=(classes + 1) ** 2)
    return cells.reshape(classes + 1, classes + 1)
