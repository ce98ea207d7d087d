"""Runs that read kept features: the same figures and weights as those that read images."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from yolojax.data.batches import epoch_order
from yolojax.errors import UserError
from yolojax.features import kept
from yolojax.features.compute import join_labels
from yolojax.features.kept import view_rows
from yolojax.training import loop
from yolojax.training.loop import train
from yolojax.training.report import read_results
from yolojax.training.settings import TrainSettings
from yolojax.tree import flatten
from yolojax.weights.find import load_weights


@pytest.fixture
def settings(tiny_model, tiny_data, tmp_path):
    """Two batches of five for each epoch: ten images, so that no image comes twice in an epoch."""

    def make(**changes):
        fixed = {"weights": "", "cfg": str(tiny_model), "data": str(tiny_data), "imgsz": 64, "batch_size": 5}
        fixed |= {"epochs": 2, "workers": 0, "noplots": True, "project": str(tmp_path)}
        return TrainSettings(**{**fixed, **changes})

    return make


def assert_alike(first, second, tolerance=1e-6):
    """Two runs have the same losses, figures and weights, but for rounding."""
    for row, other in zip(read_results(first / "results.csv"), read_results(second / "results.csv"), strict=True):
        np.testing.assert_allclose(list(row.values()), list(other.values()), rtol=1e-4)  # five digits are written
    one, two = (load_weights(run / "weights" / "last").variables for run in (first, second))
    for collection in one:
        leaves = flatten(two[collection])
        for path, leaf in flatten(one[collection]).items():
            scale = np.abs(leaf).max()
            assert np.abs(leaf - leaves[path]).max() <= tolerance * scale, path


@pytest.mark.parametrize("freeze", [pytest.param("3", marks=pytest.mark.slow), "6"])
def test_a_run_on_kept_features_is_that_on_images(settings, tmp_path, freeze):
    images = train(settings(freeze=(freeze,), name="images"))
    features = train(settings(freeze=(freeze,), name="features", cache="features:2"))
    assert_alike(tmp_path / "images", tmp_path / "features")
    assert features["final"]["instances"] > 0
    assert [row["flops"] for row in features["programs"]] < [row["flops"] for row in images["programs"]]
    assert [row["features_start"] for row in features["programs"]] == [int(freeze)]


PHASES = """
description: a front part that grows, and then thaws
phases:
  - {freeze: 3}
  - {start: 1, freeze: 6}
  - {start: 2, freeze: 0}
"""


@pytest.mark.slow
def test_phases_read_what_they_can_and_a_resumed_run_reads_the_same(settings, tmp_path, monkeypatch, caplog):
    (tmp_path / "grows.yaml").write_text(PHASES)
    shared = {"freeze": (str(tmp_path / "grows.yaml"),), "epochs": 3}
    train(settings(**shared, name="images"))
    caplog.set_level("INFO", "yolojax")
    train(settings(**shared, name="features", cache="features"))
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("kept features")]
    assert lines[0].startswith(
        "kept features: outputs of layers 2, of 3 views of 10 images and of 4 validation images, float32: 860.2 kB, in memory"
    )
    assert [line for line in lines[1:] if "computed view" not in line] == [
        "kept features: this phase goes on with those of layers 0 to 2",
        "kept features: layer 0 moves in this phase, which leaves those of layers 0 to 2 and reads images",
    ]
    assert_alike(tmp_path / "images", tmp_path / "features", 1e-5)
    put_batch, calls = loop.put_batch, []

    def breaks(batch, mesh):
        calls.append("features" in batch)
        if len(calls) == 3:  # the first batch of the second epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return put_batch(batch, mesh)

    monkeypatch.setattr(loop, "put_batch", breaks)
    with pytest.raises(SystemExit):
        train(settings(**shared, name="broken", cache="features"))
    monkeypatch.undo()
    train(TrainSettings(resume=str(tmp_path / "broken")))
    assert_alike(tmp_path / "features", tmp_path / "broken", 0)


def test_an_order_of_its_own_for_every_epoch_and_the_same_views():
    order, rows = view_rows(10, 12, 3, 1, 1)
    assert rows[:10].tolist() == list(range(10))
    assert order.tolist() == epoch_order(10, 12, 3, 1).tolist()
    later, rows_later = view_rows(10, 12, 3, 5, 1)
    assert sorted(rows_later[:10]) == list(range(10))
    assert rows_later[:10].tolist() != list(range(10))
    sample_in_row = dict(zip(rows.tolist(), order.tolist(), strict=True))
    assert [sample_in_row[row] for row in rows_later.tolist()] == later.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frozen_bn": "track"}, "--cache features: cannot go with --frozen-bn track"),
        ({"multi_scale": True}, "--cache features: cannot go with --multi-scale, which changes the size"),
        ({"image_weights": True}, "--cache features: cannot go with --image-weights, which draws"),
        ({"rect": True}, "--cache features: cannot go with --rect, whose batches"),
        ({"cache": "features:0"}, "--cache features:0: must be at least one view"),
        (
            {"cache": "features:x"},
            "--cache features:x: is none of auto, device, ram, disk, val, features and features:VIEWS",
        ),
        ({"freeze": ("0",)}, "--cache features: cannot go with --freeze 0: layer 0 moves in every phase"),
        ({"freeze": ("adapters",)}, "--cache features: cannot go with --freeze adapters: layer 0 has adapters"),
    ],
)
def test_what_features_cannot_be_kept_for_is_refused(settings, changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        train(settings(**{"cache": "features:2", "freeze": ("3",), **changes}))


TWO_DEVICES = """
import sys
from yolojax.training.loop import train
from yolojax.training.settings import TrainSettings

