"""A study's figures on the test images: measured by the command that a study starts, here in this process."""

import json

import jax
import numpy as np
import pytest

from yolojax.cli.main import main
from yolojax.errors import UserError
from yolojax.model.network import init_variables
from yolojax.model.spec import load_spec
from yolojax.study.held_out import check_test, measure_test, measured_test
from yolojax.study.scenarios import load_study
from yolojax.training.settings import TrainSettings
from yolojax.weights.store import Weights, save_weights


@pytest.fixture
def held_out_data(tiny_data, tmp_path):
    """The squares with their training images as test images."""
    file = tmp_path / "held-out.yaml"
    file.write_text(tiny_data.read_text() + "test: images/train\n")
    return file


def test_the_test_images_are_those_that_are_validated(held_out_data, tiny_model, tmp_path):
    spec, run = load_spec(tiny_model, 2), tmp_path / "run"
    variables = jax.tree.map(np.asarray, init_variables(spec, jax.random.key(0)))
    save_weights(run / "weights" / "best", Weights(spec=spec, names=("blue", "red"), variables=variables, source={}))
    commands = []

    def start(command, log):
        commands.append(command)
        return main([*command[3:], "--device", "cpu"])

    settings = TrainSettings(data=str(held_out_data), imgsz=64)
    assert measured_test(run) == {}
    assert measure_test(settings, run, start) == 0
    assert "--task=test" in commands[0]
    results = json.loads((run / "test" / "results.json").read_text())
    assert results["images"] == 10  # validation has four
    assert measured_test(run) == {"test_map50": results["map50"], "test_map50_95": results["map50_95"]}


def test_data_without_test_images_is_refused_before_the_first_run(tiny_data, held_out_data):
    check_test(TrainSettings(data=str(held_out_data)))
    with pytest.raises(UserError, match="test"):
        check_test(TrainSettings(data=str(tiny_data)))


def test_a_study_reads_its_key(write_study):
    assert load_study(write_study(test=True)).test
    assert not load_study(write_study()).test
    with pytest.raises(UserError, match="key 'test': expected true or false, found 'images/test'"):
        load_study(write_study(test="images/test"))


def test_a_study_that_has_run_gets_its_columns(measure_afterwards, caplog):
    def write(folder):
        (folder / "test.json").write_text(json.dumps({"test_map50": 0.3, "test_map50_95": 0.15}))

    summary, report, _ = measure_afterwards("measure_test", write, test=True)
    assert "its test images could not be validated: what went wrong; log:" in caplog.text
    assert summary.mean["test_map50"] == pytest.approx(0.3)
    assert "| test mAP50 | test mAP50-95 |" in report
    assert "| .300 | .150 |" in report
