"""``yolojax val``, end to end: with a network that sees coloured rectangles, with a random one, and with the real one on real photos."""

import json
import shutil

import cv2
import jax
import numpy as np
import pytest

from yolojax.cli.main import main
from yolojax.inference import validation
from yolojax.model.network import init_variables
from yolojax.model.spec import load_spec
from yolojax.weights.store import Weights, save_weights

CLASSES = ("red", "green", "blue")
SIZES = ((90, 120), (120, 80), (100, 100), (60, 128), (128, 60))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Grey photos of several shapes, with one rectangle of each colour; the last photo shows nothing."""
    folder = tmp_path_factory.mktemp("rectangles")
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for number, (height, width) in enumerate(SIZES):
        image = np.full((height, width, 3), 128, np.uint8)
        lines = []
        for label in range(3 if number < len(SIZES) - 1 else 0):
            x1, y1 = 4 + label * width // 3, 8 + 10 * label
            x2, y2 = x1 + width // 4, y1 + height // 3
            image[y1:y2, x1:x2] = np.eye(3)[label] * 255
            box = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
            lines.append(f"{label} " + " ".join(f"{value:.6f}" for value in box))
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image[..., ::-1])
        (folder / "labels" / f"{number}.txt").write_text("\n".join(lines))
    file = folder / "rectangles.yaml"
    file.write_text(f"path: .\ntrain: images\nval: images\nnames: [{', '.join(CLASSES)}]\ndefaults: {{img: 128}}\n")
    return file


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights for three classes."""
    spec = load_spec("yolov5n", classes=3)
    variables = jax.tree.map(np.asarray, init_variables(spec, jax.random.key(0)))
    folder = tmp_path_factory.mktemp("weights") / "random"
    save_weights(folder, Weights(spec=spec, names=CLASSES, variables=variables, source={"file": "random.pt"}))
    return folder


@pytest.fixture
def val(data, weights, tmp_path, monkeypatch, sees_colours, contents):
    """Run the command in an empty folder; gives status, figures and run folder. No file that is there is ever changed."""
    monkeypatch.chdir(tmp_path)
    file, runs = tmp_path / "figures.json", tmp_path / "runs"

    def run(*words: str, real: bool = False):
        if not real:
            monkeypatch.setattr(validation, "make_predict", sees_colours)
        flags = ["--data", str(data), "--weights", str(weights), "--device", "cpu", "--json", "figures.json"]
        before = contents(tmp_path, data.parent, weights)
        before = {path: facts for path, facts in before.items() if path != file and runs not in path.parents}
        status = main(["val", *flags, *words])
        assert before.items() <= contents(tmp_path, data.parent, weights).items()
        return status, json.loads(file.read_text()) if file.exists() else None, runs / "val" / "exp"

    return run


def test_figures_of_a_perfect_network(val, capsys):
    status, figures, folder = val("--batch", "2")
    assert status == 0
    assert figures["map50"] == pytest.approx(0.995)
    assert figures["map50_95"] > 0.9  # not all edges survive the resizing to the pixel
    assert (figures["precision"], figures["recall"]) == pytest.approx((1, 1))
    assert (figures["images"], figures["instances"]) == (5, 12)
    assert [row["name"] for row in figures["per_class"]] == list(CLASSES)
    assert set(figures["speed_ms"]) == {"preprocess", "inference", "nms"}
    assert figures["settings"]["image_size"] == 128  # the data set's own default
    assert json.loads((folder / "results.json").read_text()) == figures
    printed = capsys.readouterr().out
    for text in (
        "mAP50-95",
        "green",
        "0.9950",
        "random on ",
        "rectangles.yaml (val), 128 px, rectangular, batch 2",
        "confidence > 0.001",
        "NMS IoU 0.6",
    ):
        assert text in " ".join(printed.split())