model, data, project = sys.argv[1:]
for name, cache in (("images", None), ("features", "features:2")):
    fixed = {"weights": "", "cfg": model, "data": data, "imgsz": 64, "batch_size": 10, "epochs": 2, "workers": 0, "noplots": True}
    train(TrainSettings(**fixed, freeze=("3",), project=project, name=name, cache=cache))
"""


@pytest.mark.slow
def test_two_devices_share_a_batch_of_features(tiny_model, tiny_data, tmp_path):
    words = [sys.executable, "-c", TWO_DEVICES, str(tiny_model), str(tiny_data), str(tmp_path)]
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(json.loads((tmp_path / "features" / "environment.json").read_text())["devices"]) == 2
    assert_alike(tmp_path / "images", tmp_path / "features", 1e-5)


@pytest.mark.slow
def test_features_without_room_in_memory_lie_on_disk_for_later_runs(settings, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("YOLOJAX_CACHE", str(tmp_path / "cache"))
    train(settings(freeze=("3",), name="memory", cache="features:1"))
    monkeypatch.setattr(kept, "available_memory", lambda: 1000)
    train(settings(freeze=("3",), name="disk", cache="features:1"))
    assert_alike(tmp_path / "memory", tmp_path / "disk", 0)
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache" / "features").iterdir()}
    assert sorted(file.suffix for file in files) == [".bin", ".bin", ".json", ".json", ".npz", ".npz"]
    caplog.set_level("INFO", "yolojax")
    train(settings(freeze=("3",), name="again", cache="features:1", epochs=1))
    assert "kept features: there already: 1 of 1 views" in caplog.text
    assert {file: file.stat().st_mtime_ns for file in files} == files
    train(settings(freeze=("3",), name="other", cache="features:1", epochs=1, seed=1))
    assert "are of this run (frozen layers, seed differ from the nearest): filling anew" in caplog.text
    assert {file: file.stat().st_mtime_ns for file in files} == files


def test_labels_of_a_view_have_room_for_the_most_and_one_row_per_image():
    def labels(images, room, value):
        return np.full((images, room, 5), value, np.float32), np.ones((images, room), bool)

    boxes, mask = join_labels([labels(3, 4, 1), labels(3, 8, 2)], 5)
    assert boxes.shape == (5, 8, 5)
    assert boxes[:, 0, 0].tolist() == [1, 1, 1, 2, 2]
    assert mask.sum(1).tolist() == [4, 4, 4, 8, 8]
    assert boxes[2, 4:].max() == 0
