"""From the file to the photo: the real network finds in real photos what the original finds."""

from pathlib import Path

import numpy as np
import pytest

import yolojax
from yolojax.evaluation.metrics import box_iou

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"
CONFIDENCE, IOU = 0.01, 0.45


@pytest.fixture(scope="module")
def pairs(shared_data):
    """Per photo what we and what the original found, ``(n, 6)`` x1 y1 x2 y2 score class."""
    pytest.importorskip("torch")
    weights = shared_data / "weights" / "yolov5n.pt"
    detector = yolojax.load(weights, image_size=320, confidence=CONFIDENCE, iou=IOU, batch_size=8, device="cpu")
    golden = np.load(GOLDENS / "detections.npz")
    expected = np.split(golden["rows"], golden["counts"].cumsum()[:-1])
    batch = detector([shared_data / "coco128" / "images" / "train2017" / name for name in golden["names"]])
    rows = [np.column_stack([item.boxes, item.scores, item.classes]) for item in batch]
    return list(zip(rows, expected, strict=True))


def unmatched(first, second):
    """Rows of ``first`` that have no equal in ``second``."""
    same_class = first[:, None, 5] == second[:, 5]
    close = (np.abs(first[:, None, :4] - second[:, :4]).max(2) < 0.05) & (
        np.abs(first[:, None, 4] - second[:, 4]) < 1e-4
    )
    return first[~(same_class & close).any(1)]


def on_the_edge(row, others):
    """Whether a threshold decides about a detection within 1e-4."""
    iou = box_iou(row[None, :4], others[others[:, 5] == row[5], :4])
    return abs(row[4] - CONFIDENCE) < 1e-4 or bool((np.abs(iou - IOU) < 1e-4).any())


def test_detections_of_real_photos(pairs):
    wanted = sum(len(expected) for _, expected in pairs)
    assert wanted > 500
    missed = [(row, rows) for rows, expected in pairs for row in unmatched(expected, rows)]
    invented = [(row, expected) for rows, expected in pairs for row in unmatched(rows, expected)]
    assert len(missed) <= 0.001 * wanted
    assert len(invented) <= 0.001 * wanted
    assert all(on_the_edge(row, others) for row, others in missed + invented)
