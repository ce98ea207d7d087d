"""The evaluator on batches with known answers."""

import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yolojax.evaluation.evaluator import evaluate, suppress_rows
from yolojax.evaluation.nms import NmsSettings
from yolojax.evaluation.tally import Tally, to_photo, true_boxes

NAMES = ("cat", "dog")


def batch(boxes, valid=None, size=64):
    """Square images; ``boxes`` per image: rows ``class x y w h`` as fractions. Each photo is twice as large, without border."""
    count = len(boxes)
    room = max([len(rows) for rows in boxes] + [1])
    padded = np.zeros((count, room, 5), np.float32)
    mask = np.zeros((count, room), bool)
    for index, rows in enumerate(boxes):
        padded[index, : len(rows)] = np.reshape(rows, (-1, 5))
        mask[index, : len(rows)] = True
    return {
        "images": np.full((count, size, size, 3), 114, np.uint8),
        "boxes": padded,
        "mask": mask,
        "valid": np.ones(count, bool) if valid is None else np.array(valid),
        "original_size": np.full((count, 2), 2 * size, np.int32),
        "gain": np.full((count, 2), 0.5),
        "padding": np.zeros((count, 2)),
        "index": np.arange(count, dtype=np.int32),
    }


def oracle(batches, classes=2, score=0.9):
    """A predict function that knows the answers, in the order of the batches; the heads are the numbers of the images."""
    answers = iter(batches)

    def predict(images):
        batch = next(answers)
        height, width = batch["images"].shape[1:3]
        predictions = np.zeros((*batch["mask"].shape, 5 + classes), np.float32)
        predictions[..., :4] = batch["boxes"][..., 1:] * np.array([width, height] * 2)
        predictions[..., 4] = batch["mask"]
        labels = batch["boxes"][..., 0].astype(int)
        np.put_along_axis(predictions[..., 5:], labels[..., None], score, 2)
        return jnp.asarray(predictions), (jnp.arange(len(images), dtype=jnp.float32),)

    return predict


BOXES = [[(0, 0.3, 0.3, 0.2, 0.2), (1, 0.7, 0.7, 0.3, 0.2)], [(1, 0.5, 0.5, 0.5, 0.9)], []]


def test_perfect_predictions():
    batches = [batch(BOXES), batch(BOXES)]
    result = evaluate(oracle(batches), batches, NAMES)
    assert (result.precision, result.recall) == pytest.approx((1, 1))
    assert result.map50 == pytest.approx(0.995)
    assert (result.images, result.instances, result.shapes) == (6, 6, 1)
    assert result.confusion.tolist() == [[2, 0, 0], [0, 4, 0], [0, 0, 0]]
    rows = result.per_class()
    assert [(row["class"], row["name"], row["instances"]) for row in rows] == [(0, "cat", 2), (1, "dog", 4)]
    assert set(result.figures()) == {
        "precision", "recall", "map50", "map50_95", "images", "instances", "per_class", "speed_ms",
    }  # fmt: skip


def test_both_suppressions_give_the_same():
    rng = np.random.default_rng(0)
    raw = rng.random((3, 50, 7)).astype(np.float32) * np.array([64, 64, 40, 40, 1, 1, 1], np.float32)
    seen = {True: [], False: []}
    for on_device, observed in seen.items():
        evaluate(
            lambda images: (jnp.asarray(raw), ()),
            [batch(BOXES)],
            NAMES,
            NmsSettings(max_detections=20),
            nms_on_device=on_device,
            observe=lambda _, detections, observed=observed: observed.extend(detections),
        )
    for device, host in zip(seen[True], seen[False], strict=True):
        assert len(host) == 20
        np.testing.assert_array_equal(device, host)


def test_invalid_images_are_counted_nowhere():
    batches = [batch([*BOXES, BOXES[0]], valid=[True, True, True, False])]
    losses = []

    def loss(heads, boxes, mask, valid):
        losses.append((np.asarray(heads[0]).tolist(), len(boxes), len(mask), valid.tolist()))
        return {"box": jnp.float32(1.0)}

    result = evaluate(oracle(batches), batches, NAMES, loss=loss)
    assert (result.images, result.instances, int(result.confusion.sum())) == (3, 3, 3)
    assert losses == [([0.0, 1.0, 2.0, 3.0], 4, 4, [True, True, True, False])]


def test_losses_are_means_over_batches():
    batches = [batch(BOXES), batch(BOXES[:1]), batch(BOXES[1:])]
    values = iter([1.0, 2.0, 6.0])
    result = evaluate(oracle(batches), batches, NAMES, loss=lambda *_: {"box": next(values), "obj": 1.0})
    assert result.losses == {"box": 3.0, "obj": 1.0}


def test_single_class():
    batches = [batch(BOXES)]
    wrong = oracle([batch([[(1 - label, *box) for label, *box in rows] for rows in BOXES])])
    assert evaluate(wrong, batches, NAMES).map50 == 0
    wrong = oracle([batch([[(1 - label, *box) for label, *box in rows] for rows in BOXES])])
    result = evaluate(wrong, batches, ("item",), single_class=True)
    assert result.map50 == pytest.approx(0.995)
    assert result.curves.classes.tolist() == [0]


def test_a_batch_is_matched_while_the_next_is_predicted():
    batches = [batch(BOXES) for _ in range(3)]
    answer, predicted, seen = oracle(batches), threading.Semaphore(0), []

    def predict(images):
        predicted.release()
        return answer(images)

    def observe(known, detected):
        assert known is batches[len(seen)]
        if not seen:
            assert predicted.acquire(timeout=10)
        if len(seen) < 2:  # nothing comes after the last one
            assert predicted.acquire(timeout=10)
        seen.append(detected)

    assert evaluate(predict, batches, NAMES, observe=observe).images == 9
    assert len(seen) == 3


