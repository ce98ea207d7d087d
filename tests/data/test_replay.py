"""Images of a second data set: which, how many, where in a batch, with whose classes."""

import dataclasses
from itertools import islice

import numpy as np
import pytest

from yolojax.data import replay
from yolojax.data.batches import StreamSettings, epoch_order
from yolojax.data.replay import Replay, open_replay
from yolojax.data.stream import training_stream
from yolojax.errors import UserError
from yolojax.hyperparameters import Hyperparameters

OLD = 100  # is added to the classes of the second data set here
MIXED = Hyperparameters(mosaic=0.7, mixup=0.5, copy_paste=0.5)


@pytest.fixture
def second(samples):
    """Seven samples with classes of their own; the first has boxes in every run of these tests."""
    shifted = [dataclasses.replace(sample, boxes=sample.boxes + [OLD, 0, 0, 0, 0]) for sample in samples[1:8]]
    return [dataclasses.replace(sample, boxes=sample.boxes.astype(np.float32)) for sample in shifted]


def stream_of(samples, second, images=2, batch=8, **changes):
    settings = {"image_size": 64, "batch_size": batch, "epochs": 4, "seed": 3, "replay": Replay(second, images)}
    return training_stream(samples, MIXED, StreamSettings(**settings | changes))


def rows_of(stream, samples):
    """Whether each image of each batch is replayed."""
    return np.array([made.indices >= len(samples) for made in stream.iterate()])


def test_every_batch_has_as_many_and_they_lie_evenly(samples, second):
    stream = stream_of(samples, second)
    assert stream.batches_per_epoch == 2  # eleven images, six in a batch
    replayed = rows_of(stream, samples)
    assert replayed.shape == (8, 8)
    assert (replayed == [False, False, False, True] * 2).all()


def test_every_image_comes_before_one_comes_again_and_the_first_data_set_keeps_its_order(samples, second):
    drawn = np.concatenate([made.indices for made in stream_of(samples, second).iterate()])
    again = drawn[drawn >= len(samples)] - len(samples)
    assert len(again) == 16
    assert sorted(again[:7]) == sorted(again[7:14]) == list(range(7))
    assert again[:7].tolist() != again[7:14].tolist()
    own = drawn[drawn < len(samples)].reshape(4, 12)
    for epoch, order in enumerate(own):
        assert order.tolist() == epoch_order(len(samples), 12, seed=3, epoch=epoch).tolist()


def test_a_mosaic_is_of_images_of_one_data_set(samples, second):
    known = 0
    for made in stream_of(samples, second, images=4).iterate():
        for index, boxes, mask in zip(made.indices, made.batch.boxes, made.batch.mask, strict=True):
            assert ((boxes[mask][:, 0] >= OLD) == (index >= len(samples))).all()
            known += mask.sum()
    assert known > 100


def test_shares_workers_and_a_start_in_the_middle_give_the_same_batches(samples, second):
    whole = list(stream_of(samples, second, images=3).iterate())
    halves = [stream_of(samples, second, images=3, process_index=part, process_count=2) for part in (0, 1)]
    for made, *parts in islice(zip(whole, *(half.iterate() for half in halves), strict=True), 4):
        for name in ("images", "boxes", "mask"):
            joined = np.concatenate([getattr(part.batch, name) for part in parts])
            np.testing.assert_array_equal(getattr(made.batch, name), joined)
    late = stream_of(samples, second, images=3)
    for made, other in zip(whole[5:7], late.iterate(1, 2, workers=1), strict=False):
        np.testing.assert_array_equal(made.batch.images, other.batch.images)
        np.testing.assert_array_equal(made.indices, other.indices)
    late.close()


def test_images_by_weight_are_of_the_first_data_set(samples, second):
    stream = stream_of(samples, second)
    stream.draw(1, np.eye(11)[4])
    made = np.concatenate([made.indices for made in islice(stream.iterate(1), 2)])
    assert set(made[made < len(samples)]) == {4}
    assert (made >= len(samples)).sum() == 4


def test_what_cannot_be_read_is_named(samples, second):
    def broken():
        raise replay_error

    from yolojax.data.sample import ImageError

    replay_error = ImageError("no")
    second[2] = dataclasses.replace(second[2], name="old/2.png", reader=broken)
    stream = stream_of(samples, second, cache="ram")
    list(stream.iterate())
    assert stream.unreadable == ["old/2.png"]
    assert stream.name(0) == samples[0].name
    assert stream.name(len(samples) + 2) == "old/2.png"


@pytest.fixture
def old(tiny_data, tmp_path):
    """``old(names)``: the tiny data set with other names."""

    def make(*names):
        file = tmp_path / "old.yaml"
        text = tiny_data.read_text()
        start = text.index("names:")
        file.write_text(f"{text[:start]}names: {list(names)}\n")
        return str(file)

    return make


def test_classes_are_matched_by_name(old):
    opened = open_replay(old("Traffic Light", "car"), 0.25, 16, ["bus", "car", "trafficlight"])
    assert opened.images == 4
    assert len(opened.samples) == 10
    assert {int(row) for sample in opened.samples for row in sample.boxes[:, 0]} == {1, 2}


def test_what_the_run_does_not_know_is_counted(old, caplog):
    opened = open_replay(old("cat", "car"), 0.25, 4, ["car", "bus"])
    everything = open_replay(old("bus", "car"), 0.25, 4, ["car", "bus"])
    assert opened.images == 1
    boxes = np.concatenate([sample.boxes for sample in opened.samples])
    every = np.concatenate([sample.boxes for sample in everything.samples])
    assert (boxes[:, 0] == 0).all()
    assert len(boxes) == (every[:, 0] == 0).sum()
    gone = len(everything.samples) - len(opened.samples)
    assert gone > 0
    assert all(len(sample.boxes) for sample in opened.samples)
    assert f"left out: cat ({len(every) - len(boxes)}); and {gone} images that show nothing else" in caplog.text


@pytest.mark.parametrize(
    ("names", "share", "batch", "message"),
    [
        (("cat", "dog"), 0.25, 16, r"none of its classes \(cat, dog\) is one of the run \(car, bus\)"),
        (("car", "dog"), 0.01, 16, "--replay-share 0.01: of a batch of 16 images that is 0"),
        (("car", "dog"), 0.99, 2, "--replay-share 0.99: of a batch of 2 images that is 2"),
    ],
)
def test_what_cannot_be_replayed_is_refused(old, names, share, batch, message):
    with pytest.raises(UserError, match=message):
        open_replay(old(*names), share, batch, ["car", "bus"])


def test_one_class_needs_no_name(old):
    opened = open_replay(old("cat", "dog"), 0.5, 2, ["item"], single_class=True)
    assert {int(row) for sample in opened.samples for row in sample.boxes[:, 0]} == {0}
    assert replay.NO_REPLAY.sample_at(0, 0, 4, seed=0) is None
