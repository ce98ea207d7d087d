"""The confusion matrix: which class was taken for which."""

import numpy as np

from yolojax.evaluation.metrics import box_iou

CONFIDENCE = 0.25  # detections below it are not counted: the matrix shows what a person would be shown
IOU = 0.45


def confusion(detections: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Count the pairs of predicted and true class in one image; matrices of several images are added.

    Whatever its class, a detection chooses the label that it overlaps most, and a label takes the best of those that chose it. Every unpaired detection
    counts as one of nothing, also in images where nothing was paired and in images without labels; the original leaves those two out.

    Args:
      detections: ``(n, 6)`` ``x1 y1 x2 y2 score class``.
      labels: ``(m, 5)`` ``class x1 y1 x2 y2``, same unit.
      classes: number of classes.

    Returns:
      ``(classes + 1, classes + 1)`` int64: row = predicted, column = true. The last row counts labels that were missed, the last column detections of
      nothing.

    Source: ``docs/yolov5.md`` §1.11.
    """
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    detections = detections[detections[:, 4] > CONFIDENCE]
    predicted, true = detections[:, 5].astype(int), labels[:, 0].astype(int)
    paired_detections = paired_labels = np.empty(0, int)
    if len(labels) and len(detections):
        iou = box_iou(labels[:, 1:], detections[:, :4])
        choice, overlap = iou.argmax(0), iou.max(0)
        order = np.argsort(-overlap, kind="stable")
        order = order[overlap[order] > IOU]
        paired_labels, first = np.unique(choice[order], return_index=True)
        paired_detections = order[first]
    missed, nothing = np.delete(true, paired_labels), np.delete(predicted, paired_detections)
    rows = np.concatenate([predicted[paired_detections], np.full_like(missed, classes), nothing])
    columns = np.concatenate([true[paired_labels], missed, np.full_like(nothing, classes)])
    np.add.at(matrix, (rows, columns), 1)
    return matrix
