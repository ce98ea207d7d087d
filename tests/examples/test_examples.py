"""The files in examples/ run."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from yolojax.freezing.phases import EpochRecord, History
from yolojax.model.network import init_variables
from yolojax.model.spec import load_spec
from yolojax.weights.store import Weights, save_weights

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def small(tiny_data, tmp_path):
    """Settings of a run of seconds."""
    return {
        "data": str(tiny_data),
        "epochs": 1,
        "imgsz": 64,
        "batch_size": 4,
        "workers": 0,
        "noplots": True,
        "device": "cpu",
        "project": str(tmp_path),
    }


def run(name: str, *arguments, **keywords) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](*arguments, **keywords)


def test_every_example_has_a_test():
    assert {file.stem for file in EXAMPLES.glob("*.py")} == {"train_frozen", "own_strategy", "detect"}


def test_train_frozen(small, tiny_model, tmp_path, capsys):
    spec = load_spec(tiny_model)
    variables = jax.tree.map(np.asarray, init_variables(spec, jax.random.key(0)))
    save_weights(tmp_path / "start", Weights(spec=spec, names=("blue", "red"), variables=variables, source={}))
    run("train_frozen", weights=str(tmp_path / "start"), freeze="3", **small)
    [(frozen, parameters)] = re.findall(r"(\d+) of (\d+) parameters frozen, 0 moved", capsys.readouterr().out)
    assert 0 < int(frozen) < int(parameters)


def test_own_strategy(small, tiny_model, capsys):
    run("own_strategy", weights="", cfg=str(tiny_model), **small)
    assert "from epoch 1: 100% of the parameters train" in capsys.readouterr().out


def test_own_strategy_freezes_a_layer_after_each_epoch_that_was_no_better():
    phase = runpy.run_path(str(EXAMPLES / "own_strategy.py"))["phase"]
    paths = tuple(f"model_{layer}/conv/kernel" for layer in range(25))
    records = tuple(EpochRecord(fitness=fitness) for fitness in (0.1, 0.2, 0.2, 0.3, 0.25))
    assert not phase(0, History(epochs=9), paths).frozen
    assert phase(5, History(epochs=9, records=records), paths).frozen == set(paths[:2])


def test_detect(tmp_path, capsys):
    run("detect", folder=str(tmp_path / "detected"))
    images = sorted((tmp_path / "detected").iterdir())
    assert len(images) == 8
    with Image.open(images[0]) as image:
        assert image.size == (640, 640)
    assert "trapezoid" in capsys.readouterr().out