def test_the_record_says_what_was_measured(val, data, weights):
    words = ("--max-det", "1", "--conf", "0.01", "--iou", "0.7", "--half", "--task", "train", "--batch", "5")
    _, figures, _ = val("--noplots", *words)
    assert figures["settings"] == {
        "weights": [str(weights)], "data": str(data), "split": "train", "image_size": 128, "rectangular": True, "most_shapes": None, "batch_size": 5,
        "confidence": 0.01, "iou": 0.7, "max_detections": 1, "multi_label": True, "single_class": False, "augment": False,
        "dtype": "bfloat16",
    }  # fmt: skip
    assert [row["recall"] for row in figures["per_class"]] == pytest.approx([1, 0, 0])  # red is the surest of three


def test_the_table_of_many_classes_is_shown_where_asked(val, capsys, monkeypatch):
    monkeypatch.setattr("yolojax.cli.val.MANY_CLASSES", 3)
    val("--noplots")
    assert "green" not in capsys.readouterr().out
    val("--noplots", "--verbose")
    assert "green" in capsys.readouterr().out


def test_figures(val):
    _, _, folder = val("--batch", "2")
    curves = {f"{name}_curve.png" for name in ("PR", "P", "R", "F1")}
    sheets = {f"val_batch{number}_{kind}.jpg" for number in range(3) for kind in ("labels", "pred")}
    assert {file.name for file in folder.iterdir()} == {*curves, *sheets, "confusion_matrix.png", "results.json"}
    for name in (*curves, *sheets, "confusion_matrix.png"):
        figure = cv2.imread(str(folder / name))
        assert min(figure.shape[:2]) > 100
        assert np.ptp(figure) > 100


def test_noplots_and_the_next_folder(val):
    for _ in range(2):
        _, _, folder = val("--noplots")
    assert [file.name for file in folder.iterdir()] == ["results.json"]
    assert (folder.parent / "exp2").is_dir()


def test_save_txt_gives_the_labels_back(val, data):
    _, _, folder = val("--noplots", "--save-txt", "--save-conf")
    for number in range(len(SIZES)):
        expected = np.loadtxt(data.parent / "labels" / f"{number}.txt", ndmin=2) if number < 4 else np.zeros((0, 5))
        rows = np.array(
            [line.split() for line in (folder / "labels" / f"{number}.txt").read_text().splitlines()], float
        )
        assert len(rows) == len(expected)
        if len(expected):
            np.testing.assert_array_equal(rows[:, 0], expected[:, 0])
            np.testing.assert_allclose(rows[:, 1:5], expected[:, 1:], atol=0.02)
            np.testing.assert_allclose(rows[:, 5], [0.9, 0.8, 0.7], rtol=1e-6)


def test_save_json_and_coco_figures(val, data, tmp_path):
    _, figures, folder = val("--noplots", "--save-json")
    results = json.loads((folder / "predictions.json").read_text())
    assert len(results) == 12
    assert {result["image_id"] for result in results} == {0, 1, 2, 3}
    assert results[0].keys() == {"image_id", "category_id", "bbox", "score"}
    assert figures["coco_map50"] == pytest.approx(1)
    if "official_tool" in figures:
        assert figures["official_map50_95"] == pytest.approx(figures["coco_map50_95"], abs=1e-6)


def test_names_that_are_no_numbers_are_in_the_results(val, data, tmp_path, capsys):
    """``007`` and ``7`` stay apart, and so do files of one name in two folders; labels too."""
    names = ("007.png", "7.png", "a/x.png", "b/x.png")
    for number, name in enumerate(names):
        for part, suffix in (("images", ".png"), ("labels", ".txt")):
            file = (tmp_path / "own" / part / name).with_suffix(suffix)
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(data.parent / part / f"{number}{suffix}", file)
    yaml = tmp_path / "own.yaml"
    yaml.write_text(data.read_text().replace("path: .", "path: own"))
    status, figures, folder = val("--noplots", "--save-json", "--save-txt", "--data", str(yaml))
    assert status == 0
    assert "image_id counts from 1; see file_name" in capsys.readouterr().out
    results = json.loads((folder / "predictions.json").read_text())
    pairs = {(result["image_id"], result["file_name"]) for result in results}
    assert {file_name for _, file_name in pairs} == set(names)
    assert sorted(identity for identity, _ in pairs) == [1, 2, 3, 4]
    assert sorted(file.name for file in (folder / "labels").iterdir()) == ["007.txt", "7.txt", "x.txt", "x_2.txt"]
    assert figures["coco_map50"] == pytest.approx(1)


