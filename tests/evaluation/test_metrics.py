"""Metrics by property, and against slow obvious implementations."""

import itertools

import numpy as np
import pytest

from yolojax.evaluation.confusion import confusion
from yolojax.evaluation.metrics import IOU_THRESHOLDS, box_iou, fitness, match, precision_recall_curves


def scene(rng: np.random.Generator, labels: int, detections: int, classes: int, noise: float = 8):
    """Random labels ``class x1 y1 x2 y2``, and detections near them, best first."""
    corner = rng.random((labels, 2)) * 300
    true = np.concatenate(
        [rng.integers(0, classes, (labels, 1)), corner, corner + 5 + rng.random((labels, 2)) * 150], 1
    ).astype(np.float32)
    chosen = rng.integers(0, labels, detections)
    boxes = true[chosen, 1:] + rng.normal(0, noise, (detections, 4))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    label = np.where(rng.random(detections) < 0.7, true[chosen, 0], rng.integers(0, classes, detections))
    score = np.sort(rng.random(detections))[::-1]
    return np.concatenate([boxes, score[:, None], label[:, None]], 1).astype(np.float32), true


def curves(scenes):
    """Figures of a data set: pairs of detections and labels."""
    matches = np.concatenate([match(detections, true) for detections, true in scenes])
    detections = np.concatenate([detections for detections, _ in scenes])
    return precision_recall_curves(
        matches, detections[:, 4], detections[:, 5], np.concatenate([true[:, 0] for _, true in scenes])
    )


def figures(scenes) -> tuple[float, ...]:
    result = curves(scenes)
    return result.mean_precision, result.mean_recall, result.map50, result.map50_95


def perfect(true: np.ndarray) -> np.ndarray:
    score = np.linspace(0.9, 0.8, len(true), dtype=np.float32)
    return np.concatenate([true[:, 1:], score[:, None], true[:, :1]], 1)


@pytest.fixture
def scenes():
    rng = np.random.default_rng(3)
    return [scene(rng, int(rng.integers(1, 12)), int(rng.integers(1, 40)), 4) for _ in range(20)]


def test_perfect_predictions_give_one(scenes):
    images = [(perfect(true), true) for _, true in scenes]
    precision, recall, map50, map50_95 = figures(images)
    # The last of the 101 points, recall 1, has precision 0 by definition of the original: its AP of a perfect class is .995.
    assert precision == pytest.approx(1)
    assert recall == pytest.approx(1)
    assert map50 == pytest.approx(0.995)
    assert map50_95 == pytest.approx(0.995)


def test_no_predictions_give_zero(scenes):
    assert figures([(np.zeros((0, 6), np.float32), true) for _, true in scenes]) == (0, 0, 0, 0)


def test_no_labels_give_zero_and_no_classes(scenes):
    result = curves([(detections, true[:0]) for detections, true in scenes])
    assert (result.map50, result.map50_95, len(result.classes)) == (0, 0, 0)


def test_a_class_without_detections_counts_as_zero(scenes):
    images = [(perfect(true)[true[:, 0] != 2], true) for _, true in scenes]
    result = curves(images)
    assert result.classes.tolist() == [0, 1, 2, 3]
    assert result.ap[2].tolist() == [0] * 10
    assert result.map50 == pytest.approx(0.995 * 3 / 4)


def test_the_order_of_images_changes_nothing(scenes):
    assert figures(scenes[::-1]) == figures(scenes)
    tied = [
        (np.concatenate([detections[:, :4], detections[:, 4:5].round(1), detections[:, 5:]], 1), true)
        for detections, true in scenes
    ]
    assert figures(tied[::-1]) == figures(tied)


def test_duplicates_lower_precision(scenes):
    images = [(perfect(true), true) for _, true in scenes]
    doubled = [(np.repeat(detections, 2, 0), true) for detections, true in images]
    before, after = curves(images), curves(doubled)
    assert after.mean_precision == pytest.approx(before.mean_precision / 2, abs=0.02)
    assert after.map50 < before.map50


def test_a_worse_box_matches_fewer_thresholds():
    true = np.array([[0, 0, 0, 100, 100]], np.float32)
    right = [
        int(match(np.array([[0, 0, side, 100, 0.9, 0]], np.float32), true).sum()) for side in (100, 88, 72, 50, 49)
    ]
    assert right == [10, 8, 5, 1, 0]  # 50: the threshold is reached


def test_another_class_is_no_match():
    true = np.array([[1, 0, 0, 100, 100]], np.float32)
    assert not match(np.array([[0, 0, 100, 100, 0.9, 0]], np.float32), true).any()


def test_one_label_makes_one_detection_right_the_most_confident():
    true = np.array([[0, 0, 0, 100, 100]], np.float32)
    detections = np.array([[0, 0, 90, 100, 0.9, 0], [0, 0, 100, 100, 0.8, 0]], np.float32)
    assert match(detections, true).sum(0).max() == 1
    assert match(detections, true)[0, 0]  # although the other overlaps more
    assert match(detections, true)[1, -1]  # which alone reaches .95


