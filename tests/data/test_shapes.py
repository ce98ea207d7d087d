"""The embedded data set: the same everywhere, fair, and without anything in common with what the embedded weights were trained on."""

import errno
import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolojax.data.config import load_data_config
from yolojax.data.shapes import files as shapes_files
from yolojax.data.shapes import scene as shapes_scene
from yolojax.data.shapes.files import VERSION, ensure_shapes, prepare_shapes
from yolojax.data.shapes.scene import LARGEST, SMALLEST, VARIANTS, VISIBLE, ShapesSettings, draw_scene
from yolojax.errors import UserError

SIZE = 256
FEW = 60


@pytest.fixture(scope="module", params=list(VARIANTS))
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def scenes(variant):
    settings = ShapesSettings(variant=variant)
    return {split: [draw_scene(settings, split, index) for index in range(FEW)] for split in ("train", "val")}


def every(scenes):
    return scenes["train"] + scenes["val"]


# When this fails the images have changed: raise VERSION, and measure again what docs/embedded.md states.
PINNED = {
    (2, "shapes"): "6b6bda3e4ce73b03",
    (2, "shapes-pretraining"): "4d5fd064251d2283",
}


def test_images_are_the_ones_of_this_version(scenes, variant):
    digest = hashlib.sha256()
    for scene in every(scenes):
        digest.update(scene.image.tobytes() + scene.boxes.astype("<f4").tobytes())
    assert digest.hexdigest()[:16] == PINNED[VERSION, variant]


def test_an_image_depends_on_seed_split_and_index_alone(variant):
    settings = ShapesSettings(variant=variant, train=5)
    scene, again = draw_scene(settings, "train", 3), draw_scene(ShapesSettings(variant=variant, train=9), "train", 3)
    assert np.array_equal(scene.image, again.image)
    assert np.array_equal(scene.boxes, again.boxes)
    others = [
        draw_scene(settings, "val", 3),
        draw_scene(settings, "train", 4),
        draw_scene(ShapesSettings(variant=variant, seed=1), "train", 3),
    ]
    assert not any(np.array_equal(scene.image, other.image) for other in others)


def test_no_image_appears_twice(scenes):
    assert len({scene.image.tobytes() for scene in every(scenes)}) == 2 * FEW


def test_both_splits_show_every_class_about_equally_often(scenes, variant):
    for images in scenes.values():
        kinds = np.concatenate([scene.boxes[:, 0] for scene in images]).astype(int)
        counts = np.bincount(kinds, minlength=len(VARIANTS[variant].classes))
        assert len(counts) == len(VARIANTS[variant].classes)
        assert counts.min() > counts.mean() * 0.4


def test_every_image_has_objects_of_eight_to_two_hundred_pixels(scenes):
    sides = np.concatenate([scene.boxes[:, 3:] for scene in every(scenes)]) * SIZE
    assert all(len(scene.boxes) for scene in every(scenes))
    assert sides.min() >= SMALLEST
    assert sides.max() <= LARGEST
    longer = sides.max(1)
    assert longer.min() < 13
    assert longer.max() > 150


def test_boxes_lie_inside_the_image(scenes):
    boxes = np.concatenate([scene.boxes for scene in every(scenes)])
    assert (boxes[:, 1:3] - boxes[:, 3:] / 2 >= 0).all()
    assert (boxes[:, 1:3] + boxes[:, 3:] / 2 <= 1).all()


def corners(box):
    """Left, top, right, bottom in whole pixels."""
    x, y, width, height = box[1:] * SIZE
    return [round(float(value)) for value in (x - width / 2, y - height / 2, x + width / 2, y + height / 2)]


def test_boxes_fit_the_visible_pixels_of_their_objects(scenes):
    for scene in every(scenes):
        for row, box in enumerate(scene.boxes):
            rows, columns = np.nonzero(scene.owner == row)
            assert corners(box) == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_nothing_is_painted_outside_the_boxes(scenes):
    for scene in every(scenes):
        outside = np.ones((SIZE, SIZE), bool)
        for box in scene.boxes:
            left, top, right, bottom = corners(box)
            outside[top:bottom, left:right] = False
        assert np.array_equal(scene.image[outside], scene.background[outside])


def test_objects_stand_out_from_the_background(scenes):
    for scene in every(scenes):
        difference = abs(scene.image.astype(int) - scene.background).sum(2)
        for row in range(len(scene.boxes)):
            assert np.median(difference[scene.owner == row]) > 60


