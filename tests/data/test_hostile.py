"""Files made to do harm: each gives an error or a report, soon, and nothing is written.

What is tested beside its source: label rows, JSON values and hostile XML (``test_yolo.py``, ``test_coco.py``, ``test_voc.py``), archives
(``test_download.py``).
"""

import contextlib
import json
import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from yolojax.data import sources
from yolojax.data.cache import make_cache
from yolojax.data.check import check_data
from yolojax.data.config import DataConfig
from yolojax.data.download import download_data
from yolojax.data.images import decode_image, probe_image
from yolojax.data.sample import ImageError, samples_record
from yolojax.data.sources import load_data, open_split
from yolojax.data.voc import read_annotation
from yolojax.errors import UserError
from yolojax.hyperparameters import load_hyperparameters

# Nine to the power of twelve values, which no memory holds.
LAUGHS = "&a [x, x, x, x, x, x, x, x, x], " + ", ".join(
    f"&{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in zip("abcdefghijk", "bcdefghijkl", strict=True)
)
HUGE = "9" * 400


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0",
        "[" * 5000,
        "a: &a [*a]",
        "names: &a [*a]\ntrain: x\nval: x",
        f"names: [{LAUGHS}]\ntrain: x\nval: x",
        f"train: [{LAUGHS}]\nval: x\nnames: [x]",
        f"path: [{LAUGHS}]\ntrain: x\nval: x\nnames: [x]",
        f"options: {{a: [{LAUGHS}]}}\ntrain: x\nval: x\nnames: [x]",
        "train: x\nval: x\nnames: {1: x}",
        "train: x\nval: x\nnames: {0: x, true: y}",
        "train: x\nval: x\nnc: .inf",
        f"train: x\nval: x\nnames: [x]\nnc: {HUGE}",
        "train: x\nval: x\nnames: [x]\ndefaults: {img: .inf}",
        "train: x\nval: x\nnames: [x]\ndefaults: {img: .nan}",
        f"train: x\nval: x\nnames: [x]\ndefaults: {{img: {HUGE}, epochs: 1.5}}",
        "train: x\nval: x\nnames: [x]\nformat: [x]",
        "train: x\nval: x\nnames: [x]\nformat: {}",
        'train: "\\0"\nval: x\nnames: [x]',
        f"train: {'x' * 5000}\nval: x\nnames: [x]",
        f"path: {'x' * 5000}\ntrain: x\nval: x\nnames: [x]",
        'path: "\\0"\ntrain: x\nval: x\nnames: [x]',
        "? [a]\n: b",
        "train: !!python/object/apply:os.system [echo]",
        "train: 2020-99-99\nval: x\nnames: [x]",
        "train: x\nval: x\nnames: [x]\ndownload: [{url: 'http://['}]",
        "train: x\nval: x\nnames: [x]\ndownload: [{url: 'http://x/..'}]",
        "train: x\nval: x\nnames: [x]\noptions: {centre_offset: x}\nformat: voc",
    ],
)
def test_hostile_data_settings_are_an_error(tmp_path, text):
    file = tmp_path / "x.yaml"
    file.write_text(text)

    def use() -> None:
        config = load_data(str(file))
        if config.download:
            download_data(replace(config, root=tmp_path / "new"))
        open_split(config, "train")

    with pytest.raises(UserError, match=r"x\.yaml|http://"):
        use()
    assert os.listdir(tmp_path) == ["x.yaml"]


@pytest.mark.parametrize(
    "text", [f"lr0: {HUGE}", "lr0: .nan", "lr0: [1]", "lr0: true", f"lr0: [{LAUGHS}]", "mosaic: 1e400"]
)
def test_hostile_hyperparameters_are_an_error(tmp_path, text):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"x\.yaml"):
        load_hyperparameters(file)


yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.dictionaries(
        st.sampled_from(["path", "format", "train", "val", "names", "nc", "options", "defaults", "download"]),
        yaml_values,
    ),
    kind=st.sampled_from(["yolo", "voc", "coco", "tfds", "shapes"]),
    text=st.binary(max_size=40),
)
def test_any_data_settings_give_a_data_set_or_an_error(tmp_path, content, kind, text):
    file = tmp_path / "x.yaml"
    for written in (
        json.dumps(content),
        json.dumps({"train": "x", "val": "y", "names": ["z"], "format": kind} | content),
    ):
        file.write_text(written)
        with contextlib.suppress(UserError):
            open_split(replace(load_data(str(file)), root=tmp_path), "train")
    file.write_bytes(text)
    with pytest.raises(UserError):
        load_data(str(file))
    assert os.listdir(tmp_path) == ["x.yaml"]


CONFIG = DataConfig(
    file=Path("x.yaml"), root=Path(), format="voc", train=("train",), val=("train",), names=("cat", "dog")
)
xml_text = st.text(st.characters(codec="utf-8", exclude_characters="<&"), max_size=6) | st.sampled_from(
    ["cat", "1", "-5", "1e400", "nan", "9" * 400, "0x10", "1_0", "٣"]
)
xml_tags = (
    "annotation",
    "object",
    "name",
    "difficult",
    "bndbox",
    "xmin",
    "ymin",
    "xmax",
    "ymax",
    "size",
    "width",
    "height",
)
xml_trees = st.recursive(
    xml_text,
    lambda inner: st.lists(st.tuples(st.sampled_from(xml_tags), inner), max_size=6).map(
        lambda items: "".join(f"<{tag}>{text}</{tag}>" for tag, text in items)
    ),
    max_leaves=20,
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tree=xml_trees, cut=st.integers(0, 30), raw=st.binary(max_size=60), encoding=st.sampled_from(["utf-8", "utf-16"])
)
def test_any_xml_gives_boxes_or_problems(tmp_path, tree, cut, raw, encoding):
    path = tmp_path / "a.xml"
    whole = f"<annotation>{tree}</annotation>".encode(encoding)
    for content in (whole, whole[: len(whole) - cut], raw):
        path.write_bytes(content)
        boxes, problems = read_annotation(path, (50, 100), CONFIG)
        assert boxes.shape[1] == 5
        assert np.isfinite(boxes).all()
        assert ((boxes[:, 1:] >= 0) & (boxes[:, 1:] <= 1)).all()
        assert all(str(path) in problem.where for problem in problems)


