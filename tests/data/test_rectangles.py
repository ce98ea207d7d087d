"""The shapes of batches of images that are no squares."""

import doctest

import numpy as np
import pytest

import yolojax.data.rectangles as module
from yolojax.data.rectangles import merge_shapes, rectangles
from yolojax.data.sample import Sample


def test_examples_in_docstrings():
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed


@pytest.mark.parametrize(
    ("shapes", "most", "merged"),
    [
        ([(64, 96), (96, 96)], 2, [(64, 96), (96, 96)]),
        ([(64, 96), (96, 32)], 1, [(96, 96), (96, 96)]),
        # (32, 96) comes once and (64, 96) three times: it is cheaper to enlarge the former.
        ([(32, 96), *[(64, 96)] * 3, (96, 96)], 2, [*[(64, 96)] * 4, (96, 96)]),
        ([], 3, []),
    ],
)
def test_shapes_are_merged_where_that_adds_the_fewest_pixels(shapes, most, merged):
    assert list(merge_shapes(shapes, most)) == merged


@pytest.mark.parametrize(("worth", "merged"), [(0, False), (2 * 32 * 96, False), (2 * 32 * 96 + 1, True)])
def test_shapes_are_merged_as_long_as_that_adds_few_pixels(worth, merged):
    shapes = [(64, 96), (64, 96), (96, 96)]
    assert list(merge_shapes(shapes, worth=worth)) == ([(96, 96)] * 3 if merged else shapes)


def test_rectangles_are_the_smallest_that_hold_their_images():
    sizes = [(50, 100), (60, 100), (100, 100), (100, 50), (100, 40)]
    samples = [Sample(name="", size=size, boxes=np.zeros((0, 5), np.float32), reader=None) for size in sizes]
    order, shapes = rectangles(samples, 320, 2, 32, pad=0.5)
    assert order.tolist() == [0, 1, 2, 3, 4]
    assert shapes == ((224, 352), (352, 352), (352, 160))
    assert rectangles(samples, 320, 2, 32, pad=0.0)[1] == ((192, 320), (320, 320), (320, 128))
