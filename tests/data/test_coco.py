"""COCO annotation files."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yolojax.data.config import DataConfig, load_data_config
from yolojax.data.sources import open_split
from yolojax.errors import UserError

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


@pytest.fixture
def coco(tmp_path):
    def write(annotations: list[dict], categories=CATEGORIES, images: list[dict] | None = None) -> DataConfig:
        for folder in ("annotations", "images/tiny"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        if images is None:
            images = [{"id": number, "file_name": f"{number}.jpg", "height": 50, "width": 100} for number in (1, 2)]
        for number in (1, 2):
            cv2.imwrite(str(tmp_path / "images/tiny" / f"{number}.jpg"), np.zeros((50, 100, 3), np.uint8))
        content = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / "annotations" / "instances_tiny.json").write_text(json.dumps(content))
        entries = ("annotations/instances_tiny.json",)
        return DataConfig(
            file=Path("pets.yaml"), root=tmp_path, format="coco", train=entries, val=entries, names=("cat", "dog")
        )

    return write


def box(values, image: int = 1, category: int = 7, **more) -> dict:
    return {"image_id": image, "category_id": category, "bbox": values, **more}


def test_boxes_outlines_and_backgrounds(coco):
    outline = [10, 5, 30, 5, 30, 45]
    config = coco(
        [
            box([10, 5, 20, 40], segmentation=[outline]),
            box([90, 0, 20, 60], category=3, segmentation=[outline, outline]),
        ]
    )
    split = open_split(config, "train")
    first, second = split.samples
    np.testing.assert_allclose(first.boxes, [[1, 0.2, 0.5, 0.2, 0.8], [0, 0.95, 0.5, 0.1, 1]], rtol=1e-6)
    np.testing.assert_allclose(first.polygons[0], [[0.1, 0.1], [0.3, 0.1], [0.3, 0.9]], rtol=1e-6)
    assert first.polygons[1] is None
    assert not len(second.boxes)
    assert first.load().shape == (50, 100, 3)
    assert split.report.problems == ()


def test_an_id_that_two_images_have_is_an_error(coco):
    config = coco([box([10, 5, 20, 40])])
    file = next(config.root.rglob("*.json"))
    content = json.loads(file.read_text())
    content["images"].append(content["images"][0])
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"has the id of images\[0\] .*; give every image an id of its own"):
        open_split(config, "train")


def test_crowds_duplicates_empty_and_unknown_boxes(coco):
    good = box([10, 5, 20, 40])
    config = coco(
        [good, box([1, 1, 9, 9], iscrowd=1), good, box([10, 5, 0, 40]), box([1, 1, 9, 9], category=4)],
    )
    split = open_split(config, "train")
    assert len(split.samples[0].boxes) == 1
    assert [problem.kind for problem in split.report.problems] == [
        *("crowd box", "duplicate row", "empty box", "unknown class")
    ]
    assert "; 1 boxes of crowds are left out" in split.report.lines()[0]
    assert split.report.problems[1].where.endswith("instances_tiny.json, annotations[2]")


@pytest.mark.parametrize(
    "values", [None, [1, 2, 3], "1 2 3 4", [1, 2, float("nan"), 4], [1, 2, 3, None], [1, 2, 10**400, 4]]
)
def test_box_without_four_numbers_leaves_the_image_out(coco, values):
    split = open_split(coco([box(values), box([1, 1, 9, 9], image=2)]), "train")
    assert [Path(sample.name).name for sample in split.samples] == ["2.jpg"]
    assert split.report.problems[0].where.endswith("annotations[0]")


def test_missing_images_and_paths_that_escape_are_reported(coco):
    names = ("1.jpg", "gone.jpg", "../../secret.jpg", "/etc/secret.jpg")
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    report = open_split(coco([], images=images), "train").report
    assert (report.found, report.images) == (4, 1)
    assert [problem.kind for problem in report.problems] == ["bad path", "bad path", "unreadable image"]


def test_other_size_scales_boxes(coco):
    config = coco([box([20, 10, 40, 80])], images=[{"id": 1, "file_name": "1.jpg", "height": 100, "width": 200}])
    split = open_split(config, "train")
    np.testing.assert_allclose(split.samples[0].boxes, [[1, 0.2, 0.5, 0.2, 0.8]], rtol=1e-6)
    assert [problem.kind for problem in split.report.problems] == ["other size"]


def test_images_option_and_its_absence(coco):
    config = coco([])
    (config.root / "images" / "tiny").rename(config.root / "photos")
    with pytest.raises(UserError, match=r"are in none of .*images/tiny.*; set options: images:"):
        open_split(config, "train")
    assert len(open_split(replace(config, options={"images": "photos"}), "train").samples) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no JSON file"),
        ("[" * 100_000, "is no JSON file"),
        ("[]", "has no list 'images'"),
        ('{"images": [3], "categories": []}', r"images\[0\] has no 'file_name'"),
        ('{"images": [], "categories": [{"id": 1}]}', r"categories\[0\] has no 'name'"),
        ('{"images": [], "annotations": 3, "categories": []}', "has no list 'annotations'"),
    ],
)
def test_what_is_no_annotation_file_is_an_error(coco, content, message):
    config = coco([])
    (config.root / "annotations" / "instances_tiny.json").write_text(content)
    with pytest.raises(UserError, match=rf"instances_tiny\.json: .*{message}"):
        open_split(config, "train")


def test_no_known_category_is_an_error(coco):
    with pytest.raises(UserError, match="has none of these classes, but cow"):
        open_split(coco([], categories=[{"id": 1, "name": "cow"}]), "train")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["bbox", "id", "image_id", "name"]), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    image=json_values,
    annotation=st.fixed_dictionaries({"image_id": json_values, "bbox": json_values, "category_id": json_values}),
    extra=st.dictionaries(st.sampled_from(["segmentation", "iscrowd"]), json_values),
)
def test_any_json_gives_samples_or_an_error(coco, image, annotation, extra):
    config = coco(
        [annotation | extra, box([1, 1, 5, 5])],
        images=[{"id": 1, "file_name": "1.jpg"}, {"id": image, "file_name": "2.jpg", "height": image, "width": image}],
    )
    try:
        split = open_split(config, "train")
    except UserError:
        return
    assert all(np.isfinite(sample.boxes).all() for sample in split.samples)


def test_the_same_boxes_as_from_yolo_labels(shared_data, tmp_path):
    """COCO128 written as COCO annotations in whole fractions of a pixel gives what its label files give."""
    config = load_data_config("coco128", shared_data / "coco128")
    yolo = open_split(config, "train")
    images, annotations = [], []
    for number, sample in enumerate(yolo.samples):
        height, width = sample.size
        images.append({"id": number, "file_name": Path(sample.name).name, "height": height, "width": width})
        for row in sample.boxes.astype(float):
            category, x, y, w, h = row
            corner = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            annotations.append({"image_id": number, "category_id": int(category) + 100, "bbox": corner})
    categories = [{"id": number + 100, "name": name} for number, name in enumerate(config.names)]
    (tmp_path / "boxes_all.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    (tmp_path / "all").symlink_to(shared_data / "coco128" / "images" / "train2017")
    coco = open_split(replace(config, format="coco", root=tmp_path, train=("boxes_all.json",)), "train")
    assert len(coco.samples) == 128
    for a, b in zip(yolo.samples, coco.samples, strict=True):
        assert Path(a.name).name == Path(b.name).name
        # Corners are clipped here, so a box that rounding let reach out of its image may differ by that rounding.
        np.testing.assert_allclose(a.boxes, b.boxes, atol=2e-6)
