"""What TensorBoard, Weights & Biases and MLflow are told."""

import os
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from yolojax.cli.main import main
from yolojax.training.settings import TrainSettings
from yolojax.training.trackers import Trackers, open_trackers


def test_events_of_an_interrupted_run_are_taken_back(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    for first in (0, 2):
        trackers = open_trackers(TrainSettings(), tmp_path, first)
        for epoch in range(first, 3):
            trackers.write({"epoch": epoch, "metrics/mAP_0.5": 0.25 + epoch})
        trackers.close(tmp_path)
    early, late = (_read_events(file) for file in sorted(tmp_path.glob("events.*")))
    assert [(event.step, value.tag, value.simple_value) for event in early for value in event.summary.value] == [
        (epoch, "metrics/mAP_0.5", 0.25 + epoch) for epoch in range(3)
    ]
    assert any(
        event.session_log.status == 1 and event.step == 2 for event in late
    )  # 1: start, everything from 2 on is void
    assert [event.step for event in late if event.summary.value] == [2]


def _read_events(file):
    """Records of a TensorBoard file: length, checksum, bytes, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, events = file.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_without_trackers_nothing_is_written(tmp_path):
    trackers = Trackers()
    trackers.write({"epoch": 0, "metrics/mAP_0.5": 0.5})
    trackers.close(tmp_path)
    assert not list(tmp_path.iterdir())


class FakeRun:
    def __init__(self, **settings):
        self.settings, self.logged, self.finished = settings, [], False

    def log(self, figures, step=None):
        self.logged.append((step, figures))

    def finish(self):
        self.finished = True


def test_weights_and_biases_gets_metrics_and_figures_under_one_identity(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setattr(wandb, "init", FakeRun)
    settings = TrainSettings(wandb=True, entity="lab", freeze=("10",), project="runs/cells")
    first, again = (open_trackers(settings, tmp_path, 0).board for _ in range(2))
    assert (first.settings["entity"], first.settings["project"]) == ("lab", "cells")
    assert first.settings["name"] == tmp_path.name
    assert first.settings["config"]["freeze"] == ["10"]
    assert first.settings["id"] == again.settings["id"]
    assert open_trackers(TrainSettings(wandb=True), tmp_path, 0).board.settings["project"] == "yolojax"

    trackers = Trackers(board=first)
    trackers.write({"epoch": 3, "train/box_loss": 0.5, "metrics/mAP_0.5": 0.25})
    cv2.imwrite(str(tmp_path / "results.png"), np.zeros((8, 8, 3), np.uint8))
    trackers.close(tmp_path)
    assert first.logged[0] == (3, {"train/box_loss": 0.5, "metrics/mAP_0.5": 0.25})
    assert list(first.logged[1][1]) == ["results"]
    assert first.finished


@pytest.mark.slow
def test_an_offline_run_of_weights_and_biases_stays_in_the_run_folder(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers = open_trackers(TrainSettings(wandb=True), tmp_path, 0)
    for epoch in range(2):
        trackers.write({"epoch": epoch, "metrics/mAP_0.5": 0.25 + epoch})
    trackers.close(tmp_path)
    (written,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"metrics/mAP_0.5" in written.read_bytes()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_before_a_run_is_replaced(tmp_path, contents, monkeypatch, capsys, name):
    monkeypatch.setitem(sys.modules, name, None)
    finished = tmp_path / "exp" / "results.json"
    finished.parent.mkdir()
    finished.write_text("{}")
    before = contents(tmp_path)
    assert main(["train", f"--{name}", "--project", str(tmp_path), "--name", "exp", "--exist-ok"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"pip install 'yolojax[{name}]'")
    assert contents(tmp_path) == before


def test_mlflow_gets_figures_settings_and_pictures_in_its_local_store(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "")  # so that what is set meanwhile is taken back
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    run = tmp_path / "exp"
    run.mkdir()
    settings = TrainSettings(mlflow=True, freeze=("10", "12"), project="runs/cells")
    for epoch in (0, 1):  # the second time it is resumed
        trackers = open_trackers(settings, run, epoch)
        trackers.write({"epoch": epoch, "train/box_loss": 0.5, "metrics/mAP_0.5:0.95": 0.25 + epoch})
        cv2.imwrite(str(run / "results.png"), np.zeros((8, 8, 3), np.uint8))
        trackers.close(run)
    client = mlflow.MlflowClient((tmp_path / "mlruns").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("cells").experiment_id])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "exp"
    assert found.data.params["freeze"] == "10 12"
    history = client.get_metric_history(found.info.run_id, "metrics/mAP_0.5_0.95")
    assert [(point.step, point.value) for point in history] == [(0, 0.25), (1, 1.25)]
    assert [file.path for file in client.list_artifacts(found.info.run_id)] == ["results.png"]


def test_a_store_of_ones_own_is_left_to_mlflow(tmp_path, monkeypatch):
    """Without one, figures go into a folder, which newer versions of MLflow have to be told."""
    exceptions = SimpleNamespace(MlflowException=ValueError)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=FakeClient, exceptions=exceptions))
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for store, allowed in (("http://here", None), ("", "true")):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
        client, _ = open_trackers(TrainSettings(mlflow=True), tmp_path, 0).mlflow
        assert client.calls[0] == ("uri", store or (tmp_path / "mlruns").as_uri())
        assert os.environ.get("MLFLOW_ALLOW_FILE_STORE") == allowed


class FakeClient:
    """In the place of ``mlflow.MlflowClient``."""

    def __init__(self, uri):
        self.calls = [("uri", uri)]

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.calls.append((name, arguments, options))
            return SimpleNamespace(experiment_id="1", info=SimpleNamespace(run_id="abc"))

        return call


def test_mlflow_is_told_the_columns_by_names_that_it_takes(tmp_path, monkeypatch):
    exceptions = SimpleNamespace(MlflowException=ValueError)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=FakeClient, exceptions=exceptions))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://here")
    trackers = open_trackers(TrainSettings(mlflow=True), tmp_path, 0)
    trackers.write({"epoch": 3, "metrics/mAP_0.5:0.95": 0.25})
    trackers.close(tmp_path)
    client, identity = trackers.mlflow
    assert identity == "abc" == (tmp_path / "mlflow.id").read_text()
    assert client.calls[0] == ("uri", "http://here")
    assert ("log_metric", ("abc", "metrics/mAP_0.5_0.95", 0.25), {"step": 3}) in client.calls
    assert client.calls[-1][0] == "set_terminated"


def test_tensorboard_does_not_import_torch(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    pytest.importorskip("torch")
    code = """
import sys
from pathlib import Path
from yolojax.training.settings import TrainSettings
from yolojax.training.trackers import open_trackers
trackers = open_trackers(TrainSettings(), Path(sys.argv[1]), 0)
trackers.write({"epoch": 0, "loss": 1.5})
trackers.close(Path(sys.argv[1]))
assert "torch" not in sys.modules
import torch
assert torch.ones(2).sum() == 2
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert list(tmp_path.glob("events.out.tfevents*"))
