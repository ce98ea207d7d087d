"""The input streams: what comes when, in which shape, for any number of workers and from any point on."""

import ast
import inspect
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest

from yolojax.data import colour, geometry, mosaic, pipeline
from yolojax.data.pipeline import (
    Batch,
    TrainingStream,
    epoch_order,
    image_weights,
    training_stream,
    validation_batches,
)
from yolojax.data.sample import ImageError, Sample
from yolojax.hyperparameters import Hyperparameters
from yolojax.training.loop import train
from yolojax.training.settings import TrainSettings

EVERYTHING = Hyperparameters(mosaic=0.7, mixup=0.5, degrees=5, shear=2, flipud=0.3, copy_paste=0.5)


def stream_of(samples: list[Sample], **changes) -> TrainingStream:
    arguments = {"settings": EVERYTHING, "image_size": 64, "batch_size": 4, "epochs": 3, "seed": 7} | changes
    return training_stream(samples, **arguments)


def assert_same(first: Iterable[Batch], second: Iterable[Batch]) -> None:
    first, second = list(first), list(second)
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_batches_have_the_promised_shapes(samples):
    stream = stream_of(samples)
    assert (stream.batches_per_epoch, stream.max_boxes) == (3, 24)
    batches = list(stream.iterate())
    assert len(batches) == 9
    for batch in batches:
        shapes = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
        assert shapes == {
            "images": ((4, 64, 64, 3), "uint8"),
            "boxes": ((4, 24, 5), "float32"),
            "mask": ((4, 24), "bool"),
            "index": ((4,), "int32"),
        }
        boxes = batch["boxes"][batch["mask"]]
        assert ((boxes[:, 1:] >= 0) & (boxes[:, 1:] <= 1)).all()
        assert not batch["boxes"][~batch["mask"]].any()
    assert sum(batch["mask"].sum() for batch in batches) > 50
    assert len({batch["images"].tobytes() for batch in batches}) == 9


def test_each_epoch_has_every_sample_and_fills_its_last_batch(samples):
    batches = list(stream_of(samples).iterate())
    epochs = [np.concatenate([batch["index"] for batch in batches[start : start + 3]]) for start in (0, 3, 6)]
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
    assert {int(index) for batch in islice(stream.iterate(2), 3) for index in batch["index"]} == {4}
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
    assert sorted(batch["index"][:3]) == sorted(batch["index"][3:6]) == [0, 1, 2]


def test_stream_is_the_same_with_workers(samples):
    stream = stream_of(samples, epochs=2)
    whole = list(stream.iterate())
    with_workers = stream_of(samples, epochs=2)
    assert_same(whole[:2], islice(with_workers.iterate(workers=2), 2))
    assert_same(whole[2:], with_workers.iterate(0, 2, 2))
    with_workers.close()


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
    assert not (first["images"] == second["images"]).all((1, 2, 3)).any()


def test_a_sample_never_looks_the_same_twice(samples):
    """One sample, several times in a batch and in several epochs."""
    images = [image.tobytes() for batch in stream_of(samples[4:5]).iterate() for image in batch["images"]]
    assert len(set(images)) == len(images) == 12


def test_processes_share_every_batch(samples):
    whole = list(stream_of(samples).iterate())
    shares = [list(stream_of(samples, process_index=index, process_count=2).iterate()) for index in range(2)]
    joined = [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*shares, strict=True)]
    assert_same(whole, joined)
    with pytest.raises(ValueError, match="a batch of 4 cannot be shared by 3 processes"):
        stream_of(samples, process_count=3)


def joined(streams: list[TrainingStream], start: int, stop: int | None = None) -> Iterator[Batch]:
    """Batches of several processes, put together, from one number to another."""
    parts = [stream.iterate(*divmod(start, stream.batches_per_epoch)) for stream in streams]
    for shares in islice(zip(*parts, strict=True), None if stop is None else stop - start):
        yield {key: np.concatenate([share[key] for share in shares]) for key in shares[0]}


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 1), (1, 4)])
def test_a_run_stopped_after_any_batch_goes_on_with_other_processes(samples, before, after):
    whole = list(stream_of(samples).iterate())
    first, second = (
        [stream_of(samples, process_index=index, process_count=count) for index in range(count)]
        for count in (before, after)
    )
    for stop in range(1, len(whole)):
        assert_same(whole, [*joined(first, 0, stop), *joined(second, stop)])


def test_a_stopped_run_goes_on_with_more_workers(samples):
    whole, stop = list(stream_of(samples).iterate()), 4
    first, second = stream_of(samples), stream_of(samples)
    assert_same(whole[:stop], islice(first.iterate(workers=1), stop))
    first.close()
    assert_same(whole[stop:], second.iterate(*divmod(stop, 3), workers=4))
    second.close()


