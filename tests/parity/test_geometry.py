"""Geometry and colours against the original, with the original's own draws."""

import dataclasses

import numpy as np
import pytest

from yolojax.data.colour import random_hsv
from yolojax.data.geometry import Scene, letterbox, random_perspective, resized_shape
from yolojax.hyperparameters import load_hyperparameters

PERSPECTIVES = {
    "translate": ({"degrees": 0.0, "translate": 0.1, "scale": 0.5, "shear": 0.0}, 64),
    "everything": ({"degrees": 20.0, "translate": 0.2, "scale": 0.4, "shear": 8.0, "perspective": 0.001}, 64),
    "mosaic": ({"degrees": 0.373, "translate": 0.245, "scale": 0.898, "shear": 0.602}, 32),
}


class Script:
    """A generator that reads its numbers from a list of ``low, high, value`` and checks that the bounds are those."""

    def __init__(self, draws):
        self.draws = list(draws)

    def uniform(self, low, high, count=None):
        values = []
        for _ in range(count or 1):
            expected_low, expected_high, value = self.draws.pop(0)
            assert (low, high) == pytest.approx((expected_low, expected_high))
            values.append(value)
        return np.array(values) if count else values[0]


def test_letterbox(golden):
    empty = np.zeros((0, 5), np.float32)
    compared = 0
    for row in golden("geometry")["letterbox"]:
        height, width, size, automatic, enlarge, *canvas = row.astype(int)[:7]
        if automatic:
            continue
        top, left, bottom, right = row.astype(int)[7:11]
        scene = Scene(np.zeros((height, width, 3), np.uint8), empty)
        scene, ratio, padding = letterbox(scene, tuple(canvas), enlarge=bool(enlarge))
        assert canvas == [size, size]
        inside = np.argwhere((scene.image == 0).all(2))
        np.testing.assert_array_equal([*inside.min(0), *(inside.max(0) + 1)], [top, left, bottom, right])
        assert (ratio, *padding) == pytest.approx((row[11], *row[13:15]))
        compared += 1
    assert compared > 30


def test_sizes_of_loaded_images(golden):
    for height, width, size, *resized in golden("geometry")["load_image"].tolist():
        assert resized_shape((height, width), size) == tuple(resized)


@pytest.mark.parametrize("case", PERSPECTIVES)
def test_random_perspective(case, golden):
    content, (settings, size) = golden("geometry"), PERSPECTIVES[case]
    hyp = dataclasses.replace(load_hyperparameters("scratch-low"), **settings)
    script = Script(content[f"perspective.{case}.draws"])
    scene = Scene(content["perspective.image"], content["perspective.boxes"])
    moved = random_perspective(scene, script, hyp, (size, size))
    assert not script.draws
    np.testing.assert_array_equal(moved.image, content[f"perspective.{case}.image"])
    expected = content[f"perspective.{case}.boxes"]
    np.testing.assert_allclose(moved.boxes, expected, atol=1e-4)
    assert 0 < len(expected) <= len(scene.boxes)


def test_hsv(golden):
    content = golden("geometry")
    hyp = load_hyperparameters("scratch-low")
    assert (hyp.hsv_h, hyp.hsv_s, hyp.hsv_v) == tuple(content["hsv.gains"])
    script = Script([(-1, 1, value) for value in content["hsv.draws"]])
    changed = random_hsv(content["perspective.image"], script, hyp)
    np.testing.assert_array_equal(changed, content["hsv.image"])
    assert (changed != content["perspective.image"]).mean() > 0.5