def test_of_labels_that_overlap_equally_the_last_is_chosen():
    true = np.array([[0, 0, 0, 10, 10], [0, 2, 0, 12, 10]], np.float32)
    between, on_the_last = (1, 0, 11, 10, 0.9, 0), (2, 0, 12, 10, 0.8, 0)
    found = match(np.array([between, on_the_last], np.float32), true)
    assert found[0].sum() == 7  # IoU .818
    np.testing.assert_array_equal(found[1], ~found[0])  # the label is taken up to there


def obvious_match(detections: np.ndarray, labels: np.ndarray) -> np.ndarray:
    correct = np.zeros((len(detections), 10), bool)
    for column, threshold in enumerate(IOU_THRESHOLDS):
        taken: set[int] = set()
        for row, detection in enumerate(detections):
            best, best_iou = None, threshold
            for index, true in enumerate(labels):
                overlap = box_iou(true[None, 1:], detection[None, :4])[0, 0]
                if true[0] == detection[5] and overlap >= best_iou:
                    best, best_iou = index, overlap
            if best is not None and best not in taken:
                taken.add(best)
                correct[row, column] = True
    return correct


@pytest.mark.parametrize("seed", range(6))
def test_match_equals_an_obvious_one(seed):
    rng = np.random.default_rng(seed)
    detections, true = scene(rng, 8, 30, 1 + seed % 3, noise=20)
    expected = obvious_match(detections, true)
    assert expected.any()
    np.testing.assert_array_equal(match(detections, true), expected)


def test_many_images_at_once_are_matched_as_one_by_one(scenes):
    empty = scene(np.random.default_rng(0), 3, 5, 4)
    scenes = [*scenes, (empty[0][:0], empty[1]), (empty[0], empty[1][:0]), *scenes[:2]]
    found, true = (np.concatenate(parts) for parts in zip(*scenes, strict=True))
    images = tuple(np.repeat(np.arange(len(scenes)), list(map(len, parts))) for parts in zip(*scenes, strict=True))
    expected = np.concatenate([match(*one) for one in scenes])
    assert expected.any()
    np.testing.assert_array_equal(match(found, true, images), expected)
    expected = sum(confusion(*one, 4) for one in scenes)
    np.testing.assert_array_equal(confusion(found, true, 4, images), expected)
    assert expected[-1, :].any()
    assert expected[:, -1].any()


def obvious_ap(right: list[bool], labels: int) -> float:
    """Area under "best precision at this recall or a higher one", 101 points, trapezoids; ``right`` best first."""
    points = [(0.0, 1.0)]
    for count in range(1, len(right) + 1):
        points.append((sum(right[:count]) / labels, sum(right[:count]) / count))
    points.append((1.0, 0.0))
    curve = [(recall, max(precision for _, precision in points[index:])) for index, (recall, _) in enumerate(points)]

    def height(recall: float) -> float:
        for (r0, p0), (r1, p1) in itertools.pairwise(reversed(curve)):
            if r1 <= recall <= r0:
                return p0 if r0 == r1 else p1 + (p0 - p1) * (recall - r1) / (r0 - r1)
        raise AssertionError

    at = [height(step / 100) for step in range(101)]
    return sum((a + b) / 2 / 100 for a, b in itertools.pairwise(at))


@pytest.mark.parametrize("seed", range(8))
def test_ap_equals_an_obvious_one(seed):
    rng = np.random.default_rng(seed)
    count, labels = int(rng.integers(1, 40)), int(rng.integers(1, 30))
    right = rng.random(count) < 0.6
    right[np.flatnonzero(right)[labels:]] = False
    correct = np.repeat(right[:, None], 10, 1)
    scores = np.linspace(0.9, 0.1, count)
    result = precision_recall_curves(correct, scores, np.zeros(count), np.zeros(labels))
    assert result.ap[0, 0] == pytest.approx(obvious_ap(right.tolist(), labels), abs=1e-9)


def test_precision_and_recall_are_read_at_one_confidence():
    # Four labels; right, right, wrong, right: F1 is best where three are found.
    correct = np.repeat(np.array([[True], [True], [False], [True]]), 10, 1)
    result = precision_recall_curves(correct, np.array([0.9, 0.8, 0.7, 0.6]), np.zeros(4), np.zeros(4))
    assert result.mean_recall == pytest.approx(0.75, abs=0.02)
    assert result.mean_precision == pytest.approx(0.75, abs=0.02)
    assert (result.precision[0, -1], result.recall[0, -1]) == (
        1,
        0,
    )  # above every score nothing is found, nothing wrong


def test_fitness():
    assert fitness(0.5, 0.3) == pytest.approx(0.32)
