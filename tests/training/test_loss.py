"""The loss: hand-made cases. Equality with the original over all settings is shown by the golden files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yolojax.hyperparameters import Hyperparameters
from yolojax.model.boxes import complete_iou
from yolojax.model.spec import load_spec
from yolojax.training.loss import LossSettings, _last_written, compute_loss

SETTINGS = LossSettings(box=1.0, obj=1.0, cls=1.0)
loss_of = jax.jit(compute_loss, static_argnames=("spec", "settings"))
gradient_of = jax.jit(
    lambda heads, boxes, mask, spec: jax.value_and_grad(
        lambda heads: compute_loss(heads, boxes, mask, spec, SETTINGS)[0]
    )(heads),
    static_argnames="spec",
)


def heads_of(spec, images=2, size=64, seed=0):
    rng = np.random.default_rng(seed)
    channels = 5 + spec.classes
    return tuple(
        jnp.asarray(rng.normal(size=(images, size // s, size // s, 3, channels)), jnp.float32) for s in spec.strides
    )


def labels(*rows, images=2, most=4):
    boxes, mask = np.zeros((images, most, 5), np.float32), np.zeros((images, most), bool)
    for place, row in enumerate(rows):
        boxes[0, place], mask[0, place] = row, True
    return boxes, mask


@pytest.fixture(scope="module")
def spec():
    return load_spec("yolov5n", classes=3)


def entropy(logits, truth):
    return np.logaddexp(0, logits) - truth * logits


@pytest.mark.parametrize("valid", [[True, True, False], [False, True, False], [False] * 3])
def test_images_that_do_not_count_change_nothing(spec, valid):
    heads = heads_of(spec, images=3)
    boxes, mask = labels((1, 0.3, 0.4, 0.3, 0.5), (0, 0.6, 0.6, 0.4, 0.2), images=3)
    boxes[1:], mask[1:] = boxes[0], mask[0]
    valid = np.array(valid)
    masked = loss_of(heads, boxes, mask, spec=spec, settings=SETTINGS, valid=valid)
    if not valid.any():
        assert float(masked[0]) == 0
        return
    alone = loss_of([head[valid] for head in heads], boxes[valid], mask[valid], spec=spec, settings=SETTINGS)
    assert min(float(part) for part in alone[1].values()) > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-7), masked, alone)


def test_identical_boxes_overlap_fully():
    boxes = jnp.array([[3.0, 4.0, 2.0, 1.0]])
    np.testing.assert_allclose(complete_iou(boxes, boxes), 1, atol=1e-6)


def test_complete_iou_of_a_worked_example():
    # Intersection 2, union 6, centres 1 apart, enclosing box 3 x 2, shapes alike.
    overlap = complete_iou(jnp.array([1.0, 1.0, 2.0, 2.0]), jnp.array([2.0, 1.0, 2.0, 2.0]))
    np.testing.assert_allclose(overlap, 2 / 6 - 1 / 13, rtol=1e-6)
    # One inside the other at the same centre: only the aspect-ratio term remains beside IoU.
    overlap = complete_iou(jnp.array([0.0, 0.0, 1.0, 2.0]), jnp.array([0.0, 0.0, 2.0, 2.0]))
    aspect = 4 / np.pi**2 * (np.arctan(1) - np.arctan(0.5)) ** 2
    np.testing.assert_allclose(overlap, 0.5 - aspect * aspect / (aspect + 0.5), rtol=1e-5)


def test_no_gradient_through_the_aspect_weight():
    target = jnp.array([0.3, 0.2, 2.0, 1.0])
    gradient = jax.grad(lambda box: complete_iou(box, target))(jnp.array([0.0, 0.0, 1.5, 2.5]))
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient) > 1e-3).all()


def test_the_last_of_several_writers_stays():
    values = jnp.array([[0.1, 0.2, 0.3, 0.4, 0.5]])
    places = jnp.array([[3, 1, 3, 5, 5]])  # the last two outside
    np.testing.assert_allclose(_last_written(values, places, 5), [[0, 0.2, 0, 0.3, 0]])


def test_without_boxes_only_objectness_counts(spec):
    heads = heads_of(spec)
    total, parts = loss_of(heads, *labels(), spec, SETTINGS)
    expected = sum(w * entropy(np.asarray(h[..., 4]), 0).mean() for w, h in zip((4, 1, 0.4), heads, strict=True))
    assert parts["box"] == parts["cls"] == 0
    np.testing.assert_allclose(parts["obj"], expected, rtol=1e-6)
    np.testing.assert_allclose(total, 2 * expected, rtol=1e-6)


def test_class_part_of_one_box_is_the_mean_over_its_cells(spec):
    heads = heads_of(spec)
    boxes, mask = labels((1, 0.5625, 0.5625, 0.5, 0.9))
    settings = LossSettings(box=0.0, obj=0.0, cls=1.0, anchor_t=1.6)
    _, parts = loss_of(heads, boxes, mask, spec, settings)
    # 36 x 58 px: within a ratio of 1.6 only of the anchor 30 x 61, the first of the second level. The centre is in the first
    # quarter of its cell, so the cells left and above are responsible too.
    head = np.asarray(heads[1])[0]
    cell = int(0.5625 * 4)
    rows = [head[cell, cell, 0], head[cell, cell - 1, 0], head[cell - 1, cell, 0]]
    truth = np.eye(3)[1]
    np.testing.assert_allclose(parts["cls"], np.mean([entropy(row[5:], truth) for row in rows]), rtol=1e-5)


def test_one_class_has_no_class_part():
    spec = load_spec("yolov5n", classes=1)
    _, parts = loss_of(heads_of(spec), *labels((0, 0.4, 0.4, 0.3, 0.3)), spec, SETTINGS)
    assert parts["cls"] == 0
    assert parts["box"] > 0


def test_label_smoothing_and_focal_change_the_class_part(spec):
    args = (heads_of(spec), *labels((1, 0.4, 0.4, 0.3, 0.3)), spec)
    plain, smooth, focal = (
        loss_of(*args, LossSettings(**options))[1]["cls"]
        for options in ({}, {"label_smoothing": 0.2}, {"fl_gamma": 1.5})
    )
    assert plain > 0
    assert smooth != plain
    assert 0 < focal < plain


def test_rubbish_in_padding_reaches_neither_loss_nor_gradient(spec):
    heads = heads_of(spec)
    boxes, mask = labels((1, 0.4, 0.4, 0.3, 0.3))
    dirty = boxes.copy()
    dirty[~mask] = np.nan

    clean_loss, clean = gradient_of(heads, boxes, mask, spec)
    dirty_loss, gradient = gradient_of(heads, dirty, mask, spec)
    assert clean_loss == dirty_loss
    jax.tree.map(np.testing.assert_array_equal, clean, gradient)
    assert all(np.abs(level).max() > 0 for level in gradient)


def test_more_room_for_boxes_changes_nothing(spec):
    heads, row = heads_of(spec), (1, 0.4, 0.4, 0.3, 0.3)
    small, large = (loss_of(heads, *labels(row, most=most), spec, SETTINGS)[0] for most in (1, 50))
    np.testing.assert_allclose(small, large, rtol=1e-6)


def test_gains_are_scaled_to_classes_levels_and_size():
    hyp = Hyperparameters(box=0.0296, cls=0.243, obj=0.301)
    settings = LossSettings.from_hyperparameters(hyp, load_spec("yolov5m", classes=20), 512)
    np.testing.assert_allclose([settings.box, settings.cls, settings.obj], [0.0296, 0.06075, 0.19264])
    four_levels = LossSettings.from_hyperparameters(hyp, load_spec("yolov5n6", classes=20), 512)
    np.testing.assert_allclose(four_levels.box, 0.0296 * 3 / 4)
