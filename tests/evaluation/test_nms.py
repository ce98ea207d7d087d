"""NMS: the NumPy form, the JAX form and a slow obvious one agree bit by bit."""

import functools

import jax
import numpy as np
import pytest

from yolojax.evaluation import nms
from yolojax.evaluation.nms import NmsSettings, suppress, suppress_batch

on_device = jax.jit(suppress_batch, static_argnums=1)


def obvious(predictions: np.ndarray, settings: NmsSettings) -> np.ndarray:
    """The rules of ``docs/yolov5.md`` §1.11, one candidate and one pair at a time."""
    number = predictions.dtype.type
    candidates = []
    for row in predictions:
        scores = row[5:] * row[4]
        best_only = len(scores) == 1 or not settings.multi_label
        for label in [int(scores.argmax())] if best_only else range(len(scores)):
            wanted = settings.classes is None or label in settings.classes
            if row[4] > settings.confidence and scores[label] > settings.confidence and wanted:
                x, y, w, h = row[:4]
                corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
                candidates.append(np.array([*corners, scores[label], label], predictions.dtype))
    candidates.sort(key=lambda candidate: -candidate[4])
    kept: list[np.ndarray] = []
    for candidate in candidates[: settings.max_candidates]:
        if len(kept) == settings.max_detections:
            break
        boxes = [c[:4] + number(0 if settings.agnostic else nms.CLASS_OFFSET) * c[5] for c in (candidate, *kept)]
        if not any(float(iou(boxes[0], other)) > settings.iou for other in boxes[1:]):
            kept.append(candidate)
    return np.array(kept, predictions.dtype).reshape(-1, 6)