def test_without_one_box_there_is_nothing_to_measure(val, data, tmp_path, capsys):
    shutil.copytree(data.parent / "images", tmp_path / "own" / "images")
    yaml = tmp_path / "own.yaml"
    yaml.write_text(data.read_text().replace("path: .", "path: own"))
    status, figures, folder = val("--save-json", "--data", str(yaml))
    assert status == 0
    out = capsys.readouterr().out
    assert "val: not one box" in out
    assert "not one of these images has a box: nothing to measure precision, recall and mAP with" in out
    assert "all 5 0 - - - -" in " ".join(out.replace("│", " ").split())
    assert "AP as COCO defines it: mAP50 -, mAP50-95 -" in out
    for name in ("precision", "recall", "map50", "map50_95", "coco_map50", "coco_map50_95"):
        assert figures[name] is None
    assert json.loads((folder / "results.json").read_text()) == figures
    assert (folder / "PR_curve.png").is_file()


def test_a_threshold_that_spoils_the_figures_is_told(val, capsys):
    assert val("--noplots", "--conf-thres", "0.25")[0] == 0
    assert "--conf-thres 0.25: the curves end where detections are cut off" in " ".join(capsys.readouterr().out.split())
    for words in ([], ["--conf-thres", "0.0005"], ["--task", "speed"]):
        val("--noplots", *words)
        assert "the curves end" not in capsys.readouterr().out


def test_weights_of_one_class_say_what_to_do(val, data, tmp_path, capsys, monkeypatch):
    spec = load_spec("yolov5n", classes=1)
    variables = jax.tree.map(np.asarray, init_variables(spec, jax.random.key(0)))
    save_weights(tmp_path / "one", Weights(spec=spec, names=("item",), variables=variables, source={}))
    words = ("--noplots", "--weights", str(tmp_path / "one"), "--task", "speed")
    assert val(*words, real=True)[0] == 2
    error = capsys.readouterr().err
    assert "one has 1 class, but" in error
    assert "names 3; give --single-cls if they were trained with it, else choose the data set" in error
    assert val(*words, "--single-cls", real=True)[0] == 0


def test_annotations_of_others(val, tmp_path):
    pytest.importorskip("pycocotools")
    val("--noplots", "--save-json")  # what the labels give
    images = [{"id": 50 + number, "file_name": f"{number}.png"} for number in range(len(SIZES))]
    categories = [{"id": 10 - label, "name": name} for label, name in enumerate(CLASSES)]
    box = {
        "id": 1,
        "image_id": 51,
        "category_id": 10,
        "bbox": [4, 8, 20, 40],
        "area": 800,
        "iscrowd": 0,
    }  # red, in 1.png
    file = tmp_path / "annotations.json"
    content = json.dumps({"info": {}, "images": images, "annotations": [box], "categories": categories})
    file.write_text(content, encoding="utf-8-sig")  # with a byte order mark, as some programs write it
    status, figures, _ = val("--noplots", "--save-json", "--annotations", str(file))
    assert status == 0
    assert figures["official_map50"] > 0.2  # one of four detections of that class is right, and not the first


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_annotations_that_are_none(val, tmp_path, content):
    file = tmp_path / "annotations.json"
    file.write_text(content)
    status, _, folder = val("--noplots", "--save-json", "--annotations", str(file))
    assert status == 2
    assert not folder.exists()


