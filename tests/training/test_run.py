"""Runs that another version began, and runs whose newest checkpoint is damaged.

``run_of_0_1`` is what version 0.1 left behind after the second of three epochs on the data of ``tiny_data``; ``weights_of_0_1`` are the
weights that version 0.1 itself ended with.
"""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from yolojax.cli.main import main
from yolojax.weights.find import load_weights

HERE = Path(__file__).parent


@pytest.fixture
def run(tmp_path):
    return Path(shutil.copytree(HERE / "run_of_0_1", tmp_path / "exp"))


def resume(run, tiny_data):
    return main(["train", "--resume", str(run), "--data", str(tiny_data)])


def assert_ended_as_version_0_1(run):
    ended, expected = (load_weights(folder) for folder in (run / "weights" / "last", HERE / "weights_of_0_1"))
    assert ended.source["epoch"] == 3
    for leaf, expected_leaf in zip(jax.tree.leaves(ended.variables), jax.tree.leaves(expected.variables), strict=True):
        np.testing.assert_allclose(leaf, expected_leaf, atol=1e-6)
    assert (run / "results.json").is_file()


def test_a_run_of_version_0_1_goes_on(run, tiny_data, capsys):
    assert resume(run, tiny_data) == 0
    assert "with epoch 3, batch 1" in capsys.readouterr().out
    assert_ended_as_version_0_1(run)


@pytest.mark.parametrize("part", ["state/d", "state/ocdbt.process_0/d", "progress"])
def test_behind_a_damaged_newest_checkpoint_the_one_before_it_is_used_and_said(run, tiny_data, capsys, part):
    for file in (run / "checkpoints" / "6" / part).iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert resume(run, tiny_data) == 0
    messages = capsys.readouterr().out
    assert f"{run / 'checkpoints' / '6'}: cannot be read" in messages
    assert f"it is moved to {run / 'damaged' / '6-1'}, and the one before it is used" in messages
    assert (run / "damaged" / "6-1" / "progress").is_dir()
    assert "with epoch 2, batch 1" in messages
    assert_ended_as_version_0_1(run)


def files_in(run):
    return {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}


def begin_again(run, tiny_data):
    settings = [
        "--weights",
        str(HERE / "weights_of_0_1"),
        "--freeze",
        "1",
        "--data",
        str(tiny_data),
        "--img",
        "64",
        "--batch",
        "4",
    ]
    place = ["--project", str(run.parent), "--name", run.name, "--exist-ok"]
    return main(["train", *settings, *place, "--epochs", "1", "--workers", "0", "--noplots", "--noval"])


def test_a_new_run_replaces_no_unfinished_one(run, tiny_data, capsys):
    before = files_in(run)
    assert begin_again(run, tiny_data) == 2
    assert f"{run}: holds an unfinished run" in capsys.readouterr().err
    assert files_in(run) == before


def test_a_new_run_replaces_a_finished_one_and_leaves_other_files(run, tiny_data):
    (run / "results.json").write_text("{}")
    (run / "notes.txt").write_text("mine")
    assert begin_again(run, tiny_data) == 0
    assert load_weights(run / "weights" / "last").source["epoch"] == 1
    assert [folder.name for folder in (run / "checkpoints").iterdir()] == ["3"]
    assert (run / "notes.txt").read_text() == "mine"


def test_a_run_without_one_checkpoint_that_can_be_read_says_how_to_go_on(run, tiny_data, capsys):
    for folder in (run / "checkpoints").iterdir():
        shutil.rmtree(folder / "progress")
    before = files_in(run)
    assert resume(run, tiny_data) == 2
    messages = capsys.readouterr().err
    assert "no checkpoint of this run can be read; start it again without --resume" in messages
    assert files_in(run) == before
