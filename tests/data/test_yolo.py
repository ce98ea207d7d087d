"""YOLO folders and lists: what is read, and what is said about what is not."""

import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from yolojax.data.config import load_data_config
from yolojax.data.listing import label_path
from yolojax.data.sources import open_split
from yolojax.data.yolo import read_labels
from yolojax.errors import UserError
from yolojax.text import read_text, visible


def test_boxes_outlines_and_backgrounds(yolo_folder):
    config = yolo_folder(
        {
            "a.jpg": ["1 0.5 0.5 0.2 0.4", "0 0.1 0.1 0.3 0.1 0.3 0.5"],
            "b.png": None,
            "sub/c.jpg": [],
            "sub/D.JPG": ["0 1 1 0.1 0.1"],
        }
    )
    split = open_split(config, "train")
    names = [os.path.relpath(sample.name, config.root / "images" / "train") for sample in split.samples]
    assert names == ["a.jpg", "b.png", "sub/D.JPG", "sub/c.jpg"]
    assert [len(sample.boxes) for sample in split.samples] == [2, 0, 1, 0]
    np.testing.assert_allclose(split.samples[0].boxes, [[1, 0.5, 0.5, 0.2, 0.4], [0, 0.2, 0.3, 0.2, 0.4]], rtol=1e-6)
    box, outline = split.samples[0].polygons
    assert box is None
    np.testing.assert_allclose(outline, [[0.1, 0.1], [0.3, 0.1], [0.3, 0.5]], rtol=1e-6)
    assert split.samples[0].size == (48, 64)
    assert split.samples[0].load().shape == (48, 64, 3)
    report = split.report
    assert (report.found, report.images, report.backgrounds, report.boxes, report.problems) == (4, 4, 2, 3, ())


def test_five_wrong_kinds_of_row_are_named_and_the_image_left_out(yolo_folder, caplog):
    rows = [
        "0 0.5 0.5 0.2 0.2",
        "0 0.5 0.5 0.2",
        "0 0.5 x 0.2 0.2",
        "0 1.5 0.5 0.2 0.2",
        "0.5 0.5 0.5 0.1 0.1",
        "-1 0.5 0.5 1 1",
    ]
    config = yolo_folder({"a.jpg": rows, "b.jpg": rows[:1], "c.jpg": ["0 nan 0.5 0.1 0.1"]})
    with caplog.at_level("INFO"):
        split = open_split(config, "train")
    assert [sample.name[-5:] for sample in split.samples] == ["b.jpg"]
    label = config.root / "labels" / "train" / "a.txt"
    expected = {2: "4 numbers", 3: "'x'", 4: "1.5 is outside 0 to 1", 5: "class 0.5", 6: "class -1"}
    for line, words in expected.items():
        named = [message for message in caplog.messages if f"{label}, line {line}:" in message]
        assert len(named) == 1
        assert words in named[0]
    assert any("c.txt, line 1: coordinate nan is outside" in message for message in caplog.messages)
    assert "1 images, 1 boxes, 0 backgrounds; 2 of 3 images left out" in caplog.messages[0]


def test_class_that_has_no_name_is_an_error(yolo_folder):
    config = yolo_folder({"a.jpg": ["0 0.5 0.5 0.1 0.1", "", "2 0.5 0.5 0.1 0.1"]})
    with pytest.raises(UserError, match=r"a\.txt, line 3: class 2, but pets\.yaml names 2 classes \(0 to 1\)"):
        open_split(config, "train")


def test_duplicates_and_empty_boxes_are_left_out_alone(yolo_folder):
    config = yolo_folder({"a.jpg": ["0 0.5 0.5 0.1 0.1", "0 0.5 0.5 0.1 0.1", "1 0.5 0.5 0 0.1"]})
    split = open_split(config, "train")
    assert len(split.samples[0].boxes) == 1
    assert [(problem.kind, problem.left_out) for problem in split.report.problems] == [
        ("duplicate row", "box"),
        ("empty box", "box"),
    ]


