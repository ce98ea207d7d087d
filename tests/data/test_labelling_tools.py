"""Data sets in the layouts of labelling tools, with the YAML files that docs/labelling-tools.md shows."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolojax.cli.main import main
from yolojax.data.batches import StreamSettings
from yolojax.data.sources import load_data, open_split
from yolojax.data.stream import training_stream
from yolojax.hyperparameters import Hyperparameters

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "labelling-tools.md"
YAMLS = dict(re.findall(r"```yaml\n# ([\w-]+): [^\n]*\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL))

SIZE = (48, 64)  # height, width
CAT = (0.25, 0.5, 0.25, 0.5)  # x, y, width, height
DOG = (0.75, 0.25, 0.5, 0.5)


def image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (*SIZE, 3)).astype(np.uint8))


def rows(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{label} {' '.join(map(str, box))}\n" for label, box in enumerate((CAT, DOG))))


def xml(path: Path, folder: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = ""
    for name, (x, y, width, height) in (("cat", CAT), ("dog", DOG)):
        corners = (x - width / 2) * 64, (y - height / 2) * 48, (x + width / 2) * 64, (y + height / 2) * 48
        tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        box = "".join(f"<{tag}>{value:g}</{tag}>" for tag, value in tags)
        objects += f"<object><name>{name}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
    size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
    path.write_text(f"<annotation><folder>{folder}</folder>{size}{objects}</annotation>")


def coco(path: Path, names: list[str], first_id: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    annotations = [
        {
            "id": 2 * number + label,
            "image_id": number,
            "category_id": label + first_id,
            "bbox": [(x - width / 2) * 64, (y - height / 2) * 48, width * 64, height * 48],
            "iscrowd": 0,
        }
        for number in range(len(names))
        for label, (x, y, width, height) in enumerate((CAT, DOG))
    ]
    images = [{"id": n, "file_name": name, "width": 64, "height": 48} for n, name in enumerate(names)]
    categories = [{"id": label + first_id, "name": name} for label, name in enumerate(("cat", "dog"))]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def roboflow(root: Path) -> None:
    (root / "README.roboflow.txt").write_text("pets - v3\n==============\nIt includes 4 images of a dog and a cat.\n")
    for number, split in enumerate(("train", "valid", "test")):
        name = f"a_jpg.rf.{'0123456789abcdef' * 2}{number}"
        image(root / split / "images" / f"{name}.jpg", number)
        rows(root / split / "labels" / f"{name}.txt")


def cvat_ultralytics(root: Path) -> None:
    image(root / "images" / "train" / "a.png")
    rows(root / "labels" / "train" / "a.txt")
    (root / "train.txt").write_text("data/images/train/a.png\n")


def cvat_yolo(root: Path) -> None:
    image(root / "obj_train_data" / "a.png")
    rows(root / "obj_train_data" / "a.txt")
    (root / "train.txt").write_text("data/obj_train_data/a.png\n")
    (root / "obj.names").write_text("cat\ndog\n")
    (root / "obj.data").write_text("classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")


def cvat_voc(root: Path) -> None:
    image(root / "JPEGImages" / "a b.png")
    xml(root / "Annotations" / "a b.xml", "")
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "default.txt").write_text("a b\n")
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\ncat:1,2,3::\ndog:3,2,1::\n")


def cvat_coco(root: Path) -> None:
    image(root / "images" / "default" / "a.png")
    coco(root / "annotations" / "instances_default.json", ["a.png"], first_id=1)


def label_studio_yolo(root: Path) -> None:
    image(root / "images" / "1a2b3c4d-a.png")
    rows(root / "labels" / "1a2b3c4d-a.txt")
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "notes.json").write_text('{"categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]}')


def label_studio_voc(root: Path) -> None:
    image(root / "images" / "1a2b3c4d-a.png")
    xml(root / "Annotations" / "1a2b3c4d-a.xml", "images")


def label_studio_coco(root: Path) -> None:
    image(root / "images" / "1a2b3c4d-a.png")
    image(root / "images" / "b.png", 1)
    coco(root / "result.json", ["images/1a2b3c4d-a.png", "images\\b.png"], first_id=0)


def ultralytics(root: Path) -> None:
    for number, split in enumerate(("train", "val")):
        image(root / "images" / split / "a.png", number)
        rows(root / "labels" / split / "a.txt")


def labelimg(root: Path) -> None:
    image(root / "photos" / "a.png")
    xml(root / "photos" / "a.xml", "photos")


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "roboflow": roboflow,
    "cvat-ultralytics": cvat_ultralytics,
    "cvat-yolo": cvat_yolo,
    "cvat-voc": cvat_voc,
    "cvat-coco": cvat_coco,
    "label-studio-yolo": label_studio_yolo,
    "label-studio-voc": label_studio_voc,
    "label-studio-coco": label_studio_coco,
    "ultralytics": ultralytics,
    "labelimg": labelimg,
}


@pytest.mark.parametrize("tool", sorted(LAYOUTS | YAMLS))
def test_an_export_is_read_whole_and_left_as_it_is(tool, tmp_path, contents, monkeypatch, capsys):
    monkeypatch.setenv("YOLOJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "pets"
    root.mkdir()
    LAYOUTS[tool](root)
    file = root / "data.yaml"
    file.write_text(YAMLS[tool])
    before = contents(root)
    config = load_data(file)
    assert config.names == ("cat", "dog")
    train = open_split(config, "train", needs_boxes=True)
    assert not train.report.problems
    for sample in train.samples:
        np.testing.assert_allclose(sample.boxes, [[0, *CAT], [1, *DOG]], atol=1e-6)
    made = training_stream(
        train.samples, Hyperparameters(mosaic=0), StreamSettings(image_size=64, batch_size=1)
    ).batches[0]
    assert made.batch.mask.sum() > 0
    assert main(["data", "check", str(file)]) == 0
    out = capsys.readouterr().out
    assert "nothing is left out" in out
    assert main(["data", "convert", str(file), "yolo", "--format", "yolo"]) == 0
    assert "train: " in capsys.readouterr().out
    for sample in open_split(load_data(Path("yolo/data.yaml")), "train").samples:
        np.testing.assert_allclose(sample.boxes, [[0, *CAT], [1, *DOG]], atol=1e-6)
    assert contents(root) == before
