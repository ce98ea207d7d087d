import json
import shutil

import pytest

from yolojax.cli.main import main

# Parameters, and those that train at --freeze 10 and 24, for 20 classes.
COUNTS = {"yolov5n": (1_790_977, 744_609, 33_825), "yolov5m": (20_948_097, 8_780_193, 101_025)}


def freeze(tmp_path, *words: str) -> dict:
    file = tmp_path / "freeze.json"
    assert main(["freeze", *words, "--json", str(file)]) == 0
    return json.loads(file.read_text())


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("depth", [0, 10, 24])
def test_the_counts_of_the_original(tmp_path, capsys, name, depth):
    report = freeze(tmp_path, "--cfg", name, "--nc", "20", "--freeze", str(depth))
    parameters, ten, all_but_detect = COUNTS[name]
    trainable = {0: parameters, 10: ten, 24: all_but_detect}[depth]
    assert (report["parameters"], report["trainable"]) == (parameters, trainable)
    assert f"{trainable:,} of {parameters:,}" in capsys.readouterr().out
    rows = report["layers"]
    assert [row["layer"] for row in rows] == list(range(25))
    assert [rows[k]["module"] for k in (0, 2, 9, 11, 12, 24)] == ["Conv", "C3", "SPPF", "Upsample", "Concat", "Detect"]
    assert all(row["trainable"] == (0 if row["layer"] < depth else row["parameters"]) for row in rows)
    assert {row["bn_mode"] for row in rows[:depth]} <= {"fixed", None}
    assert {row["bn_mode"] for row in rows[depth:]} <= {"train", None}


def test_track_is_told(tmp_path, capsys):
    report = freeze(tmp_path, "--cfg", "yolov5n", "--freeze", "10", "--frozen-bn", "track")
    assert [row["bn_mode"] for row in report["layers"][8:11]] == ["track", "track", "train"]
    assert "as YOLOv5 does" in capsys.readouterr().out


def test_every_parameter_is_listed(tmp_path, capsys):
    report = freeze(tmp_path, "--cfg", "yolov5n", "--freeze", "0", "2", "--list")
    lines = capsys.readouterr().out.splitlines()
    assert "frozen     model_0/conv/kernel 6x6x3x16" in lines
    assert "trainable  model_24/m_2/bias 255" in lines
    listed = [line.split()[1] for line in lines if line.startswith(("frozen ", "trainable "))]
    assert len(listed) == 177
    assert report["frozen_paths"] == [path for path in listed if path.startswith(("model_0/", "model_2/"))]


def test_the_phases_of_a_strategy(tmp_path, capsys):
    report = freeze(tmp_path, "--cfg", "yolov5n", "--freeze", "gradual", "--epochs", "20")
    assert [phase["start"] for phase in report["phases"]] == [0, 3, 5, 8, 10]
    assert report["phases"][-1]["trainable"] == report["parameters"]
    assert report["trainable"] == report["phases"][0]["trainable"] < report["parameters"] / 10
    assert "phases of 20 epochs" in capsys.readouterr().out


