"""The original's own answers: boxes it keeps of its predictions on photos, and its matches, AP and confusion matrix."""

from pathlib import Path

import jax
import numpy as np
import pytest

from yolojax.evaluation.confusion import confusion
from yolojax.evaluation.metrics import match, precision_recall_curves
from yolojax.evaluation.nms import NmsSettings, suppress, suppress_batch

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"
SETTINGS = {
    "validation": NmsSettings(),
    "detection": NmsSettings(confidence=0.25, iou=0.45, max_detections=1000, multi_label=False),
    "agnostic": NmsSettings(agnostic=True),
    "classes": NmsSettings(confidence=0.05, iou=0.45, multi_label=False, classes=(0, 2, 15)),
    "few": NmsSettings(confidence=0.01, max_detections=7),
    "one-class": NmsSettings(),
}


@pytest.fixture(scope="module")
def suppression():
    return np.load(GOLDENS / "suppression.npz")


def predictions_of(suppression, photo: int, setting: str) -> np.ndarray:
    predictions = suppression[f"{photo}.predictions"]
    if setting == "one-class":
        predictions = np.concatenate([predictions[:, :5], predictions[:, 5:].max(1, keepdims=True)], 1)
    return predictions


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("photo", range(4))
def test_suppression_on_the_host(suppression, photo, setting):
    detections = suppress(predictions_of(suppression, photo, setting), SETTINGS[setting])
    np.testing.assert_array_equal(detections, suppression[f"{photo}.{setting}"])


@pytest.mark.parametrize("setting", ["validation", "detection", "classes", "one-class"])
def test_suppression_on_the_device(suppression, setting):
    photos = [predictions_of(suppression, photo, setting) for photo in range(4)]
    batch = np.zeros((4, max(map(len, photos)), photos[0].shape[1]), np.float32)
    for row, photo in zip(batch, photos, strict=True):
        row[: len(photo)] = photo
    detections, counts = map(np.asarray, jax.jit(suppress_batch, static_argnums=1)(batch, SETTINGS[setting]))
    for photo in range(4):
        np.testing.assert_array_equal(detections[photo, : counts[photo]], suppression[f"{photo}.{setting}"])


@pytest.fixture(scope="module", params=["easy", "hard", "one", "sparse"])
def case(request):
    golden = np.load(GOLDENS / "precision.npz")
    return {key.removeprefix(f"{request.param}."): golden[key] for key in golden if key.startswith(f"{request.param}.")}


def scenes(case):
    """Detections and labels of each image; an image without labels has no entry of them."""
    for image in range(int(case["images"])):
        yield image, case[f"{image}.detections"], case.get(f"{image}.labels", np.zeros((0, 5), np.float32))


def test_matches(case):
    for image, detections, labels in scenes(case):
        np.testing.assert_array_equal(match(detections, labels), case[f"{image}.correct"])


def test_average_precision(case):
    detections = np.concatenate([rows for _, rows, _ in scenes(case)])
    labels = np.concatenate([true[:, 0] for _, _, true in scenes(case)])
    correct = np.concatenate([case[f"{image}.correct"] for image, _, _ in scenes(case)])
    curves = precision_recall_curves(correct, detections[:, 4], detections[:, 5], labels)
    np.testing.assert_array_equal(curves.classes, case["classes"])
    np.testing.assert_allclose(curves.ap, case["average_precision"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(curves.precision[:, curves.best], case["precision"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(curves.recall[:, curves.best], case["recall"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(curves.f1[:, curves.best], case["f1"], rtol=0, atol=1e-12)


def test_confusion(case):
    for image, detections, labels in scenes(case):
        expected = case[f"{image}.confusion"]
        matrix = confusion(detections, labels, len(expected) - 1)
        if not matrix[:-1, :-1].any():
            matrix[:, -1] = 0  # nothing was paired: the original does not count these detections, we do
        np.testing.assert_array_equal(matrix, expected)
