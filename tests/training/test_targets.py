"""Assignments, against a plain rendering of the original's lists, bit for bit."""

import jax
import numpy as np
import pytest

from yolojax.training.targets import build_targets

ANCHORS = np.array([(1.25, 1.625), (2.0, 3.75), (4.125, 2.875)])


def listed(boxes, mask, anchors, grid, threshold):
    """The assignments as the original lists them: rows (image, anchor, y, x, class) and relative boxes."""
    dtype = boxes.dtype.type
    size = np.array([grid[1], grid[0]], boxes.dtype)
    anchors = anchors.astype(boxes.dtype)
    rows, relative = [], []
    for dx, dy in ((0, 0), (1, 0), (0, 1), (-1, 0), (0, -1)):
        for number, anchor in enumerate(anchors):
            for image, place in zip(*np.nonzero(mask), strict=True):
                centre, side = boxes[image, place, 1:3] * size, boxes[image, place, 3:] * size
                with np.errstate(divide="ignore"):
                    ratio = side / anchor
                    if np.maximum(ratio, dtype(1) / ratio).max() >= threshold:
                        continue
                distance = (size - centre) if dx + dy < 0 else centre
                axis = 0 if dx else 1
                if (dx or dy) and not (distance[axis] % 1 < 0.5 and distance[axis] > 1):
                    continue
                cell = (centre - np.array([dx, dy], boxes.dtype) * dtype(0.5)).astype(int)
                cell = np.clip(cell, 0, size.astype(int) - 1)
                rows.append((image, number, cell[1], cell[0], int(boxes[image, place, 0])))
                relative.append(np.concatenate([centre - cell.astype(boxes.dtype), side]))
    return np.array(rows), np.array(relative, boxes.dtype)


def collected(targets):
    """The slots that hold, in the original's order: offset, anchor, image, box."""
    offset, anchor, image, place = np.nonzero(np.asarray(targets.mask).transpose(1, 2, 0, 3))
    cells = np.asarray(targets.cells)[image, offset, place]
    classes = np.asarray(targets.classes)[image, place]
    rows = np.stack([image, anchor, cells[:, 1], cells[:, 0], classes], 1)
    return rows, np.asarray(targets.boxes)[image, offset, place]


def hard_boxes(grid, dtype, images=4, most=40):
    """Random boxes, among them centres on grid lines and image borders, and sides exactly at the threshold of an anchor."""
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 1, (images, most, 5))
    boxes[..., 0] = rng.integers(0, 5, (images, most))
    boxes[..., 3:] = rng.uniform(0.02, 0.9, (images, most, 2)) ** 2
    size = np.array([grid[1], grid[0]])
    boxes[:, :10, 1:3] = rng.integers(0, 2 * grid[0], (images, 10, 2)) / 2 / size
    boxes[:, 10:14, 1] = [0, 1, 0, 1]
    boxes[:, 10:14, 2] = [0, 0, 1, 1]
    boxes[:, 14:17, 3:] = ANCHORS * 4 / size
    boxes[:, 17:20, 3:] = ANCHORS / 4 / size
    mask = rng.random((images, most)) < 0.9
    mask[1] = False
    return np.clip(boxes, 0, [5, 1, 1, 1, 1]).astype(dtype), mask


@pytest.mark.parametrize("grid", [(10, 10), (7, 13), (40, 40)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_assignments_are_the_original_ones_in_its_order(grid, dtype):
    boxes, mask = hard_boxes(grid, dtype)
    with jax.enable_x64(dtype == np.float64):
        targets = jax.jit(lambda boxes, mask: build_targets(boxes, mask, ANCHORS, grid, 4.0))(boxes, mask)
    rows, relative = collected(targets)
    expected_rows, expected_relative = listed(boxes, mask, ANCHORS, grid, 4.0)
    assert len(rows) > 100
    np.testing.assert_array_equal(rows, expected_rows)
    assert relative.dtype == dtype
    np.testing.assert_array_equal(relative, expected_relative)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_ratio_at_the_threshold_is_no_match(dtype):
    rng = np.random.default_rng(1)
    anchors = rng.uniform(1, 5, (3, 2))
    boxes = rng.uniform(0.1, 0.9, (1, 60, 5)).astype(dtype)
    mask = np.ones((1, 60), bool)
    ratio = boxes[0, :, None, 3:] * np.array([9, 9], dtype) / anchors.astype(dtype)
    thresholds = np.maximum(ratio, dtype(1) / ratio).max(-1)[:, 0]
    with jax.enable_x64(dtype == np.float64):
        build = jax.jit(lambda boxes, mask, threshold: build_targets(boxes, mask, anchors, (9, 9), threshold))
        for place, threshold in enumerate(thresholds):
            for limit, matches in ((threshold, False), (np.nextafter(threshold, dtype(99)), True)):
                assert build(boxes, mask, limit).mask[0, 0, 0, place] == matches


def one_box(x, y, grid=(8, 8), side=0.25):
    boxes = np.array([[[2, x, y, side, side]]], np.float32)
    return build_targets(boxes, np.ones((1, 1), bool), ANCHORS[:1], grid, 4.0)


def test_centre_on_a_grid_line_has_both_neighbours():
    rows, _ = collected(one_box(0.5, 0.53))
    cells = {(x, y) for _, _, y, x, _ in rows}
    assert {(4, 4), (3, 4)} <= cells
    np.testing.assert_array_equal(one_box(0.5, 0.53).mask[0, :, 0, 0], [True, True, True, True, False])


def test_centre_on_the_border_is_regressed_from_the_clamped_cell():
    rows, relative = collected(one_box(1.0, 1.0))
    # The cell itself, clamped, and its neighbours left and up, which clamp to the same one.
    np.testing.assert_array_equal(rows, [[0, 0, 7, 7, 2]] * 3)
    np.testing.assert_array_equal(relative, [[1, 1, 2, 2]] * 3)


def test_padding_is_never_assigned():
    boxes, mask = hard_boxes((10, 10), np.float32)
    targets = build_targets(boxes, np.zeros_like(mask), ANCHORS, (10, 10), 4.0)
    assert not targets.mask.any()


def test_cells_stay_in_the_grid_in_every_slot():
    boxes, mask = hard_boxes((7, 13), np.float32)
    boxes[~mask] = np.nan
    cells = np.asarray(build_targets(boxes, mask, ANCHORS, (7, 13), 4.0).cells)
    assert cells.min() == 0
    assert (cells.max((0, 1, 2)) == [12, 6]).all()