def test_entities_are_refused_in_every_encoding(tmp_path):
    laughs = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;">]><annotation>&c;</annotation>'
    for encoding in ("utf-8", "utf-16", "utf-16-le", "utf-16-be"):
        (tmp_path / "a.xml").write_bytes(laughs.encode(encoding))
        boxes, (problem,) = read_annotation(tmp_path / "a.xml", (50, 100), CONFIG)
        assert not len(boxes)
        assert problem.left_out == "image"
    outside = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>'
    (tmp_path / "a.xml").write_text(outside)
    assert "defines entities" in str(read_annotation(tmp_path / "a.xml", (50, 100), CONFIG)[1][0])


@pytest.mark.parametrize(
    "name", ["\0.jpg", "x" * 5000 + ".jpg", "\ud800.jpg", "../a.jpg", "/dev/zero", "", ".", "a.jpg/b"]
)
def test_hostile_file_names_in_coco_are_reported(yolo_folder, name):
    config = yolo_folder({"a.jpg": []})
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": name}]
    content = {
        "images": images,
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "\ud800"}],
    }
    (config.root / "x.json").write_text(json.dumps(content))
    config = replace(config, format="coco", train=("x.json",), options={"images": "images/train"})
    split = open_split(config, "train")
    assert [Path(sample.name).name for sample in split.samples] == ["a.jpg"]
    assert [problem.left_out for problem in split.report.problems] == ["image"]
    "\n".join(split.report.lines()).encode()


@pytest.mark.parametrize("line", ["\0", "x" * 5000, "../../../../etc/passwd", "images/train", "/dev/zero", "\x1b[2J"])
def test_hostile_lines_of_a_list_are_reported(yolo_folder, line):
    config = yolo_folder({"a.jpg": []})
    (config.root / "list.txt").write_text(f"images/train/a.jpg\n{line}\n")
    split = open_split(replace(config, train=("list.txt",)), "train")
    assert [Path(sample.name).name for sample in split.samples] == ["a.jpg"]
    assert [problem.left_out for problem in split.report.problems] == ["image"]
    assert not any(mark in text for text in split.report.lines() for mark in "\0\x1b")


def test_a_set_of_voc_that_is_no_text_is_an_error(tmp_path):
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "JPEGImages" / "a.jpg"), np.zeros((50, 100, 3), np.uint8))
    listing = tmp_path / "ImageSets" / "Main" / "train.txt"
    for content in (b"\xff\xfe\x00", b""):
        listing.write_bytes(content)
        with pytest.raises(UserError, match="train"):
            open_split(replace(CONFIG, root=tmp_path), "train")
    listing.write_text("a\n../a\n/etc/passwd\n\0\n")
    assert [problem.kind for problem in open_split(replace(CONFIG, root=tmp_path), "train").report.problems] == [
        "missing image"
    ] * 3


def test_file_names_that_are_no_text_can_be_used(yolo_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("YOLOJAX_CACHE", str(tmp_path / "cache"))
    config = yolo_folder({"a.jpg": [], "b.jpg": []})
    folder = config.root / "images" / "train"
    (folder / "a.jpg").rename(os.fsdecode(os.fsencode(folder) + b"/\xff.jpg"))
    split = open_split(config, "train")
    assert samples_record(split.samples)["images"] == 2
    assert check_data(config).splits["train"].duplicates == ()
    assert make_cache(split.samples, "disk", 64, smooth=False) is not None


def test_files_that_may_not_be_read_are_an_error_with_their_name(yolo_folder, monkeypatch):
    config = yolo_folder({"a.jpg": []})

    def refuse(*_arguments):
        raise PermissionError(13, "Permission denied", "/data/images")

    monkeypatch.setattr(sources, "open_yolo", refuse)
    with pytest.raises(UserError, match=r"pets\.yaml: key 'train': /data/images: Permission denied"):
        open_split(config, "train")


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 10), (0, 10)])
def test_an_image_that_claims_to_be_huge_is_refused_by_its_header(tmp_path, size):
    (tmp_path / "a.png").write_bytes(png(*size, bytes(100)))
    with pytest.raises(ImageError):
        probe_image(tmp_path / "a.png")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["JPEG", "PNG", "TIFF", "WEBP", "BMP", "MPO"]),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 200),
)
def test_any_damage_to_an_image_is_an_error_or_nothing(tmp_path, kind, changes, cut):
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[274] = 6
    image = np.arange(20 * 30 * 3).reshape(20, 30, 3).astype(np.uint8)
    Image.fromarray(image).save(path, kind, **({} if kind == "BMP" else {"exif": exif}))
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    path.write_bytes(data[: len(data) - cut])
    for read in (probe_image, lambda path: decode_image(path.read_bytes())):
        with contextlib.suppress(ImageError):
            read(path)
