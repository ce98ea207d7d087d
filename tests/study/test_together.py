"""Runs that read the same kept features, one after another in one process."""

import dataclasses
import json
import re

import numpy as np
import pytest

from yolojax.hyperparameters import Hyperparameters
from yolojax.study.measurements import measure_run
from yolojax.study.report import _progress
from yolojax.study.runner import planned_runs, run_study
from yolojax.study.scenarios import check_study, load_study
from yolojax.study.together import sharing
from yolojax.training.loop import train
from yolojax.training.report import read_results


@pytest.fixture
def study(write_study, tmp_path):
    """Three learning rates at one freeze over kept features, and a run that reads images, between them."""
    for name, rate in (("low", 0.002), ("high", 0.02)):
        rates = dataclasses.asdict(Hyperparameters(lr0=rate))
        (tmp_path / f"{name}.yaml").write_text(json.dumps({key: rates[key] for key in rates if rates[key] is not None}))
    kept = {"freeze": 3, "cache": "features:2"}
    scenarios = [
        {"name": "low", "hyp": str(tmp_path / "low.yaml"), **kept},
        {"name": "images", "freeze": 3},
        {"name": "high", "hyp": str(tmp_path / "high.yaml"), **kept},
        {"name": "shorter", "epochs": 1, **kept},
    ]
    return load_study(write_study(scenarios=scenarios))


def test_what_agrees_in_all_that_features_depend_on_is_together(study, tmp_path):
    low, images, high, shorter = study.scenarios
    assert sharing(images, 0) is None
    assert sharing(low, 0) == sharing(high, 0) == sharing(shorter, 0) != sharing(low, 1)
    other = dataclasses.replace(low, settings=dataclasses.replace(low.settings, imgsz=96))
    assert sharing(other, 0) != sharing(low, 0)
    names = [run.scenario.name for run in planned_runs(study, tmp_path / "out")]
    assert names == ["low", "high", "shorter", "images"]


def test_a_front_part_that_moves_is_told_before_the_first_run(write_study):
    study = load_study(write_study(scenarios=[{"name": "all", "freeze": 0, "cache": "features"}]))
    with pytest.raises(Exception, match="scenario 'all': --cache features: cannot go with --freeze 0: layer 0 moves"):
        check_study(study)


@pytest.mark.slow
def test_runs_share_views_and_a_program_and_learn_as_alone(study, tmp_path):
    output = tmp_path / "out"
    assert run_study(study, output, check_study(study)) == []
    logs = {name: (output / f"{name}-seed0" / "log.txt").read_text() for name in ("low", "high", "shorter", "images")}
    assert len(re.findall("computed view", logs["low"])) == 2
    assert "compiled the step" in logs["low"]
    for name in ("high", "shorter"):
        assert "computed view" not in logs[name]
        assert "kept features: those of a run before this one" in logs[name]
        assert "the step for 4 images of 64 x 64 px: compiled by a run before this one" in logs[name]
    assert "kept features" not in logs["images"]
    records = {name: json.loads((output / f"{name}-seed0" / "study.json").read_text()) for name in logs}
    assert [records[name]["runs_before_in_process"] for name in ("low", "high", "shorter", "images")] == [0, 1, 2, 0]
    told = _progress([measure_run(run) for run in planned_runs(study, output)])
    assert "Runs of one seed of low, high, shorter read kept features in one process" in told
    high = next(scenario for scenario in study.scenarios if scenario.name == "high")
    train(dataclasses.replace(high.settings, project=str(tmp_path), name="alone"))
    alone, together = (read_results(run / "results.csv") for run in (tmp_path / "alone", output / "high-seed0"))
    for row, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(list(other.values()), list(row.values()), rtol=2e-4)


@pytest.mark.slow
def test_a_run_that_fails_leaves_the_others_alone(study, tmp_path):
    (tmp_path / "low.yaml").write_text("lr0: -1")
    output = tmp_path / "out"
    extent = check_study(study.only(["high"]))["high"]
    failed = run_study(study.only(["low", "high"]), output, {"low": extent, "high": extent})
    assert [run.scenario.name for run in failed] == ["low"]
    assert "key 'lr0': -1.0 is negative" in (output / "low-seed0" / "log.txt").read_text()
    assert json.loads((output / "high-seed0" / "study.json").read_text())["status"] == "finished"
