"""Colours change as ``docs/yolov5.md`` §1.9 says, boxes stay."""

import colorsys
import sys

import numpy as np
import pytest

from yolojax.data.colour import load_effects, random_effects, random_hsv
from yolojax.errors import UserError
from yolojax.hyperparameters import Hyperparameters


def hsv(image: np.ndarray) -> np.ndarray:
    return np.array(colorsys.rgb_to_hsv(*(image[0, 0] / 255)))


def flat(*colour: int) -> np.ndarray:
    return np.full((2, 2, 3), colour, np.uint8)


def test_nothing_changes_without_gains():
    image = flat(200, 100, 50)
    assert random_hsv(image, np.random.default_rng(0), Hyperparameters(hsv_h=0, hsv_s=0, hsv_v=0)) is image


@pytest.mark.parametrize(("gain", "channel", "start"), [("hsv_h", 0, 0.5), ("hsv_s", 1, 0.5), ("hsv_v", 2, 0.5)])
def test_each_gain_scales_its_channel_uniformly(gain, channel, start):
    colour = [0.5, 0.5, 0.5]
    colour[channel] = start
    image = flat(*(round(value * 255) for value in colorsys.hsv_to_rgb(*colour)))
    settings = Hyperparameters(**(dict.fromkeys(("hsv_h", "hsv_s", "hsv_v"), 0.0) | {gain: 0.4}))
    rng = np.random.default_rng(0)
    seen = np.array([hsv(random_hsv(image, rng, settings)) for _ in range(1500)])
    ratios = np.sort(seen[:, channel] / hsv(image)[channel])
    uniform = 0.6 + 0.8 * (np.arange(1500) + 0.5) / 1500
    assert np.abs(ratios - uniform).max() < 0.04
    others = [other for other in range(3) if other != channel]
    assert np.abs(seen[:, others] - hsv(image)[others]).max() < 0.03


def test_hue_wraps_and_the_others_stop():
    violet, vivid = flat(255, 0, 240), flat(250, 10, 10)
    settings = Hyperparameters(hsv_h=0.5, hsv_s=0.9, hsv_v=0.9)
    rng = np.random.default_rng(1)
    hues = np.array([hsv(random_hsv(violet, rng, Hyperparameters(hsv_h=0.5, hsv_s=0, hsv_v=0)))[0] for _ in range(200)])
    assert hues.min() < 0.3  # past the end of the circle
    bright = np.array([random_hsv(vivid, rng, settings)[0, 0] for _ in range(200)])
    assert (bright.max(1) == 255).any()
    assert (bright.max(1) > 0).all()


def test_red_and_blue_are_not_exchanged():
    """Only saturation changes: the strongest channel stays the strongest."""
    changed = random_hsv(flat(200, 100, 50), np.random.default_rng(0), Hyperparameters(hsv_h=0, hsv_s=0.5, hsv_v=0))
    assert changed[0, 0].argmax() == 0
    assert changed[0, 0].argmin() == 2


def test_effects_change_one_image_in_a_hundred_each_and_come_by_themselves():
    pytest.importorskip("albumentations")
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    before, rng = image.copy(), np.random.default_rng(1)
    seen = [random_effects(image, rng) for _ in range(8000)]
    np.testing.assert_array_equal(image, before)
    changed = [altered for altered in seen if (altered != image).any()]
    grey = [altered for altered in changed if (np.ptp(altered, axis=2) == 0).all()]
    assert len(changed) / len(seen) == pytest.approx(1 - 0.99**4, abs=0.008)
    assert len(grey) / len(seen) == pytest.approx(0.01, abs=0.004)
    assert len({altered.tobytes() for altered in changed}) >= 8  # kernels of several sizes, several contrasts
    again = np.random.default_rng(1)
    assert all((random_effects(image, again) == altered).all() for altered in seen[:1000])


def test_effects_name_the_package_that_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    load_effects.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'yolojax\[albumentations\]'"):
        load_effects()
