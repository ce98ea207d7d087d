"""Whole runs with ``--replay`` and ``--distil``: their records, an interruption, and what is refused."""

import dataclasses
import json
import os
import signal

import jax
import pytest

from yolojax.errors import UserError
from yolojax.model.network import init_variables
from yolojax.model.spec import load_spec
from yolojax.training import loop
from yolojax.training.loop import train
from yolojax.training.report import COLUMNS
from yolojax.training.run import read_settings
from yolojax.training.settings import TrainSettings, settings_to_resume
from yolojax.tree import flatten
from yolojax.weights.find import load_weights
from yolojax.weights.store import Weights, save_weights

BATCHES = 4  # of an epoch: ten images, three at a time beside the replayed one


def save_teacher(folder, small, seed):
    spec = load_spec(small, 3)
    variables = init_variables(spec, jax.random.key(seed))
    variables["params"]["model_3"]["m_0"]["bias"] += 8  # a random one sees nothing
    save_weights(folder, Weights(spec=spec, names=("cat", "red", "blue"), variables=variables, source={"file": "t"}))


@pytest.fixture
def place(small_model, tiny_data, tmp_path, monkeypatch):
    """A folder with a network, two teachers, and ``old.yaml``, a data set whose second class the run knows."""
    (tmp_path / "small.yaml").write_text(small_model)
    for seed in (1, 2):
        save_teacher(tmp_path / f"teacher{seed}", tmp_path / "small.yaml", seed)
    text = tiny_data.read_text()
    names = text[text.index("names:") :]
    (tmp_path / "old.yaml").write_text(text.replace(names, "names: [bird, red]\n"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def settings(place, tiny_data):
    fixed = {"weights": "", "cfg": "small.yaml", "data": str(tiny_data), "imgsz": 64, "batch_size": 4, "epochs": 2}
    fixed |= {"workers": 0, "freeze": ("1",), "project": "runs", "noplots": True, "noautoanchor": True}
    return lambda **changes: TrainSettings(**{**fixed, **changes})


def arrays(run):
    return {path: leaf.tobytes() for path, leaf in flatten(load_weights(run / "weights" / "last").variables).items()}


@pytest.mark.long
def test_a_run_with_both_is_recorded_and_goes_on_with_the_same_bits(settings, place, monkeypatch, caplog):
    caplog.set_level("INFO", "yolojax")
    both = settings(replay="old.yaml", distil="teacher1", name="whole")
    results = train(both)
    run = place / "runs" / "whole"
    assert "--replay: of the 4 images of a batch 1 are of the" in caplog.text
    assert "--distil: " in caplog.text
    assert "teaches blue, red" in caplog.text
    header, *rows = (run / "results.csv").read_text().splitlines()
    assert [word.strip() for word in header.split(",")] == [*COLUMNS, "train/distil_loss"]
    assert all(float(row.split(",")[-1]) > 0 for row in rows)
    record = json.loads((run / "environment.json").read_text())
    assert record["teacher"]["classes"] == ["blue", "red"]
    assert record["data"]["replay"]["images"] <= 10 == record["data"]["train"]["images"] == results["train_images"]
    assert (read_settings(run).replay, read_settings(run).distil) == (str(place / "old.yaml"), str(place / "teacher1"))

    calls, put_batch = [], loop.put_batch

    def stops_in_the_second_epoch(batch, mesh):
        calls.append(batch)
        if len(calls) == BATCHES + 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return put_batch(batch, mesh)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "put_batch", stops_in_the_second_epoch)
        with pytest.raises(SystemExit):
            train(dataclasses.replace(both, name="stopped"))
    assert all(len(batch["images"]) == 4 for batch in calls)
    stopped = place / "runs" / "stopped"
    with pytest.raises(UserError, match="teacher2: is not the teacher that the run began with"):
        train(TrainSettings(resume=str(stopped), distil="teacher2"))
    (place / "teacher1").rename(place / "moved")
    train(TrainSettings(resume=str(stopped), distil="moved"))
    assert (stopped / "results.csv").read_bytes() == (run / "results.csv").read_bytes()
    assert arrays(stopped) == arrays(run)


def test_a_run_without_them_has_no_trace_of_them(settings, place):
    train(settings(epochs=1))
    run = place / "runs" / "exp"
    header = (run / "results.csv").read_text().splitlines()[0]
    assert [word.strip() for word in header.split(",")] == list(COLUMNS)
    record = json.loads((run / "environment.json").read_text())
    assert sorted(record["data"]) == ["train", "val"]
    assert "teacher" not in record


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replay": "nowhere.yaml"}, "nowhere.yaml: no such file"),
        ({"replay": "old.yaml", "single_cls": True, "replay_share": 0.1}, "--replay-share 0.1: of a batch of 4 images"),
        ({"distil": "nowhere"}, "nowhere: no such weights"),
        ({"distil": "yolov5n-shapes"}, "--distil yolov5n-shapes: yolov5n detects at strides"),
        (
            {"distil": "teacher1", "single_cls": True},
            r"none of its classes \(cat, red, blue\) is one of the run \(item\)",
        ),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(settings, place, changes, message):
    before = sorted(place.rglob("*"))
    with pytest.raises(UserError, match=message):
        train(settings(**changes))
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replay": "a", "replay_share": 0.0}, "--replay-share 0.0: must be above 0 and below 1"),
        ({"replay": "a", "replay_share": 1.0}, "--replay-share 1.0: must be above 0 and below 1"),
        ({"replay": "a", "replay_share": float("nan")}, "--replay-share nan: must be above 0 and below 1"),
        ({"replay_share": 0.5}, "--replay-share: belongs to --replay, which is not given"),
        ({"distil": "a", "distil_gain": 0.0}, "--distil-gain 0.0: must be above 0"),
        ({"distil": "a", "distil_gain": float("inf")}, "--distil-gain inf: must be above 0"),
        ({"distil_gain": 2.0}, "--distil-gain: belongs to --distil, which is not given"),
        ({"replay": "a", "rect": True}, "--replay: cannot go with --rect"),
        ({"replay": "a", "cache": "device"}, "--cache device: cannot go with --replay"),
        ({"replay": "a", "cache": "features"}, "--cache features: cannot go with --replay"),
        ({"distil": "a", "cache": "features"}, "--cache features: cannot go with --distil"),
        ({"distil": "a", "batch_size": -1}, "--batch-size -1: does not count what --distil takes"),
    ],
)
def test_a_setting_that_no_run_can_have_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        TrainSettings(**changes)


@pytest.mark.parametrize("name", ["replay", "distil"])
def test_a_resumed_run_cannot_begin_or_end_with_them(name):
    plain, own = TrainSettings(epochs=3), TrainSettings(epochs=3, **{name: "a"})
    with pytest.raises(UserError, match=f"--{name} a: the run was begun with nothing"):
        settings_to_resume(plain, own, {"resume", name})
    moved = TrainSettings(epochs=3, **{name: "b"})
    assert settings_to_resume(own, moved, {"resume", name}) == (moved, [f"--{name}: b instead of a"])


def test_joined_networks_neither_teach_nor_are_taught(place):
    from yolojax.weights.join import join_weights
    from yolojax.weights.teacher import make_teacher

    one = load_weights("teacher1")
    other = dataclasses.replace(one, names=("a", "b", "c"))
    both = join_weights([one, other], at_least=1)
    with pytest.raises(UserError, match="--distil x: it has several Detects"):
        make_teacher(both, one.spec, one.names, 1.0, "--distil x")
    with pytest.raises(UserError, match="--distil x: the network that is trained has several Detects"):
        make_teacher(one, both.spec, both.names, 1.0, "--distil x")
