"""The confusion matrix on cases that one can count by hand."""

import numpy as np

from yolojax.evaluation.confusion import confusion


def detections_of(*rows) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 6)


def true(*rows) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 5)


SQUARE = (0, 0, 100, 100)


def test_right_wrong_missed_and_invented():
    labels = true((0, *SQUARE), (1, 200, 0, 300, 100), (1, 400, 0, 500, 100))
    detections = detections_of((*SQUARE, 0.9, 0), (200, 0, 300, 100, 0.8, 0), (0, 300, 50, 350, 0.7, 1))
    assert confusion(detections, labels, 2).tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]


def test_detections_count_where_nothing_was_paired_and_where_nothing_is():
    far = detections_of((300, 300, 400, 400, 0.9, 0))
    assert confusion(far, true((0, *SQUARE)), 1).tolist() == [[0, 1], [1, 0]]
    assert confusion(far, true(), 1).tolist() == [[0, 1], [0, 0]]


def test_labels_count_where_nothing_was_found():
    assert confusion(detections_of(), true((0, *SQUARE)), 1).tolist() == [[0, 0], [1, 0]]


def test_thresholds():
    labels = true((0, *SQUARE))
    for side, paired in ((46, 1), (44, 0)):
        assert confusion(detections_of((0, 0, side, 100, 0.9, 0)), labels, 1)[0, 0] == paired
    for score, counted in ((0.26, 1), (0.25, 0)):
        assert confusion(detections_of((*SQUARE, score, 0)), labels, 1)[0, 0] == counted


def test_a_label_takes_the_best_of_its_detections():
    detections = detections_of((0, 0, 60, 100, 0.9, 1), (0, 0, 95, 100, 0.3, 0))
    assert confusion(detections, true((0, *SQUARE)), 2).tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
