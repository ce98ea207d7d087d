"""The input stream: what comes when, in which shape, for any number of workers and from any point on."""

import shutil
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import psutil
import pytest

from yolojax.data.batches import Batch, StreamSettings, TrainingBatch, epoch_order
from yolojax.data.sample import ImageError, Sample
from yolojax.data.stream import TrainingStream, image_weights, training_stream
from yolojax.hyperparameters import Hyperparameters
from yolojax.training.loop import train
from yolojax.training.settings import TrainSettings

EVERYTHING = Hyperparameters(mosaic=0.7, mixup=0.5, degrees=5, shear=2, flipud=0.3, copy_paste=0.5)


def stream_of(samples: list[Sample], **changes) -> TrainingStream:
    """The stream of some samples; ``changes`` are of ``hyperparameters`` or of the stream's settings."""
    hyperparameters = changes.pop("hyperparameters", EVERYTHING)
    arguments = {"image_size": 64, "batch_size": 4, "epochs": 3, "seed": 7} | changes
    return training_stream(samples, hyperparameters, StreamSettings(**arguments))


def assert_same(first: Iterable[TrainingBatch], second: Iterable[TrainingBatch]) -> None:
    first, second = list(first), list(second)
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        arrays = zip((*a.batch, a.indices), (*b.batch, b.indices), strict=True)
        for left, right in arrays:
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)


def test_batches_have_the_promised_shapes(samples):
    stream = stream_of(samples)
    assert (stream.batches_per_epoch, stream.max_boxes) == (3, 24)
    batches = list(stream.iterate())
    assert len(batches) == 9
    for made in batches:
        shapes = {name: (array.shape, array.dtype.name) for name, array in made.batch._asdict().items()}
        assert shapes == {
            "images": ((4, 64, 64, 3), "uint8"),
            "boxes": ((4, 24, 5), "float32"),
            "mask": ((4, 24), "bool"),
        }
        assert (made.indices.shape, made.indices.dtype.name) == ((4,), "int32")
        boxes = made.batch.boxes[made.batch.mask]
        assert ((boxes[:, 1:] >= 0) & (boxes[:, 1:] <= 1)).all()
        assert not made.batch.boxes[~made.batch.mask].any()
    assert sum(made.batch.mask.sum() for made in batches) > 50
    assert len({made.batch.images.tobytes() for made in batches}) == 9


def test_each_epoch_has_every_sample_and_fills_its_last_batch(samples):
    batches = list(stream_of(samples).iterate())
    epochs = [np.concatenate([batch.indices for batch in batches[start : start + 3]]) for start in (0, 3, 6)]
    for order in epochs:
        assert sorted(order[:11]) == list(range(11))
    assert len({tuple(order) for order in epochs}) == 3


def test_order_is_a_permutation_after_another():
    order = epoch_order(5, 12, seed=0, epoch=3)
    assert sorted(order[:5]) == sorted(order[5:10]) == [0, 1, 2, 3, 4]
    assert order[:5].tolist() != order[5:10].tolist()
    assert (
        epoch_order(5, 12, seed=0, epoch=4).tolist() != order.tolist() != epoch_order(5, 12, seed=1, epoch=3).tolist()
    )


def test_images_weigh_what_their_boxes_do():
    classes = [[0, 0, 0], [0, 1], []]
    samples = [
        Sample(
            name="",
            size=(9, 9),
            boxes=np.array([[label, 0, 0, 1, 1] for label in labels] or np.zeros((0, 5))),
            reader=np.zeros,
        )
        for labels in classes
    ]
    # Four boxes of class 0 and one of class 1; a box of a class with mAP m counts (1 - m)² / boxes of its class.
    np.testing.assert_allclose(image_weights(samples, [0, 0]), np.array([3 / 4, 1 / 4 + 1, 0]) / 2)
    np.testing.assert_allclose(image_weights(samples, [0.5, 0]), np.array([3 / 16, 1 / 16 + 1, 0]) / 1.25)
    np.testing.assert_allclose(image_weights(samples, [1, 1]), [1 / 3] * 3)


def test_images_are_drawn_by_weight_and_the_same_ones_again(samples):
    weights = np.arange(11.0) / 55
    stream = stream_of(samples)
    stream.draw(1, weights)
    first = list(islice(stream.iterate(1), 3))
    stream.draw(2, np.eye(11)[4])
    assert {int(index) for batch in islice(stream.iterate(2), 3) for index in batch.indices} == {4}
    again = stream_of(samples)
    again.draw(1, weights)
    assert_same(first[1:], islice(again.iterate(1, 1, workers=1), 2))
    again.close()
    drawn = [index for epoch in range(200) for index in _drawn(stream, epoch, weights)]
    share = np.bincount(drawn, minlength=11) / len(drawn)
    np.testing.assert_allclose(share, weights, atol=0.03)