def test_adapters_count_as_parameters(tmp_path):
    plain = freeze(tmp_path, "--cfg", "yolov5n", "--freeze", "24")
    adapted = freeze(tmp_path, "--cfg", "yolov5n", "--freeze", "adapters")
    added = adapted["parameters"] - plain["parameters"]
    assert 0 < added == adapted["trainable"] - plain["trainable"] < plain["parameters"] / 10
    assert not any("adapter" in path for path in adapted["frozen_paths"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cfg", "yolov5n", "--freeze", "30"], "yolojax freeze: --freeze 30: yolov5n has layers 0 to 24"),
        (["--cfg", "yolov5n", "--freeze", "25"], "yolojax freeze: --freeze 25 leaves nothing to train"),
        (["--cfg", "yolov5n", "--freeze", "backbon"], "did you mean 'backbone'"),
        (["--cfg", "yolov5z"], "yolov5z"),
        (["--cfg", "yolov5n", "--nc", "0"], "--nc 0: must be at least 1"),
        (["--weights", "nowhere.pt"], "nowhere.pt"),
        (["--weights", "", "--freeze", "10"], "--weights '': names no network; add --cfg yolov5n"),
        (["--cfg", "yolov5n", "--freeze", "120%"], "--freeze 120%: a share is below 100%"),
        (["--cfg", "yolov5n", "--freeze", "5", "50%"], "'50%', a share of the parameters, stands alone"),
        (["--cfg", "yolov5n", "--freeze", "[0,", "1"], "--freeze [0, 1"),
        (["--cfg", "yolov5n", "--freeze", "3-1"], "'3-1' is no layer or range of layers"),
        (["--cfg", "yolov5n", "--freeze", "model.99."], "'model.99.' matches no parameter of yolov5n"),
        (["--distance"], "--distance: needs photos; add --data"),
        (["--cfg", "yolov5n", "--distance", "--data", "shapes"], "--distance: is one of weights; leave --cfg out"),
        (["--data", "shapes"], "--data shapes: is read with --distance alone; add it"),
        (["--distance", "--data", "nowhere"], "nowhere"),
        (["--distance", "--data", "shapes", "--img", "0"], "--img 0: must be at least 1"),
    ],
)
def test_a_mistake_is_one_line(capsys, words, message):
    assert main(["freeze", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_real_weights(tmp_path, shared_data):
    pytest.importorskip("torch")
    report = freeze(tmp_path, "--weights", str(shared_data / "weights" / "yolov5n.pt"), "--freeze", "10")
    assert report["parameters"] == 1_872_157
    assert len(report["frozen_paths"]) == 99


def test_the_distance_of_photos(tmp_path, capsys):
    words = ("--distance", "--data", "shapes", "--img", "64")
    own = freeze(tmp_path, "--freeze", "10", *words)
    shown = " ".join(capsys.readouterr().out.split())
    distances = [row["distance"] for row in own["layers"]]
    assert [layer for layer, distance in enumerate(distances) if distance is None] == [11, 12, 15, 16, 19, 22, 24]
    assert all(distance > 0 for distance in distances if distance is not None)
    assert f"{distances[0]:.3f}" in shown
    assert "in running deviations" in shown
    assert "distance" not in freeze(tmp_path, "--freeze", "10")["layers"][0]


def test_photos_of_which_none_can_be_read(tmp_path, tiny_data, capsys):
    shutil.copytree(tiny_data.parent, tmp_path / "data")
    for file in (tmp_path / "data" / "images" / "train").iterdir():  # behind their headers
        content = file.read_bytes()
        file.write_bytes(content[:60] + bytes(len(content) - 80) + content[-20:])
    data = tmp_path / "squares.yaml"
    data.write_text("path: data\ntrain: images/train\nval: images/val\nnames: [blue, red]\n")
    assert main(["freeze", "--distance", "--data", str(data), "--img", "64"]) == 2
    assert capsys.readouterr().err.endswith(f"{data}: not one photo of its train split can be read\n")


def test_the_embedded_weights_are_the_default(tmp_path):
    assert freeze(tmp_path, "--freeze", "10")["network"] == "yolov5n"


def test_a_share_of_the_parameters(tmp_path, capsys):
    figures = freeze(tmp_path, "--cfg", "yolov5n", "--nc", "20", "--freeze", "95%")
    held = [sum(row["parameters"] for row in figures["layers"][: k + 1]) for k in range(25)]
    count = sum(row["trainable"] == 0 and row["parameters"] > 0 for row in figures["layers"])
    assert count  # the frozen ones are the first ones
    frozen = figures["parameters"] - figures["trainable"]
    assert frozen == max(value for value in held if value <= 0.95 * figures["parameters"])
    assert "--freeze 95%" in capsys.readouterr().out


def test_a_list_without_quotes(tmp_path):
    words = freeze(tmp_path, "--cfg", "yolov5n", "--freeze", "[0,", "1,", "2]")
    assert words["frozen_paths"] == freeze(tmp_path, "--cfg", "yolov5n", "--freeze", "3")["frozen_paths"]


@pytest.mark.parametrize(
    ("words", "random", "reason"),
    [
        (["--nc", "3", "--freeze", "detect"], "model_24", "yolov5n-shapes has no arrays of their shape"),
        (["--nc", "3", "--freeze", "neck_only"], "model_24", "has no arrays of their shape"),
        (["--nc", "3", "--freeze", "24"], None, ""),
        (["--freeze", "detect"], None, ""),
        (["--nc", "3", "--freeze", "head"], "model_24", "has no arrays of their shape"),
        (["--nc", "3", "--freeze", "adapters"], None, ""),
        (["--nc", "3", "--freeze", "bias_only"], None, ""),
    ],
)
def test_random_layers_that_are_frozen_are_shown(tmp_path, capsys, words, random, reason):
    figures = freeze(tmp_path, "--weights", "yolov5n-shapes", *words)
    output = " ".join(capsys.readouterr().out.split())
    assert {path.split("/")[0] for path in figures["frozen_random_paths"]} == ({random} if random else set())
    assert ("start from random numbers" in output or "starts from random numbers" in output) == bool(random)
    assert reason in output


@pytest.mark.parametrize(
    ("freeze_words", "random"),
    [(["10"], range(10)), (["not:detect"], range(24)), (["bn_only"], range(24)), (["0"], [])],
)
def test_without_weights_all_that_is_frozen_is_random(tmp_path, capsys, freeze_words, random):
    figures = freeze(tmp_path, "--weights", "", "--cfg", "yolov5n", "--freeze", *freeze_words)
    assert {int(path.split("/")[0][6:]) for path in figures["frozen_random_paths"]} <= set(random)
    assert bool(figures["frozen_random_paths"]) == bool(random)
    output = " ".join(capsys.readouterr().out.split())
    assert ("start from random numbers (there are no weights to start from)" in output) == bool(random)


def test_a_network_that_differs_from_the_weights(tmp_path, capsys):
    figures = freeze(tmp_path, "--weights", "yolov5n-shapes", "--cfg", "yolov5s", "--freeze", "10")
    random = figures["frozen_random_paths"]
    assert "model_0/conv/kernel" in random
    assert {int(path.split("/")[0][6:]) for path in random} <= set(range(10))