def test_epochs_do_not_depend_on_how_many_there_are(samples):
    assert_same(islice(stream_of(samples, epochs=9).iterate(), 3), stream_of(samples, epochs=1).iterate())


def test_without_augmentation_pictures_are_only_boxed(samples):
    stream = stream_of(samples, augment=False, epochs=1, settings=Hyperparameters())
    for batch in stream.iterate():
        for image, boxes, mask, index in zip(
            *(batch[key] for key in ("images", "boxes", "mask", "index")), strict=True
        ):
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
            next(iter(stream_of(data, settings=settings, max_boxes=16).iterate())) for data in (plain, outlined)
        )
        assert (first["images"] == second["images"]).all()
        assert (first["boxes"] == second["boxes"]).all() == same


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
        count(
            next(module for module in (mosaic, colour, geometry) if hasattr(module, name) and name in vars(module)),
            name,
        )
    settings = Hyperparameters(mosaic=0.75, mixup=0.5, flipud=0.2, fliplr=0.6)
    stream = stream_of(samples, settings=settings, image_size=32, epochs=40)
    items = len(stream.batches) * 4
    for number in range(len(stream.batches)):
        stream.batches[number]
    assert counts["letterbox"] / items == pytest.approx(0.25, abs=0.06)
    assert counts["mix_up"] / items == pytest.approx(0.375, abs=0.06)
    assert counts["mosaic4"] == items - counts["letterbox"] + counts["mix_up"]
    assert counts["flip_up_down"] / items == pytest.approx(0.2, abs=0.06)
    assert counts["flip_left_right"] / items == pytest.approx(0.6, abs=0.06)


def test_every_operation_has_its_place_around_the_mosaic():
    listed = pipeline.BEFORE_MOSAIC + pipeline.MOSAIC + pipeline.INSTEAD_OF_MOSAIC + pipeline.AFTER_MOSAIC
    operations = {
        function
        for module in (geometry, colour, mosaic)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    }
    parts = {
        geometry.make_scene,
        geometry.fraction_boxes,
        geometry.resized_shape,
        geometry.shift,
        geometry.perspective_matrix,
    }
    assert operations - parts == set(listed)
    # What the pipeline calls on the parts of a mosaic, on the mosaic and afterwards is what is listed there.
    tree = ast.parse(Path(pipeline.__file__).read_text())
    called = {
        method.name: {
            call.func.attr
            for call in ast.walk(method)
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
        }
        for method in ast.walk(tree)
        if isinstance(method, ast.FunctionDef) and method.name in ("make", "mosaic", "scene")
    }
    names = {function.__name__ for function in operations - parts}
    assert called["scene"] & names == set()
    assert called["mosaic"] & names == {function.__name__ for function in pipeline.MOSAIC} - {"mix_up"}


class Broken:
    def __call__(self) -> np.ndarray:
        raise ImageError("cannot be decoded")


def test_unreadable_picture_is_replaced_named_once_and_counted(samples, caplog):
    broken = [replace(sample, reader=Broken()) if index == 4 else sample for index, sample in enumerate(samples)]
    stream = stream_of(broken, settings=Hyperparameters(mosaic=0))
    whole = list(stream.iterate())
    assert stream.unreadable == ["4.png"]
    assert [message for message in caplog.messages if "4.png" in message] == [
        "4.png: cannot be decoded; it is left out, and the next image is taken instead"
    ]
    fine = list(stream_of(samples, settings=Hyperparameters(mosaic=0)).iterate())
    for batch, expected in zip(whole, fine, strict=True):
        for place, index in enumerate(batch["index"]):
            same = (batch["images"][place] == expected["images"][place]).all()
            assert same == (index != 4)
            if index == 4:
                assert set(batch["boxes"][place, batch["mask"][place], 0]) <= {5.0}


def test_nothing_readable_is_an_error(samples):
    stream = stream_of([replace(sample, reader=Broken()) for sample in samples])
    with pytest.raises(RuntimeError, match="not one picture"):
        next(iter(stream.iterate()))


def test_no_box_is_dropped_when_a_picture_has_more_than_there_is_room_for(samples, caplog):
    roomy, tight = stream_of(samples), stream_of(samples, max_boxes=8)
    raised = 0
    for batch, expected in zip(tight.iterate(), roomy.iterate(), strict=True):
        most = int(expected["mask"].sum(1).max())
        room = batch["boxes"].shape[1]
        assert room in (8, 16, 32)
        assert room == 8 or room < 2 * most
        raised += room > 8
        np.testing.assert_array_equal(batch["boxes"][batch["mask"]], expected["boxes"][expected["mask"]])
    assert raised
    assert sum("more than 8 boxes" in message for message in caplog.messages) == raised


