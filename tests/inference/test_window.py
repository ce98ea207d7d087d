"""The window of ``detect --view-img``, without a display."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from yolojax.inference import window as module
from yolojax.inference.window import Window, has_display, open_window


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, False),
        ("linux", {"DISPLAY": ":0"}, True),
        ("linux", {"WAYLAND_DISPLAY": "wayland-0"}, True),
        ("darwin", {}, True),
        ("win32", {}, True),
    ],
)
def test_where_there_is_a_display(platform, variables, expected, monkeypatch):
    for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(module.sys, "platform", platform)
    assert has_display() is expected


def test_a_display_that_does_not_answer_or_a_backend_without_windows_gives_none(monkeypatch):
    monkeypatch.setattr(module, "has_display", lambda: True)
    monkeypatch.setenv("DISPLAY", ":98")
    plt.switch_backend("agg")
    assert open_window() is None
    assert not plt.get_fignums()

    def refuse(*_, **__):
        raise RuntimeError("couldn't connect to display")

    monkeypatch.setattr(plt, "figure", refuse)
    assert open_window() is None


def test_images_of_changing_shape_are_shown_until_the_window_is_closed(monkeypatch):
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda block: None)
    window = Window(plt.figure())
    for shape, tone in (((20, 30, 3), 1), ((20, 30, 3), 2), ((40, 10, 3), 3)):
        image = np.full(shape, tone, np.uint8)
        window.show(image, f"tone {tone}")
        np.testing.assert_array_equal(window.artist.get_array(), image)
        assert window.artist.axes.get_title() == f"tone {tone}"
        assert len(window.figure.axes) == 1
    plt.close(window.figure)
    window.show(np.zeros((5, 5, 3), np.uint8), "after")
    window.wait()
    assert window.artist.axes.get_title() == "tone 3"
