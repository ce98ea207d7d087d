"""COCO's AP: ours against pycocotools and faster-coco-eval."""

import importlib

import numpy as np
import pytest

from yolojax.errors import UserError
from yolojax.evaluation import coco
from yolojax.evaluation.coco import EvaluatedImage, against, coco_average_precision, coco_files, official_figures


def some_images(seed: int, classes: int, count: int = 12, detections: int = 60) -> list[EvaluatedImage]:
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        labels = int(rng.integers(0, 12))
        corner = rng.random((labels, 2)) * 300
        true = np.concatenate(
            [rng.integers(0, classes, (labels, 1)), corner, corner + 5 + rng.random((labels, 2)) * 150], 1
        ).astype(np.float32)
        chosen = rng.integers(0, max(labels, 1), detections if labels else 0)
        boxes = true[chosen, 1:] + rng.normal(0, 12, (len(chosen), 4))
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        label = np.where(rng.random(len(chosen)) < 0.7, true[chosen, 0], rng.integers(0, classes, len(chosen)))
        score = np.sort(rng.random(len(chosen)))[::-1]
        detections = np.concatenate([boxes, score[:, None], label[:, None]], 1).astype(np.float32)
        made.append(EvaluatedImage(f"{index}.jpg", (480, 640), detections, true))
    return made


def only(package: str, monkeypatch) -> None:
    """Hide the other package."""
    real = importlib.import_module

    def fake(name: str):
        if name.split(".")[0] != package:
            raise ImportError(name)
        return real(name)

    monkeypatch.setattr(coco.importlib, "import_module", fake)


@pytest.mark.parametrize("package", ["pycocotools", "faster_coco_eval"])
@pytest.mark.parametrize(("classes", "detections"), [(1, 250), (4, 60)])
def test_equals_the_official_code(package, classes, detections, monkeypatch):
    pytest.importorskip(package)
    only(package, monkeypatch)
    made = some_images(classes, classes, detections=detections)
    ap = coco_average_precision(made, classes)
    figures = official_figures(*coco_files(made, [str(index) for index in range(classes)]))
    assert figures["tool"] == package
    assert 0.1 < figures["map50_95"] < 0.9
    assert np.nanmean(ap) == pytest.approx(figures["map50_95"], abs=1e-6)
    assert np.nanmean(ap[:, 0]) == pytest.approx(figures["map50"], abs=1e-6)


def test_perfect_predictions_give_one():
    made = [
        EvaluatedImage(p.name, p.size, np.insert(p.labels[:, [1, 2, 3, 4, 0]], 4, 0.9, axis=1), p.labels)
        for p in some_images(0, 3)
    ]
    np.testing.assert_allclose(coco_average_precision(made, 3), 1)


def test_classes_without_labels_are_left_out():
    ap = coco_average_precision(some_images(0, 3), 5)
    assert np.isnan(ap[3:]).all()
    assert np.isfinite(ap[:3]).all()


def test_without_the_official_code_there_is_no_figure(monkeypatch):
    only("none", monkeypatch)
    assert official_figures(*coco_files(some_images(0, 3), "abc")) is None


def test_image_ids_are_the_numbers_of_coco_file_names():
    image = some_images(0, 1, count=1)[0]
    named = [EvaluatedImage(name, image.size, image.detections, image.labels) for name in ("000000000042.jpg", "7.png")]
    truth, results = coco_files(named, ["x"])
    assert [image["id"] for image in truth["images"]] == [42, 7]
    assert {result["image_id"] for result in results} <= {42, 7}
    truth, _ = coco_files([named[0], EvaluatedImage("cat.jpg", image.size, image.detections, image.labels)], ["x"])
    assert [image["id"] for image in truth["images"]] == [1, 2]


def test_another_file_is_joined_by_names():
    truth, results = coco_files(some_images(0, 2), ["cat", "dog"])
    other = {
        "images": [{"id": 1000 + image["id"], "file_name": image["file_name"]} for image in truth["images"]]
        + [{"id": 1, "file_name": "not ours.jpg"}],
        "annotations": [],
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
    }
    joined, moved = against(other, truth, results)
    assert {result["category_id"] for result in moved} == {17, 18}
    assert [result["image_id"] - 1000 for result in moved] == [result["image_id"] for result in results]
    assert [image["file_name"] for image in joined["images"]] == [image["file_name"] for image in truth["images"]]
    with pytest.raises(UserError, match="cat"):
        against(other | {"categories": other["categories"][:1]}, truth, results)
