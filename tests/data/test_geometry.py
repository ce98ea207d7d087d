"""Boxes stay around what is drawn in them, whatever happens to the image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolojax.data import geometry, mosaic
from yolojax.data.geometry import Scene
from yolojax.hyperparameters import Hyperparameters

OBJECTS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0))
SQUARE = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)


def drawn(height: int, width: int, boxes: list[tuple[int, int, int, int]], outlined: bool = False) -> Scene:
    """A grey image with a rectangle of its own colour in every box (left, top, right, bottom); class = number of the colour."""
    image = np.full((height, width, 3), geometry.GREY, np.uint8)
    rows, outlines = [], []
    for number, (left, top, right, bottom) in enumerate(boxes):
        image[top:bottom, left:right] = np.array(OBJECTS[number]) * 255
        rows.append((number, left, top, right, bottom))
        outlines.append(SQUARE * (right - left, bottom - top) + (left, top))
    polygons = tuple(outline.astype(np.float32) for outline in outlines) if outlined else ()
    return Scene(image, np.array(rows, np.float32).reshape(-1, 5), polygons)


def extent(image: np.ndarray, number: int) -> np.ndarray | None:
    """Left, top, right, bottom of the pixels that are clearly of an object's colour."""
    near = (np.abs(image - np.array(OBJECTS[number]) * 255).max(2) < 60).nonzero()
    return np.array([near[1].min(), near[0].min(), near[1].max() + 1, near[0].max() + 1]) if len(near[0]) else None


def assert_boxes_fit(scene: Scene, outside: float = 0.75, slack: float | None = 1.5) -> None:
    """Every box encloses its object; with ``slack`` it is no larger than that many pixels more."""
    for number, *corners in scene.boxes:
        seen = extent(scene.image, int(number))
        assert seen is not None
        assert (corners[:2] <= seen[:2] + outside).all(), (number, corners, seen)
        assert (corners[2:] >= seen[2:] - outside).all(), (number, corners, seen)
        if slack is not None:
            assert np.abs(np.array(corners) - seen).max() <= slack, (number, corners, seen)


SCENE = drawn(60, 80, [(4, 5, 20, 25), (40, 10, 70, 30), (10, 35, 30, 55), (50, 40, 79, 60)])
boxes_of_images = st.tuples(st.integers(0, 60), st.integers(0, 40), st.integers(4, 20), st.integers(4, 20))


@pytest.mark.parametrize("shape", [(60, 80), (64, 64), (128, 128), (96, 160), (33, 47)])
@pytest.mark.parametrize("enlarge", [True, False])
def test_letterbox_keeps_boxes_on_objects(shape, enlarge):
    scene, ratio, (left, top) = geometry.letterbox(SCENE, shape, enlarge=enlarge)
    assert scene.image.shape == (*shape, 3)
    assert enlarge or ratio <= 1
    assert_boxes_fit(scene)
    y, x = round(top - 0.1), round(left - 0.1)
    border = np.ones(shape, bool)
    border[y : y + round(60 * ratio), x : x + round(80 * ratio)] = False
    assert (scene.image[border] == geometry.GREY).all()
    assert abs(shape[0] - 2 * top - 60 * ratio) <= 1
    assert abs(shape[1] - 2 * left - 80 * ratio) <= 1


def test_long_side_is_rounded_up_as_in_the_original():
    assert geometry.resized_shape((427, 640), 320) == (214, 320)
    assert geometry.resized_shape((480, 640), 640) == (480, 640)
    assert geometry.resized_shape((10, 1000), 64) == (1, 64)
    image = np.zeros((30, 20, 3), np.uint8)
    assert geometry.resize_long_side(image, 64, smooth=True).shape == (64, 43, 3)
    assert geometry.resize_long_side(image, 30, smooth=True) is image


def test_shrinking_averages_areas_only_when_smooth():
    image = np.zeros((64, 64, 3), np.uint8)
    image[::4] = 200
    assert (geometry.resize_long_side(image, 16, smooth=True) == 50).all()
    assert not (geometry.resize_long_side(image, 16, smooth=False) == 50).any()


def test_flips_move_boxes_with_objects():
    assert_boxes_fit(geometry.flip_left_right(SCENE), 0, 0)
    assert_boxes_fit(geometry.flip_up_down(SCENE), 0, 0)
    assert not (geometry.flip_left_right(SCENE).boxes == SCENE.boxes).all()


@given(box=boxes_of_images, outlined=st.booleans())
def test_flipping_twice_changes_nothing(box, outlined):
    left, top, width, height = box
    scene = drawn(60, 80, [(left, top, left + width, top + height)], outlined)
    for flip in (geometry.flip_left_right, geometry.flip_up_down):
        again = flip(flip(scene))
        assert (again.image == scene.image).all()
        assert (again.boxes == scene.boxes).all()
        assert all((a == b).all() for a, b in zip(again.polygons, scene.polygons, strict=True))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("outlined", [False, True])
