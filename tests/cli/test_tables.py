"""Every table fits into 80 columns: long names are wrapped, nothing is cut, and no figure has an exponent."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from yolojax.cli import audit, bench, doctor, plan, study, val
from yolojax.cli.main import main
from yolojax.freezing.audit import compare
from yolojax.plan.cost import FeatureCost
from yolojax.plan.plan import Row

LONG = "a-class-or-scenario-whose-name-is-far-longer-than-anybody-would-like-it-to-be-" * 2


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def check(capsys):
    def check(shown: object = None) -> str:
        if shown is not None:
            Console(highlight=False, markup=False, width=80).print(shown)
        lines = capsys.readouterr().out.splitlines()
        table = [line for line in lines if re.search(r"[│┃─━]|  ", line)]
        assert table
        assert max(map(len, table)) <= 80, max(table, key=len)
        text = "\n".join(lines)
        assert "…" not in text
        assert not re.search(r"\de[+-]?\d", text), text
        return text

    return check


@pytest.mark.parametrize("freeze", ["layerwise", "10", "adapters"])
def test_freeze(check, freeze):
    assert main(["freeze", "--cfg", "yolov5x6", "--nc", "1203", "--freeze", freeze]) == 0
    assert "model_33" in check()


def test_plan(check):
    rows = [
        Row(
            freeze="'model_*/cv1/**' and more of the kind" if number else "10",
            start=90 * number,
            target="cuda:h100",
            batch=1024,
            img=1536,
            dtype="bfloat16",
            features=FeatureCost(start=24, image_bytes=123_456_789, flops=98_765e9, view_flops=123_456e9)
            if number
            else None,
            parameters=140_000_000,
            trainable=140_730_220,
            flops=123_456e9,
            peak_bytes=1_234_567_000_000,
            temp_bytes=1_234_567_000_000,
            optimizer_bytes=1_234_567_000_000,
            weight_gradient_ops=1234,
            memory_bytes=85_000_000_000,
            fits=bool(number),
            largest_batch=4096,
            validation_bytes=1_234_567_000_000,
            compile_seconds=100.0,
        )
        for number in range(2)
    ]
    text = check(plan._table(rows, f"yolov5x6, 80 classes, 1024 images of 1536 px, bfloat16, {rows[0].target}"))
    assert "140,730,220" in text
    assert "123,456" in text


def test_audit(check):
    def variables(scale: float):
        return {
            "params": {f"model_{layer}": {"conv": {"kernel": np.full(4, scale * 10.0**layer)}} for layer in range(10)},
            "batch_stats": {f"model_{layer}": {"bn": {"mean": np.full(4, scale * 1e6)}} for layer in range(10)},
        }

    found = compare(variables(1.0), variables(1.5))
    assert "changed" in check(audit._table(found, f"{LONG} -> {LONG}"))


def test_bench(check):
    rows = [
        {"way": way, "size_mb": 123_456.7, "map50": 0.5, "map50_95": 0.4, "inference_ms": 1_234_567.0}
        for way in ("float32", "stablehlo")
    ]
    assert "1,234,567.00" in check(bench._table(rows))


def test_val(check):
    rows = [
        {"name": LONG, "instances": 12_345_678, "precision": 0.5, "recall": 1.0, "map50": 1e-9, "map50_95": 0.0}
    ] * 2
    evaluation = SimpleNamespace(
        precision=1.0,
        recall=1e-7,
        map50=0.5,
        map50_95=0.4,
        images=12_345_678,
        instances=123_456_789,
        per_class=lambda: rows,
        figures=lambda: {"precision": 1.0, "recall": 1e-7, "map50": 0.5, "map50_95": 0.4, "instances": 123_456_789},
        curves=SimpleNamespace(best=10),
        speed_ms={"preprocess": 1e5, "inference": 1e6, "nms": 0.0},
    )
    described = {
        "weights": ["w"],
        "data": "d",
        "split": "val",
        "image_size": 640,
        "rectangular": True,
        "batch_size": 32,
        "confidence": 0.001,
        "iou": 0.6,
        "max_detections": 300,
        "dtype": "float32",
        "augmented": False,
        "agnostic": False,
        "single_class": False,
    }
    validation = SimpleNamespace(names=("a", "b"), settings=SimpleNamespace(verbose=False), described=lambda: described)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yolojax.inference.validation.describe_settings", lambda _: "settings")
        val._show(evaluation, validation)
    assert "123456789" in check().replace(",", "")


def test_study(check):
    figures = {
        "map50": 0.123456,
        "map50_95": 0.1,
        "wall_seconds": 1e6,
        "step_seconds": 100.0,
        "memory_bytes": 1.2e12,
    }
    row = SimpleNamespace(name=LONG, frozen_bn="track", seeds=list(range(20)), mean=figures)
    study._show(LONG, [row, row])
    assert ".123" in check()


def test_doctor(check):
    for title in ("free space", "caches"):
        check(doctor._table(title, [(LONG, "1,234,567.8 GB", "/" + LONG * 2)] * 2))
