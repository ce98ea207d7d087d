"""``yolojax data``: its actions from the command line."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from yolojax.cli.main import main


def test_check_prints_writes_and_draws_what_is_there(tiny_data, tmp_path, capsys):
    report, plot = tmp_path / "check.json", tmp_path / "new" / "check.png"
    assert main(["data", "check", str(tiny_data), "--json", str(report), "--plot", str(plot)]) == 0
    figures = json.loads(report.read_text())
    boxes = figures["splits"]["train"]["classes"]
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["class", "train", "val"] in rows
    for name in ("blue", "red"):
        assert [name, str(boxes[name]), str(figures["splits"]["val"]["classes"][name])] in rows
    assert ["image", "side,", "px", "train", *["64"] * 7] in rows
    image = cv2.imread(str(plot))
    assert image.shape[1] > 1000
    assert image.std() > 10


def test_check_draws_a_data_set_without_boxes_and_names_what_is_wrong(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.zeros((32, 40, 3), np.uint8))
    (tmp_path / "images" / "b.png").write_bytes(b"no image")
    file = tmp_path / "empty.yaml"
    file.write_text("path: .\ntrain: images\nval: images\nnames: [cat]\n")
    assert main(["data", "check", str(file), "--plot", str(tmp_path / "check.svg")]) == 1
    assert "b.png: is no image of a known kind; the image is left out" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "check.svg").read_text()
    assert main(["data", "check", str(file), "--plot", "check.jpg"]) == 2


def test_tables_of_large_photos_fit_80_columns(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    for number, (height, width) in enumerate(((1080, 1920), (3000, 12345))):
        for part in ("images", "labels"):
            (tmp_path / part / str(number)).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "images" / str(number) / "a.png"), np.zeros((height, width), np.uint8))
        (tmp_path / "labels" / str(number) / "a.txt").write_text("0 0.5 0.5 0.9 0.9\n")
    file = tmp_path / "large.yaml"
    file.write_text("path: .\ntrain: images/0\nval: images/1\nnames: [a-class-with-a-long-name]\n")
    assert main(["data", "check", str(file)]) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["image", "side,", "px", "train", *["1920"] * 7] in rows
    assert ["val", *["12345"] * 7] in rows
    assert "…" not in printed
    assert "e+" not in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if str(tmp_path) not in line)


def test_strict_training_refuses_what_check_finds(tiny_data, tiny_model, tmp_path, capsys):
    shutil.copytree(tiny_data.parent, tmp_path / "data")
    images = tmp_path / "data" / "images"
    shutil.copy(images / "train" / "3.png", images / "val" / "9.png")
    file = tmp_path / "squares.yaml"
    file.write_text("path: data\ntrain: images/train\nval: images/val\nnames: [blue, red]\n")
    arguments = ["--weights=", f"--cfg={tiny_model}", f"--data={file}", "--img=64", f"--project={tmp_path / 'runs'}"]
    assert main(["train", *arguments, "--strict"]) == 2
    assert "are the same image, in two splits" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_convert_writes_a_data_set_that_checks_clean(tiny_data, tmp_path, contents, capsys):
    out = tmp_path / "out"
    before = contents(tiny_data.parent)
    assert main(["data", "convert", str(tiny_data), str(out), "--format", "coco"]) == 0
    assert "train: 10 images" in capsys.readouterr().out
    assert main(["data", "check", str(out / "data.yaml")]) == 0
    assert "nothing is left out" in capsys.readouterr().out
    written = contents(out)
    assert main(["data", "convert", str(tiny_data), str(out), "--format", "voc"]) == 2
    assert "left as it is" in capsys.readouterr().err
    assert contents(out) == written
    assert contents(tiny_data.parent) == before


def test_convert_says_which_split_stands_in_for_another(tiny_data, tmp_path, capsys):
    assert main(["data", "convert", str(tiny_data), str(tmp_path / "out"), "--format", "voc", "--split", "val"]) == 0
    assert "'train' was not asked for" in capsys.readouterr().out


def test_what_convert_writes_is_read_as_it_stands(tiny_data, tmp_path, contents, monkeypatch, capsys):
    """The original takes a relative ``path`` for one inside its package, and label folders for those beside images."""
    monkeypatch.chdir(tmp_path)
    before = contents(tiny_data.parent)
    assert main(["data", "convert", str(tiny_data), "out", "--format", "yolo", "--json", "figures.json"]) == 0
    content = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    root = Path(content["path"])
    assert root == tmp_path / "out"  # absolute, though the folder was named by a relative path
    for split, count in (("train", 10), ("val", 4)):
        images = sorted((root / content[split]).iterdir())
        assert len(images) == count
        assert all(Path(str(file).replace("/images/", "/labels/")).with_suffix(".txt").is_file() for file in images)
    assert list(content["names"].values() if isinstance(content["names"], dict) else content["names"]) == [
        "blue",
        "red",
    ]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["images"], figures["changes"]) == ({"train": 10, "val": 4}, {})
    assert figures["file"] == str(Path("out") / "data.yaml")
    assert "train: 10 images" in capsys.readouterr().out
    assert contents(tiny_data.parent) == before


def test_show_tells_what_it_drew_as_json(tiny_data, tmp_path):
    words = ["--count", "2", "--img", "64", "--out", str(tmp_path / "a.jpg"), "--json", str(tmp_path / "a.json")]
    assert main(["data", "show", str(tiny_data), *words]) == 0
    figures = json.loads((tmp_path / "a.json").read_text())
    assert figures == {"path": str(tmp_path / "a.jpg"), "images": 2, "image_size": 64}


def test_show_draws_every_image_twice(tiny_data, tmp_path):
    out = tmp_path / "new" / "sheet.jpg"
    arguments = ["data", "show", str(tiny_data), "--count", "4", "--img", "96", "--out", str(out)]
    assert main(arguments) == 0
    first = cv2.imread(str(out))
    assert first.shape[1] > 2 * 96
    assert main([*arguments, "--hyp", "no-augmentation", "--seed", "0"]) == 0
    assert (cv2.imread(str(out)) != first).any()
    assert main([*arguments, "--seed", "0"]) == 0
    np.testing.assert_array_equal(cv2.imread(str(out)), first)


@pytest.mark.parametrize("wrong", [["--count", "0"], ["--img", "8"], ["--out", "sheet.png"], ["--seed", "-1"]])
def test_show_refuses_what_it_cannot_draw(tiny_data, wrong):
    assert main(["data", "show", str(tiny_data), *wrong]) == 2
