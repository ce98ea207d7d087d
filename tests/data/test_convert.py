"""Conversion between layouts: what one source gives, the next one gives again."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolojax.data.config import DataConfig, load_data_config
from yolojax.data.convert import convert_data, inner_corners
from yolojax.data.images import read_image
from yolojax.data.sources import load_data, open_split
from yolojax.errors import UserError


def boxes_of(config: DataConfig, split: str = "train") -> dict[str, np.ndarray]:
    return {Path(sample.name).name: sample.boxes for sample in open_split(config, split).samples}


def assert_same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert sorted(first) == sorted(second)
    for name, boxes in first.items():
        np.testing.assert_array_equal(boxes, second[name], err_msg=name)


def random_rows(seed: int) -> list[str]:
    """Boxes of any size, every third one touching the right or the upper border."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(9):
        low, high = np.sort(rng.random((2, 2)), 0)
        if number % 3 == 0:
            low[1], high[0] = 0, 1
        values = [*((low + high) / 2), *(high - low)]
        rows.append(f"{number % 2} " + " ".join(f"{value:.17g}" for value in values))
    return rows


@pytest.fixture
def pets(yolo_folder) -> DataConfig:
    outline = "1 0.2 0.3 0.61 0.35 0.5 0.8 0.25 0.7"
    labels = {"a.png": random_rows(0), "b.jpg": [*random_rows(1), outline], "c.png": None, "d.png": []}
    return yolo_folder(labels, size=(47, 61))


def test_a_round_trip_keeps_every_bit_of_the_boxes(pets, tmp_path):
    before = boxes_of(pets)
    config = pets
    # Every layout comes after every other one.
    for number, layout in enumerate(("voc", "coco", "yolo", "coco", "voc", "yolo")):
        result = convert_data(config, tmp_path / f"{number}", layout)
        assert not +result.changes
        config = load_data_config(result.file)
        assert config.format == layout
        assert config.names == pets.names
        assert_same(before, boxes_of(config))
        assert_same(before, boxes_of(config, "val"))
    for name in before:
        copy = tmp_path / "4" / "JPEGImages" / name
        assert copy.read_bytes() == (pets.root / "images" / "train" / name).read_bytes()


def test_outlines_survive_between_yolo_and_coco(pets, tmp_path):
    config = load_data_config(convert_data(pets, tmp_path / "coco", "coco").file)
    config = load_data_config(convert_data(config, tmp_path / "yolo", "yolo").file)
    (first, second) = (
        next(s for s in open_split(c, "train").samples if Path(s.name).stem == "b") for c in (pets, config)
    )
    assert [polygon is None for polygon in second.polygons] == [True] * 9 + [False]
    np.testing.assert_allclose(second.polygons[-1], first.polygons[-1], atol=1e-7)


def test_an_outline_of_another_extent_gives_way_to_its_box(pets, tmp_path):
    file = convert_data(pets, tmp_path / "coco", "coco").file
    annotations = tmp_path / "coco" / "annotations" / "instances_train.json"
    content = json.loads(annotations.read_text())
    outlined = next(row for row in content["annotations"] if row["segmentation"])
    outlined["segmentation"][0][0] -= 2  # pixels to the left of its box
    annotations.write_text(json.dumps(content))
    result = convert_data(load_data_config(file), tmp_path / "yolo", "yolo")
    assert sum(result.changes.values()) == 1
    assert_same(boxes_of(pets), boxes_of(load_data_config(result.file)))


def test_whole_pixels_stay_whole():
    corners = np.array([[0, 3, 50, 333], [120, 7, 499, 334], [1, 1, 500, 375]], np.float64)
    limit = np.array([500, 375] * 2)
    low, high = (corners / limit)[:, :2], (corners / limit)[:, 2:]
    boxes = np.concatenate([np.zeros((3, 1)), (low + high) / 2, high - low], 1).astype(np.float32)
    clipped, cut = inner_corners(boxes, (375, 500))
    np.testing.assert_array_equal(clipped, corners)
    assert not cut.any()


def test_what_reaches_over_the_border_is_cut_and_counted(yolo_folder, tmp_path):
    config = yolo_folder({"a.png": ["0 0.1 0.5 0.4 0.2", "0 0.5 0.5 0.2 0.2"]})
    result = convert_data(config, tmp_path / "voc", "voc")
    assert sum(result.changes.values()) == 1
    boxes = boxes_of(load_data_config(result.file))["a.png"]
    np.testing.assert_allclose(boxes[0], [0, 0.15, 0.5, 0.3, 0.2], rtol=1e-6)
    assert_same(boxes_of(config), boxes_of(load_data_config(convert_data(config, tmp_path / "yolo", "yolo").file)))


