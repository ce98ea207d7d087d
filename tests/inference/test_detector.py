"""``yolojax.load`` and what it gives."""

import dataclasses
import doctest
import importlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

import yolojax
from yolojax.data.examples import example_images
from yolojax.errors import UserError
from yolojax.inference import detector as module
from yolojax.inference.detector import fit


@pytest.fixture(scope="module")
def detector():
    return yolojax.load(confidence=0.1, image_size=64, device="cpu")


@pytest.fixture(scope="module")
def images(detector):
    return example_images(detector.names)[:3]


def same(left, right):
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in ("boxes", "scores", "classes"))


@pytest.mark.parametrize(
    "name",
    ["yolojax", "yolojax.inference.results", "yolojax.inference.writing", "yolojax.flags", "yolojax.evaluation.coco"],
)
def test_examples_in_docstrings(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted
    assert not results.failed


def test_loading_starts_jax_and_importing_does_not():
    code = "import sys, yolojax; yolojax.load; assert 'jax' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("conf", r"here it is yolojax\.load\(…, confidence=…\)"),
        ("classes", r"classes=…"),
        ("multi_label", "no attribute 'multi_label'$"),
        ("nms", r"yolojax\.load makes another"),
    ],
)
def test_a_detector_is_not_changed_but_says_how_it_is_made(detector, name, hint):
    before = dict(vars(detector))
    with pytest.raises(AttributeError, match=hint):
        setattr(detector, name, 0.5)
    assert vars(detector) == before


def test_methods_of_torch_hubs_model_are_answered(detector):
    with pytest.raises(AttributeError, match=r"device='gpu'"):
        detector.cuda()
    assert not hasattr(detector, "eval")
    assert dataclasses.replace(detector, batch_size=2).batch_size == 2


def test_every_way_to_give_images(detector, images, tmp_path):
    for number, image in enumerate(images):
        cv2.imwrite(str(tmp_path / f"{number}.png"), image[..., ::-1])
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    expected = detector(images)
    assert [detections.path for detections in expected] == ["", "", ""]
    assert sum(map(len, expected)) > 0
    for given in (np.stack(images), tuple(images), paths, [str(paths[0]), images[1], paths[2]]):
        batch = detector(given)
        assert len(batch) == 3
        assert all(map(same, batch, expected))
    [single] = detector(paths[1])
    assert same(single, expected[1])
    assert single.path == str(paths[1])
    assert detector([]) == []


def test_images_of_pillow_and_of_other_channels(detector, images, tmp_path, contents):
    [expected] = detector(images[0])
    image, own = Image.fromarray(images[0]), images[0].copy()
    alpha = np.dstack([images[0], np.zeros(images[0].shape[:2], np.uint8)])
    for given in (image, image.convert("RGBA"), alpha):
        [detections] = detector(given)
        assert same(detections, expected)
        assert detections.image.shape == images[0].shape
    image.save(tmp_path / "a.png")
    before = contents(tmp_path)
    with Image.open(tmp_path / "a.png") as opened:
        assert detector([opened, images[0]])[0].path == str(tmp_path / "a.png")
    assert contents(tmp_path) == before
    np.testing.assert_array_equal(images[0], own)  # what is handed over is looked at, and not drawn into

    grey = images[0][:, :, 1]
    [expected] = detector(np.repeat(grey[:, :, None], 3, 2))
    for given in (grey, grey[:, :, None], Image.fromarray(grey)):
        assert same(detector(given)[0], expected)
    turned = image.copy()
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif())
    with Image.open(tmp_path / "turned.jpg") as opened:
        assert same(detector(opened)[0], detector(tmp_path / "turned.jpg")[0])


def test_a_batch_changes_nothing_but_rounding(images):
    batched = yolojax.load(confidence=0.1, image_size=64, batch_size=2, device="cpu")
    single = yolojax.load(confidence=0.1, image_size=64, device="cpu")
    for together, alone in zip(batched(images), single(images), strict=True):
        np.testing.assert_array_equal(together.classes, alone.classes)
        np.testing.assert_allclose(together.boxes, alone.boxes, atol=1e-2)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("nowhere.png", "nowhere.png: cannot be read"),
        (np.zeros((4, 4, 3)), "not float64 (4, 4, 3)"),
        (np.zeros((3, 4, 5), np.uint8), "not uint8 (3, 4, 5)"),
        (np.zeros((4, 4), bool), "not bool (4, 4)"),
        (Image.new("I;16", (4, 4)), "mode I;16 has no 8 bits per channel"),
        (np.zeros((0, 4, 3), np.uint8), "has no pixel"),
        (7, "not int"),
    ],
)
def test_what_is_no_image(detector, image, message):
    with pytest.raises(UserError) as raised:
        detector(image)
    assert message in str(raised.value)


def test_wrong_settings():
    for options in ({"classes": ["cat"]}, {"dtype": "float16"}, {"confidence": -1}, {"image_size": 7}):
        with pytest.raises(UserError):
            yolojax.load(device="cpu", **options)


def test_size_that_the_weights_were_trained_at():
    assert yolojax.load(device="cpu").image_size == (128, 128)
    assert yolojax.load(device="cpu", image_size=(100, 64)).image_size == (128, 64)


@pytest.mark.parametrize("size", [(480, 640), (427, 640), (100, 1000), (1000, 37), (3, 3), (641, 480)])
def test_fit_keeps_the_aspect_and_takes_the_fewest_strides(size):
    image = np.full((*size, 3), 255, np.uint8)
    fitted, facts = fit(image, (320, 320), 32)
    rows, columns = (round(side * 320 / max(size)) for side in size)
    assert fitted.shape == (-(-rows // 32) * 32, -(-columns // 32) * 32, 3)
    y, x = np.nonzero(fitted[..., 0] == 255)
    assert (y.max() - y.min() + 1, x.max() - x.min() + 1) == (rows, columns)
    (left, top), gain = facts["padding"][0], facts["gain"][0, 0]
    assert abs(x.min() - left) <= 1
    assert abs(y.min() - top) <= 1
    assert abs(max(size) * gain - 320) <= 1


def test_an_ensemble_needs_one_set_of_classes(tmp_path, monkeypatch):
    weights = module.load_weights("yolov5n-shapes")
    other = dataclasses.replace(weights, names=tuple(reversed(weights.names)))
    monkeypatch.setattr(module, "load_weights", lambda source, delta: {"a": weights, "b": other}[source])
    with pytest.raises(UserError, match="same classes"):
        yolojax.load(["a", "b"], device="cpu")


# What the original finds (yolov5==7.0.14, detect.py with its defaults on a CPU): class and corners, which it rounds to whole pixels.
ORIGINAL = {
    "000000000025.jpg": [(23, 49, 375, 110, 413), (23, 50, 358, 158, 419), (23, 365, 55, 582, 360)],
    "000000000034.jpg": [(22, 9, 25, 451, 393)],
    "000000000078.jpg": [
        (74, 361, 11, 570, 230),
        (75, 28, 342, 260, 607),
    ],  # one box has a second class above the threshold
}


def test_real_weights_find_what_the_original_finds(shared_data):
    pytest.importorskip("torch")
    real = yolojax.load(shared_data / "weights" / "yolov5n.pt", device="cpu")
    for name, expected in ORIGINAL.items():
        [detections] = real(shared_data / "coco128" / "images" / "train2017" / name)
        boxes = np.concatenate([detections.classes[:, None], detections.boxes.round()], 1)
        assert sorted(map(tuple, boxes.astype(int).tolist())) == sorted(expected), name
