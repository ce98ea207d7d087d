"""``yolojax bench``, and that an exported network is as good as the one it came from."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from yolojax.cli.main import main
from yolojax.config import configs_root
from yolojax.inference.benchmark import measure

IMAGES = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A few images of what the embedded weights know."""
    text = (configs_root() / "data" / "shapes-pretraining.yaml").read_text(encoding="utf-8")
    file = tmp_path_factory.mktemp("data") / "few.yaml"
    file.write_text(text.replace("train: 4000", "train: 1").replace("val: 200", f"val: {IMAGES}"))
    return file


@pytest.fixture
def bench(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        status = main(["bench", "--data", str(data), "--device", "cpu", "--json", "b.json", "--workers", "0", *words])
        file = tmp_path / "b.json"
        return status, json.loads(file.read_text()) if file.exists() else None

    return run


@pytest.mark.long
def test_every_way_is_as_good(bench, capsys):
    pytest.importorskip("jax2onnx")
    pytest.importorskip("onnxruntime")
    status, figures = bench("--batch", "8", "--hard-fail", "0.1")
    assert status == 0
    rows = {row["way"]: row for row in figures["ways"]}
    assert list(rows) == ["float32", "unfused", "bfloat16", "stablehlo", "onnx"]
    assert rows["float32"]["map50_95"] > 0.2
    for way in ("unfused", "stablehlo", "onnx"):
        for figure in ("precision", "recall", "map50", "map50_95"):
            assert rows[way][figure] == pytest.approx(rows["float32"][figure], abs=0.001), (way, figure)
    assert rows["bfloat16"]["map50_95"] == pytest.approx(rows["float32"]["map50_95"], abs=0.02)
    assert rows["bfloat16"]["size_mb"] == pytest.approx(rows["float32"]["size_mb"] / 2)
    assert rows["onnx"]["size_mb"] == pytest.approx(rows["stablehlo"]["size_mb"], rel=0.05)
    assert all(row["inference_ms"] > 0 for row in rows.values())
    printed = " ".join(capsys.readouterr().out.split())
    assert f"few.yaml (val, {IMAGES} images), 128x128 px, batch 8" in printed


@pytest.mark.long
def test_exports_reach_what_val_reports(bench, data, capsys):
    """In ``val``'s own batches: rectangles, filled up, with borders."""
    pytest.importorskip("jax2onnx")
    pytest.importorskip("onnxruntime")
    words = ["--data", str(data), "--device", "cpu", "--batch", "8", "--noplots", "--json", "v.json"]
    assert main(["val", *words]) == 0
    reported = json.loads(Path("v.json").read_text())
    status, figures = bench("--rect", "--batch", "8", "--include", "stablehlo", "onnx")
    assert status == 0
    for row in figures["ways"]:
        for figure in ("precision", "recall", "map50", "map50_95"):
            assert row[figure] == pytest.approx(reported[figure], abs=0.001), (row["way"], figure)
    assert "128 px, rectangular, batch 8" in capsys.readouterr().out


def test_a_file_takes_images_of_one_shape(tmp_path):
    batches = SimpleNamespace(shapes=((64, 96), (96, 64), (64, 96)))
    validation = SimpleNamespace(weights=(None,), batches=lambda: batches)
    [row] = measure(validation, ("stablehlo",), tmp_path)
    assert row["problem"].startswith("--rect: a file takes images of one size only, and these get 2")


@pytest.mark.long
def test_hard_fail(bench, capsys):
    assert bench("--include", "float32", "--hard-fail", "0.99", "--img", "64")[0] == 1
    assert "float32: mAP50-95 0." in (printed := capsys.readouterr().out)
    assert "is below 0.99" in printed
    assert bench("--include", "float32", "--hard-fail", "--img", "64")[0] == 0
    assert bench("--include", "float32", "--img", "64")[0] == 0


def test_a_way_that_cannot_be_run(bench, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, figures = bench("--include", "onnx", "float32", "--img", "64")
    assert status == 0
    assert "jax2onnx" in figures["ways"][0]["problem"]
    assert figures["ways"][1]["map50"] > 0
    assert "onnx was not run: needs jax2onnx" in capsys.readouterr().out
    assert bench("--include", "onnx", "float32", "--img", "64", "--hard-fail")[0] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--include", "tflite"], "--include tflite: choose from float32"),
        (["--half"], "--half: name the way instead: --include bfloat16"),
        (["--batch", "0"], "--batch-size 0: must be at least 1"),
        (["--weights", "nowhere.pt"], "nowhere.pt: no such weights"),
    ],
)
def test_mistakes(bench, capsys, words, message):
    assert bench(*words) == (2, None)
    assert message in capsys.readouterr().err