def test_scaling_and_moving_keep_boxes_tight(seed, outlined):
    scene = drawn(60, 80, [(4, 5, 20, 25), (40, 10, 70, 30), (10, 35, 30, 55)], outlined)
    settings = Hyperparameters(scale=0.4, translate=0.1)
    assert_boxes_fit(geometry.random_perspective(scene, np.random.default_rng(seed), settings, (60, 80)))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("outlined", [False, True])
def test_turning_shearing_and_tilting_keep_objects_in_boxes(seed, outlined):
    scene = drawn(60, 80, [(4, 5, 20, 25), (40, 10, 70, 30), (10, 35, 30, 55)], outlined)
    settings = Hyperparameters(degrees=20, shear=8, perspective=0.001, scale=0.2, translate=0.05)
    moved = geometry.random_perspective(scene, np.random.default_rng(seed), settings, (60, 80))
    assert len(moved.boxes)
    assert_boxes_fit(moved, outside=1.5, slack=3.5)


def test_without_change_the_image_is_untouched():
    settings = Hyperparameters(scale=0, translate=0)
    same = geometry.random_perspective(SCENE, np.random.default_rng(0), settings, (60, 80))
    assert same.image is SCENE.image
    assert (same.boxes == SCENE.boxes).all()


def test_what_cannot_be_seen_is_dropped():
    """Two pixels, a tenth of the area (a hundredth of an outline's), and 1:100 are the limits."""
    before = np.array([[0, 0, 20, 20], [0, 0, 20, 20], [0, 0, 20, 20], [0, 0, 300, 3], [0, 0, 300, 3]], float)
    after = np.array([[0, 0, 2, 20], [0, 0, 3, 13], [0, 0, 3, 14], [0, 0, 300, 2.9], [0, 0, 300, 3.1]], float)
    keep = geometry._worth_keeping(before, after, np.full(5, 0.1))
    assert keep.tolist() == [False, False, True, False, True]
    assert geometry._worth_keeping(before, after, np.full(5, 0.01)).tolist() == [False, True, True, False, True]


def test_scale_and_translation_are_uniform():
    """Kolmogorov-Smirnov distance to the uniform distributions of ``docs/yolov5.md`` §1.9, of 4,000 draws."""
    rng, settings = np.random.default_rng(0), Hyperparameters(scale=0.5, translate=0.1, degrees=10, shear=3)
    draws = [geometry.perspective_matrix(rng, settings, (200, 100), (200, 100)) for _ in range(4000)]
    centres = np.array([(matrix @ (50, 100, 1))[:2] for matrix, _ in draws])
    for values, low, high in (
        (np.array([scale for _, scale in draws]), 0.5, 1.5),
        (centres[:, 0], 40, 60),
        (centres[:, 1], 80, 120),
    ):
        assert uniform_distance(values, low, high) < 0.03
    turns = np.degrees([np.arctan2(*matrix[:2, :2].diagonal()[::-1]) for matrix, _ in draws])
    assert np.isfinite(turns).all()


def uniform_distance(values: np.ndarray, low: float, high: float) -> float:
    """Largest gap between the distribution of the values and the uniform one."""
    ranks = (np.arange(len(values)) + 0.5) / len(values)
    return float(np.abs((np.sort(values) - low) / (high - low) - ranks).max())


def test_rotation_and_shear_have_the_ranges_of_yolov5():
    rng = np.random.default_rng(0)
    turn = Hyperparameters(degrees=10, scale=0, translate=0)
    angles = [geometry.perspective_matrix(rng, turn, (9, 9), (9, 9))[0] for _ in range(2000)]
    assert uniform_distance(np.degrees([np.arctan2(m[0, 1], m[0, 0]) for m in angles]), -10, 10) < 0.04
    slant = Hyperparameters(shear=5, scale=0, translate=0)
    shears = [geometry.perspective_matrix(rng, slant, (9, 9), (9, 9))[0] for _ in range(2000)]
    assert uniform_distance(np.degrees(np.arctan([m[0, 1] for m in shears])), -5, 5) < 0.04
    assert uniform_distance(np.degrees(np.arctan([m[1, 0] for m in shears])), -5, 5) < 0.04


