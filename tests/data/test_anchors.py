"""Anchors are kept where they fit, and replaced only by better ones."""

import numpy as np
import pytest

from yolojax.data.anchors import best_possible_recall, box_sides, check_anchors, fit_anchors
from yolojax.data.sample import Sample

COCO = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)


def sample(sides: np.ndarray, size: tuple[int, int] = (480, 640)) -> Sample:
    boxes = np.zeros((len(sides), 5), np.float32)
    boxes[:, 3:] = sides / (size[1], size[0])
    return Sample(name="", size=size, boxes=boxes, reader=lambda: np.zeros((*size, 3), np.uint8))


def test_sides_are_pixels_of_the_network_input():
    sides = box_sides([sample(np.array([[64.0, 48]])), sample(np.array([[10.0, 20]]), size=(1280, 100))], 320)
    np.testing.assert_allclose(sides, [[32, 24], [2.5, 5]], rtol=1e-6)
    assert box_sides([], 320).shape == (0, 2)


def test_recall_counts_boxes_within_the_threshold_in_both_sides():
    anchors = np.array([[10.0, 10]])
    sides = np.array([[10.0, 10], [39, 10], [41, 10], [2.6, 39], [2.4, 10], [10, 41]])
    assert best_possible_recall(anchors, sides, 4.0) == pytest.approx(3 / 6)
    assert best_possible_recall(np.array([[10.0, 10], [40, 10]]), sides, 4.0) == pytest.approx(4 / 6)


def test_fitting_anchors_are_kept():
    rng = np.random.default_rng(0)
    check = check_anchors([sample(rng.uniform(10, 200, (200, 2)))], COCO, 640, 4.0)
    assert check.anchors is None
    assert check.recall == check.new_recall > 0.98
    assert check.reason.endswith("kept")


@pytest.mark.parametrize("descending", [False, True])
def test_anchors_of_the_wrong_size_are_replaced_in_order(descending):
    rng = np.random.default_rng(0)
    anchors = COCO[::-1] if descending else COCO
    data = [sample(np.exp(rng.normal(np.log((3, 60)), 0.3, (300, 2))), size=(100, 100))]
    check = check_anchors(data, anchors, 100, 4.0)
    assert check.recall < 0.5
    assert check.new_recall > 0.98
    assert check.anchors is not None
    areas = [w * h for level in check.anchors for w, h in level]
    assert areas == sorted(areas, reverse=descending)
    assert [len(level) for level in check.anchors] == [3, 3, 3]
    assert check == check_anchors(data, anchors, 100, 4.0)


def test_refinement_is_no_worse_than_k_means():
    rng = np.random.default_rng(3)
    sides = np.exp(rng.normal(3, 0.8, (400, 2)))

    def quality(generations: int) -> float:
        anchors = fit_anchors(sides, 9, 2.0, np.random.default_rng(0), generations)
        assert anchors is not None
        ratio = sides[:, None] / anchors
        near = np.minimum(ratio, 1 / ratio).min(2).max(1)
        return float((near * (near > 0.5)).mean())

    assert quality(300) > quality(0) + 0.005


def test_k_means_finds_clusters():
    rng = np.random.default_rng(0)
    centres = np.array([[10, 10], [10, 80], [90, 30.0]])
    sides = (centres + rng.normal(0, 0.5, (50, 3, 2))).reshape(-1, 2)
    anchors = fit_anchors(sides, 3, 4.0, rng, generations=0)
    np.testing.assert_allclose(anchors, centres, atol=0.5)


def test_too_few_boxes_keep_the_anchors():
    check = check_anchors([sample(np.array([[2.0, 200]]))], COCO, 640, 4.0)
    assert check.anchors is None
    assert "too few different boxes" in check.reason
    assert check_anchors([], COCO, 640, 4.0).recall == 1