def test_an_error_of_the_host_part_comes_out():
    def observe(known, detected):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        evaluate(oracle([batch(BOXES)]), [batch(BOXES)], NAMES, observe=observe)


def test_no_images():
    result = evaluate(oracle([]), [], NAMES)
    assert (result.images, result.map50, result.precision) == (0, 0, 0)
    assert result.per_class() == []


def test_observe_sees_pixels_of_the_photo():
    batches = [batch(BOXES)]
    seen = []
    evaluate(oracle(batches), batches, NAMES, observe=lambda batch, detections: seen.append(detections))
    # .3 of 64 pixels, at half size: the photo has 128.
    np.testing.assert_allclose(seen[0][0][0, :4], np.array([0.2, 0.2, 0.4, 0.4]) * 128, rtol=1e-6)
    assert [len(detections) for detections in seen[0]] == [2, 1, 0]


def test_boxes_are_clipped_to_the_photo_without_the_border():
    single = batch([[(0, 0.5, 0.5, 1.0, 1.0)]])
    single["padding"][0] = (8, 4)
    single["gain"][0] = 0.5
    single["original_size"][0] = (100, 90)  # height, width
    box = to_photo(np.array([[0, 0, 64, 64, 0.5, 1]], np.float32), single, 0)
    np.testing.assert_array_equal(box, [[0, 0, 90, 100, 0.5, 1]])
    box = to_photo(np.array([[18, 14, 28, 24, 0.5, 1]], np.float32), single, 0)
    np.testing.assert_array_equal(box, [[20, 20, 40, 40, 0.5, 1]])
    np.testing.assert_array_equal(true_boxes(single, 0), [[0, 0, 0, 90, 100]])


def test_speed_leaves_the_first_batch_of_a_shape_out(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock) * 1.0)
    batches = [batch(BOXES), batch(BOXES, size=96), batch(BOXES), batch(BOXES)]
    result = evaluate(oracle(batches), batches, NAMES)
    assert result.shapes == 2
    assert result.speed_ms["inference"] == pytest.approx(1000 / 3)  # one tick of a second for three images


def test_one_program_per_shape():
    from yolojax.data.batches import validation_batches
    from yolojax.data.sample import Sample

    def sample(height, width):
        image = np.full((height, width, 3), 90, np.uint8)
        box = np.array([[0, 0.5, 0.5, 0.4, 0.4]], np.float32)
        return Sample(name=f"{height}x{width}.png", size=(height, width), boxes=box, reader=lambda: image)

    sizes = [(60, 100), (50, 100), (100, 60), (90, 90), (33, 100), (100, 50), (98, 100), (64, 64), (61, 99)]
    batches = validation_batches([sample(*size) for size in sizes], image_size=96, batch_size=2)
    traces = 0

    @jax.jit
    def predict(images):
        nonlocal traces
        traces += 1
        return jnp.zeros((len(images), 3, 7)) + images.mean() * 0, ()

    result = evaluate(predict, batches.iterate(), NAMES)
    assert result.images == len(sizes)
    assert traces == result.shapes == len(set(batches.shapes)) < len(batches)


def test_shares_of_batches_count_as_the_whole_ones():
    """Two processes see two images of each batch of four; many scores are equal, and no figure depends on their order."""
    rng = np.random.default_rng(0)

    def found(boxes):
        rows = [row for row in boxes for _ in range(3)]
        labels, centres, sides = np.split(np.reshape(rows, (-1, 5)), [1, 3], 1)
        corners = np.concatenate([centres - sides / 2, centres + sides / 2], 1) * 64 + rng.normal(
            0, 1.5, (len(rows), 4)
        )
        return np.concatenate([corners, rng.choice([0.5, 0.7], (len(rows), 1)), labels], 1).astype(np.float32)

    boxes = [*BOXES, BOXES[0]]
    batches = [batch(boxes) for _ in range(3)]
    detections = [[found(of_image) for of_image in boxes] for _ in batches]
    whole, parts = Tally(2), (Tally(2), Tally(2))
    for content, of_images in zip(batches, detections, strict=True):
        whole.add(content, range(4), of_images)
        for number, part in enumerate(parts):
            rows = slice(2 * number, 2 * number + 2)
            part.add({name: array[rows] for name, array in content.items()}, range(2), of_images[rows])
    told = []
    parts[1].absorb(lambda own: [told.append(own) or own])  # itself alone, to have what it tells
    parts[0].absorb(lambda own: [own, *told])
    assert parts[0].images == whole.images
    np.testing.assert_array_equal(parts[0].confusion, whole.confusion)
    for name, value in vars(whole.curves()).items():
        np.testing.assert_array_equal(getattr(parts[0].curves(), name), value, err_msg=name)
    assert whole.curves().map50 > 0


def test_each_device_suppresses_what_lies_on_it():
    """Of an array that several processes share, the parts of this one, in order."""
    rng = np.random.default_rng(1)
    whole = np.concatenate([rng.uniform(5, 60, (4, 30, 4)), rng.uniform(0, 1, (4, 30, 3))], 2).astype(np.float32)
    parts = [SimpleNamespace(index=(slice(row, row + 2),), data=jnp.asarray(whole[row : row + 2])) for row in (2, 0)]
    shared = SimpleNamespace(is_fully_addressable=False, addressable_shards=parts)
    found = suppress_rows(shared, [0, 1, 3], NmsSettings(), on_device=True)
    expected = suppress_rows(jnp.asarray(whole), [0, 1, 3], NmsSettings(), on_device=True)
    assert sum(map(len, expected)) > 3
    for own, of_whole in zip(found, expected, strict=True):
        np.testing.assert_array_equal(own, of_whole)
