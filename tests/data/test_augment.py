"""How one image of a training batch is made."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from yolojax.data import colour, geometry, mosaic
from yolojax.data.augment import make_image
from yolojax.data.batches import StreamSettings
from yolojax.data.sample import Sample
from yolojax.data.stream import TrainingStream, training_stream
from yolojax.hyperparameters import Hyperparameters

EVERYTHING = Hyperparameters(mosaic=0.7, mixup=0.5, degrees=5, shear=2, flipud=0.3, copy_paste=0.5)


def stream_of(samples: list[Sample], **changes) -> TrainingStream:
    """The stream of some samples; ``changes`` are of ``hyperparameters`` or of the stream's settings."""
    hyperparameters = changes.pop("hyperparameters", EVERYTHING)
    arguments = {"image_size": 64, "batch_size": 4, "epochs": 3, "seed": 7} | changes
    return training_stream(samples, hyperparameters, StreamSettings(**arguments))


def test_without_augmentation_images_are_only_boxed(samples):
    stream = stream_of(samples, augment=False, epochs=1, hyperparameters=Hyperparameters())
    for batch in stream.iterate():
        for image, boxes, mask, index in zip(*batch.batch, batch.indices, strict=True):
            sample = samples[index]
            scene = geometry.make_scene(geometry.resize_long_side(sample.load(), 64, smooth=False), sample.boxes)
            expected, *_ = geometry.letterbox(scene, (64, 64), enlarge=False)
            np.testing.assert_array_equal(image, expected.image)
            np.testing.assert_array_equal(boxes[mask], geometry.fraction_boxes(expected))


def test_outlines_serve_the_mosaic_alone(samples):
    diamond = np.array([[0.5, 0.1], [0.9, 0.5], [0.5, 0.9], [0.1, 0.5]], np.float32)
    boxes = np.array([[0, 0.5, 0.5, 0.8, 0.8]], np.float32)
    plain = [replace(sample, boxes=boxes) for sample in samples]
    outlined = [replace(sample, boxes=boxes, polygons=(diamond,)) for sample in samples]
    for mosaic_share, same in ((0.0, True), (1.0, False)):
        settings = Hyperparameters(mosaic=mosaic_share, degrees=45)
        first, second = (
            next(iter(stream_of(data, hyperparameters=settings, max_boxes=16).iterate())) for data in (plain, outlined)
        )
        assert (first.batch.images == second.batch.images).all()
        assert (first.batch.boxes == second.batch.boxes).all() == same


def test_probabilities_decide_how_often_an_operation_runs(samples, monkeypatch):
    counts = dict.fromkeys(("mosaic4", "mix_up", "flip_up_down", "flip_left_right", "letterbox"), 0)

    def count(module, name):
        original = getattr(module, name)

        def counted(*arguments, **options):
            # Threads of other tests' streams may still be making batches ahead.
            counts[name] += threading.current_thread() is threading.main_thread()
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, counted)

    for name in counts:
        count(mosaic if name in ("mosaic4", "mix_up") else geometry, name)
    settings = Hyperparameters(mosaic=0.75, mixup=0.5, flipud=0.2, fliplr=0.6)
    stream = stream_of(samples, hyperparameters=settings, image_size=32, epochs=40)
    items = len(stream.batches) * 4
    for number in range(len(stream.batches)):
        stream.batches[number]
    assert counts["letterbox"] / items == pytest.approx(0.25, abs=0.06)
    assert counts["mix_up"] / items == pytest.approx(0.375, abs=0.06)
    assert counts["mosaic4"] == items - counts["letterbox"] + counts["mix_up"]
    assert counts["flip_up_down"] / items == pytest.approx(0.2, abs=0.06)
    assert counts["flip_left_right"] / items == pytest.approx(0.6, abs=0.06)


def operations_of_an_image(samples, monkeypatch, hyperparameters, **changes) -> list[list[str]]:
    """What is done to each image of an epoch, in order."""
    operations = {
        geometry: ("letterbox", "random_perspective", "flip_up_down", "flip_left_right"),
        mosaic: ("mosaic4", "copy_paste", "mix_up"),
        colour: ("random_effects", "random_hsv"),
    }
    done: list[str] = []

    def watch(module, name):
        original = getattr(module, name)

        def watched(scene, *arguments, **options):
            if threading.current_thread() is threading.main_thread():
                done.append(name)
            return original(scene, *arguments, **options)

        monkeypatch.setattr(module, name, watched)

    for module, names in operations.items():
        for name in names:
            watch(module, name)
    monkeypatch.setattr(colour, "load_effects", lambda: ())
    stream, images = stream_of(samples, hyperparameters=hyperparameters, **changes), []
    augmentation = stream.batches.augmentation
    for index in range(len(samples)):
        done.clear()
        rng = np.random.default_rng(index)
        make_image(stream.images, index, (64, 64), augmentation, rng)
        images.append(list(done))
    return images


AFTERWARDS = ["random_effects", "random_hsv", "flip_up_down", "flip_left_right"]
ONE_MOSAIC = ["mosaic4", "copy_paste", "random_perspective"]


@pytest.mark.parametrize(
    ("shares", "changes", "expected"),
    [
        ({"mosaic": 1, "mixup": 1}, {}, [*ONE_MOSAIC, *ONE_MOSAIC, "mix_up", *AFTERWARDS]),
        ({"mosaic": 1, "mixup": 0}, {}, [*ONE_MOSAIC, *AFTERWARDS]),
        ({"mosaic": 0}, {}, ["letterbox", "random_perspective", *AFTERWARDS]),
        ({"mosaic": 1}, {"rectangular": True}, ["letterbox", "random_perspective", *AFTERWARDS]),
        ({"mosaic": 1, "mixup": 1}, {"augment": False}, ["letterbox"]),
    ],
)
def test_parts_of_a_mosaic_are_only_brought_to_size_and_the_rest_comes_after(
    samples, monkeypatch, shares, changes, expected
):
    hyperparameters = Hyperparameters(**shares, copy_paste=0.5, flipud=1, fliplr=1)
    done = operations_of_an_image(samples, monkeypatch, hyperparameters, effects=True, **changes)
    assert done == [expected] * len(samples)
