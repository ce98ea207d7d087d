"""Which images a split has, and the labels that nobody looks at."""

import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, features

from yolojax.cli.main import main
from yolojax.data.check import check_data
from yolojax.data.images import probe_image, read_image
from yolojax.data.sample import ImageError
from yolojax.data.sources import open_split
from yolojax.errors import UserError

ROW = "0 0.5 0.5 0.2 0.2"


@pytest.mark.parametrize(
    "place", ["Labels/train/a.txt", "labels/a.txt", "labels/train/a.TXT", "images/train/a.txt", "images/train/a.xml"]
)
def test_labels_where_nobody_looks_are_an_error_with_both_places(yolo_folder, contents, place):
    config = yolo_folder({"a.jpg": None})
    stray = config.root / place
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_text(ROW)
    before = contents(config.root)
    with pytest.raises(UserError, match="not one box to learn from") as error:
        open_split(config, "train", needs_boxes=True)
    assert str(config.root / "labels" / "train" / "a.txt") in str(error.value)
    assert str(stray) in str(error.value)
    assert contents(config.root) == before


@pytest.mark.parametrize("strict", [[], ["--strict"]])
def test_training_on_nothing_ends_with_status_2(yolo_folder, tiny_model, tmp_path, contents, capsys, strict):
    config = yolo_folder({"a.jpg": None})
    (config.root / "labels").mkdir()
    (config.root / "labels" / "a.txt").write_text(ROW)
    file = config.root / "pets.yaml"
    file.write_text("train: images/train\nval: images/train\nnames: [cat, dog]\n")
    before = contents(config.root)
    runs = tmp_path / "runs"
    arguments = ["train", "--weights=", f"--cfg={tiny_model}", f"--data={file}", "--img=64", f"--project={runs}"]
    assert main([*arguments, *strict]) == 2
    error = capsys.readouterr().err
    assert "labels/a.txt" in error
    assert not runs.exists()
    assert contents(config.root) == before


def test_both_counts_are_said_where_a_part_has_no_labels(yolo_folder):
    config = yolo_folder({"a.jpg": [ROW], "b.jpg": None})
    (config.root / "labels" / "train" / "B1.txt").write_text(f"{ROW}\n{ROW}\n")
    (config.root / "labels" / "train" / "classes.txt").write_text("cat\ndog\n")
    report = open_split(config, "train").report
    assert "1 label files belong to no image, and 1 images have no label file" in report.lines()[0]
    assert [problem.where.rpartition("/")[2] for problem in report.problems] == ["B1.txt"]
    assert "with 2 rows" in report.problems[0].message
    assert not check_data(config).clean


def test_two_images_with_one_label_file_are_named(yolo_folder):
    config = yolo_folder({"a.jpg": [ROW], "a.png": [ROW]})
    (problem,) = open_split(config, "train").report.problems
    assert problem.kind == "shared label file"
    assert problem.where.endswith("a.png")


@pytest.mark.parametrize("suffix", [".gif", ".dng", ".jp2", ".svg"])
def test_kinds_that_are_not_read_are_named(yolo_folder, suffix):
    config = yolo_folder({"a.png": [ROW]})
    file = config.root / "images" / "train" / f"b{suffix}"
    shutil.copy(config.root / "images" / "train" / "a.png", config.root / "c.png")
    if suffix == ".gif":
        Image.open(config.root / "c.png").save(file)
    else:
        file.write_bytes(b"II*\0 not an image that is read")
    report = open_split(config, "train").report
    assert (report.found, report.images) == (2, 1)
    assert report.problems[0].where == str(file)
    assert report.problems[0].left_out == "image"


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read(tmp_path):
    Image.fromarray(np.full((24, 32, 3), (200, 40, 40), np.uint8)).save(tmp_path / "a.avif", quality=95)
    assert probe_image(tmp_path / "a.avif") == ((24, 32), [])
    image = read_image(tmp_path / "a.avif")
    assert image.shape == (24, 32, 3)
    assert abs(image.astype(int) - (200, 40, 40)).max() < 12


def test_heic_is_read_or_the_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"is a HEIC file; reading it needs pip install 'yolojax\[heif\]'"):
        probe_image(tmp_path / "a.heic")


def test_heic_is_read_where_the_plugin_is(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    image = Image.fromarray(np.full((24, 32, 3), (200, 40, 40), np.uint8))
    heif.from_pillow(image).save(tmp_path / "a.heic", quality=95)
    assert probe_image(tmp_path / "a.heic")[0] == (24, 32)
    assert read_image(tmp_path / "a.heic").shape == (24, 32, 3)


@pytest.mark.parametrize("line", ["images\\train\\a.jpg", "\ufeffimages/train/a.jpg", "data/images/train/a.jpg"])
def test_lists_as_tools_write_them(yolo_folder, line):
    config = yolo_folder({"a.jpg": [ROW]})
    (config.root / "train.txt").write_text(f"{line}\n", encoding="utf-8")
    assert open_split(replace(config, train=("train.txt",)), "train").report.boxes == 1


def test_a_list_of_nothing_shows_the_first_entry_and_every_place(yolo_folder, tmp_path, monkeypatch):
    config = yolo_folder({"a.jpg": [ROW]})
    (config.root / "lists").mkdir()
    (config.root / "lists" / "train.txt").write_text("gone.jpg\nalso.jpg\n")
    with pytest.raises(UserError, match=r"line 1: gone\.jpg does not exist; looked for at") as error:
        open_split(replace(config, train=("lists/train.txt",)), "train")
    assert f"{config.root}/lists/gone.jpg, gone.jpg, {config.root}/gone.jpg" in str(error.value)


def test_bytes_that_cannot_be_seen_are_no_part_of_a_row(yolo_folder):
    config = yolo_folder({"a.jpg": [ROW]})
    label = config.root / "labels" / "train" / "a.txt"
    label.write_text("\ufeff1\u00a00.5 0.5\u200b 0.2 0.2\n", encoding="utf-8")
    assert open_split(config, "train").samples[0].boxes[0, 0] == 1
    label.write_text("1 0.5 0.5 0.2 0.2\n", encoding="utf-16")
    assert open_split(config, "train").samples[0].boxes[0, 0] == 1


def test_check_and_training_say_the_same_of_a_class_without_name(yolo_folder):
    config = yolo_folder({"a.jpg": ["7 0.5 0.5 0.2 0.2"], "b.jpg": [ROW]})
    with pytest.raises(UserError, match=r"class 7, but pets\.yaml names 2 classes") as error:
        open_split(config, "train")
    assert f"  {error.value}" in check_data(config).lines()
