"""What people bring, from the command line: the sentence, the exit status, and that no file of theirs is changed."""

import importlib.util
import shlex
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolojax.cli.main import main

ROW = "0 0.5 0.5 0.25 0.25\n"


def write_data(**text: str) -> None:
    """A data set in the working folder: two images to train on and one to validate with; ``text`` replaces keys of ``data.yaml``."""
    for number, name in enumerate(("train/a", "train/b", "val/c")):
        image = Path("images", f"{name}.png")
        image.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(image), np.random.default_rng(number).integers(0, 255, (48, 64, 3)).astype(np.uint8))
        label = Path("labels", f"{name}.txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(ROW)
    keys = {"path": ".", "train": "images/train", "val": "images/val", "names": "[cat, dog]"} | text
    Path("data.yaml").write_text("".join(f"{key}: {value}\n" for key, value in keys.items()), encoding="utf-8")


def labels_where_nobody_looks() -> None:
    write_data()
    Path("labels").rename("annotations")


def labels_of_another_name() -> None:
    write_data()
    Path("labels/train/b.txt").rename("labels/train/b1.txt")


def page_for_weights() -> None:
    write_data()
    Path("yolov5n.pt").write_text("<!DOCTYPE html><title>Not Found</title>")


def unread_kinds() -> None:
    write_data()
    Path("images/train/d.dng").write_bytes(b"II*\0")
    Path("labels/train/d.txt").write_text(ROW)


def orphan_labels() -> None:
    write_data()
    Path("labels/train/nobody.txt").write_text(ROW)


def shared_labels() -> None:
    write_data()
    image = np.random.default_rng(9).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    cv2.imwrite("images/train/a.jpg", image)


def misspelt_key() -> None:
    write_data(trian="images/train")


def keys_of_others() -> None:
    write_data(roboflow="{workspace: me}", test="")


def lost_list() -> None:
    write_data(train="train.txt")
    Path("train.txt").write_text("C:\\photos\\a.png\n")


def unseen_bytes() -> None:
    write_data()
    Path("labels/train/a.txt").write_text(f"\ufeff{ROW}".replace(" ", "\u00a0\u200b"), encoding="utf-8")


def unprintable_row() -> None:
    write_data()
    Path("labels/train/a.txt").write_text("0 \u202e.5 .5 .2 .2\n", encoding="utf-8")


def words_of_yaml() -> None:
    write_data(names="[yes, 007]")


def names_with_gaps() -> None:
    write_data(names="{0: cat, 2: dog}")


def class_without_name() -> None:
    write_data()
    Path("labels/train/a.txt").write_text("2 .5 .5 .2 .2\n")


def wrong_number() -> None:
    write_data()
    Path("hyp.yaml").write_text("lr0: 1e-3x\n")


# What is there, what is typed, the exit status, and a part of what is said.
CASES: list[tuple[Callable[[], None], str, int, str]] = [
    (labels_where_nobody_looks, "train --data data.yaml", 2, "key 'train': not one box to learn from"),
    (labels_where_nobody_looks, "train --data data.yaml --strict", 2, "annotations/train/a.txt"),
    (labels_of_another_name, "data check data.yaml", 1, "b1.txt: belongs to no image, with 1 rows"),
    (page_for_weights, "freeze --weights yolov5n.pt", 2, "yolov5n.pt: is a web page (did the download fail?)"),
    (page_for_weights, "train --data data.yaml --weights yolov5n.pt", 2, "yolov5n.pt: is a web page"),
    (unread_kinds, "data check data.yaml", 1, "d.dng: is a .dng file, which is not read; save it as JPEG or PNG"),
    (orphan_labels, "data check data.yaml", 1, "nobody.txt: belongs to no image, with 1 rows"),
    (shared_labels, "data check data.yaml", 0, "a.png: has the label file of a.jpg"),
    (misspelt_key, "data check data.yaml", 2, "key 'trian' is unknown; did you mean 'train'?"),
    (misspelt_key, "train --data data.yaml", 2, "key 'trian' is unknown; did you mean 'train'?"),
    (keys_of_others, "data check data.yaml", 0, "key 'roboflow' not used here"),
    (lost_list, "train --data data.yaml", 2, "line 1: C:\\photos\\a.png does not exist; looked for at"),
    (unseen_bytes, "data check data.yaml", 0, "train: 2 images, 2 boxes, 0 backgrounds"),
    (unprintable_row, "data check data.yaml", 1, "a.txt, line 1: '\\u202e.5' is no number"),
    (words_of_yaml, "data check data.yaml", 0, "007"),
    (names_with_gaps, "train --data data.yaml", 2, "key 'names': indices must run from 0 to 1 without gaps"),
    (write_data, "train --data .", 2, ".: is a folder; give the data YAML in it: data.yaml"),
    (wrong_number, "train --data data.yaml --hyp hyp.yaml", 2, "key 'lr0': expected float, found '1e-3x'"),
    (class_without_name, "train --data data.yaml", 2, "a.txt, line 1: class 2, but data.yaml names 2 classes (0 to 1)"),
    (class_without_name, "data check data.yaml", 1, "a.txt, line 1: class 2, but data.yaml names 2 classes (0 to 1)"),
    (write_data, "train --data data.yaml --freeze detect --strict", 2, "model_24 starts from random numbers"),
    (
        write_data,
        "train --data data.yaml --weights '' --cfg yolov5n --freeze 10 --strict",
        2,
        "start from random numbers",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[f"{case[0].__name__}-{case[1].split()[0]}" for case in CASES])
def test_what_is_said_and_that_nothing_is_touched(case, tmp_path, contents, monkeypatch, capfd):
    bring, words, status, sentence = case
    if bring is page_for_weights and importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("YOLOJAX_CACHE", str(tmp_path / "cache"))
    bring()
    before = contents(Path())
    assert main(shlex.split(words)) == status
    out, err = capfd.readouterr()
    assert sentence in " ".join((out + err).split())
    assert (len(err.strip().splitlines()) == 1) == (status == 2)
    assert "Traceback" not in out + err
    assert contents(Path()) == before
