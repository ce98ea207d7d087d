"""Data sets of TensorFlow Datasets, prepared by the tests from files, without TensorFlow."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest

from yolojax.cli.main import main
from yolojax.data.batches import StreamSettings
from yolojax.data.sources import load_data, open_split
from yolojax.data.stream import training_stream
from yolojax.errors import UserError
from yolojax.hyperparameters import Hyperparameters
from yolojax.model.network import init_variables
from yolojax.model.spec import load_spec
from yolojax.training.loop import train
from yolojax.training.report import read_results
from yolojax.training.settings import TrainSettings
from yolojax.weights.store import Weights, save_weights

tfds = pytest.importorskip("tensorflow_datasets")


def builder_like(name: str, objects: dict[str, Any], mark: str):
    """A builder with the features of ``voc`` or ``coco``: five training images and three for testing, with 0 to 2 boxes each."""

    def features(self):
        described = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image/filename": tfds.features.Text(),
            "objects": tfds.features.Sequence(objects),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(described))

    def examples(self, folder: Path, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for number in range(count):
            path = folder / f"{number}.png"
            cv2.imwrite(str(path), np.full((40, 60, 3), 40 * number, np.uint8))
            rows = [
                {"bbox": tfds.features.BBox(0.1, 0.2, 0.5, 0.8 - row / 8), "label": number % 2, mark: row == 1}
                for row in range(number % 3)
            ]
            yield number, {"image": str(path), "image/filename": path.name, "objects": rows}

    def splits(self, manager) -> dict[str, Any]:
        folder = Path(self.data_dir).parent / "images"
        folder.mkdir(parents=True, exist_ok=True)
        return {"train": examples(self, folder, 5), "test": examples(self, folder, 3)}

    members = {
        "VERSION": tfds.core.Version("1.2.0"),
        "_info": features,
        "_split_generators": splits,
        "_generate_examples": examples,
    }
    return type(name, (tfds.core.GeneratorBasedBuilder,), members)


def marked(mark: str) -> dict[str, Any]:
    labels = tfds.features.ClassLabel(names=["cat", "dog"])
    return {"bbox": tfds.features.BBoxFeature(), "label": labels, mark: np.bool_}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("tfds")
    for name, mark in (("LikeVoc", "is_difficult"), ("LikeCoco", "is_crowd")):
        builder_like(name, marked(mark), mark)(data_dir=str(home), file_format="array_record").download_and_prepare()
    return home


@pytest.fixture(autouse=True)
def data_dir(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))


@pytest.mark.parametrize("name", ["like_voc", "like_coco"])
def test_boxes_and_images(name):
    config = load_data(f"tfds:{name}")
    assert (config.names, config.train, config.val) == (("cat", "dog"), ("train",), ("test",))
    split = open_split(config, "train")
    assert (split.report.found, split.report.images) == (5, 5)
    (problem,) = split.report.problems  # not used by design, and named all the same
    assert problem.kind == {"like_voc": "difficult box", "like_coco": "crowd box"}[name]
    assert not problem.left_out
    for sample in split.samples:
        number = int(sample.name.partition("(")[2].partition(".")[0])
        expected = [[number % 2, 0.5, 0.3, 0.6, 0.4]] * min(number % 3, 1)
        np.testing.assert_allclose(sample.boxes, np.array(expected).reshape(-1, 5), rtol=1e-6)
        assert sample.size == (40, 60)
        assert (sample.load() == 40 * number).all()
    assert "tensorflow" not in sys.modules


def test_marked_boxes_are_kept_when_asked_for():
    config = replace(load_data("tfds:like_voc"), options={"difficult": True})
    assert open_split(config, "train").report.boxes == 4


def test_a_folder_and_split_expressions(prepared):
    config = load_data(f"tfds:{prepared}/like_voc/1.2.0[train[:40%]+test,test[:1]]")
    assert len(open_split(config, "train").samples) == 5
    assert len(open_split(config, "val").samples) == 1


def test_another_place_can_be_given(prepared, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert load_data("tfds:like_voc", prepared).root == prepared / "like_voc" / "1.2.0"


@pytest.mark.parametrize("name", ["like_voc", "like_coco"])
def test_a_training_epoch_with_workers(name):
    samples = open_split(load_data(f"tfds:{name}"), "train").samples
    stream = training_stream(samples, Hyperparameters(), StreamSettings(image_size=64, batch_size=2, epochs=2))
    plain = list(islice(stream.iterate(), 3))
    assert set(range(5)) == {int(index) for batch in plain for index in batch.indices}
    if name == "like_voc":
        for a, b in zip(plain, islice(stream.iterate(workers=1), 3), strict=True):
            np.testing.assert_array_equal(a.batch.images, b.batch.images)
    stream.close()


@pytest.fixture
def composed(tmp_path) -> Path:
    """A YAML of both data sets."""
    file = tmp_path / "pets.yaml"
    entries = "train: [like_voc/train+test, like_coco/train]\nval: like_coco/test[:2]\n"
    file.write_text(f"format: tfds\n{entries}names: [cat, dog]\n")
    return file


def test_a_yaml_composes_data_sets_as_the_shipped_one_does(composed):
    config = load_data(str(composed))
    assert [len(open_split(config, split).samples) for split in ("train", "val")] == [13, 2]
    with pytest.raises(UserError, match="holds no prepared data set"):
        open_split(replace(config, train=("train",)), "train")  # of no data set: the YAML has no path


@pytest.mark.long
def test_a_network_trains_an_epoch_on_both(composed, tiny_model, tmp_path):
    fixed = {"weights": "", "cfg": str(tiny_model), "imgsz": 64, "batch_size": 4, "workers": 0, "noplots": True}
    results = train(TrainSettings(**fixed, data=str(composed), epochs=1, freeze=("2",), project=str(tmp_path)))
    assert (results["epochs"], results["train_images"], results["unreadable_images"]) == (1, 13, [])
    losses = read_results(Path(results["run"]) / "results.csv")[0]
    assert all(losses[f"{split}/{part}_loss"] > 0 for split in ("train", "val") for part in ("box", "obj", "cls"))
    assert "tensorflow" not in sys.modules


@pytest.mark.long
@pytest.mark.parametrize("command", ["val", "bench"])
def test_commands_that_measure_take_it(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    spec = load_spec("yolov5n", classes=2)
    variables = jax.tree.map(np.asarray, init_variables(spec, jax.random.key(0)))
    save_weights(tmp_path / "w", Weights(spec=spec, names=("cat", "dog"), variables=variables, source={}))
    own = {"val": ["--noplots", "--save-json"], "bench": ["--include", "float32"]}[command]
    flags = ["--weights", "w", "--data", "tfds:like_voc", "--img", "64", "--device", "cpu", "--json", "figures.json"]
    assert main([command, *flags, *own]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["images"] == 3
    assert figures["settings"]["data"] == "tfds:like_voc"
    assert "w on tfds:like_voc (val" in " ".join(capsys.readouterr().out.split())


def test_a_format_without_random_access_says_what_to_run(prepared, tmp_path):
    folder = shutil.copytree(prepared / "like_voc" / "1.2.0", tmp_path / "like_voc" / "1.2.0")
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    for file in folder.glob("*array_record*"):
        file.rename(file.with_name(file.name.replace("array_record", "tfrecord")))
    with pytest.raises(
        UserError, match=r"without random access; prepare it where TensorFlow is installed \('tfds build"
    ):
        open_split(load_data(f"tfds:{folder}"), "train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dataset_info.json", b"", "is no prepared data set that can be read"),
        ("dataset_info.json", b"\xff", "is no prepared data set that can be read"),
        ("features.json", b"{}", "is no prepared data set that can be read"),
        (
            "like_voc-train.array_record-00000-of-00001",
            b"",
            "no usable image; .*example 0: cannot be read from its record",
        ),
        (
            "like_voc-train.array_record-00000-of-00001",
            None,
            "no usable image; .*example 0: cannot be read from its rec",
        ),
    ],
)
def test_a_damaged_data_set_is_an_error_that_names_it(prepared, tmp_path, name, content, message):
    folder = shutil.copytree(prepared / "like_voc" / "1.2.0", tmp_path / "1.2.0")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_split(load_data(f"tfds:{folder}"), "train")


def test_a_cut_record_leaves_its_images_out(prepared, tmp_path):
    folder = shutil.copytree(prepared / "like_voc" / "1.2.0", tmp_path / "1.2.0")
    file = folder / "like_voc-train.array_record-00000-of-00001"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="cannot be read from its record"):
        open_split(load_data(f"tfds:{folder}"), "train")


def test_what_is_not_prepared_says_what_to_run(tmp_path):
    with pytest.raises(
        UserError, match=r"tfds:coco/2017: .* holds no prepared data set; prepare it where TensorFlow is installed"
    ):
        load_data("tfds:coco/2017")
    with pytest.raises(UserError, match="holds no prepared data set"):
        load_data(f"tfds:{tmp_path}")


def test_several_data_sets_in_a_folder_have_to_be_chosen_from(prepared):
    with pytest.raises(UserError, match=r"choose one of .*like_coco, .*like_voc"):
        load_data(f"tfds:{prepared}")


def test_other_classes_and_splits_are_errors():
    config = load_data("tfds:like_voc")
    with pytest.raises(UserError, match="has none of these classes, but cat, dog"):
        open_split(replace(config, names=("cow",)), "train")
    with pytest.raises(UserError, match="'nonsense' is no split of"):
        open_split(replace(config, train=("nonsense",)), "train")
    assert open_split(replace(config, names=("dog",)), "train").report.boxes == 1
