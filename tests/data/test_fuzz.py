"""Data sets as people might hand them in: each ends in a batch or in one sentence, and no box is lost in silence.

In the suite the same 120 examples each time; CONTRIBUTING.md says how to look further.
"""

import json
import os
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolojax.data.anchors import check_anchors
from yolojax.data.batches import StreamSettings, validation_batches
from yolojax.data.check import check_data, require_clean
from yolojax.data.sample import SET_ASIDE, Split
from yolojax.data.sources import load_data, open_split
from yolojax.data.stream import training_stream
from yolojax.errors import UserError
from yolojax.hyperparameters import Hyperparameters

EXAMPLES = int(os.environ.get("YOLOJAX_FUZZ_EXAMPLES", "40"))
FUZZ = settings(max_examples=EXAMPLES, derandomize="YOLOJAX_FUZZ_EXAMPLES" not in os.environ)
HEIGHT, WIDTH = 20, 24
IMAGE = cv2.imencode(".png", np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3))[1].tobytes()
MARKS = st.sampled_from(["", "\ufeff"])
SPACES = st.sampled_from([" ", "  ", "\t", "\u00a0", " \u200b"])
ANCHORS = (((8.0, 8.0), (16.0, 12.0)),)
IMAGE_SUFFIXES = (".png", ".jpg", ".gif", ".heic", ".dng")