def test_names_never_meet(yolo_folder, tmp_path):
    rows = {name: [f"0 0.5 0.5 0.{number} 0.5"] for number, name in enumerate(("x/a b.png", "y/a_b.jpg", "A_B.png"), 2)}
    config = yolo_folder(rows)
    for layout in ("yolo", "voc", "coco"):
        converted = boxes_of(load_data_config(convert_data(config, tmp_path / layout, layout).file))
        assert sorted(float(boxes[0, 3]) for boxes in converted.values()) == pytest.approx([0.2, 0.3, 0.4])
        assert len({Path(name).stem.lower() for name in converted}) == 3


def test_images_without_a_file_become_png(tmp_path):
    config = replace(load_data("shapes"), options={"train": 3, "val": 2, "size": 64})
    result = convert_data(config, tmp_path / "out", "coco", ["val"])
    assert result.images == {"val": 2}
    assert load_data_config(result.file).train == load_data_config(result.file).val
    assert_same(boxes_of(config, "val"), boxes_of(load_data_config(result.file), "val"))


def test_samples_in_memory(tmp_path, monkeypatch, samples):
    from yolojax.data import convert
    from yolojax.data.sample import Split, make_split

    def opened(_config: DataConfig, split: str) -> Split:
        return make_split(split, len(samples), samples, [])

    monkeypatch.setattr(convert, "open_split", opened)
    names = tuple(f"class {number}" for number in range(len(samples)))
    config = DataConfig(file=Path("memory.yaml"), root=tmp_path, train=("x",), val=("x",), names=names)
    monkeypatch.chdir(tmp_path)
    convert_data(config, tmp_path / "out", "yolo")
    images = sorted((tmp_path / "out" / "images" / "train").iterdir())
    assert [image.suffix for image in images] == [".png"] * len(samples)
    np.testing.assert_array_equal(read_image(images[3]), samples[3].load())


def test_nothing_is_overwritten_and_nothing_is_left_half_done(pets, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(UserError, match="left as it is"):
        convert_data(pets, tmp_path / "full", "voc")
    before = sorted(tmp_path.iterdir())

    def fail(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", fail)
    with pytest.raises(UserError, match="No space"):
        convert_data(pets, tmp_path / "out", "voc")
    assert sorted(tmp_path.iterdir()) == before


def test_an_empty_folder_will_do(pets, tmp_path):
    (tmp_path / "out").mkdir()
    assert convert_data(pets, tmp_path / "out", "yolo").file.is_file()


@pytest.mark.parametrize("names", [("cat", "cat"), ("cat ", "dog"), ("cat", "d\x01g")])
def test_class_names_that_a_layout_cannot_hold(pets, tmp_path, names):
    with pytest.raises(UserError, match="names"):
        convert_data(replace(pets, names=names), tmp_path / "out", "voc")


def test_boxes_that_are_the_same_but_for_rounding_are_written_once(tmp_path):
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / "in" / folder).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "in" / "JPEGImages" / "a.png"), np.zeros((50, 100, 3), np.uint8))
    box = "<object><name>x</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>"
    nearly = box.replace("<xmin>1<", "<xmin>1.00000001<")
    size = "<size><width>100</width><height>50</height></size>"
    (tmp_path / "in" / "Annotations" / "a.xml").write_text(f"<annotation>{size}{box}{nearly}</annotation>")
    (tmp_path / "in" / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    config = DataConfig(
        file=Path("x.yaml"), root=tmp_path / "in", format="voc", train=("train",), val=("train",), names=("x",)
    )
    result = convert_data(config, tmp_path / "out", "voc")
    assert result.boxes == {"train": 1}
    assert sum((+result.changes).values()) == 1


def test_a_data_set_of_the_working_folder_finds_its_labels(pets, tmp_path, monkeypatch):
    file = convert_data(pets, tmp_path / "out", "yolo").file
    monkeypatch.chdir(file.parent)
    assert_same(boxes_of(pets), boxes_of(load_data_config("data.yaml")))


def test_real_photos_keep_their_boxes(shared_data, tmp_path):
    """Blood cells have whole pixels; photos of COCO have labels of six digits, some of which reach over the border by their rounding."""
    for name, layouts in (("bccd", ("yolo", "coco", "voc")), ("coco128", ("coco", "yolo"))):
        config = load_data_config(name, shared_data / name)
        before, changes = boxes_of(config), Counter()
        for layout in layouts:
            result = convert_data(config, tmp_path / name / layout, layout, ["train"])
            changes += +result.changes
            config = load_data_config(result.file)
        after = boxes_of(config)
        different = [(a != b).any(1).sum() for a, b in zip(before.values(), after.values(), strict=True)]
        assert sum(different) <= sum(changes.values())
        for key in before:
            np.testing.assert_allclose(after[key], before[key], rtol=0, atol=2e-6)
