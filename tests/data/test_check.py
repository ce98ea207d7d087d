"""The check of a data set finds what is planted in it."""

import json
import shutil
from dataclasses import replace

from yolojax.data.check import check_data


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
    check = check_data(replace(config, val=("images/val",), test=("images/val",)), lambda *call: calls.append(call))
    train = check.splits["train"]
    assert set(check.splits) == {"train", "val"}
    assert train.classes[1] == 0
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
        "1 boxes have a side under 3 pixels",
        "the same picture",
        "in two splits",
        "g.png: cannot be decoded; the image is left out",
    ):
        assert words in text
    figures = json.loads(json.dumps(check.figures()))
    assert figures["splits"]["train"]["classes"] == {"cat": train.classes[0], "dog": 0}
    assert figures["splits"]["val"]["boxes_per_image"] == [1.0] * 7
    assert calls[-1] == ("val", 1, 1)


def test_nothing_to_say_about_a_clean_data_set(yolo_folder):
    config = yolo_folder({"a.png": ["0 0.5 0.5 0.5 0.5"], "b.png": ["1 0.5 0.5 0.5 0.5"]})
    check = check_data(config)
    assert check.clean
    assert check.lines() == ["train: 2 images, 2 boxes, 0 backgrounds"]