@settings(max_examples=60)
@given(boxes=st.lists(boxes_of_images, min_size=4, max_size=4), seed=st.integers(0, 2**32 - 1))
def test_mosaic_loses_no_visible_object(boxes, seed):
    """One object in each of four images: on the canvas, every object that has a pixel has its box, exactly around it."""
    scenes = []
    for number, (left, top, width, height) in enumerate(boxes):
        scene = drawn(60, 80, [(left, top, left + width, top + height)])
        image = np.where((scene.image == scene.image[0, -1]).all(2)[..., None], geometry.GREY, scene.image)
        seen = (scene.image != geometry.GREY).any(2)
        image[seen] = np.array(OBJECTS[number]) * 255
        rows = scene.boxes.copy()
        rows[:, 0] = number
        scenes.append(Scene(image.astype(np.uint8), rows))
    canvas = mosaic.mosaic4(scenes, np.random.default_rng(seed), 80)
    assert canvas.image.shape == (160, 160, 3)
    for number, *corners in canvas.boxes:
        seen = extent(canvas.image, int(number))
        area = (corners[2] - corners[0]) * (corners[3] - corners[1])
        assert (seen is None) == (area == 0)
        if seen is not None:
            np.testing.assert_array_equal(corners, seen)


def test_mosaic_places_parts_around_the_point():
    parts = [
        Scene(np.full((80, 60, 3), colour, np.uint8), np.array([[colour, 0, 0, 60, 80]], np.float32))
        for colour in (10, 20, 30, 40)
    ]
    points = []
    for seed in range(400):
        scene = mosaic.mosaic4(parts, np.random.default_rng(seed), 80)
        first, second, third, fourth = scene.boxes[:, 1:]
        assert (first[2:] == fourth[:2]).all()
        assert second[0] == third[2] == first[2]
        assert second[3] == third[1] == first[3]
        for colour, left, top, right, bottom in scene.boxes.astype(int):
            assert (scene.image[top:bottom, left:right] == colour).all()
        points.append(first[2:])
    x, y = np.array(points).T
    assert uniform_distance(x, 39.5, 119.5) < 0.09
    assert uniform_distance(y, 39.5, 119.5) < 0.09
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.15


def test_copy_paste_mirrors_objects_where_there_is_room():
    scene = drawn(60, 80, [(4, 5, 20, 25), (30, 30, 60, 50)], outlined=True)
    pasted = mosaic.copy_paste(scene, np.random.default_rng(0), 1.0)
    # The first object's mirror image is free; the second's would hide half of the second.
    assert pasted.boxes.tolist() == [*scene.boxes.tolist(), [0, 60, 5, 76, 25]]
    assert len(pasted.polygons) == 3
    assert (pasted.image[5:25, 60:76] == (255, 0, 0)).all()
    assert (pasted.image[30:50, 30:60] == (0, 255, 0)).all()
    assert (scene.image[5:25, 60:76] == geometry.GREY).all()


def test_copy_paste_takes_the_share_it_is_told():
    scene = drawn(60, 200, [(4, 5, 20, 25), (30, 5, 40, 15), (45, 30, 60, 50), (70, 5, 90, 25)], outlined=True)
    counts = {
        share: {len(mosaic.copy_paste(scene, np.random.default_rng(seed), share).boxes) - 4 for seed in range(9)}
        for share in (0, 0.1, 0.5, 1.0)
    }
    assert counts == {0: {0}, 0.1: {0}, 0.5: {2}, 1.0: {4}}


def test_copy_paste_leaves_boxes_without_outline_alone():
    scene = drawn(60, 80, [(4, 5, 20, 25)])
    assert mosaic.copy_paste(scene, np.random.default_rng(0), 1.0) is scene


def test_fractions_and_corners_are_inverse():
    fractions = geometry.fraction_boxes(SCENE)
    again = geometry.make_scene(SCENE.image, fractions)
    np.testing.assert_allclose(again.boxes, SCENE.boxes, atol=2e-3)  # the edge is kept 0.001 pixels away
    assert fractions.dtype == np.float32
    assert (fractions[:, 1:3] + fractions[:, 3:] / 2 <= 1).all()


def test_mix_up_is_a_weighted_mean_with_all_boxes():
    rng, shares = np.random.default_rng(0), []
    first = Scene(np.full((8, 8, 3), (0, 0, 200), np.uint8), np.array([[0, 0, 0, 1, 1]], np.float32))
    second = Scene(np.full((8, 8, 3), (200, 0, 0), np.uint8), np.array([[1, 0, 0, 2, 2], [2, 0, 0, 2, 1]], np.float32))
    for _ in range(2000):
        mixed = mosaic.mix_up(first, second, rng)
        assert abs(int(mixed.image[0, 0, 0]) + int(mixed.image[0, 0, 2]) - 200) <= 2
        shares.append(mixed.image[0, 0, 2] / 200)
    assert mixed.boxes[:, 0].tolist() == [0, 1, 2]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.01)
    assert np.std(shares) == pytest.approx(np.sqrt(1 / (4 * 65)), abs=0.005)  # Beta(32, 32)
