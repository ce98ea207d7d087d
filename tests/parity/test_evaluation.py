"""Rungs 10 and 11 of the ladder: non-maximum suppression on real predictions, matching, average precision, confusion."""

import jax
import numpy as np
import pytest

from yolojax.evaluation.confusion import confusion
from yolojax.evaluation.evaluator import to_photo
from yolojax.evaluation.metrics import average_precision, match
from yolojax.evaluation.nms import NmsSettings, suppress, suppress_batch

SETTINGS = {
    "validation": NmsSettings(),
    "detection": NmsSettings(confidence=0.25, iou=0.45, multi_label=False, max_detections=1000),
    "agnostic": NmsSettings(agnostic=True),
    "classes": NmsSettings(confidence=0.05, iou=0.45, multi_label=False, classes=(0, 2, 15)),
    "few": NmsSettings(confidence=0.01, max_detections=7),
    "one-class": NmsSettings(),
}


@pytest.mark.parametrize("photo", range(4))
@pytest.mark.parametrize("setting", SETTINGS)
def test_suppression_keeps_the_same_boxes(setting, photo, golden, worst):
    predictions = golden("suppression")[f"{photo}.predictions"]
    if setting == "one-class":
        predictions = np.hstack([predictions[:, :5], predictions[:, 5:].max(1, keepdims=True)])
    expected = golden("suppression")[f"{photo}.{setting}"]
    assert len(expected) > 0
    kept = suppress(predictions, SETTINGS[setting])
    assert kept.shape == expected.shape
    np.testing.assert_array_equal(kept[:, 5], expected[:, 5])
    np.testing.assert_array_equal(kept[:, 4], expected[:, 4])
    assert worst("suppression, pixels", {setting: np.abs(kept[:, :4] - expected[:, :4]).max()}) <= 1e-3


def test_suppression_on_the_device_keeps_the_same_boxes(golden):
    settings = SETTINGS["detection"]
    predictions = [golden("suppression")[f"{photo}.predictions"] for photo in range(4)]
    room = max(map(len, predictions))
    batch = np.stack([np.pad(rows, ((0, room - len(rows)), (0, 0))) for rows in predictions])
    kept, counts = jax.device_get(jax.jit(suppress_batch, static_argnums=1)(batch, settings))
    for photo, (rows, count) in enumerate(zip(kept, counts, strict=True)):
        np.testing.assert_allclose(rows[:count], golden("suppression")[f"{photo}.detection"], atol=1e-3)


@pytest.mark.parametrize("photo", range(4))
def test_boxes_return_to_the_photo(photo, golden):
    boxes = golden("suppression")[f"{photo}.validation"]
    height, width = 256 * 2 + 30, 256 * 3
    gain = min(256 / height, 256 / width)
    padding = ((256 - width * gain) / 2, (256 - height * gain) / 2)
    batch = {"original_size": [(height, width)], "gain": [(gain, gain)], "padding": [np.array(padding, np.float32)]}
    expected = golden("suppression")[f"{photo}.scaled"]
    ours = to_photo(boxes, batch, 0)[:, :4]
    clipped = (ours == 0) | (ours == (width, height, width, height))
    assert 0 < clipped.mean() < 0.5
    np.testing.assert_allclose(ours, expected, atol=1e-3)


CASES = ("easy", "hard", "one", "sparse")


def images_of(case: str, golden) -> list[dict[str, np.ndarray]]:
    content = golden("precision")
    none = {"labels": np.zeros((0, 5), np.float32)}
    return [
        none
        | {
            key: content[f"{case}.{image}.{key}"]
            for key in ("detections", "labels", "correct", "confusion")
            if f"{case}.{image}.{key}" in content
        }
        for image in range(int(content[f"{case}.images"]))
    ]


def best_first(image: dict[str, np.ndarray]) -> np.ndarray:
    return np.argsort(-image["detections"][:, 4], kind="stable")


@pytest.mark.parametrize("case", CASES)
def test_matches(case, golden):
    right = 0
    for image in images_of(case, golden):
        ours = match(image["detections"], image["labels"])
        np.testing.assert_array_equal(ours, image["correct"])
        right += ours.sum()
    assert right > 10


@pytest.mark.parametrize("case", CASES)
def test_average_precision(case, golden, worst):
    images = images_of(case, golden)
    detections = np.concatenate([image["detections"] for image in images])
    correct = np.concatenate([image["correct"] for image in images])
    labels = np.concatenate([image["labels"][:, 0] for image in images])
    curves = average_precision(correct, detections[:, 4], detections[:, 5], labels)
    expected = {key.split(".")[1]: values for key, values in golden("precision").items() if key.startswith(f"{case}.")}
    np.testing.assert_array_equal(curves.classes, expected["classes"])
    ours = {
        "average_precision": curves.ap,
        "precision": curves.precision[:, curves.best],
        "recall": curves.recall[:, curves.best],
        "f1": curves.f1[:, curves.best],
    }
    assert 0.01 < curves.map50_95 < curves.map50 < 1
    errors = {key: np.abs(values - expected[key]).max() for key, values in ours.items()}
    assert worst("average precision", errors) <= 1e-9


@pytest.mark.parametrize("case", CASES)
def test_confusion(case, golden):
    classes = int(golden("precision")[f"{case}.class_count"])
    pairs = 0
    for image in images_of(case, golden):
        ours, expected = confusion(image["detections"], image["labels"], classes), image["confusion"]
        paired = expected[:classes, :classes].sum()
        # Where nothing is paired the original leaves out the detections of nothing; they are counted here.
        columns = classes + 1 if paired else classes
        np.testing.assert_array_equal(ours[:, :columns], expected[:, :columns])
        pairs += paired
    assert pairs > 3