def test_single_class(val):
    _, figures, _ = val("--noplots", "--single-cls")
    assert [row["name"] for row in figures["per_class"]] == ["item"]
    assert figures["instances"] == 12
    assert figures["map50"] == pytest.approx(0.995)


def test_speed_takes_square_images_and_the_thresholds_of_detection(val):
    _, figures, _ = val("--noplots", "--task", "speed", "--img", "64")
    settings = figures["settings"]
    assert (settings["rectangular"], settings["confidence"], settings["iou"]) == (False, 0.25, 0.45)


def test_study(val, monkeypatch):
    monkeypatch.setattr("yolojax.cli.val.STUDY_SIZES", (64, 128))
    status, figures, folder = val("--task", "study")
    assert status == 0
    assert [row["image_size"] for row in figures["study"]] == figures["settings"]["image_size"] == [64, 128]
    assert {file.name for file in folder.iterdir()} == {"study.csv", "study.png", "results.json"}
    assert (folder / "study.csv").read_text().startswith("image_size,precision,recall,map50,map50_95,preprocess_ms")


def test_random_weights_find_nothing(val):
    status, figures, _ = val("--noplots", "--img", "64", "--batch", "5", "--task", "speed", real=True)
    assert status == 0
    assert figures["map50"] < 0.1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--img", "100"], "100 is not a multiple of the stride 32: 128 is used"),
        (["--batch", "0"], "--batch-size 0: must be at least 1"),
        (["--conf-thres", "1.5"], "--conf-thres 1.5: must be from 0 to 1"),
        (["--weights", "nowhere.pt"], "nowhere.pt"),
        (["--data", "nowhere.yaml"], "nowhere"),
        (["--task", "test"], "key 'test'"),
        (["--save-hybrid"], "--save-hybrid: mixes labels into the predictions"),
        (["--dnn"], "--dnn has no effect"),
        (["--device", "99"], "--device 99"),
    ],
)
def test_messages(val, capsys, words, message):
    status, _, folder = val("--noplots", *words)
    captured = capsys.readouterr()
    assert message in captured.out + captured.err
    if "is used" in message or "no effect" in message:
        assert status == 0
    else:
        assert status == 2
        assert captured.err.startswith("yolojax val: ")
        assert len(captured.err.splitlines()) == 1
        assert not folder.exists()


def test_weights_of_other_classes(val, data, tmp_path, capsys):
    other = tmp_path / "other.yaml"
    other.write_text(data.read_text().replace("path: .", f"path: {data.parent}").replace(", blue", ""))
    assert val("--data", str(other))[0] == 2
    assert "random has 3 classes" in capsys.readouterr().err


def test_classes_of_other_names_are_told(val, data, tmp_path, capsys):
    other = tmp_path / "other.yaml"
    other.write_text(data.read_text().replace("path: .", f"path: {data.parent}").replace("blue", "azure"))
    assert val("--noplots", "--data", str(other))[0] == 0
    assert "'blue', not 'azure'" in capsys.readouterr().out


# The original's figures on the same photos: yolov5==7.0.14, float32, batch 8, rectangular batches.
ORIGINAL = {640: (0.610881, 0.416038, 0.468320, 0.311636), 320: (0.622634, 0.360772, 0.422598, 0.281068)}


@pytest.mark.parametrize("size", [pytest.param(320, marks=pytest.mark.long), pytest.param(640, marks=pytest.mark.slow)])
def test_real_weights_on_real_photos(shared_data, tmp_path, monkeypatch, size):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    flags = [
        "--weights",
        str(shared_data / "weights" / "yolov5n.pt"),
        "--data",
        str(shared_data / "coco128" / "coco128.yaml"),
    ]
    assert main(["val", *flags, "--img", str(size), "--batch", "8", "--noplots", "--json", "figures.json"]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["images"], figures["instances"]) == (128, 929)
    measured = [figures[name] for name in ("precision", "recall", "map50", "map50_95")]
    assert measured == pytest.approx(ORIGINAL[size], abs=0.001)
