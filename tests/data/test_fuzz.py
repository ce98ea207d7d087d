"""Data sets as people might hand them in: each ends in a batch or in one sentence, and no box is lost in silence."""

import os
import tempfile
from pathlib import Path

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from yolojax.data.batches import StreamSettings
from yolojax.data.sample import Split
from yolojax.data.sources import load_data, open_split
from yolojax.data.stream import training_stream
from yolojax.errors import UserError
from yolojax.hyperparameters import Hyperparameters

EXAMPLES = int(os.environ.get("YOLOJAX_FUZZ_EXAMPLES", "150"))
IMAGE = cv2.imencode(".png", np.arange(20 * 24 * 3, dtype=np.uint8).reshape(20, 24, 3))[1].tobytes()
MARKS = st.sampled_from(["", "\ufeff"])
SPACES = st.sampled_from([" ", "  ", "\t", "\u00a0", " \u200b"])

folders = st.sampled_from(["images", "images/train", "train/images", "photos"])
label_folders = st.sampled_from(["labels", "labels/train", "train/labels", "photos", "Labels", "images"])
stems = st.sampled_from(["a", "b", "c", "d e"])
boxes = st.tuples(st.integers(0, 2), *(st.sampled_from([0.2, 0.5, 0.31, 0, 1, 1.2]) for _ in range(4)))
row_texts = st.one_of(
    st.tuples(SPACES, boxes).map(lambda parts: parts[0].join(map(str, parts[1]))),
    st.sampled_from(["", "0 0.1 0.1 0.3 0.1 0.3 0.5", "cat 0.1 0.1 0.1 0.1", "0 .5 .5 1e-1 .1", "0 0.5"]),
)
names = st.sampled_from(
    ["[cat, dog, cow]", "{0: a, 1: b, 2: c}", "{'0': a, '1': b, '2': c}", "[yes, no, on]", "{a: 0, b: 1, c: 2}"]
    + ["[1, 2]", "classes.txt", "[]", "[a, , b]", "7", "{0: a, 2: b}"]
)


@st.composite
def data_sets(draw):
    """Files by path: images, labels, a list, and the data YAML."""
    files = {"classes.txt": draw(MARKS) + "cat\ndog\ncow\n"}
    for stem in draw(st.lists(stems, unique=True, max_size=4)):
        suffix = draw(st.sampled_from([".png", ".PNG", ".jpg", ".gif", ".heic", ".dng"]))
        files[f"{draw(folders)}/{stem}{suffix}"] = IMAGE
    for stem in draw(st.lists(stems, max_size=4)):
        rows = draw(st.lists(row_texts, max_size=3))
        suffix = draw(st.sampled_from([".txt", ".txt", ".txt", ".TXT"]))
        files[f"{draw(label_folders)}/{stem}{suffix}"] = draw(MARKS) + "\n".join(rows)
    separator = draw(st.sampled_from(["/", "\\"]))
    images = [path for path in files if path.endswith((".png", ".PNG"))]
    files["list.txt"] = draw(MARKS) + "\n".join(path.replace("/", separator) for path in images)
    entry = draw(st.sampled_from(["images", "images/train", "../train/images", "photos", "list.txt", "."]))
    path = draw(st.sampled_from(["", "path: .\n", "path:\n"]))
    other = draw(st.sampled_from(["", "nc: 3\n", "nc: 1e0\n", "roboflow: {version: 1}\n", "test:\n", "nam: x\n"]))
    colon = draw(st.sampled_from([": ", ":\u00a0"]))
    text = f"{path}train{colon}{entry}\nval{colon}{entry}\nnames{colon}{draw(names)}\n{other}"
    files["data.yaml"] = draw(MARKS) + text
    return files


@settings(max_examples=EXAMPLES, deadline=None)
@given(files=data_sets(), mosaic=st.sampled_from([0, 1]), rectangular=st.booleans())
def test_every_data_set_ends_in_a_batch_or_in_one_sentence(files, mosaic, rectangular):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for path, content in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content if isinstance(content, bytes) else content.encode())
        before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
        split, sentence = opened(root / "data.yaml")
        if split is None:
            assert sentence
            assert sentence.isprintable()
        else:
            stream_settings = StreamSettings(image_size=64, batch_size=2, rectangular=rectangular)
            stream = training_stream(split.samples, Hyperparameters(mosaic=mosaic), stream_settings)
            assert stream.batches[0].batch.images.shape[0] == 2
            check_rows(split, root)
        assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def opened(file: Path) -> tuple[Split | None, str]:
    """The training split, or the sentence that says why there is none."""
    try:
        return open_split(load_data(file), "train", needs_boxes=True), ""
    except UserError as error:
        return None, str(error)


def check_rows(split, root: Path) -> None:
    """Every row of a label file is a box, or named: by itself, with its image, or with its file."""
    named = "\n".join(map(str, split.report.problems))
    images = [Path(sample.name) for sample in split.samples]
    boxes_used = split.report.boxes + sum(problem.left_out == "box" for problem in split.report.problems)
    in_files = 0
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() != ".txt" or path.name in ("classes.txt", "list.txt"):
            continue
        lines = path.read_text(encoding="utf-8-sig").replace("\u200b", "").splitlines()
        rows = [line for line in lines if line.strip()]
        owners = [image for image in images if label_of(image, root) == path]
        in_files += len(rows) * len(owners)
        beside = any(label_of(image, root).parent in path.parents for image in images)
        missing = any(image.stem == path.stem and not label_of(image, root).exists() for image in images)
        if rows and not owners and (beside or missing) and looks_like_labels(rows):
            assert path.name in named or other_image(path, root)
    assert in_files == boxes_used


def looks_like_labels(rows: list[str]) -> bool:
    return len(rows[0].split()) >= 5


def label_of(image: Path, root: Path) -> Path:
    parts = list(image.relative_to(root).parts[:-1])
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return root.joinpath(*parts, image.stem + ".txt")


def other_image(label: Path, root: Path) -> bool:
    """Whether an image that is not of this split has the label file."""
    suffixes = (".png", ".jpg", ".gif", ".heic", ".dng")
    files = [path for path in root.rglob("*") if path.suffix.lower() in suffixes]
    return any(label_of(path, root) == label for path in files)
