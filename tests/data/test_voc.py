"""Pascal VOC folders."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolojax.data.config import DataConfig, load_data_config
from yolojax.data.sources import open_split
from yolojax.errors import UserError

CONFIG = DataConfig(
    file=Path("cells.yaml"), root=Path(), format="voc", train=("train",), val=("val",), names=("red", "white")
)


def entry(name: str, corners: tuple[float, ...], difficult: int = 0) -> str:
    box = "".join(
        f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"


@pytest.fixture
def voc(tmp_path):
    def write(annotations: dict[str, str | None], size: str = "<width>100</width><height>50</height>") -> DataConfig:
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (tmp_path / folder).mkdir(parents=True)
        for name, objects in annotations.items():
            cv2.imwrite(str(tmp_path / "JPEGImages" / f"{name}.jpg"), np.zeros((50, 100, 3), np.uint8))
            if objects is not None:
                text = f"<annotation><size>{size}</size>{objects}</annotation>"
                (tmp_path / "Annotations" / f"{name}.xml").write_text(text)
        (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("\n".join([*annotations, ""]))
        return replace(CONFIG, root=tmp_path)

    return write


def test_boxes_become_fractions(voc):
    (sample,) = open_split(voc({"a": entry("white", (10, 5, 30, 45))}), "train").samples
    np.testing.assert_allclose(sample.boxes, [[1, 0.2, 0.5, 0.2, 0.8]], rtol=1e-6)
    assert sample.size == (50, 100)


def test_centre_offset_is_that_of_the_original(voc):
    config = replace(voc({"a": entry("white", (10, 5, 30, 45))}), options={"centre_offset": -1})
    np.testing.assert_allclose(open_split(config, "train").samples[0].boxes, [[1, 0.19, 0.48, 0.2, 0.8]], rtol=1e-6)


def test_difficult_boxes_are_left_out_unless_asked_for(voc):
    config = voc({"a": entry("red", (1, 1, 9, 9)) + entry("red", (1, 1, 20, 20), difficult=1)})
    assert len(open_split(config, "train").samples[0].boxes) == 1
    assert len(open_split(replace(config, options={"difficult": True}), "train").samples[0].boxes) == 2
    report = open_split(config, "train").report
    assert report.lines() == ["train: 1 images, 1 boxes, 0 backgrounds; 1 boxes marked difficult are left out"]
    assert report.problems[0].where.endswith("a.xml, object 2")


def test_without_one_box_the_error_says_where_annotations_are_looked_for(voc):
    config = voc({"a": entry("red", (1, 1, 9, 9))})
    file = config.root / "Annotations" / "a.xml"
    file.rename(file.with_suffix(".XML"))
    with pytest.raises(UserError, match=r"key 'train': not one box .* is looked for as Annotations/a\.xml"):
        open_split(config, "train", needs_boxes=True)
    file.with_suffix(".XML").rename(file)
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1"))
    with pytest.raises(UserError, match="hold none to use, and 1 that are left out"):
        open_split(config, "train", needs_boxes=True)


def test_separators_of_windows_are_taken(voc):
    config = voc({"a": entry("red", (1, 1, 9, 9))})
    (config.root.parent / config.root.name / "in").mkdir()
    for name in ("Annotations", "ImageSets", "JPEGImages"):
        (config.root / name).rename(config.root / "in" / name)
    assert open_split(replace(config, train=("in\\train",)), "train").report.boxes == 1


def test_corners_are_clipped_and_empty_boxes_named(voc):
    config = voc(
        {"a": entry("red", (-5, 10, 200, 60)) + entry("red", (30, 10, 30, 20)) + entry("red", (101, 1, 120, 9))}
    )
    split = open_split(config, "train")
    np.testing.assert_allclose(split.samples[0].boxes, [[0, 0.5, 0.6, 1, 0.8]], rtol=1e-6)
    assert [str(problem).rpartition("a.xml, ")[2] for problem in split.report.problems] == [
        "object 2: has no area inside the image; the box is left out",
        "object 3: has no area inside the image; the box is left out",
    ]


def test_repeated_boxes_are_left_out_and_named(voc):
    report = open_split(voc({"a": entry("red", (1, 1, 9, 9)) * 2 + entry("white", (1, 1, 9, 9))}), "train").report
    assert report.boxes == 2
    assert [str(problem).rpartition("a.xml, ")[2] for problem in report.problems] == [
        "object 2: repeats an earlier box; the box is left out"
    ]


def test_background_missing_image_and_unknown_class_are_reported(voc):
    config = voc({"a": None, "b": entry("green", (1, 1, 9, 9)) + entry("red", (1, 1, 9, 9))})
    (config.root / "ImageSets" / "Main" / "train.txt").write_text("a\nb  1\nc\n")
    report = open_split(config, "train").report
    assert (report.found, report.images, report.backgrounds, report.boxes) == (3, 2, 1, 1)
    assert sorted(problem.kind for problem in report.problems) == ["missing image", "unknown class"]


def test_no_known_class_at_all_is_an_error(voc):
    with pytest.raises(UserError, match=r"no object has one of these classes; .*class 'green' is not in cells\.yaml"):
        open_split(voc({"a": entry("green", (1, 1, 9, 9))}), "train")


@pytest.mark.parametrize("size", ["", "<width>0</width><height>0</height>", "<width>x</width><height>50</height>"])
def test_size_comes_from_the_image_where_the_file_has_none(voc, size):
    split = open_split(voc({"a": entry("red", (10, 5, 30, 45))}, size=size), "train")
    np.testing.assert_allclose(split.samples[0].boxes, [[0, 0.2, 0.5, 0.2, 0.8]], rtol=1e-6)
    assert split.report.problems[0].kind == "no size"


def test_boxes_of_another_size_are_scaled(voc):
    split = open_split(
        voc({"a": entry("red", (20, 10, 60, 90))}, size="<width>200</width><height>100</height>"), "train"
    )
    np.testing.assert_allclose(split.samples[0].boxes, [[0, 0.2, 0.5, 0.2, 0.8]], rtol=1e-6)
    assert split.report.problems[0].kind == "other size"


LAUGHS = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;&b;&b;&b;">]>'


@pytest.mark.parametrize(
    "text",
    ["", "<annotation>", "\0\1", LAUGHS + "<annotation>&c;</annotation>", "<a>" * 99_999],
    ids=["empty", "open", "binary", "laughs", "deep"],
)
def test_hostile_xml_is_reported(voc, text):
    config = voc({"a": entry("red", (1, 1, 9, 9)), "b": ""})
    (config.root / "Annotations" / "b.xml").write_text(text)
    split = open_split(config, "train")
    assert len(split.samples) == 1
    assert split.report.problems[0].where.endswith("b.xml")


@pytest.mark.parametrize("corner", ["nan", "inf", "ten", ""])
def test_corner_that_is_no_number_leaves_the_image_out(voc, corner):
    split = open_split(voc({"a": entry("red", (1, 1, 9, 9)), "b": entry("red", (1, 1, 9, corner))}), "train")
    assert [sample.name[-5:] for sample in split.samples] == ["a.jpg"]
    assert split.report.problems[0].where.endswith("b.xml, object 1")


def test_missing_set_and_unknown_option_are_errors(voc):
    config = voc({"a": ""})
    with pytest.raises(UserError, match=r"cells\.yaml: key 'val': .*val\.txt does not exist"):
        open_split(config, "val")
    with pytest.raises(UserError, match="key 'dificult' is unknown; did you mean 'difficult'"):
        open_split(replace(config, options={"dificult": True}), "train")


def test_bccd_is_read_whole(shared_data):
    config = load_data_config("bccd", shared_data / "bccd")
    splits = [open_split(config, split) for split in ("train", "val", "test")]
    assert [len(split.samples) for split in splits] == [205, 87, 72]
    assert splits[1].report.boxes == 1137
    assert sum(split.report.boxes for split in splits) == 4886
    empty = [problem for split in splits for problem in split.report.problems if problem.kind == "empty box"]
    assert len(empty) == 2
    assert sum(len(split.report.problems) for split in splits) == 2