@pytest.mark.parametrize(
    ("settings", "room"),
    [
        (None, 8),
        (Hyperparameters(mosaic=0), 8),
        (Hyperparameters(), 16),
        (Hyperparameters(mixup=0.1), 24),
    ],
)
def test_room_for_boxes_comes_from_the_data(samples, settings, room):
    assert pipeline.room_for_boxes(samples, settings) == room  # the largest counts are 5, 4, 4, 3, 3, 2, 2, 1


def test_rectangular_training_has_the_shapes_of_its_pictures(samples):
    stream = stream_of(samples, rectangular=True, image_size=64, batch_size=2, stride=16)
    first = list(islice(stream.iterate(), 6))
    aspects = [samples[index].size[0] / samples[index].size[1] for batch in first for index in batch["index"]]
    assert aspects[:11] == sorted(aspects[:11])
    assert [batch["images"].shape[1:3] for batch in first] == [
        (32, 64),
        (48, 64),
        (64, 64),
        (64, 64),
        (64, 48),
        (64, 32),
    ]
    assert {int(index) for batch in first for index in batch["index"]} == set(range(11))
    assert stream.max_boxes == 8
    again = list(islice(stream.iterate(1), 6))
    assert [batch["index"].tolist() for batch in again] == [batch["index"].tolist() for batch in first]
    assert not (again[0]["images"] == first[0]["images"]).all()


def test_validation_has_every_picture_once_with_its_facts(samples):
    batches = validation_batches(samples, image_size=64, batch_size=4, stride=16)
    seen = []
    for batch, shape in zip(batches.iterate(), batches.shapes, strict=True):
        assert batch["images"].shape == (4, *shape, 3)
        for place in range(4):
            row = {key: value[place] for key, value in batch.items()}
            if not row["valid"]:
                assert (row["images"] == geometry.GREY).all()
                assert not row["mask"].any()
                continue
            sample = samples[row["index"]]
            seen.append(int(row["index"]))
            assert tuple(row["original_size"]) == sample.size
            # Boxes of the batch, taken back by the facts, are those of the file.
            boxes = row["boxes"][row["mask"]]
            height, width = shape
            x = (boxes[:, 1] * width - row["padding"][0]) / row["gain"][1] / sample.size[1]
            y = (boxes[:, 2] * height - row["padding"][1]) / row["gain"][0] / sample.size[0]
            np.testing.assert_allclose(np.stack([x, y], 1), sample.boxes[:, 1:3], atol=1e-5)
    assert sorted(seen) == list(range(11))
    assert sum(batch["valid"].sum() for batch in batches.iterate()) == 11
    assert len(set(batches.shapes)) <= 3


def test_square_validation_is_in_order(samples):
    batches = list(validation_batches(samples, image_size=64, batch_size=4, rectangular=False).iterate())
    assert np.concatenate([batch["index"] for batch in batches]).tolist() == [*range(11), -1]
    assert {batch["images"].shape for batch in batches} == {(4, 64, 64, 3)}


def test_validation_is_the_same_with_workers_and_processes(samples):
    def make(**options):
        return validation_batches(samples, image_size=64, batch_size=4, **options)

    assert_same(make().iterate(), make().iterate(workers=1))
    shares = [make(process_index=index, process_count=2).iterate() for index in range(2)]
    assert_same(
        make().iterate(), ({key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*shares, strict=True))
    )


def test_unreadable_picture_is_left_out_of_validation(samples, caplog):
    broken = [replace(sample, reader=Broken()) if index == 4 else sample for index, sample in enumerate(samples)]
    batches = validation_batches(broken, image_size=64, batch_size=4)
    for _ in range(2):
        assert sum(batch["valid"].sum() for batch in batches.iterate()) == 10
    assert caplog.messages == ["4.png: cannot be decoded; it is left out"]
    assert batches.unreadable == ["4.png"]


def test_a_run_names_each_unreadable_picture_once_and_counts_them_at_its_end(tiny_data, tiny_model, tmp_path, caplog):
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


def test_rectangles_are_the_smallest_that_hold_their_pictures():
    sizes = [(50, 100), (60, 100), (100, 100), (100, 50), (100, 40)]
    samples = [Sample(name="", size=size, boxes=np.zeros((0, 5), np.float32), reader=Broken()) for size in sizes]
    order, shapes = pipeline.rectangles(samples, 320, 2, 32, pad=0.5)
    assert order.tolist() == [0, 1, 2, 3, 4]
    assert shapes == ((224, 352), (352, 352), (352, 160))
    assert pipeline.rectangles(samples, 320, 2, 32, pad=0.0)[1] == ((192, 320), (320, 320), (320, 128))
