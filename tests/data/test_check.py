"""The check of a data set finds what is planted in it."""

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

from yolojax.data import check as check_module
from yolojax.data.check import check_data, require_clean
from yolojax.data.config import load_data_config
from yolojax.data.sources import open_split
from yolojax.errors import UserError


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("YOLOJAX_CACHE", str(folder))
    return folder


def test_what_is_planted_is_found(yolo_folder):
    good = ["0 0.5 0.5 0.5 0.5"]
    config = yolo_folder(
        {
            "a.png": good,
            "b.png": ["0 0.5 0.5 0.01 0.5", "0 0.2 0.2 0.1 0.1"],
            "c.png": ["9 0.5 0.5 0.1 0.1"],
            "d.png": ["0 0.5"],
            "e.png": None,
            "f.jpg": good,
        },
        names=("cat", "dog"),
    )
    images, labels = config.root / "images", config.root / "labels"
    for place, suffix in ((images, "png"), (labels, "txt")):
        (place / "val").mkdir()
        shutil.copy(place / "train" / f"a.{suffix}", place / "val" / f"copy.{suffix}")
        shutil.copy(place / "train" / f"a.{suffix}", place / "train" / f"twin.{suffix}")
    # Broken behind its header: the size can be read, the pixels cannot.
    whole = (images / "train" / "e.png").read_bytes()
    (images / "train" / "g.png").write_bytes(whole[:50] + bytes(200) + whole[250:])
    calls = []
    check = check_data(
        replace(config, val=("images/val",), test=("images/val",)), progress=lambda *call: calls.append(call)
    )
    train = check.splits["train"]
    assert set(check.splits) == {"train", "val"}
    assert train.classes(2)[1] == 0
    assert train.tiny == 1
    assert [sorted(name[-8:] for name in group) for group in train.duplicates] == [["in/a.png", "twin.png"]]
    assert [(a[-5:], b[-8:]) for a, b in check.leaks] == [("a.png", "copy.png")]
    kinds = {problem.where.rpartition("/")[2].partition(",")[0]: problem.kind for problem in train.report.problems}
    assert kinds.items() >= {("c.txt", "no such class"), ("d.txt", "bad label"), ("g.png", "unreadable image")}
    assert train.report.found == 8
    assert not check.clean
    text = "\n".join(check.lines())
    for words in (
        "no box of dog",
        "b.png: boxes with a side under 3 pixels: 1",
        "the same image",
        "in two splits",
        "g.png: cannot be decoded; the image is left out",
    ):
        assert words in text
    figures = json.loads(json.dumps(check.figures()))
    assert figures["splits"]["train"]["classes"] == {"cat": train.classes(2)[0], "dog": 0}
    assert figures["splits"]["val"]["boxes_per_image"] == [1.0] * 7
    assert calls[-1] == ("val", 1, 1)


def test_nothing_to_say_about_a_clean_data_set(yolo_folder):
    config = yolo_folder({"a.png": ["0 0.5 0.5 0.5 0.5"], "b.png": ["1 0.5 0.5 0.5 0.5"]})
    check = check_data(config)
    assert check.clean
    assert check.lines() == ["train: 2 images, 2 boxes, 0 backgrounds"]


def count_decoded(monkeypatch) -> list[str]:
    decoded = []
    original = check_module.Sample.load

    def load(sample):
        decoded.append(sample.name.rpartition("/")[2])
        return original(sample)

    monkeypatch.setattr(check_module.Sample, "load", load)
    return decoded