def mostly(usual, *rare):
    """One of ``usual`` nineteen times in twenty, else one of ``rare``: a data set with many faults gets no further than the first one."""
    return st.sampled_from([*usual * (19 * len(rare) // len(usual) + 1), *rare])


stems = st.sampled_from(["a", "b", "c", "d e", "Ä", "a.b", "images", "007"])
suffixes = mostly([".png", ".PNG", ".Png", ".jpg"], ".gif", ".heic", ".dng")
numbers = mostly([0.2, 0.5, 0.31, "1e-1", ".25", 1], 0, 1.2, "-0.1", "nan", "inf", "0,5")
names = mostly(
    ["[cat, dog, cow]", "{0: cat, 1: dog, 2: cow}", "{'0': cat, '1': dog, '2': cow}", "{cat: 0, dog: 1, cow: 2}"]
    + ["classes.txt", "[cat, dog, no]", "[cat, dog, 1]"],
    *("[yes, no]", "[1, 2]", "[]", "[a, , b]", "7", "{0: a, 2: b}", "[cat, cat, dog]", "cat", "{yes: 0, no: 1}"),
)
others = mostly(
    [
        "",
        "",
        "nc: 3\n",
        "nc: 3e0\n",
        "nc: '3'\n",
        "roboflow: {version: 1}\n",
        "channels: 3\nauthor: me\n",
        "download: echo\n",
    ],
    *("nam: x\n", "kpt_shape: [1, 2]\n", "nc: 7\n", "defaults: {img: 3.2e1}\n", "options: {}\n", "options: {x: 1}\n"),
)
tests = st.sampled_from(["", "", "test:\n", "test: images\n", "test: nowhere\n", "test: []\n"])
flags = st.fixed_dictionaries(
    {
        "mosaic": st.sampled_from([0, 1]),
        "rectangular": st.booleans(),
        "single_class": st.booleans(),
        "strict": mostly([False], True),
        "root": mostly([None, "."], "images", "nowhere"),
        "batch": st.sampled_from([1, 2, 5]),
    }
)


@st.composite
def yolo_trees(draw):
    """Files by path: images, labels, lists, links, and what the data YAML says of them."""
    home, labels = draw(
        st.sampled_from(
            [
                ("images", "labels"),
                ("images/train", "labels/train"),
                ("train/images", "train/labels"),
                ("photos", "photos"),
            ]
            + [("images/a/images/b", "images/a/labels/b"), ("images/sub/deep", "labels/sub/deep")]
        )
    )
    folders = mostly([home], "images", "photos", "IMAGES", f"{home}/more")
    label_folders = mostly([labels], "Labels", "images", "labels", "labels/a", f"{labels}/more", home)
    coordinates = st.tuples(mostly([0, 1, 2], 3), *[numbers] * 4)
    row = mostly([None], "", " ", "0 0.1 0.1 0.3 0.1 0.3 0.5", "cat 0.1 0.1 0.1 0.1", "0 .5 .5 1e-1 .1", "0 0.5")
    files = {"classes.txt": draw(MARKS) + "cat\ndog\ncow\n"}
    chosen = draw(st.lists(stems, unique=True, min_size=1, max_size=4))
    for stem in chosen:
        files[f"{draw(folders)}/{stem}{draw(suffixes)}"] = IMAGE
    for stem in draw(st.lists(st.sampled_from([*chosen, "gone"]), max_size=5)):
        rows = [draw(row) for _ in range(draw(st.integers(0, 3)))]
        rows = [draw(SPACES).join(map(str, draw(coordinates))) if text is None else text for text in rows]
        suffix = draw(mostly([".txt"], ".TXT"))
        files[f"{draw(label_folders)}/{stem}{suffix}"] = draw(MARKS) + "\n".join(rows)
    if draw(mostly([True], False)):
        files[f"{home}/good.png"], files[f"{labels}/good.txt"] = IMAGE, "1 0.5 0.5 0.25 0.5\n"
    files["linked"] = Path(draw(mostly([home], ".", "nowhere")))
    separator = draw(st.sampled_from(["/", "\\"]))
    before = draw(st.sampled_from(["", "./", "data/", "../ROOT/"]))
    lines = [before + path.replace("/", separator) for path in files if path.lower().endswith((".png", ".jpg"))]
    lines += draw(st.lists(st.sampled_from(["gone.png", "", "images", *lines]), max_size=1))
    files["list.txt"] = draw(MARKS) + draw(st.sampled_from(["\n", "\r\n"])).join(lines)
    entry = mostly(
        [home, f"./{home}/", "list.txt", "linked", f"[{home}, list.txt]", f"[{home}, {home}]", home.replace("/", "\\")]
        + [f"../{home}", "."],
        *("nowhere", "[]", "3", "classes.txt", "photos"),
    )
    return files, draw(entry), draw(entry), draw(names)


@st.composite
def voc_trees(draw):
    """Files by path: images, XML, image sets, and what the data YAML says of them."""
    folder = mostly(["JPEGImages"], "images", "Annotations", "photos", "JPEGImages/more")
    kind = mostly(["cat", "dog", " cat "], "Cat", "", "horse")
    low, high = mostly(["2", "0", "7.5"], "-3", "x", "nan"), mostly(["12", "20", "17.25"], "99", "1", "")
    files = {"classes.txt": "cat\ndog\ncow\n"}
    chosen = draw(st.lists(stems, unique=True, min_size=1, max_size=4))
    for stem in chosen:
        files[f"{draw(folder)}/{stem}{draw(suffixes)}"] = IMAGE
    for stem in draw(st.lists(st.sampled_from([*chosen, *chosen, "gone"]), unique=True, max_size=4)):
        objects = ""
        for _ in range(draw(st.integers(0, 3))):
            corners = zip(("xmin", "ymin", "xmax", "ymax"), (low, low, high, high), strict=True)
            box = "".join(f"<{key}>{draw(value)}</{key}>" for key, value in corners)
            difficult = draw(st.sampled_from(["", "<difficult>0</difficult>", "<difficult>1</difficult>"]))
            objects += f"<object><name>{draw(kind)}</name>{difficult}<bndbox>{box}</bndbox></object>"
        size = draw(mostly([f"<width>{WIDTH}</width><height>{HEIGHT}</height>"], "", "<width>0</width>"))
        place, suffix = draw(mostly(["Annotations"], "annotations", "xml")), draw(mostly([".xml"], ".XML"))
        end = draw(mostly(["</annotation>"], ""))
        files[f"{place}/{stem}{suffix}"] = f"{draw(MARKS)}<annotation><size>{size}</size>{objects}{end}"
    if draw(mostly([True], False)):
        chosen.append("good")
        box = "<xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax>"
        files["JPEGImages/good.png"] = IMAGE
        files["Annotations/good.xml"] = (
            f"<annotation><object><name>dog</name><bndbox>{box}</bndbox></object></annotation>"
        )
    listed = [*chosen, *draw(st.lists(st.sampled_from(["gone", "", *chosen]), max_size=1))]
    second = draw(st.sampled_from(["", " 1", " -1"]))
    files["ImageSets/Main/train.txt"] = draw(MARKS) + "\n".join(f"{stem}{second}" for stem in listed)
    entry = mostly(["train", "Annotations", "[train, Annotations]"], "val", ".", "JPEGImages", "train.txt")
    return files, draw(entry), draw(entry), draw(names)


@st.composite
def coco_trees(draw):
    """Files by path: images, an annotation file, and what the data YAML says of them."""
    home = draw(st.sampled_from(["images", "images/train", "train", "annotations"]))
    files = {"classes.txt": "cat\ndog\ncow\n"}
    chosen = draw(st.lists(stems, unique=True, min_size=1, max_size=4))
    paths = [f"{draw(mostly([home], 'photos'))}/{stem}{draw(suffixes)}" for stem in chosen]
    files |= dict.fromkeys(paths, IMAGE)
    number = mostly([2, 5, 12.5, 8, 3], -3, 99, 0, None, "7", True)
    images = []
    for index, path in enumerate([*paths, *draw(st.lists(st.sampled_from(["images/gone.png", *paths]), max_size=1))]):
        name = path.removeprefix(f"{home}/")
        name = draw(mostly([name], path, name.replace("/", "\\"), f"../{path}", f"./{name}"))
        size = draw(mostly([{"width": WIDTH, "height": HEIGHT}, {}], {"width": 48, "height": 40}, {"width": "24"}))
        images.append({"id": draw(mostly([index], 0, str(index), None)), "file_name": name, **size})
    annotations = []
    for _ in range(draw(st.integers(0, 5))):
        box = [draw(number) for _ in range(draw(mostly([4], 3, 5)))]
        owner = draw(mostly(list(range(len(images))), 77, "1", None))
        annotation = {"image_id": owner, "category_id": draw(mostly([0, 1], 2, 9, None)), "bbox": box}
        annotations.append(annotation | draw(st.sampled_from([{}, {}, {"iscrowd": 0}, {"iscrowd": 1}])))
    if draw(mostly([True], False)):
        annotations.append({"image_id": 0, "category_id": 0, "bbox": [2, 2, 9, 9]})
    categories = [{"id": index, "name": name} for index, name in enumerate(("cat", "dog", "other"))]
    content = {"images": images, "annotations": annotations, "categories": categories}
    written = draw(MARKS) + json.dumps(content)[: draw(mostly([None], 40))]
    files["annotations/instances_train.json"] = written
    entry = mostly(
        ["annotations/instances_train.json", "annotations\\instances_train.json", "./annotations/instances_train.json"],
        *("annotations", "nowhere.json", "[annotations/instances_train.json, annotations/instances_train.json]"),
    )
    return files, draw(entry), draw(entry), draw(names)


TREES = {"yolo": yolo_trees(), "voc": voc_trees(), "coco": coco_trees()}


@pytest.mark.parametrize("layout", TREES)
def test_every_data_set_ends_in_a_batch_or_in_one_sentence(layout, monkeypatch, tmp_path):
    monkeypatch.setenv("YOLOJAX_CACHE", str(tmp_path))
    path = mostly(["", "path: .\n", "path:\n", "path: ./\n"], "path: /nowhere\n")
    colon = st.sampled_from([": ", ":\u00a0"])

    @FUZZ
    @given(tree=TREES[layout], path=path, other=others, test=tests, colon=colon, mark=MARKS, flags=flags)
    def check(tree, path, other, test, colon, mark, flags):
        files, train, val, listed = tree
        head = "" if layout == "yolo" else f"format: {layout}\n"
        text = f"{head}{path}train{colon}{train}\nval{colon}{val}\nnames{colon}{listed}\n{other}{test}"
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            write(root, {**files, "data.yaml": mark + text})
            before = contents(root)
            splits, sentence = prepared(root / "data.yaml", flags)
            if sentence:
                assert sentence.isprintable(), sentence
            else:
                for split in splits:
                    ACCOUNTS[layout](split, root)
            assert contents(root) == before

    check()


def write(root: Path, files: dict[str, str | bytes | Path]) -> None:
    for path, content in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            file.symlink_to(content)
        else:
            file.write_bytes(content if isinstance(content, bytes) else content.replace("ROOT", root.name).encode())


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and not path.is_symlink()}


def prepared(file: Path, flags: dict) -> tuple[list[Split], str]:
    """Both splits, after a batch of each was made and the data checked; or the sentence that says why there are none."""
    root = None if flags["root"] is None else file.parent / flags["root"]
    try:
        config = load_data(file, root)
        if flags["strict"]:
            require_clean(config, ("train", "val"))
        train = open_split(config, "train", single_class=flags["single_class"], needs_boxes=True)
        val = open_split(config, "val", single_class=flags["single_class"])
    except UserError as error:
        return [], str(error)
    check_anchors(train.samples, ANCHORS, 64, 4.0, 0)
    stream = training_stream(
        train.samples,
        Hyperparameters(mosaic=flags["mosaic"]),
        StreamSettings(image_size=64, batch_size=flags["batch"], rectangular=flags["rectangular"]),
    )
    assert len(stream.batches[0].batch.images) == flags["batch"]
    batch = next(iter(validation_batches(val.samples, image_size=64, batch_size=2, stride=32).iterate(0)))
    assert batch["valid"].any()
    if not flags["single_class"]:
        checked = check_data(config, ("train", "val"))
        assert checked.splits["train"].report.boxes == train.report.boxes
        assert checked.splits["train"].report.problems[: len(train.report.problems)] == train.report.problems
    return [train, val], ""


def named_boxes(split: Split, where: str) -> int:
    """Boxes that a report names one by one, of a file of annotations."""
    return sum(
        problem.where.startswith(f"{where}, ") and (problem.left_out == "box" or problem.kind in SET_ASIDE)
        for problem in split.report.problems
    )


def account_yolo(split: Split, root: Path) -> None:
    """Every row of a label file is a box, or named: by itself, with its image, or with its file."""
    problems = split.report.problems
    whole = {item.where.partition(", line")[0] for item in problems if item.left_out in ("image", "label file")}
    used = [Path(sample.name) for sample in split.samples]
    assert split.report.images == len(used)
    for image, sample in zip(used, split.samples, strict=True):
        rows = label_rows(label_of(image))
        repeats = used.count(image)
        assert len(rows) * repeats == len(sample.boxes) * repeats + named_boxes(split, str(label_of(image))), image
    owned = {os.path.abspath(label_of(image)) for image in used}
    beside = {os.path.dirname(label) for label in owned}
    unlabelled = {image.stem for image in used if not label_of(image).is_file()}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() != ".txt" or path.name in ("classes.txt", "list.txt") or str(path) in owned:
            continue
        rows = label_rows(path)
        near = any(Path(folder) == path.parent or Path(folder) in path.parents for folder in beside)
        if rows and len(rows[0].split()) >= 5 and (near or path.stem in unlabelled):
            named = str(path) in whole or any(os.path.realpath(where) == str(path.resolve()) for where in whole)
            assert named or other_image(path, root), path


def label_rows(path: Path) -> list[str]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8-sig").replace("\u200b", "").splitlines()
    return [line for line in lines if line.strip()]


def label_of(image: Path) -> Path:
    parts = list(image.parts[:-1])
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts, image.stem + ".txt")


def other_image(label: Path, root: Path) -> bool:
    """Whether an image has the label file, though it is not of this split, or could not be used."""
    files = [path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
    return any(label_of(path) == label for path in files)


def account_voc(split: Split, root: Path) -> None:
    """Every object of the XML of an image in use is a box or named."""
    whole = {problem.where for problem in split.report.problems if problem.left_out == "image"}
    for sample in split.samples:
        file = root / "Annotations" / f"{Path(sample.name).stem}.xml"
        if str(file) in whole:  # named as the annotation of no image
            continue
        objects = file.read_text().count("<object>") if file.is_file() else 0
        repeats = sum(other.name == sample.name for other in split.samples)
        assert objects * repeats == len(sample.boxes) * repeats + named_boxes(split, str(file)), file


def account_coco(split: Split, root: Path) -> None:
    """Every annotation is a box or named, by itself or with its image."""
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text(encoding="utf-8-sig"))
    left_out = {problem.where for problem in split.report.problems if problem.left_out == "image"}
    used = split.report.boxes + named_boxes(split, str(file))
    times = split.report.found // len(content["images"])  # a file may be named twice
    if not left_out:
        assert used == times * len(content["annotations"])
    assert used <= times * len(content["annotations"])


ACCOUNTS = {"yolo": account_yolo, "voc": account_voc, "coco": account_coco}