def test_unreadable_image_is_named_once(yolo_folder):
    config = yolo_folder({"a.jpg": [], "b.jpg": []})
    (config.root / "images" / "train" / "b.jpg").write_bytes(b"not an image")
    report = open_split(config, "train").report
    assert [problem.where.endswith("b.jpg") for problem in report.problems] == [True]
    assert (report.found, report.images) == (2, 1)


def test_nothing_usable_is_an_error(yolo_folder):
    config = yolo_folder({"a.jpg": ["0 2 0.5 0.1 0.1"]})
    with pytest.raises(UserError, match=r"no usable image; .*a\.txt, line 1"):
        open_split(config, "train")


def test_missing_and_empty_folders_are_errors_with_a_remedy(yolo_folder, tmp_path):
    config = yolo_folder({"a.jpg": []})
    with pytest.raises(UserError, match=r"pets\.yaml: key 'train': .*nowhere does not exist; set 'path'"):
        open_split(replace(config, train=("nowhere",)), "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no image"):
        open_split(replace(config, train=("empty",)), "train")
    with pytest.raises(UserError, match="key 'test' is missing"):
        open_split(config, "test")


def test_lists_and_lists_of_lists(yolo_folder):
    config = yolo_folder({"a.jpg": [], "b.jpg": [], "c.jpg": []})
    (config.root / "first.txt").write_text("./images/train/a.jpg\n\nimages/train/gone.jpg\n")
    (config.root / "second.txt").write_text(f"{config.root}/images/train/c.jpg\n")
    split = open_split(replace(config, train=("first.txt", "second.txt")), "train")
    assert [sample.name[-5:] for sample in split.samples] == ["a.jpg", "c.jpg"]
    assert str(split.report.problems[0]).endswith(
        "first.txt, line 3: images/train/gone.jpg does not exist; looked for at "
        f"{config.root}/images/train/gone.jpg, images/train/gone.jpg; the image is left out"
    )
    assert split.report.found == 3


def test_linked_folders_are_followed_once(yolo_folder):
    config = yolo_folder({"sub/a.jpg": []})
    (config.root / "images" / "train" / "sub" / "loop").symlink_to(config.root / "images" / "train")
    assert len(open_split(config, "train").samples) == 1


def test_nothing_is_written_into_the_data_set(yolo_folder):
    config = yolo_folder({"a.jpg": ["0 2 0 0 0"], "b.jpg": []})
    before = {path: path.stat().st_mtime_ns for path in config.root.rglob("*")}
    open_split(config, "train")
    assert {path: path.stat().st_mtime_ns for path in config.root.rglob("*")} == before


def test_single_class(yolo_folder):
    config = yolo_folder({"a.jpg": ["1 0.5 0.5 0.1 0.1"]})
    assert open_split(config, "train", single_class=True).samples[0].boxes[0, 0] == 0


def test_only_the_last_images_folder_becomes_labels(tmp_path):
    assert (
        label_path(tmp_path / "images" / "x" / "images" / "a.b.jpg") == tmp_path / "images" / "x" / "labels" / "a.b.txt"
    )
    assert label_path(tmp_path / "photos" / "a.jpg") == tmp_path / "photos" / "a.txt"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(content=b"\x1c")
@example(content=b"\xef\xbb\xbf\x0b")
@example(content=b"\x1c0")
@given(content=st.one_of(st.binary(max_size=200), st.from_regex(rb"([0-9.eE+-]{1,9}[ \n]){0,24}", fullmatch=True)))
def test_any_label_file_gives_boxes_or_problems(tmp_path, yolo_folder, content):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    boxes, polygons, problems = read_labels(path, yolo_folder({}))
    assert boxes.shape[1] == 5
    assert ((boxes[:, 1:] >= 0) & (boxes[:, 1:] <= 1.001)).all()
    assert len(polygons) in (0, len(boxes))
    try:
        shown = visible(read_text(path)).strip()  # a file of separators alone is as good as an empty one
    except UnicodeDecodeError:
        shown = "bytes that are no text"
    assert problems or len(boxes) or not shown


def test_coco128_is_read_whole(shared_data):
    split = open_split(load_data_config("coco128", shared_data / "coco128"), "train")
    assert (split.report.images, split.report.boxes, split.report.backgrounds) == (128, 929, 2)