def test_most_of_every_object_is_visible_and_some_are_covered(monkeypatch):
    settings, covered = ShapesSettings(), []
    real = shapes_scene._fair

    def spy(owner, areas):
        accepted = real(owner, areas)
        if accepted:
            covered.append(min(np.count_nonzero(owner == row) / area for row, area in enumerate(areas)))
        return accepted

    monkeypatch.setattr(shapes_scene, "_fair", spy)
    for index in range(20):
        draw_scene(settings, "train", index)
    assert min(covered) >= VISIBLE / 100 >= 0.5
    assert np.mean(np.array(covered) < 0.95) > 0.2


def test_variants_share_no_class_no_fill_and_no_background():
    target, pretraining = VARIANTS["shapes"], VARIANTS["shapes-pretraining"]
    assert set(target.classes).isdisjoint(pretraining.classes)
    textures = [{*variant.fills, *variant.backgrounds} for variant in (target, pretraining)]
    assert textures[0].isdisjoint(textures[1])
    assert len(target.classes) >= 6


@pytest.mark.parametrize("name", list(VARIANTS))
def test_shipped_yaml_names_the_classes(name):
    config = load_data_config(name)
    assert config.format == "shapes"
    assert config.names == VARIANTS[name].classes
    assert config.options["variant"] == name
    assert (config.train, config.val) == (("images/train",), ("images/val",))
    assert set(config.defaults) == {"img", "epochs", "batch", "hyp", "optimizer"}


def test_embedded_set_has_300_and_100_images():
    options = load_data_config("shapes").options
    assert (options["train"], options["val"]) == (300, 100)
    assert ShapesSettings(**options) == ShapesSettings()


def test_folder_is_in_yolo_layout(tmp_path):
    settings = ShapesSettings(train=4, val=2, size=96)
    folder = ensure_shapes(settings, tmp_path)
    for split, count in (("train", 4), ("val", 2)):
        images = sorted((folder / "images" / split).iterdir())
        labels = sorted((folder / "labels" / split).iterdir())
        assert [file.stem for file in images] == [file.stem for file in labels]
        assert len(images) == count
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            scene = draw_scene(settings, split, index)
            assert np.array_equal(cv2.imread(str(image))[..., ::-1], scene.image)
            np.testing.assert_array_equal(np.loadtxt(label, np.float32, ndmin=2), scene.boxes)
    assert ensure_shapes(settings, tmp_path) == folder
    assert ensure_shapes(ShapesSettings(train=4, val=2, size=96, seed=1), tmp_path) != folder


@pytest.mark.parametrize("size", [64, 320])
def test_other_sizes_can_be_drawn(size):
    scene = draw_scene(ShapesSettings(size=size), "train", 0)
    assert scene.image.shape == (size, size, 3)
    assert len(scene.boxes)


def test_cache_folder_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLOJAX_CACHE", str(tmp_path / "new"))
    folder = ensure_shapes(ShapesSettings(train=1, val=1, size=64))
    assert folder.parent == tmp_path / "new"


def test_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(UserError, match=r"No space left on device.*YOLOJAX_CACHE"):
        ensure_shapes(ShapesSettings(train=1, val=1, size=64), tmp_path)
    assert not list(tmp_path.iterdir())


def test_second_process_that_draws_at_the_same_time_is_harmless(tmp_path, monkeypatch):
    settings, real = ShapesSettings(train=2, val=1, size=64), shapes_files._write_split
    other: list[Path] = []

    def interrupted(root, settings, split, count):
        real(root, settings, split, count)
        if not other:
            other.append(tmp_path)
            other.append(ensure_shapes(settings, tmp_path))

    monkeypatch.setattr(shapes_files, "_write_split", interrupted)
    folder = ensure_shapes(settings, tmp_path)
    assert folder == other[1]
    assert list(tmp_path.iterdir()) == [folder]
    assert len(list((folder / "images" / "train").iterdir())) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "shape"}, "variant 'shape' is unknown; there are shapes, shapes-pretraining"),
        ({"train": 0}, "at least one image"),
        ({"size": 20}, "size must be 64 to 4096 pixels, not 20"),
        ({"seed": -1}, "seed must be 0"),
        ({"colour": 3}, "options: key 'colour' is unknown"),
        ({"val": "many"}, "options: key 'val': expected int"),
    ],
)
def test_wrong_options_are_told(tmp_path, options, message):
    lines = "".join(f"  {key}: {value}\n" for key, value in options.items())
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"format: shapes\ntrain: images/train\nval: images/val\nnames: [a]\noptions:\n{lines}", encoding="utf-8"
    )
    with pytest.raises(UserError, match=message):
        prepare_shapes(load_data_config(file), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_wrong_class_names_are_told(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("format: shapes\ntrain: images/train\nval: images/val\nnames: [a]\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"mine.yaml: key 'names': 'shapes' has circle, square"):
        prepare_shapes(load_data_config(file), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
