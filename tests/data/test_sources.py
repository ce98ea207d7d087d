"""What all sources have in common: shipped settings, and the same boxes for the same images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from yolojax.config import configs_root
from yolojax.data.config import DataConfig
from yolojax.data.convert import convert_data
from yolojax.data.sources import load_data, open_split

COUNTS = {
    "shapes": 8,
    "shapes-pretraining": 8,
    "coco128": 80,
    "coco": 80,
    "coco-tfds": 80,
    "voc": 20,
    "voc-tfds": 20,
    "bccd": 3,
    "traffic-lights": 4,
}


def test_every_shipped_data_set_names_its_classes():
    files = sorted((configs_root() / "data").glob("*.yaml"))
    assert {file.stem for file in files} == set(COUNTS)
    for name, count in COUNTS.items():
        config = load_data(name)
        assert len(set(config.names)) == len(config.names) == count
        assert config.train
        assert config.val


def test_a_third_of_the_traffic_lights_is_held_out_in_blocks():
    # Photos of one place stand together: within a block of ten names all are on one side.
    val, test = (
        (configs_root() / "data" / f"traffic-lights-{split}.txt").read_text().split() for split in ("val", "test")
    )
    assert (len(val), len(test)) == (87, 40)
    names = sorted({*val, *test})
    assert len(names) == 127
    blocks = [names[start : start + 10] for start in range(0, 127, 10)]
    assert all(set(block) <= set(val) or set(block) <= set(test) for block in blocks)


def test_the_traffic_lights_lists_are_all_of_their_folder(shared_data):
    config = load_data("traffic-lights", shared_data / "traffic-lights")
    seen = {sample.name for split in ("val", "test") for sample in open_split(config, split).samples}
    assert seen == {str(path) for path in (shared_data / "traffic-lights" / "images" / "val").iterdir()}


def test_variants_have_the_classes_of_their_data_set():
    assert load_data("coco").names == load_data("coco128").names == load_data("coco-tfds").names
    assert load_data("voc").names == load_data("voc-tfds").names == tuple(sorted(load_data("voc").names))


def test_voc_is_composed_as_in_the_original():
    images = {
        "VOC2007/train": 2501,
        "VOC2007/val": 2510,
        "VOC2012/train": 5717,
        "VOC2012/val": 5823,
        "VOC2007/test": 4952,
    }
    config = load_data("voc")
    assert sum(images[entry] for entry in config.train) == 16_551
    assert sum(images[entry] for entry in config.val) == 4952
    together = [f"{entry.replace('VOC', 'voc/').rpartition('/')[0]}" for entry in config.train]
    assert {entry.rpartition("/")[0] for entry in load_data("voc-tfds").train} == set(together)
    assert load_data("voc-tfds").val == ("voc/2007/test",)


def test_the_same_images_have_the_same_boxes_in_every_source(yolo_folder, tmp_path):
    rng = np.random.default_rng(0)
    rows = {}
    for number in range(6):
        low, high = (
            np.sort(rng.integers(0, 64, (2, number, 2)), 0) / 64
        )  # whole pixels of 64, which every layout can hold
        keep = (high > low).all(1)
        boxes = np.concatenate([(low + high) / 2, high - low], 1)[keep].tolist()
        rows[f"{number}.png"] = [f"{place % 2} {' '.join(map(repr, box))}" for place, box in enumerate(boxes)]
    yolo = yolo_folder(rows, size=(64, 64))
    expected = boxes_by_name(yolo)
    assert sum(map(len, expected.values())) > 8
    for layout in ("voc", "coco"):
        converted = boxes_by_name(load_data(str(convert_data(yolo, tmp_path / layout, layout).file)))
        assert_equal(converted, expected)
    assert_equal(boxes_by_name(prepared_for_tensorflow(yolo, tmp_path / "tfds")), expected)


def boxes_by_name(config: DataConfig) -> dict[str, np.ndarray]:
    names = [(sample.name.rpartition("(")[2].rstrip(")"), sample) for sample in open_split(config, "train").samples]
    return {Path(name).name: sample.boxes for name, sample in names}


def assert_equal(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name, boxes in first.items():
        np.testing.assert_array_equal(boxes, second[name], err_msg=name)


def prepared_for_tensorflow(config: DataConfig, home: Path) -> DataConfig:
    """The images and boxes of a data set, prepared as a data set of TensorFlow Datasets."""
    tfds = pytest.importorskip("tensorflow_datasets")
    described = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "image/filename": tfds.features.Text(),
        "objects": tfds.features.Sequence(
            {"bbox": tfds.features.BBoxFeature(), "label": tfds.features.ClassLabel(names=list(config.names))}
        ),
    }

    class Pets(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(described))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for sample in open_split(config, "train").samples:
                objects = []
                for category, x, y, width, height in sample.boxes.astype(float).tolist():
                    box = tfds.features.BBox(y - height / 2, x - width / 2, y + height / 2, x + width / 2)
                    objects.append({"bbox": box, "label": int(category)})
                name = Path(sample.name).name
                yield name, {"image": sample.name, "image/filename": name, "objects": objects}

    Pets(data_dir=str(home), file_format="array_record").download_and_prepare()
    return load_data(f"tfds:{home}/pets")


def test_a_split_can_be_made_of_several_entries(yolo_folder):
    config = yolo_folder({"a.png": ["0 0.5 0.5 0.5 0.5"], "sub/b.png": []})
    split = open_split(replace(config, train=("images/train/sub", "images/train/a.png")), "train")
    assert [Path(sample.name).name for sample in split.samples] == ["a.png", "b.png"]
