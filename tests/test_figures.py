"""What all figures share."""

import io

import cv2
import numpy as np

from yolojax.drawing import PALETTE, pixel_boxes
from yolojax.figures import COLOURS, new_figure, quiet_axes


def test_figures_and_boxes_have_one_palette():
    assert len(COLOURS) == len(PALETTE)
    assert COLOURS[0] == "#2563eb"
    assert PALETTE[0] == (0x25, 0x63, 0xEB)


def test_a_figure_is_made_without_a_display(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    figure = new_figure(2, 1)
    quiet_axes(figure.add_subplot())
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    assert cv2.imdecode(np.frombuffer(buffer.getvalue(), np.uint8), cv2.IMREAD_COLOR).shape == (100, 200, 3)


def test_boxes_in_pixels():
    boxes = pixel_boxes(np.array([[3, 0.5, 0.25, 0.5, 0.5]]), width=80, height=40, left=100)
    np.testing.assert_array_equal(boxes, [[120, 0, 160, 20, 3]])