def iou(a: np.ndarray, b: np.ndarray) -> np.floating:
    zero = a.dtype.type(0)
    width = max(zero, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(zero, min(a[3], b[3]) - max(a[1], b[1]))
    intersection = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection / union if union else zero


def on_a_lattice(rng: np.random.Generator, boxes: int, classes: int) -> np.ndarray:
    """Predictions with many equal scores, many equal boxes and IoUs that lie exactly on a threshold."""
    xy = rng.integers(0, 8, (boxes, 2)) * 5
    wh = rng.integers(0, 12, (boxes, 2)) * 5
    return np.concatenate([xy, wh, rng.integers(0, 11, (boxes, 1 + classes)) / 10], 1).astype(np.float32)


def at_random(rng: np.random.Generator, boxes: int, classes: int) -> np.ndarray:
    return (rng.random((boxes, 5 + classes)) * [60, 60, 60, 60, *[1] * (1 + classes)]).astype(np.float32)


SETTINGS = {
    "default": NmsSettings(),
    "agnostic": NmsSettings(agnostic=True),
    "best class": NmsSettings(multi_label=False),
    "two classes": NmsSettings(classes=(0, 2)),
    "few detections": NmsSettings(max_detections=7),
    "few candidates": NmsSettings(max_candidates=50),
    "detection": NmsSettings(confidence=0.25, iou=0.45, max_detections=1000),
    "sixths": NmsSettings(iou=0.5),
}


def set_sizes(monkeypatch: pytest.MonkeyPatch, block: int, first: int) -> None:
    for name, size in {"BLOCK": block, "HOST_BLOCK": block, "FIRST": first}.items():
        monkeypatch.setattr(nms, name, size)


@pytest.mark.parametrize(("name", "classes"), [*((name, 3) for name in SETTINGS), ("default", 1)])
@pytest.mark.parametrize("make", [on_a_lattice, at_random])
def test_three_forms_agree(make, name, classes, monkeypatch):
    set_sizes(
        monkeypatch, 16, 20
    )  # several blocks in a small case, and equal scores on both sides of where the host sorts first
    rng = np.random.default_rng(classes)
    batch = np.stack([make(rng, 60, classes) for _ in range(3)])
    settings = SETTINGS[name]
    detections, counts = map(np.asarray, on_device(batch, settings))
    for image, predictions in enumerate(batch):
        expected = obvious(predictions, settings)
        assert 0 < len(expected) <= settings.max_detections
        np.testing.assert_array_equal(suppress(predictions, settings), expected)
        np.testing.assert_array_equal(detections[image, : counts[image]], expected)
        assert not detections[image, counts[image] :].any()


def test_the_block_size_changes_nothing(monkeypatch):
    predictions = at_random(np.random.default_rng(5), 400, 3)
    expected = suppress(predictions, NmsSettings())
    for block, first in ((1, 1), (7, 100), (256, 700), (5000, 5000)):
        set_sizes(monkeypatch, block, first)
        np.testing.assert_array_equal(suppress(predictions, NmsSettings()), expected)


@pytest.mark.parametrize("length", [3, 40, 600])
def test_a_long_chain_is_settled_in_order(length):
    # Each box overlaps its neighbours alone, so that every second one stays: what a block decides hangs on all of it before.
    chain = np.tile(np.array([0, 50, 30, 10, 1, 0], np.float32), (length, 1))
    chain[:, 0], chain[:, 5] = np.arange(length) * 6, np.linspace(0.9, 0.5, length)
    expected = suppress(chain, NmsSettings())
    np.testing.assert_array_equal(expected[:, 4], chain[::2, 5])
    detections, counts = on_device(chain[None], NmsSettings())
    np.testing.assert_array_equal(np.asarray(detections)[0, : int(counts[0])], expected)


def test_images_with_few_and_with_many_boxes(monkeypatch):
    monkeypatch.setattr(nms, "_BOXES", 40)
    traces = 0

    @jax.jit
    def detect(predictions):
        nonlocal traces
        traces += 1
        return suppress_batch(predictions, NmsSettings(confidence=0.2))

    rng = np.random.default_rng(2)
    many = np.stack([at_random(rng, 120, 3) for _ in range(2)])
    few = many.copy()
    few[:, ::3, 4] = 0.1
    few[:, 1::3, 4] = np.nan
    assert ((many[..., 4] > 0.2).sum(1) > 40).all()
    assert ((few[..., 4] > 0.2).sum(1) < 40).all()
    for batch in (many, few, np.stack([many[0], few[0]])):
        detections, counts = map(np.asarray, detect(batch))
        for image, predictions in enumerate(batch):
            expected = suppress(predictions, NmsSettings(confidence=0.2))
            assert len(expected) > 20
            np.testing.assert_array_equal(detections[image, : counts[image]], expected)
    assert traces == 1


def boxes_and_scores(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32)


@pytest.fixture(params=["host", "device"])
def detect(request):
    if request.param == "host":
        return suppress

    def on_one(predictions, settings):
        detections, counts = on_device(predictions[None], settings)
        return np.asarray(detections)[0, : int(counts[0])]

    return on_one


def test_an_iou_equal_to_the_threshold_keeps_both(detect):
    # 3 of 4 units are shared by boxes of 4 and 3: IoU .75, exact in float32.
    pair = boxes_and_scores((50, 50, 40, 10, 1, 0.9), (45, 50, 30, 10, 1, 0.8))
    assert len(detect(pair, NmsSettings(iou=0.75))) == 2
    assert len(detect(pair, NmsSettings(iou=0.749))) == 1


def test_the_threshold_is_not_rounded_to_float32(detect):
    # The IoU is float32(3/5), which lies above the double .6: the original suppresses it.
    pair = boxes_and_scores((50, 50, 50, 10, 1, 0.9), (40, 50, 30, 10, 1, 0.8))
    assert float(np.float32(30) / np.float32(50)) > 0.6
    assert len(detect(pair, NmsSettings(iou=0.6))) == 1


def test_objectness_is_filtered_before_the_score(detect):
    prediction = boxes_and_scores((50, 50, 20, 20, 0.3, 1.0))
    assert len(detect(prediction, NmsSettings(confidence=0.25))) == 1
    assert len(detect(prediction, NmsSettings(confidence=0.3))) == 0


def test_classes_meet_only_where_agnostic(detect):
    box = boxes_and_scores((50, 50, 20, 20, 1.0, 0.9, 0.8))
    assert detect(box, NmsSettings())[:, 5].tolist() == [0, 1]
    assert detect(box, NmsSettings(agnostic=True))[:, 5].tolist() == [0]
    assert detect(box, NmsSettings(multi_label=False))[:, 5].tolist() == [0]


def test_nothing_in_nothing_out(detect):
    empty = np.zeros((5, 8), np.float32)
    assert detect(empty, NmsSettings()).shape == (0, 6)


def test_a_prediction_that_is_not_a_number_is_no_detection(detect):
    row = boxes_and_scores((50, 50, 20, 20, np.nan, 0.9), (50, 50, 20, 20, 0.9, np.nan), (90, 90, 9, 9, 0.5, 0.5))
    assert len(detect(row, NmsSettings())) == 1


def test_double_precision_stays_double():
    with jax.enable_x64(True):
        predictions = at_random(np.random.default_rng(0), 50, 2).astype(np.float64)
        detections, _ = jax.jit(functools.partial(suppress_batch, settings=NmsSettings()))(predictions[None])
        kept = suppress(predictions, NmsSettings())
        assert detections.dtype == kept.dtype == np.float64
        np.testing.assert_array_equal(np.asarray(detections)[0, : len(kept)], kept)
