"""Where the batches of a run are made."""

import dataclasses
import logging
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from yolojax.augmentation import feeding
from yolojax.augmentation.feeding import cache_in_use, open_stream
from yolojax.augmentation.stream import DeviceStream
from yolojax.data.batches import StreamSettings
from yolojax.data.sample import Sample
from yolojax.data.stream import TrainingStream
from yolojax.errors import UserError
from yolojax.hyperparameters import Hyperparameters
from yolojax.mesh import make_mesh
from yolojax.training.loop import train
from yolojax.training.run import Run, read_settings
from yolojax.training.settings import TrainSettings

STREAM = StreamSettings(image_size=32, batch_size=2)
SAMPLE = Sample(
    name="grey.png",
    size=(32, 32),
    boxes=np.array([[0, 0.5, 0.5, 0.5, 0.5]], np.float32),
    reader=lambda: np.full((32, 32, 3), 114, np.uint8),
)
OUTLINED = dataclasses.replace(SAMPLE, polygons=(np.array([[0.2, 0.2], [0.8, 0.2], [0.5, 0.8]], np.float32),))


def opened(cache, samples=(SAMPLE,) * 3, stream=STREAM, hyperparameters=None):
    made = open_stream(samples, hyperparameters or Hyperparameters(), stream, cache, make_mesh(jax.devices()[:1]))
    return made, cache_in_use(cache, made)


@pytest.mark.parametrize(("cache", "kept"), [(None, False), ("val", False), ("ram", True), ("auto", True)])
def test_on_a_cpu_the_host_makes_the_batches_unless_it_is_told_not_to(cache, kept):
    stream, used = opened(cache)
    assert isinstance(stream, TrainingStream)
    assert (stream.images.cache is not None) == kept
    assert used == ("ram" if cache == "auto" else cache)
    assert isinstance(opened("device")[0], DeviceStream)


@pytest.mark.parametrize(("free", "expected"), [(10**9, "on the device"), (20_000, "on the host")])
def test_on_a_gpu_a_cache_without_a_name_is_that_of_the_device_where_it_fits(free, expected, monkeypatch):
    device = SimpleNamespace(platform="gpu")
    mesh = SimpleNamespace(devices=np.array([device], object), local_devices=[device], size=1)
    monkeypatch.setattr(feeding, "free_bytes", lambda device: free)
    monkeypatch.setattr(feeding, "DeviceStream", lambda *arguments: "on the device")
    monkeypatch.setattr(feeding, "training_stream", lambda *arguments: "on the host")
    assert open_stream([SAMPLE] * 3, Hyperparameters(), STREAM, "auto", mesh) == expected


@pytest.mark.parametrize(
    ("free", "devices", "expected"),
    [(10**9, 8, "whole"), (600_000, 8, "divided"), (600_000, 1, "on the host"), (20_000, 8, "on the host")],
)
def test_images_that_do_not_fit_whole_are_divided_among_the_devices(free, devices, expected, monkeypatch, caplog):
    device = SimpleNamespace(platform="gpu")
    mesh = SimpleNamespace(devices=np.array([device], object), local_devices=[device], size=devices)
    monkeypatch.setattr(feeding, "free_bytes", lambda device: free)
    monkeypatch.setattr(feeding, "DeviceStream", lambda *arguments: "divided" if arguments[-1] else "whole")
    monkeypatch.setattr(feeding, "training_stream", lambda *arguments: "on the host")
    stream = dataclasses.replace(STREAM, batch_size=8)
    with caplog.at_level(logging.INFO):
        assert open_stream([SAMPLE] * 100, Hyperparameters(), stream, "device", mesh) == expected
    assert ("divided among the devices, take" in caplog.text) == (expected == "divided")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"samples": (OUTLINED,) * 3}, "follow outlines in mosaics"),
        ({"stream": dataclasses.replace(STREAM, rectangular=True)}, "--rect is done on the host alone"),
        ({"stream": dataclasses.replace(STREAM, effects=True)}, "--albumentations is done on the host alone"),
    ],
)
def test_what_the_device_does_not_do_is_told(changes, reason, caplog):
    with caplog.at_level(logging.WARNING):
        stream, used = opened("device", **changes)
    assert isinstance(stream, TrainingStream)
    assert used == "ram"
    assert reason in caplog.text
    assert "making batches on the host, as with --cache ram" in caplog.text


def test_outlines_do_not_matter_where_there_are_no_mosaics():
    assert isinstance(opened("device", (OUTLINED,) * 3, hyperparameters=Hyperparameters(mosaic=0))[0], DeviceStream)


def test_images_that_do_not_fit_are_told(monkeypatch, caplog):
    monkeypatch.setattr(feeding, "free_bytes", lambda device: 20_000)
    stream, _ = opened("device")
    assert isinstance(stream, TrainingStream)
    assert "3 images need 0.00 GB of every device" in caplog.text


@pytest.mark.parametrize("flag", ["rect", "albumentations"])
def test_flags_that_contradict_each_other_are_refused(flag):
    with pytest.raises(UserError, match=f"--cache device: cannot go with --{flag}, which is done on the host alone"):
        TrainSettings(cache="device", **{flag: True})


@pytest.mark.long
def test_a_run_trains_on_batches_of_the_device_and_is_resumed_with_them(tiny_model, tiny_data, tmp_path, monkeypatch):
    def settings(**changes):
        fixed = {"weights": "", "cfg": str(tiny_model), "data": str(tiny_data), "imgsz": 64, "batch_size": 4}
        return TrainSettings(**fixed, epochs=2, noval=True, noplots=True, freeze=("2",), **changes)

    whole = train(settings(cache="device", project=str(tmp_path), name="whole"))
    assert read_settings(tmp_path / "whole").cache == "device"
    enter_epoch = Run.enter_epoch

    def broken_off(run):
        if run.position.epoch == 1:
            raise KeyboardInterrupt
        enter_epoch(run)

    monkeypatch.setattr(Run, "enter_epoch", broken_off)
    with pytest.raises(KeyboardInterrupt):
        train(settings(cache="device", project=str(tmp_path), name="broken"))
    monkeypatch.undo()
    resumed = train(TrainSettings(resume=str(tmp_path / "broken")))
    assert (tmp_path / "whole" / "results.csv").read_bytes() == (tmp_path / "broken" / "results.csv").read_bytes()
    assert resumed["final"]["map50_95"] == whole["final"]["map50_95"]