def _drawn(stream: TrainingStream, epoch: int, weights: np.ndarray) -> list[int]:
    stream.draw(epoch, weights)
    assert stream.batches.order is not None
    return stream.batches.order.tolist()


def test_data_set_smaller_than_a_batch(samples):
    (batch,) = stream_of(samples[:3], epochs=1, batch_size=8).iterate()
    assert sorted(batch.indices[:3]) == sorted(batch.indices[3:6]) == [0, 1, 2]


def test_stream_is_the_same_with_workers(samples):
    stream = stream_of(samples, epochs=2)
    whole = list(stream.iterate())
    with_workers = stream_of(samples, epochs=2)
    assert_same(whole[:2], islice(with_workers.iterate(workers=2), 2))
    assert_same(whole[2:], with_workers.iterate(0, 2, 2))
    with_workers.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_made_before_they_are_asked_for(samples, workers):
    stream = stream_of(samples)
    stream.start(workers=workers)
    begun = stream._ahead
    try:
        assert_same(islice(stream.iterate(workers=workers), 4), islice(stream_of(samples).iterate(), 4))
        assert stream._ahead is begun  # and not begun anew
    finally:
        stream.close()


def test_a_started_stream_does_not_wait_to_be_asked(samples, monkeypatch):
    made, stream = threading.Event(), stream_of(samples)
    monkeypatch.setattr(type(stream.batches), "__getitem__", lambda *_: made.set())
    stream.start()
    assert made.wait(20)
    stream.close()


@pytest.mark.parametrize(("epoch", "batch"), [(0, 1), (1, 0), (2, 2)])
def test_stream_starts_anywhere(samples, epoch, batch):
    stream = stream_of(samples)
    assert_same(islice(stream.iterate(), epoch * 3 + batch, None), stream_of(samples).iterate(epoch, batch))


def test_signals_are_left_to_the_process_that_trains(samples):
    stream = stream_of(samples, epochs=4)
    batches = stream.iterate(workers=1)
    first = next(batches)
    for number in (signal.SIGINT, signal.SIGTERM):
        for child in psutil.Process().children(recursive=True):
            if "resource_tracker" not in " ".join(child.cmdline()):
                child.send_signal(number)
    assert_same(stream_of(samples, epochs=4).iterate(), [first, *batches])
    stream.close()


def test_stream_goes_on_where_an_epoch_ended_with_the_same_workers(samples):
    stream, parts = stream_of(samples), []
    for epoch in range(3):
        parts += islice(stream.iterate(epoch), 3)
        ahead = stream._ahead
        assert ahead is not None
        assert ahead.number == 3 * (epoch + 1)
    assert_same(parts, stream_of(samples).iterate())
    assert stream._ahead is ahead
    assert_same(islice(stream.iterate(1, 1), 2), parts[4:6])
    assert stream._ahead is not ahead


def test_seed_changes_everything(samples):
    first, second = (next(iter(stream_of(samples, seed=seed).iterate())) for seed in (0, 1))
    assert not (first.batch.images == second.batch.images).all((1, 2, 3)).any()


def test_a_sample_never_looks_the_same_twice(samples):
    """One sample, several times in a batch and in several epochs."""
    images = [image.tobytes() for batch in stream_of(samples[4:5]).iterate() for image in batch.batch.images]
    assert len(set(images)) == len(images) == 12


def concatenated(shares: Sequence[TrainingBatch]) -> TrainingBatch:
    """One batch of several processes' shares."""
    parts = zip(*(share.batch for share in shares), strict=True)
    index = np.concatenate([share.indices for share in shares])
    return TrainingBatch(Batch(*map(np.concatenate, parts)), index, np.zeros(0, np.int32))


def joined(streams: list[TrainingStream], start: int, stop: int | None = None) -> Iterator[TrainingBatch]:
    """Batches of several processes, put together, from one number to another."""
    parts = [stream.iterate(*divmod(start, stream.batches_per_epoch)) for stream in streams]
    for shares in islice(zip(*parts, strict=True), None if stop is None else stop - start):
        yield concatenated(shares)


def test_processes_share_every_batch(samples):
    whole = list(stream_of(samples).iterate())
    shares = [list(stream_of(samples, process_index=index, process_count=2).iterate()) for index in range(2)]
    assert_same(whole, [concatenated(parts) for parts in zip(*shares, strict=True)])
    with pytest.raises(ValueError, match="a batch of 4 cannot be shared by 3 processes"):
        stream_of(samples, process_count=3)


@pytest.mark.long
@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 1), (1, 4)])
def test_a_run_stopped_after_any_batch_goes_on_with_other_processes(samples, before, after):
    whole = list(stream_of(samples).iterate())
    first, second = (
        [stream_of(samples, process_index=index, process_count=count) for index in range(count)]
        for count in (before, after)
    )
    for stop in range(1, len(whole)):
        assert_same(whole, [*joined(first, 0, stop), *joined(second, stop)])