def test_a_second_check_decodes_only_what_is_new(yolo_folder, monkeypatch, own_cache_folder):
    config = yolo_folder({"a.png": ["0 0.5 0.5 0.5 0.5"], "b.png": [], "c.png": []})
    images = config.root / "images" / "train"
    before = sorted(path for path in config.root.rglob("*"))
    decoded = count_decoded(monkeypatch)
    first = check_data(config)
    assert sorted(decoded) == ["a.png", "b.png", "c.png"]
    decoded.clear()
    (images / "a.png").rename(images / "moved.png")
    cv2.imwrite(str(images / "b.png"), np.zeros((48, 64, 3), np.uint8))
    shutil.copy(images / "c.png", images / "twin.png")
    second = check_data(config)
    assert decoded == ["b.png"]
    assert [sorted(name[-8:] for name in group) for group in second.splits["train"].duplicates] == [
        ["in/c.png", "twin.png"]
    ]
    assert first.splits["train"].duplicates == ()
    (images / "moved.png").rename(images / "a.png")
    (images / "twin.png").unlink()
    assert sorted(path for path in config.root.rglob("*")) == before
    (memory,) = (own_cache_folder / "checks").iterdir()
    assert json.loads(memory.read_text()).keys() == {"decoder", "images"}


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04K\x01.", b"[]", b"[" * 99_999, b'{"decoder": "0", "images": {}}', b'{"images": 3}']
)
def test_a_damaged_memory_is_made_anew(yolo_folder, monkeypatch, own_cache_folder, content):
    config = yolo_folder({"a.png": []})
    check_data(config)
    (memory,) = (own_cache_folder / "checks").iterdir()
    good = memory.read_bytes()
    memory.write_bytes(content)
    decoded = count_decoded(monkeypatch)
    check_data(config)
    assert decoded == ["a.png"]
    assert memory.read_bytes() == good


def test_strict_refuses_what_the_default_leaves_out(yolo_folder):
    config = yolo_folder({"a.png": ["0 2 0.5 0.1 0.1"], "b.png": []})
    assert len(open_split(config, "train").samples) == 1
    with pytest.raises(
        UserError, match=r"1 problems; the first: .*a\.txt, line 1: .*'yolojax data check pets\.yaml' lists"
    ):
        require_clean(config, ("train", "val"))
    (config.root / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.1 0.1")
    require_clean(config, ("train", "val"))


def test_strict_refuses_images_in_two_splits(yolo_folder):
    config = yolo_folder({"a.png": [], "b.png": []})
    shutil.copytree(config.root / "images" / "train", config.root / "images" / "val")
    with pytest.raises(
        UserError, match=r"2 problems; the first: .*train/a\.png and .*val/a\.png are the same image, in two splits"
    ):
        require_clean(replace(config, val=("images/val",)), ("train", "val"))


@pytest.mark.parametrize(
    ("name", "expected"), [("coco128", [(128, 929)]), ("bccd", [(205, None), (87, 1137), (72, None)])]
)
def test_real_photos(shared_data, name, expected):
    check = check_data(load_data_config(name, shared_data / name))
    counts = [(split.report.images, split.report.boxes) for split in check.splits.values()]
    assert [images for images, _ in counts] == [images for images, _ in expected]
    assert all(boxes in (None, count) for (_, count), (_, boxes) in zip(counts, expected, strict=True))
    assert check.leaks == ()


def test_a_test_split_that_an_export_names_and_lacks_does_not_stop_the_check(yolo_folder, caplog):
    config = replace(yolo_folder({"a.png": ["0 0.5 0.5 0.5 0.5"]}), test=("../test/images",))
    check = check_data(config)
    assert check.clean
    assert set(check.splits) == {"train"}
    assert "does not exist" in caplog.text
    assert "the others are checked without it" in caplog.text
    with pytest.raises(UserError, match="does not exist"):
        check_data(config, ("test",))


def test_the_check_counts_labels_without_images_and_images_without_labels(yolo_folder):
    config = yolo_folder({"a.png": ["0 0.5 0.5 0.5 0.5"], "b.png": None, "c.png": None})
    (config.root / "Labels").mkdir()
    (config.root / "Labels" / "b.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    line = check_data(config).lines()[0]
    assert "1 label files belong to no image, and 2 images have no label file" in line
