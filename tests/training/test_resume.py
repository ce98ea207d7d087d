"""What stands beside ``--resume``, and which run it means."""

import dataclasses
import json
import subprocess
import sys

import pytest

from yolojax.errors import UserError
from yolojax.lock import LOCK, locked
from yolojax.training.checkpoints import folder_to_resume, refuse_finished
from yolojax.training.settings import TrainSettings, read_settings, settings_to_resume, write_settings

STORED = TrainSettings(data="a.yaml", epochs=5, freeze=("10",), workers=2)
HOLD = "import sys, time; from pathlib import Path; from yolojax.lock import locked\nwith locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def test_where_data_and_devices_are_may_change_and_is_said():
    asked = TrainSettings(resume="x", data="b.yaml", data_root="/photos", device="cpu", workers=8, project="other")
    given = {"resume", "data", "data_root", "device", "workers", "project"}
    settings, sentences = settings_to_resume(STORED, asked, given)
    assert (settings.data, settings.data_root, settings.device) == ("b.yaml", "/photos", "cpu")
    assert (settings.workers, settings.project, settings.freeze) == (8, "other", ("10",))
    assert "--workers: 8 instead of 2" in sentences
    assert len(sentences) == 5


def test_a_run_keeps_the_dtype_that_it_was_begun_with():
    stored = dataclasses.replace(STORED, dtype="float32")  # as runs of before have it, on whatever device
    assert settings_to_resume(stored, TrainSettings(resume="x", dtype="auto"), {"resume", "dtype"}) == (stored, [])
    with pytest.raises(UserError, match="--dtype bfloat16: the run was begun with float32"):
        settings_to_resume(stored, TrainSettings(resume="x", dtype="bfloat16"), {"resume", "dtype"})


def test_a_run_keeps_the_batch_that_was_found_for_it():
    stored = dataclasses.replace(STORED, batch_size=96)
    assert settings_to_resume(stored, TrainSettings(resume="x", batch_size=-1), {"resume", "batch_size"}) == (
        stored,
        [],
    )


def test_what_is_only_a_default_changes_nothing():
    assert settings_to_resume(STORED, TrainSettings(resume="x"), {"resume"}) == (STORED, [])


@pytest.mark.parametrize(
    ("asked", "name", "message"),
    [
        ({"freeze": ("0",)}, "freeze", "--freeze 0: the run was begun with 10"),
        ({"seed": 1}, "seed", "--seed 1: the run was begun with 0"),
        ({"epochs": 4}, "epochs", "--epochs 4: the run was planned for 5 epochs"),
    ],
)
def test_a_flag_that_would_change_the_run_is_refused(asked, name, message):
    with pytest.raises(UserError, match=message):
        settings_to_resume(STORED, TrainSettings(resume="x", **asked), {"resume", name})


def test_weights_beside_resume_mean_their_own_run_and_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "runs" / "train" / name).mkdir(parents=True)
        (tmp_path / "runs" / "train" / name / "settings.yaml").write_text("{}")
    own = TrainSettings(resume="latest", weights="runs/train/a/weights/last")
    assert folder_to_resume(own, {"weights"}) == tmp_path / "runs/train/a"
    with pytest.raises(UserError, match=r"--weights yolov5n.pt --resume: these weights are in no run folder"):
        folder_to_resume(TrainSettings(resume="latest", weights="yolov5n.pt"), {"weights"})
    assert folder_to_resume(TrainSettings(resume="b"), set()) == tmp_path / "runs/train/b"  # by its name alone


@pytest.mark.parametrize(("early", "extended", "epochs"), [(False, False, 5), (True, False, 9)])
def test_a_finished_run_says_so(tmp_path, early, extended, epochs):
    (tmp_path / "results.json").write_text(json.dumps({"epochs": 5, "stopped_early": early}))
    with pytest.raises(UserError, match=r"finished, after 5 epochs .* python train.py --weights"):
        refuse_finished(tmp_path, TrainSettings(epochs=epochs), extended)


@pytest.mark.parametrize(("early", "extended"), [(False, False), (True, True)])
def test_a_finished_run_can_be_extended(tmp_path, early, extended):
    (tmp_path / "results.json").write_text(json.dumps({"epochs": 5, "stopped_early": early}))
    refuse_finished(tmp_path, TrainSettings(epochs=9), extended)


def test_a_folder_in_use_names_the_process_and_one_left_behind_is_taken_over(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {process.pid} on .* is at work in this folder"), locked(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / LOCK).is_file()
    with locked(tmp_path):
        pass


def test_settings_are_read_as_they_were_written(tmp_path):
    settings = TrainSettings(init_head="names", same_as=("lamp=traffic light", "a=b"), freeze=("0-4", "7"), epochs=3)
    write_settings(settings, tmp_path)
    assert read_settings(tmp_path) == settings