@pytest.mark.long
def test_a_stopped_run_goes_on_with_more_workers(samples):
    whole, stop = list(stream_of(samples).iterate()), 4
    first, second = stream_of(samples), stream_of(samples)
    assert_same(whole[:stop], islice(first.iterate(workers=1), stop))
    first.close()
    assert_same(whole[stop:], second.iterate(*divmod(stop, 3), workers=4))
    second.close()


def test_epochs_do_not_depend_on_how_many_there_are(samples):
    assert_same(islice(stream_of(samples, epochs=9).iterate(), 3), stream_of(samples, epochs=1).iterate())


class Broken:
    def __call__(self) -> np.ndarray:
        raise ImageError("cannot be decoded")


def test_unreadable_image_is_replaced_named_once_and_counted(samples, caplog):
    broken = [replace(sample, reader=Broken()) if index == 4 else sample for index, sample in enumerate(samples)]
    stream = stream_of(broken, hyperparameters=Hyperparameters(mosaic=0))
    whole = list(stream.iterate())
    assert stream.unreadable == ["4.png"]
    assert [message for message in caplog.messages if "4.png" in message] == [
        "4.png: cannot be decoded; it is left out, and the next image is taken instead"
    ]
    fine = list(stream_of(samples, hyperparameters=Hyperparameters(mosaic=0)).iterate())
    for batch, expected in zip(whole, fine, strict=True):
        for place, index in enumerate(batch.indices):
            same = (batch.batch.images[place] == expected.batch.images[place]).all()
            assert same == (index != 4)
            if index == 4:
                assert set(batch.batch.boxes[place, batch.batch.mask[place], 0]) <= {5.0}


def test_nothing_readable_is_an_error(samples):
    stream = stream_of([replace(sample, reader=Broken()) for sample in samples])
    with pytest.raises(RuntimeError, match="not one image"):
        next(iter(stream.iterate()))


def test_no_box_is_dropped_when_an_image_has_more_than_there_is_room_for(samples, caplog):
    roomy, tight = stream_of(samples), stream_of(samples, max_boxes=8)
    raised = 0
    for batch, expected in zip(tight.iterate(), roomy.iterate(), strict=True):
        most = int(expected.batch.mask.sum(1).max())
        room = batch.batch.boxes.shape[1]
        assert room in (8, 16, 32)
        assert room == 8 or room < 2 * most
        raised += room > 8
        np.testing.assert_array_equal(batch.batch.boxes[batch.batch.mask], expected.batch.boxes[expected.batch.mask])
    assert raised
    assert sum("more than 8 boxes" in message for message in caplog.messages) == raised


def test_rectangular_training_has_the_shapes_of_its_images(samples):
    stream = stream_of(samples, rectangular=True, image_size=64, batch_size=2, stride=16)
    first = list(islice(stream.iterate(), 6))
    aspects = [samples[index].size[0] / samples[index].size[1] for batch in first for index in batch.indices]
    assert aspects[:11] == sorted(aspects[:11])
    assert [batch.batch.images.shape[1:3] for batch in first] == [
        (32, 64),
        (48, 64),
        (64, 64),
        (64, 64),
        (64, 48),
        (64, 32),
    ]
    assert {int(index) for batch in first for index in batch.indices} == set(range(11))
    assert stream.max_boxes == 8
    again = list(islice(stream.iterate(1), 6))
    assert [batch.indices.tolist() for batch in again] == [batch.indices.tolist() for batch in first]
    assert not (again[0].batch.images == first[0].batch.images).all()


@pytest.mark.long
def test_a_run_names_each_unreadable_image_once_and_counts_them_at_its_end(tiny_data, tiny_model, tmp_path, caplog):
    shutil.copytree(tiny_data.parent, tmp_path / "data")
    broken = [tmp_path / "data" / "images" / name for name in ("train/3.png", "val/1.png")]
    for path in broken:  # behind its header, so that it is found in the middle of an epoch
        data = path.read_bytes()
        path.write_bytes(data[:60] + bytes(len(data) - 80) + data[-20:])
    file = tmp_path / "squares.yaml"
    file.write_text("path: data\ntrain: images/train\nval: images/val\nnames: [blue, red]\n")
    fixed = {"weights": "", "cfg": str(tiny_model), "imgsz": 64, "batch_size": 4, "workers": 0, "noplots": True}
    with caplog.at_level("INFO"):
        results = train(TrainSettings(**fixed, data=str(file), epochs=2, freeze=("2",), project=str(tmp_path / "runs")))
    assert sorted(results["unreadable_images"]) == sorted(map(str, broken))
    for path in broken:
        assert sum(str(path) in message for message in caplog.messages) == 1
    assert "2 images could not be decoded and were left out: results.json names them" in caplog.messages
