"""What is in a batch: every image once in validation, with room for its boxes."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from yolojax.data import geometry
from yolojax.data.batches import room_for_boxes, validation_batches
from yolojax.data.sample import ImageError
from yolojax.hyperparameters import Hyperparameters


def assert_same(first: Iterable[dict], second: Iterable[dict]) -> None:
    first, second = list(first), list(second)
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


class Broken:
    def __call__(self) -> np.ndarray:
        raise ImageError("cannot be decoded")


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
    assert room_for_boxes(samples, settings) == room  # the largest counts are 5, 4, 4, 3, 3, 2, 2, 1


@pytest.mark.parametrize(("settings", "room"), [(None, 8), (Hyperparameters(), 24), (Hyperparameters(mixup=0.1), 40)])
def test_there_may_be_room_for_one_sample_in_every_part_of_a_mosaic(samples, settings, room):
    assert room_for_boxes(samples, settings, repeated=True) == room


def test_validation_has_every_image_once_with_its_facts(samples):
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
    assert_same(make().iterate(), make().iterate(threads=3))
    shares = [make(process_index=index, process_count=2).iterate() for index in range(2)]
    assert_same(
        make().iterate(), ({key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*shares, strict=True))
    )


def test_few_shapes_hold_all_images_with_wider_borders(samples):
    exact = validation_batches(samples, image_size=64, batch_size=2, stride=16)
    few = validation_batches(samples, image_size=64, batch_size=2, stride=16, most_shapes=2)
    assert len(set(exact.shapes)) > 2 == len(set(few.shapes))
    for small, large in zip(exact.shapes, few.shapes, strict=True):
        assert large[0] >= small[0]
        assert large[1] >= small[1]
        assert not any(side % 16 for side in large)
    for one, other in zip(exact.iterate(), few.iterate(), strict=True):
        np.testing.assert_array_equal(one["index"], other["index"])
        np.testing.assert_array_equal(one["gain"], other["gain"])
        grown = np.array(other["images"].shape[2:0:-1]) - one["images"].shape[2:0:-1]
        np.testing.assert_allclose(other["padding"] - one["padding"], np.tile(grown / 2, (2, 1)), atol=0.5)


def test_unreadable_image_is_left_out_of_validation(samples, caplog):
    broken = [replace(sample, reader=Broken()) if index == 4 else sample for index, sample in enumerate(samples)]
    batches = validation_batches(broken, image_size=64, batch_size=4)
    for _ in range(2):
        assert sum(batch["valid"].sum() for batch in batches.iterate()) == 10
    assert caplog.messages == ["4.png: cannot be decoded; it is left out"]
    assert batches.unreadable == ["4.png"]
