"""The stream of a run whose images are on the devices."""

import jax
import numpy as np
import pytest

from yolojax.augmentation.stream import DeviceStream
from yolojax.data.augment import Images
from yolojax.data.batches import StreamSettings
from yolojax.data.sample import Sample
from yolojax.data.stream import order_by_weight
from yolojax.hyperparameters import Hyperparameters
from yolojax.mesh import make_mesh

SIZE = 32


def samples() -> list[Sample]:
    """Five images, each with one box, whose class is the number of the image."""
    images = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3)).astype(np.uint8)
    boxes = [np.array([[number, 0.5, 0.5, 0.8, 0.8]], np.float32) for number in range(5)]
    return [
        Sample(name=f"{number}", size=(SIZE, SIZE), boxes=rows, reader=lambda image=image: image)
        for number, (image, rows) in enumerate(zip(images, boxes, strict=True))
    ]


@pytest.fixture(scope="module")
def stream() -> DeviceStream:
    settings = StreamSettings(image_size=SIZE, batch_size=2, epochs=2, seed=1)
    hyperparameters = Hyperparameters(mosaic=0.0, translate=0.0, scale=0.0)
    return DeviceStream(Images(samples(), SIZE, False), hyperparameters, settings, make_mesh(jax.devices()[:1]))


def assert_equal(made, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, made, other)


def test_a_run_goes_on_anywhere_with_the_batches_that_it_would_have_had(stream):
    whole = list(stream.iterate())
    assert len(whole) == 6
    for start in (0, 2, 3, 5):
        for made, expected in zip(stream.iterate(*divmod(start, 3)), whole[start:], strict=True):
            assert_equal(made, expected)


def test_a_program_makes_the_same_batches_where_it_trains(stream):
    @jax.jit
    def program(source, epoch):
        return jax.lax.map(lambda number: stream.make(source, epoch, number), jax.numpy.arange(3))

    made = program(stream.source(1), 1)
    for number, expected in enumerate(stream.iterate(1)):
        assert_equal(jax.tree.map(lambda leaf, number=number: leaf[number], made), expected.batch._asdict())
        assert_equal(stream.samples(1, number), expected.indices)


def test_images_are_named_by_what_is_in_them(stream):
    for made in stream.iterate():
        labels, mask = np.asarray(made.batch.boxes)[..., 0], np.asarray(made.batch.mask)
        assert mask.sum(1).tolist() == [1, 1]
        np.testing.assert_array_equal(labels[:, 0], made.indices)


def test_nothing_goes_to_the_device_within_an_epoch(stream):
    batches = stream.iterate()
    next(batches)
    with jax.transfer_guard_host_to_device("disallow_explicit"):
        made = [next(batches), next(batches)]
    assert len({batch.batch.images.unsafe_buffer_pointer() for batch in made}) == 2


def test_samples_are_drawn_by_weight(stream):
    weights = np.array([0, 0.5, 0, 0.5, 0])
    stream.draw(1, weights)
    order = [index for made in stream.iterate(1) for index in made.indices.tolist()]
    assert order == order_by_weight(1, 1, 6, weights).tolist()
    assert set(order) <= {1, 3}
    stream.draw(0, weights)
    assert {index for made in stream.iterate(1) for index in made.indices.tolist()} == {0, 1, 2, 3, 4}
