"""Few shapes for images of all shapes."""

import doctest
import itertools

import pytest

from yolojax.inference import buckets
from yolojax.inference.buckets import choose_buckets, smallest_bucket


def test_examples_in_docstrings():
    results = doctest.testmod(buckets)
    assert results.attempted
    assert not results.failed


@pytest.mark.parametrize("whole", [(640, 640), (320, 320), (96, 96), (384, 640), (1280, 704)])
def test_every_shape_fits_and_the_shapes_are_few(whole):
    sides = [range(32, side + 1, 32) for side in whole]
    # a scaled photo fills one side
    shapes = [shape for shape in itertools.product(*sides) if shape[0] == whole[0] or shape[1] == whole[1]]
    chosen = {shape: smallest_bucket(shape, whole, 32) for shape in shapes}
    assert all(bucket[0] >= height and bucket[1] >= width for (height, width), bucket in chosen.items())
    assert all(
        side % 32 == 0 and side <= most for bucket in chosen.values() for side, most in zip(bucket, whole, strict=True)
    )
    assert len(set(chosen.values())) <= 5
    assert chosen[whole] == whole
    # each of them is its own, so that a bucket can be looked up again
    assert all(smallest_bucket(bucket, whole, 32) == bucket for bucket in chosen.values())


def test_few_images_share_a_larger_shape():
    wide, tall, square = (480, 640), (640, 480), (640, 640)
    assert choose_buckets([wide] * 63, (640, 640), 32) == (wide,)  # alone they keep their own
    assert choose_buckets([wide, tall], (640, 640), 32) == (square,)  # one program, and not two
    assert choose_buckets([square] + [wide] * 63, (640, 640), 32) == (square,)  # a quarter more pixels for 63 images
    assert choose_buckets([square] + [wide] * 64, (640, 640), 32) == (square, wide)  # for 64 as many as of 16 squares
    assert choose_buckets([], (640, 640), 32) == ()


def test_of_given_shapes_the_smallest_that_holds():
    given = [(640, 640), (480, 640)]
    assert smallest_bucket((224, 640), (640, 640), 32, given) == (480, 640)
    assert smallest_bucket((640, 224), (640, 640), 32, given) == (640, 640)
    assert smallest_bucket((640, 640), (640, 640), 32, given[1:]) == (640, 640)  # none of them does
