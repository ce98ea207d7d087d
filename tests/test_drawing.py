"""Boxes and labels."""

import itertools

import numpy as np
import pytest

from yolojax import drawing
from yolojax.drawing import PALETTE, class_colour, draw_boxes, draw_text


def canvas(height=200, width=300, tone=128):
    return np.full((height, width, 3), tone, np.uint8)


def test_frame_label_and_nothing_else():
    image = canvas()
    draw_boxes(image, [[100, 80, 180, 150]], ["a 0.50"], [(228, 26, 28)])
    assert tuple(image[115, 100]) == (228, 26, 28)  # the left side
    changed = (image != 128).any(2)
    assert not changed[90:140, 110:170].any()  # inside
    assert not changed[:50].any()
    assert changed[60:79, 100:130].mean() > 0.8  # the label above


@pytest.mark.parametrize("colour", PALETTE)
def test_ink_stands_out_from_every_colour(colour):
    ink = drawing._ink("person 0.87", 14)
    image = canvas()
    draw_boxes(image, [[100, 80, 180, 150]], ["person 0.87"], [colour], thickness=2)
    label = image[80 - ink.shape[0] - 4 : 79, 100:190].astype(int)
    luminance = label @ np.array([0.299, 0.587, 0.114])
    assert np.ptp(luminance) > 90


def test_labels_keep_apart_and_inside(monkeypatch):
    places = []
    monkeypatch.setattr(drawing, "_draw_label", lambda image, ink, place, colour: places.append(place))
    boxes = [[0, 0, 60, 60], [2, 2, 60, 60], [150, 100, 290, 190], [150, 102, 290, 190], [270, 180, 300, 200]]
    draw_boxes(canvas(), boxes, ["first 0.9", "second 0.8", "third", "fourth", "fifth"], [(0, 0, 0)] * 5)
    for first, second in itertools.combinations(places, 2):
        assert not drawing._meet(first, second)
    corners = np.array(places)
    assert corners.min() >= 0
    assert (corners[:, 2:] <= (300, 200)).all()


def test_names_of_any_script_and_tiny_images():
    assert not np.array_equal(drawing._ink("чашка", 20), drawing._ink("ложка", 20))
    for size in ((8, 8), (1, 40), (40, 1)):
        draw_boxes(canvas(*size), [[-5, -5, 50, 50], [0, 0, 3, 3]], ["a very long name", ""], [(1, 2, 3)] * 2)


def test_lines_and_labels_grow_with_the_image_unless_told():
    def lines(image, **options):
        draw_boxes(image, [[10, 10, image.shape[1] - 10, image.shape[0] - 10]], [""], [(0, 0, 0)], **options)
        return int((image[image.shape[0] // 2] == 0).all(1).sum())

    assert lines(canvas(100, 100)) == 2
    assert lines(canvas(2000, 3000)) > 10
    assert lines(canvas(2000, 3000), thickness=1) == 2


def test_classes_have_colours_of_their_own():
    assert len(set(PALETTE)) == len(PALETTE) == 20
    assert class_colour(23.0) == PALETTE[3]


def test_text_is_cut_at_the_edge():
    image = np.full((20, 60, 3), 255, np.uint8)
    draw_text(image, "żółw.jpg and more than fits", 4, 2, 12, 40)
    assert image.min() == 40
    assert (image[:2] == 255).all()
    assert (image[:, :4] == 255).all()
