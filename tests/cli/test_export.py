"""``yolojax export``."""

import importlib.util
import json
import shutil

import jax
import numpy as np
import pytest

from yolojax.cli.main import main
from yolojax.inference import export, roundtrip
from yolojax.model.network import init_variables
from yolojax.model.spec import load_spec
from yolojax.weights.store import Weights, save_weights


@pytest.fixture(scope="module")
def tiny(tiny_model, tmp_path_factory):
    """Weights of a network that is quickly compiled."""
    spec = load_spec(tiny_model)
    variables = jax.tree.map(np.asarray, init_variables(spec, jax.random.key(0)))
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    save_weights(folder, Weights(spec=spec, names=("a", "b"), variables=variables, source={}))
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*words):
        status = main(["export", "--img", "64", "--device", "cpu", "--json", "e.json", *words])
        file = tmp_path / "e.json"
        return status, json.loads(file.read_text()) if file.exists() else None, tmp_path / "runs" / "export" / "exp"

    return call


def test_everything(run, tiny, capsys):
    for package in ("jax2onnx", "onnxruntime", "torch"):
        pytest.importorskip(package)
    status, figures, folder = run("--weights", str(tiny), "--include", "torch", "onnx", "stablehlo", "--batch", "2")
    assert status == 0
    assert [row["format"] for row in figures["formats"]] == ["torch", "onnx", "stablehlo"]
    for row in figures["formats"]:
        assert row["ok"]
        assert row["box_difference_px"] < 1e-2
        assert row["score_difference"] < 1e-4
        assert row["compared"] == 2 * 3 * (8**2 + 4**2)
        assert (folder / row["file"]).stat().st_size == pytest.approx(1e6 * row["size_mb"])
    assert figures["formats"][0]["box_difference_px"] == 0  # the same bits
    assert {file.name for file in folder.iterdir()} == {
        f"tiny.{suffix}" for suffix in ("pt", "onnx", "stablehlo", "stablehlo.json")
    }
    printed = capsys.readouterr().out
    assert "tiny, 2 classes, 2 images of 64x64 px, float32" in printed
    assert "scores ±" in printed


@pytest.mark.long
def test_with_nms(run, capsys):
    status, figures, folder = run("--nms", "--dynamic", "--conf", "0.05", "--topk-all", "5")
    assert status == 0
    assert figures["formats"][0]["compared"] > 8
    assert json.loads((folder / "yolov5n-shapes.stablehlo.json").read_text())["batch"] == "any"


def test_a_file_that_differs_is_told(run, tiny, monkeypatch, capsys):
    right = export.read_stablehlo
    monkeypatch.setattr(roundtrip, "read_stablehlo", lambda path: lambda images: (right(path)(images)[0] + 1,))
    status, figures, _ = run("--weights", str(tiny))
    assert status == 1
    assert figures["formats"][0]["score_difference"] == pytest.approx(1, abs=1e-3)
    assert "differs" in capsys.readouterr().out


def test_a_file_of_another_shape_is_told(run, tiny, monkeypatch, capsys):
    monkeypatch.setattr(roundtrip, "read_stablehlo", lambda path: lambda images: (np.zeros((1, 2, 7)),))
    status, figures, _ = run("--weights", str(tiny))
    assert status == 1
    assert figures["formats"][0]["box_difference_px"] is None
    assert "differs" in capsys.readouterr().out


def test_flags_of_yolov5_that_mean_nothing_are_taken(run, tiny, capsys):
    assert run("--weights", str(tiny), "--data", "coco128.yaml", "--simplify")[0] == 0
    assert "--simplify has no effect: the graph is simplified in any case" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--int8"], "--int8: belongs to a format that YOLOv5 makes: --include torch"),
        (["--include", "engine"], "let YOLOv5's own export.py make it"),
        (["--include", "coreml5"], "--include coreml5: choose from stablehlo, onnx, torch"),
        (["--include", "onnx", "--nms"], "--nms: ONNX gets none"),
        (["--include", "onnx", "--half"], "no bfloat16 convolution"),
        (["--batch", "0"], "--batch-size 0: must be at least 1"),
        (["--weights", "nowhere.pt"], "nowhere.pt: no such weights"),
    ],
)
def test_mistakes(run, capsys, words, message):
    pytest.importorskip("jax2onnx")
    status, figures, folder = run(*words)
    error = capsys.readouterr().err
    assert (status, figures) == (2, None)
    assert message in error
    assert len(error.splitlines()) == 1
    assert not folder.exists()


def test_a_package_that_is_missing(run, monkeypatch, capsys):
    # Whatever is installed here, this one package is what is missing.
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jax2onnx" else object())
    assert run("--include", "stablehlo", "onnx")[0] == 2
    assert "--include onnx: needs jax2onnx: pip install 'yolojax[onnx]'" in capsys.readouterr().err


def test_safetensors_of_a_run(run, tiny, tmp_path, contents, capsys):
    pytest.importorskip("safetensors")
    place = tmp_path / "exp" / "weights"
    place.mkdir(parents=True)
    shutil.copytree(tiny, place / "best")
    (tmp_path / "exp" / "settings.yaml").write_text("data: squares.yaml\nfreeze: ['2']\n")
    (tmp_path / "exp" / "results.json").write_text('{"best": {"map50": 0.25, "map50_95": 0.125}}')
    before = contents(tmp_path / "exp")
    status, figures, folder = run("--weights", "exp", "--include", "safetensors")
    assert status == 0
    [row] = figures["formats"]
    assert row["file"] == "exp/model.safetensors"
    assert row["box_difference_px"] == row["score_difference"] == 0
    assert sorted(file.name for file in (folder / "exp").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card = (folder / "exp" / "README.md").read_text()
    assert "| mAP50 | 0.250 |" in card
    assert "yolojax train --data squares.yaml --freeze 2" in card
    assert "safetensors" in capsys.readouterr().out
    before |= contents(folder)
    status, again, _ = run("--weights", str(folder / "exp"), "--include", "safetensors", "--name", "again")
    assert status == 0
    assert again["formats"][0]["size_mb"] == row["size_mb"]
    assert contents(tmp_path / "exp", folder) == before
